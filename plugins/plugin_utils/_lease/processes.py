# SPDX-License-Identifier: Apache-2.0
"""The run of ansible-playbook that holds a lease, and the process beside it that renews the lease meanwhile."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.lease import RENEW_SECONDS

#: How often the run is looked at.
LOOK_SECONDS = 1.0


def user() -> str:
    """Return the name of the user, or the number where there is no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def control_node() -> str:
    """Return what tells this control node, or this container on it, from others; a digest, not its identifiers."""
    parts = [socket.gethostname()]
    try:
        parts += [
            Path("/etc/machine-id").read_text(encoding="ascii").strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    except OSError:
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def started(pid: int) -> str | None:
    """Return what tells a process from a later one of the same number: its start in ticks since the boot.

    Empty where the system has no /proc; None for a process that has ended, also when nobody has asked for its status.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number that does not fit
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "" if not Path("/proc/self/stat").exists() else None
    return None if fields[0] in "ZX" else fields[19]


def describe(pid: int) -> dict[str, Any]:
    """Return a process of this control node as the lease names it."""
    return {"node": control_node(), "pid": pid, "started": started(pid) or ""}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Return whether a process that a lease names is known to have ended; one of another control node never is."""
    try:
        pid = int(process["pid"])
    except (KeyError, TypeError, ValueError):
        return False
    if pid <= 0 or process.get("node") != control_node():
        return False
    now = started(pid)
    return now is None or bool(now and process.get("started") and now != process["started"])


def keep(
    lives: Callable[[], bool],
    renew: Callable[[], str],
    lost: Callable[[str], None],
    release: Callable[[], None],
    *,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Renew the leases of a run while it lives, and end them after it.

    :param lives: whether the run lives.
    :param renew: renews once; returns who has taken the leases over, or nothing.
    :param lost: called with that, once, instead of `release`.
    """
    due_s = now_s() + RENEW_SECONDS
    while lives():
        if now_s() >= due_s:
            taken = renew()
            # It may have ended meanwhile, and its number be that of another process.
            if taken and lives():
                lost(taken)
                return
            due_s = now_s() + RENEW_SECONDS
        sleep(LOOK_SECONDS)
    release()


def await_end(
    runs: Sequence[Mapping[str, Any]],
    seconds: float,
    *,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the processes that leases name are known to have ended, or so many seconds are over."""
    end_s = now_s() + seconds
    while now_s() < end_s and not all(map(has_ended, runs)):
        sleep(LOOK_SECONDS)


def stop(pid: int, why: str) -> None:
    """Say on the terminal of a run why it ends, and end it as SIGTERM does."""
    with contextlib.suppress(OSError):
        terminal = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
        os.write(terminal, f"\n{why}\n".encode())
        os.close(terminal)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def beside(body: Callable[[], None]) -> int:
    """Run a function in a process that survives this one and holds nothing of it open; return its number."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            grandchild = os.fork()
            if grandchild:
                os.write(send, str(grandchild).encode())
            else:
                _let_go()
                body()
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        number = int(answer.read() or b"0")
    os.waitpid(child, 0)
    return number


def _let_go() -> None:
    """Keep no file of the parent open, and none of its signal handlers."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
