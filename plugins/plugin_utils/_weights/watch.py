# SPDX-License-Identifier: Apache-2.0
"""Follow a node's part of a transfer from the control node, and be the first link of its chain.  Does I/O."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import Store

#: How long one question to the node lasts.
POLL_S = 4
LOOPBACK = "127.0.0.1"


class WatchError(Exception):
    """The transfer can no longer be followed; the text says why."""


def serve_origin(manifest: Mapping[str, Any], origin: Mapping[str, Any], token: str) -> tuple[Server, int]:
    """Serve the source's files on the loopback; return the server and its port.

    :param origin: what gb10.cluster.weights_manifest returned of the source.
    """
    names = [file["path"] for file in manifest["files"]]
    store = Store(manifest, [Path(origin["folder"]) / name for name in names], [True] * len(names))
    store.load_hashes(Path(origin["pieces"]).read_bytes(), origin["pieces"])
    store.marks = {number: list(origin["marks"][name]) for number, name in enumerate(names)}
    server = Server(store, token, [LOOPBACK])
    return server, server.listen(LOOPBACK, 0)


def connection_error(name: str, transport: str, password: object) -> str | None:
    """Return why a node's connection cannot carry weights, or None."""
    if transport != "ssh":
        return (
            f"{name}: weights go to a node over ssh, and its connection is {transport}. Use ansible.builtin.ssh for "
            "it, or put the model there by hand and run again."
        )
    if password:
        return (
            f"{name}: weights go to a node over SSH connections of their own, which need a key. Give it one "
            "(ssh-copy-id) instead of ansible_password."
        )
    return None


def forward_options(node_port: int, port: int) -> list[str]:
    """Return the options with which ssh lets a node reach a port of the control node at its own loopback."""
    return [
        "-S", "none", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "Compression=no",
        # A hardware cipher: the default one is bound by a core at a third of its rate.
        "-o", "Ciphers=^aes128-gcm@openssh.com",
        "-T", "-R", f"{LOOPBACK}:{node_port}:{LOOPBACK}:{port}",
    ]  # fmt: skip


def open_tunnel(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start ssh; it ends with its standard input, thus with this process, however that ends."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def follow(
    name: str,
    ask: Callable[[], Mapping[str, Any]],
    show: Callable[[str], None],
    warn: Callable[[str], None],
    tunnels: Sequence[subprocess.Popen[bytes]] = (),
    every_s: float = 10,
    stalled_s: float = 8,
) -> dict[str, Any]:
    """Ask the node until its transfer has ended, and return its last status; show lines of progress meanwhile.

    :param ask: returns the node's status.
    :param show: takes a line of progress, at most one in ``every_s``.
    :param warn: takes a sentence about a node that has received nothing for ``stalled_s``, once a stall.
    :param tunnels: the connections that carry the files; the transfer fails with them.
    :raises WatchError: the process that started this one has ended.
    """
    parent = os.getppid()
    shown_at, stalled = 0.0, False
    while True:
        # Before the status: a connection that ends after the node was complete is no failure.
        gone = [tunnel for tunnel in tunnels if tunnel.poll() is not None]
        status = dict(ask())
        moment = time.monotonic()
        if os.getppid() != parent:
            raise WatchError("The play that this belongs to has ended.")
        if status["state"] in ("complete", "failed"):
            show(weights.progress_line(name, status))
            return status
        if gone:
            said = (gone[0].stderr.read() if gone[0].stderr else b"").decode(errors="replace").strip()
            message = (
                f"the SSH connection that carries the files ended: {said[-500:]} Does the node's sshd allow it "
                "(AllowTcpForwarding)? What has arrived is kept."
            )
            return {**status, "state": "failed", "message": message}
        if moment - shown_at >= every_s:
            show(weights.progress_line(name, status))
            shown_at = moment
        line = weights.stall_line(name, status, stalled_s)
        if line and not stalled:
            warn(line)
        stalled = bool(line)


def status_of(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status in an answer of gb10.cluster.weights_move.

    :raises WatchError: the module failed, or did not run at all.
    """
    if not answer.get("failed") and "status" in answer:
        return dict(answer["status"])
    if "msg" in answer:
        raise WatchError(f"{name}: {answer['msg']}")
    raise WatchError(f"{name} gave no status: {answer.get('module_stderr', '')}")


def ask_aloud(
    name: str, ask: Callable[[], Mapping[str, Any]], warn: Callable[[str], None], stalled_s: float
) -> Mapping[str, Any]:
    """Return the node's answer; warn when there is none yet, while the connection's own timeout runs."""
    answered = threading.Event()

    def complain() -> None:
        if not answered.wait(POLL_S + stalled_s):
            warn(f"{name} has not answered for {stalled_s} s, or longer.")

    threading.Thread(target=complain, daemon=True).start()
    try:
        return ask()
    finally:
        answered.set()
