# SPDX-License-Identifier: Apache-2.0
"""Start and stop a Kubernetes API on the loopback interface: etcd, kube-apiserver, kube-controller-manager."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError, connect
from lab.kube.definition import definition
from lab.ports import free_port
from lab.waiting import wait_until

PROGRAMS = ("etcd", "kube-apiserver")
MANAGER = "kube-controller-manager"
CACHE = Path("~/.cache/gb10/kube").expanduser()
CONTROLLERS = "namespace,serviceaccount,job,garbagecollector,ttl-after-finished,podgc"
#: Without a line of any program.
STALL_SECONDS = 180.0


class KubeError(RuntimeError):
    """The API cannot be started; the message has the reason and the end of the log."""


@dataclass(frozen=True)
class Binaries:
    """Where the programs are, and in words where they come from."""

    directory: Path
    origin: str

    @property
    def has_manager(self) -> bool:
        return (self.directory / MANAGER).is_file()


def find_binaries() -> Binaries | None:
    """Return the programs of KUBEBUILDER_ASSETS or of the cached build (lab/kube/build), or None."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given and all((Path(given) / each).is_file() for each in PROGRAMS):
        return Binaries(Path(given), "KUBEBUILDER_ASSETS")
    if (CACHE / ".complete").is_file():
        return Binaries(CACHE, f"the cached build, {(CACHE / '.complete').read_text(encoding='utf-8').strip()}")
    return None


@dataclass(frozen=True)
class Running:
    """A running API.

    :ivar kubeconfig: contexts ``admin`` and ``nobody``: the second has no rights at first.
    """

    kubeconfig: Path
    cluster: Cluster
    version: str
    origin: str
    has_manager: bool
    directory: Path


def _kubeconfig(path: Path, server: str, authority: Path, tokens: dict[str, str]) -> None:
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "admin",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": name, "user": {"token": token}} for name, token in tokens.items()],
        "contexts": [{"name": name, "context": {"cluster": "lab", "user": name}} for name in tokens],
    }
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    path.chmod(0o600)


def _certificates(directory: Path) -> None:
    """Make a key for signing service accounts and a certificate of the server."""
    key, pem = directory / "server.key", directory / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key),
         "-out", str(pem), "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip


class Processes:
    """Programs of one directory: their logs are in it, and they end together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: list[str], more: Mapping[str, str] | None = None) -> None:
        """Start a program, with more variables in its environment."""
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(more or {})},
            )
        self._running.append((name, process))

    def check(self) -> None:
        """Raise what a program that ended said last."""
        for name, process in self._running:
            if process.poll() is not None:
                text = (self._directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                raise KubeError(f"{name} ended with {process.returncode}: {text[-1500:]}")

    def written(self) -> list[int]:
        """Return the size of each program's log."""
        return [(self._directory / f"{name}.log").stat().st_size for name, _process in self._running]

    def stop(self) -> None:
        """End them, the last one first."""
        for _name, process in reversed(self._running):
            process.terminate()
        for _name, process in reversed(self._running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(cluster: Cluster, processes: Processes) -> str:
    def version() -> str:
        processes.check()
        with contextlib.suppress(ClusterError):
            if cluster.ask("GET", "/readyz").status == 200:
                return str(cluster.request("GET", "/version")["gitVersion"])
        return ""

    return wait_until(
        version, processes.written, lambda _none: "The API is not ready: see the logs.", stall_seconds=STALL_SECONDS
    )


@contextlib.contextmanager
def running(directory: Path, binaries: Binaries) -> Iterator[Running]:
    """Start the API in a directory; stop it at the end. The definition of DynamoGraphDeployment is in it."""
    _certificates(directory)
    tokens = {name: secrets.token_hex(16) for name in ("admin", "nobody")}
    lines = [f'{tokens["admin"]},admin,1,"system:masters"', f"{tokens['nobody']},nobody,2"]
    (directory / "tokens.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    store, peer, port = free_port(), free_port(), free_port()
    authority = directory / "server.crt"
    kubeconfig = directory / "kubeconfig"
    _kubeconfig(kubeconfig, f"https://127.0.0.1:{port}", authority, tokens)
    at = binaries.directory
    processes = Processes(directory)
    try:
        processes.start("etcd", [
            str(at / "etcd"), f"--data-dir={directory / 'etcd'}", "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{store}", f"--advertise-client-urls=http://127.0.0.1:{store}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ])  # fmt: skip
        processes.start("kube-apiserver", [
            str(at / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{store}", f"--secure-port={port}",
            "--bind-address=127.0.0.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={authority}", f"--tls-private-key-file={directory / 'server.key'}",
            f"--token-auth-file={directory / 'tokens.csv'}", "--authorization-mode=RBAC",
            f"--service-account-signing-key-file={directory / 'server.key'}",
            f"--service-account-key-file={directory / 'server.key'}", "--service-account-issuer=https://localhost",
            "--disable-admission-plugins=ServiceAccount",
        ])  # fmt: skip
        cluster = connect(str(kubeconfig), "admin")
        version = _ready(cluster, processes)
        if binaries.has_manager:
            processes.start(MANAGER, [
                str(at / MANAGER), f"--kubeconfig={kubeconfig}", f"--controllers={CONTROLLERS}", "--leader-elect=false",
                f"--service-account-private-key-file={directory / 'server.key'}", "--port=0",
                f"--cert-dir={directory / 'manager'}", f"--secure-port={free_port()}", "--bind-address=127.0.0.1",
                "--concurrent-gc-syncs=5",
            ])  # fmt: skip
        _define(cluster, processes)
        yield Running(kubeconfig, cluster, version, binaries.origin, binaries.has_manager, directory)
        processes.check()
    finally:
        processes.stop()


def _define(cluster: Cluster, processes: Processes) -> None:
    made = definition(cluster.request("GET", "/openapi/v2"))
    cluster.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", made)

    def served() -> bool:
        processes.check()
        return "dynamographdeployments" in cluster.served("nvidia.com").get("v1beta1", [])

    wait_until(
        served,
        processes.written,
        lambda _no: "The definition of DynamoGraphDeployment is not served: see the logs.",
        stall_seconds=STALL_SECONDS,
    )
