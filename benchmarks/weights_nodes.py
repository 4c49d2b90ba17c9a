# SPDX-License-Identifier: Apache-2.0
"""The machines of the benchmark of weights: network namespaces on shaped links, a model's files, movers, ssh."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store as weights_store

PREFIX = "gbw"
PORT = 5081
TOKEN = "benchmark"
MAX_WORKERS = 7
MANIFEST_NAME = "org/model"


def call(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; fail with what it says."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done


def address(node: int) -> str:
    """Return a node's address on the fabric; 0 is the head."""
    return f"10.97.0.{10 + node}"


CONTROL = "10.97.0.9"


def space(node: int | str) -> str:
    """Return the name of a node's namespace."""
    return f"{PREFIX}{node}"


@dataclass
class Child:
    """A process in a namespace, with the CPU seconds that it and its children used."""

    process: subprocess.Popen[bytes]
    cpu_s: float = 0.0
    ended: bool = False

    def wait(self) -> int:
        """Wait for its end."""
        _pid, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s, self.ended = usage.ru_utime + usage.ru_stime, True
        return self.process.returncode

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait."""
        if not self.ended:
            self.process.send_signal(number)
            self.wait()


@dataclass
class Bench:
    """The namespaces and directories."""

    folder: Path
    sshd: str
    library_path: str
    rate_mbit: int
    slow_mbit: int
    program: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    origin_arguments: str = ""
    children: list[Child] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.folder / "source" / MANIFEST_NAME

    def root(self, node: int) -> Path:
        return self.folder / f"node{node}" / "weights"

    # The network.

    def make_network(self) -> None:
        """Make the namespaces; the bridge is in one of its own, so that the host's filters do not see the traffic."""
        self.remove_network()
        call("ip", "netns", "add", space("br"))
        call("ip", "-n", space("br"), "link", "add", "br0", "type", "bridge")
        call("ip", "-n", space("br"), "link", "set", "br0", "mtu", "9000", "up")
        for node in [*range(MAX_WORKERS + 1), "c"]:
            name, port = space(node), f"p{node}"
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
            call("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", space("br"))
            call("ip", "-n", name, "link", "set", "eth0", "mtu", "9000", "up")
            own = CONTROL if node == "c" else address(int(node))
            call("ip", "-n", name, "address", "add", f"{own}/24", "dev", "eth0")
            call("ip", "-n", space("br"), "link", "set", port, "mtu", "9000", "master", "br0", "up")

    def remove_network(self) -> None:
        """Remove them; links go with the namespaces."""
        for line in call("ip", "netns", "list").stdout.splitlines():
            name = line.split()[0]
            if name in {space(node) for node in [*range(MAX_WORKERS + 1), "c", "br"]}:
                call("ip", "netns", "delete", name)
                shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def shape(self, fabric_mbit: int | None, control_mbit: int | None) -> None:
        """Give every link its rate, in both directions."""
        for node in [*range(MAX_WORKERS + 1), "c"]:
            rate = control_mbit if node == "c" else fabric_mbit
            for name, device in ((space(node), "eth0"), (space("br"), f"p{node}")):
                call("tc", "-n", name, "qdisc", "del", "dev", device, "root", check=False)
                if rate:
                    burst = max(131072, rate * 1000000 // 8 // 250)
                    call(
                        "tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf",
                        "rate", f"{rate}mbit", "burst", f"{burst}b", "latency", "20ms",
                    )  # fmt: skip

    def received_bytes(self, node: int) -> int:
        """Return what a node's port has counted."""
        words = ("ip", "-n", space(node), "-s", "-j", "link", "show", "eth0")
        return int(json.loads(call(*words).stdout)[0]["stats64"]["rx"]["bytes"])

    def arrived_bytes(self, node: int) -> int:
        """Return what a node has of the model, as its file system accounts for it."""
        return sum(path.stat().st_blocks * 512 for path in self.root(node).rglob("*") if path.is_file())

    def spawn(self, node: int | str, *words: str, **environment: str) -> Child:
        """Start a command in a namespace."""
        log = (self.folder / f"log-{node}").open("ab")
        process = subprocess.Popen(
            ["ip", "netns", "exec", space(node), *words],
            env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        child = Child(process)
        self.children.append(child)
        return child

    # The files.

    def make_source(self, total_bytes: int) -> None:
        """Make shards of mixed sizes, from 1 to 100 parts, and small files."""
        noise = random.Random(97)
        self.source.mkdir(parents=True)
        parts = [noise.randint(1, 100) for _shard in range(22)]
        sizes = [total_bytes * part // sum(parts) for part in parts]
        block = noise.randbytes(2**20)
        for number, size in enumerate(sizes):
            with (self.source / f"model-{number:05d}.safetensors").open("wb") as handle:
                left = size
                while left > 0:
                    handle.write(noise.randbytes(16) + block[: min(left, 2**20) - 16] if left > 16 else b"x" * left)
                    left -= min(left, 2**20)
        for name in ("config.json", "tokenizer.json", "merges.txt"):
            (self.source / name).write_bytes(noise.randbytes(5000))
        files, pieces = [], b""
        paths = sorted(self.source.iterdir())
        piece_bytes = weights.piece_bytes_for(sum(path.stat().st_size for path in paths))
        for path in paths:
            digest, parts_of = weights_store.hash_file(path, piece_bytes)
            files.append({"path": path.name, "size": path.stat().st_size, "sha256": digest})
            pieces += parts_of
        self.manifest = weights.make_manifest(MANIFEST_NAME, "main", files, piece_bytes, pieces)
        pieces_path = self.folder / "pieces"
        pieces_path.write_bytes(pieces)
        self.origin_arguments = json.dumps(
            {"manifest": self.manifest, "folder": str(self.source), "pieces": str(pieces_path)}
        )
        (self.folder / "origin.json").write_text(self.origin_arguments, encoding="utf-8")

    def clear(self) -> None:
        """Remove every node's copy, and let the disk come to rest."""
        for node in range(MAX_WORKERS + 1):
            shutil.rmtree(self.folder / f"node{node}", ignore_errors=True)
        os.sync()

    def place_on_head(self) -> None:
        """Give the head a complete copy, as after an earlier transfer."""
        tree = self.root(0) / MANIFEST_NAME
        shutil.copytree(self.source, tree)
        node_files.write(tree / weights.PIECES, (self.folder / "pieces").read_bytes())
        weights_store.stamp(tree, self.manifest)

    def assert_complete(self, node: int) -> None:
        """Compare a node's files with the source's, byte by byte."""
        tree = self.root(node) / MANIFEST_NAME
        for path in self.source.iterdir():
            if not filecmp.cmp(path, tree / path.name, shallow=False):
                raise SystemExit(f"{tree / path.name} is not what the source has.")

    # Our way.

    def start_mover(self, node: int, workers: int, complete: bool = False, tunnels: int = 0) -> Child:
        """Start a node's mover, as the role does."""
        run_dir = self.folder / f"node{node}" / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "lease").touch()
        (run_dir / "status.json").unlink(missing_ok=True)
        chain = [str(member) for member in range(workers + 1)]
        addresses = {str(member): address(member) for member in range(workers + 1)}
        job = {
            **weights.plan_node(chain, str(node), addresses, PORT, tunnels),
            "manifest": self.manifest, "root": str(self.root(node)), "complete": complete, "port": PORT,
            "missing": [] if complete else [file["path"] for file in self.manifest["files"]], "token": TOKEN,
            "streams": 8, "stall_s": 120, "lease_s": 600, "run": "1", "run_dir": str(run_dir),
        }  # fmt: skip
        (run_dir / "job.json").write_text(json.dumps(job), encoding="utf-8")
        return self.spawn(node, sys.executable, "-I", "-B", str(self.program), "move", str(run_dir / "job.json"))

    def status(self, node: int) -> dict[str, Any]:
        """Return what a node's mover reports of itself."""
        try:
            found: dict[str, Any] = json.loads((self.folder / f"node{node}" / "run" / "status.json").read_text())
        except (OSError, ValueError):
            return {"state": "none"}
        return found

    def wait_complete(self, nodes: Sequence[int]) -> None:
        """Wait until the nodes report that they are complete."""
        deadline = time.monotonic() + 900
        while True:
            states = {node: self.status(node) for node in nodes}
            failed = [f"{node}: {state['message']}" for node, state in states.items() if state["state"] == "failed"]
            if failed or time.monotonic() > deadline:
                raise SystemExit(f"The transfer did not end: {failed or states}")
            if all(state["state"] == "complete" for state in states.values()):
                return
            time.sleep(0.05)

    # ssh, for rsync and for the way from the control node.

    def start_sshd(self, node: int) -> Child:
        """Start an sshd in a node's namespace."""
        keys = self.folder / "ssh"
        if not keys.is_dir():
            keys.mkdir(mode=0o700)
            for name in ("host", "user"):
                call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
            shutil.copy(keys / "user.pub", keys / "authorized")
        (keys / "sshd_config").write_text(
            f"HostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nAllowTcpForwarding yes\n",
            encoding="utf-8",
        )
        # sshd wants a user for its unprivileged half; `ip netns exec` lays this over the namespace's own /etc.
        etc = Path("/etc/netns") / space(node)
        etc.mkdir(parents=True, exist_ok=True)
        passwd = Path("/etc/passwd").read_text(encoding="utf-8")
        if "\nsshd:" not in passwd:
            passwd += "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (etc / "passwd").write_text(passwd, encoding="utf-8")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        child = self.spawn(
            node, self.sshd, "-D", "-e", "-f", str(keys / "sshd_config"), "-o", f"ListenAddress={address(node)}",
            LD_LIBRARY_PATH=self.library_path,
        )  # fmt: skip
        for _attempt in range(100):
            probe = self.spawn("c" if node == 0 else 0, *self.ssh(), address(node), "true")
            if probe.wait() == 0:
                return child
            time.sleep(0.1)
        raise SystemExit(f"sshd did not come up: {(self.folder / f'log-{node}').read_text()[-500:]}")

    def ssh(self) -> list[str]:
        """Return the ssh command."""
        options = (
            "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={self.folder}/ssh/known",
            "BatchMode=yes",
            "LogLevel=ERROR",
        )
        return [
            "ssh",
            "-F",
            "none",
            "-i",
            f"{self.folder}/ssh/user",
            *(word for each in options for word in ("-o", each)),
        ]

    def rsync(self, node: int) -> Child:
        """Send the head's files to a worker, as owners do."""
        target = self.root(node) / MANIFEST_NAME
        target.mkdir(parents=True, exist_ok=True)
        return self.spawn(
            0,
            "rsync",
            "-a",
            "-e",
            shlex.join(self.ssh()),
            f"{self.root(0) / MANIFEST_NAME}/",
            f"{address(node)}:{target}/",
        )

    def stop_all(self) -> None:
        """End whatever of this benchmark still runs."""
        for child in self.children:
            if not child.ended:
                child.stop(signal.SIGKILL)
        self.children.clear()
