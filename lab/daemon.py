# SPDX-License-Identifier: Apache-2.0
"""Reach the host's Docker Engine, or install and start one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from lab.capabilities import bounding_set, in_inner_namespace
from lab.errors import LabError
from lab.progress import Progress, run_logged, tail
from lab.waiting import wait_until

#: A dockerd that starts writes to its log; one that has not for so long hangs.
_START_STALL_SECONDS = 180.0
_CONTROL_PROGRAMS = {"ssh": "openssh-client", "rsync": "rsync"}
_SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
)


def which(program: str) -> str | None:
    """Return the path of a program, also where a plain user's PATH has no sbin directories."""
    return shutil.which(program, path=_SEARCH_PATH)


def connect() -> tuple[Any | None, str]:
    """Return (client, "") or (None, why) for the Docker Engine that the environment points to."""
    try:
        client = docker.from_env(version="auto", timeout=600)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        return None, str(error)
    return client, ""


def client_only() -> Any:
    """Return a client of a running Docker Engine; raise LabError, and start nothing, without."""
    client, why = connect()
    if client is None:
        raise LabError(f"No Docker Engine answers here, so no lab can be running: {why}")
    return client


def install(packages: Sequence[str], why: str, log: Path) -> None:
    """Install Debian packages as root; LabError says what they are for when that is not possible."""
    apt = which("apt-get")
    if os.geteuid() != 0 or apt is None:
        raise LabError(f"{why}: install {', '.join(packages)} by hand, or run this as root where apt-get is.")
    log.parent.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", PATH=_SEARCH_PATH)
    command = [apt, "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    run_logged([*command, "update"], log, env=env)
    run_logged([*command, "install", "--no-install-recommends", *packages], log, env=env)


def ensure_control_programs(state: Path, progress: Progress) -> None:
    """Make sure that this host can be the control node: an SSH client and rsync."""
    missing = [package for program, package in _CONTROL_PROGRAMS.items() if which(program) is None]
    if missing:
        with progress.step(f"Install {', '.join(missing)}"):
            install(missing, "Ansible reaches the nodes over SSH and copies with rsync", state / "install.log")


def _install(log: Path, progress: Progress) -> str:
    with progress.step("Install a Docker Engine (package docker.io)"):
        install(["docker.io"], "No Docker Engine is installed", log)
    dockerd = which("dockerd")
    if dockerd is None:
        raise LabError(f"The package docker.io was installed but dockerd is not there; see {log}.")
    return dockerd


def ensure(state: Path, progress: Progress) -> Any:
    """Return a client of the host's Docker Engine; install and start one when none answers.

    state: the lab's state directory, for the logs. Only root can install or start one; otherwise,
    and when the engine does not come up, LabError says what was tried.
    """
    client, why = connect()
    if client is not None:
        return client
    if os.environ.get("DOCKER_HOST"):
        raise LabError(f"The Docker Engine at DOCKER_HOST={os.environ['DOCKER_HOST']} does not answer: {why}")
    if os.geteuid() != 0:
        hint = (
            "you may not use its socket: join the group docker and log in again"
            if "Permission denied" in why
            else "start it, or run this as root, which can install and start one"
        )
        raise LabError(f"No Docker Engine that this user can use answers here ({why}); {hint}.")
    state.mkdir(parents=True, exist_ok=True)
    dockerd = which("dockerd") or _install(state / "docker-install.log", progress)
    log = state / "dockerd.log"
    process: subprocess.Popen[bytes] | None = None
    with progress.step("Start the Docker Engine"):
        if Path("/run/systemd/system").is_dir():
            run_logged(["systemctl", "start", "docker.service"], log)
        else:
            client, _unused = connect()  # the package's installation may have started it
            if client is not None:
                return client
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [dockerd],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd="/",
                    env=dict(os.environ, PATH=_SEARCH_PATH),
                )
        reason = [""]

        def answers() -> Any | None:
            # Whether it has ended is read before it is asked: what ends in between is asked once more.
            ended = process is not None and process.poll() is not None
            client, reason[0] = connect()
            if client is None and ended and process is not None:
                raise LabError(f"dockerd ended with exit code {process.returncode}; its log {log} ends:\n{tail(log)}")
            return client

        return wait_until(
            answers,
            lambda: log.stat().st_size if log.exists() else 0,
            lambda _none: f"The Docker Engine does not answer ({reason[0]}); its log {log} ends:\n{tail(log)}",
            stall_seconds=_START_STALL_SECONDS,
        )


def installed(state: Path, progress: Progress) -> Any | None:
    """Return a client like `ensure`, but None, and nothing installed, where no engine is installed."""
    client, _why = connect()
    if client is None and not os.environ.get("DOCKER_HOST") and which("dockerd") is None:
        return None
    return client or ensure(state, progress)


def held_capabilities(proc: Path = Path("/proc")) -> frozenset[str] | None:
    """Return the capabilities that the host's dockerd may hand on, or None if it is not visible."""
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text(encoding="utf-8").strip() != "dockerd":
                continue
            status = (entry / "status").read_text(encoding="utf-8")
        except OSError:
            continue
        if not in_inner_namespace(status):  # not a node's own Docker Engine
            return bounding_set(status)
    return None
