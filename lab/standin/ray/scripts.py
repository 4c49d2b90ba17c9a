# SPDX-License-Identifier: Apache-2.0
"""``ray start --head`` and ``ray start --block --address``: a head that counts nodes, and nodes that stay."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence


def head_process(address: str, port: int) -> None:
    """Be the head: count who is connected, until this process is ended."""
    nodes = {address: True}
    server = socket.create_server((address, port))
    print("ready", flush=True)

    def attend(peer: socket.socket) -> None:
        lines = peer.makefile("r", encoding="utf-8")
        asked = lines.readline().split()
        if asked[:1] == ["nodes"]:
            known = [{"Alive": alive, "NodeManagerAddress": name} for name, alive in nodes.items()]
            peer.sendall((json.dumps(known) + "\n").encode())
        elif asked[:1] == ["join"]:
            nodes[asked[1]] = True
            peer.sendall(b"ok\n")
            with contextlib.suppress(OSError):
                lines.read()
            nodes[asked[1]] = False
        peer.close()

    while True:
        peer, _where = server.accept()
        threading.Thread(target=attend, args=(peer,), daemon=True).start()


def start_head(address: str, port: int) -> int:
    """Start the head beside this process; returns the exit status."""
    command = [sys.executable, "-m", "ray.scripts", "head-process", f"--node-ip-address={address}", f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if process.stdout is None or process.stdout.readline().strip() != "ready":
        print(f"ConnectionError: Ray is trying to start at {address}:{port}, but the port cannot be bound.", flush=True)
        return 1
    print(f"Local node IP: {address}\n\n--------------------\nRay runtime started.\n--------------------", flush=True)
    return 0


def join(head: str, address: str) -> int:
    """Join a head and stay until it is gone; returns the exit status."""
    host, _colon, port = head.rpartition(":")
    try:
        peer = socket.create_connection((host, int(port)), timeout=10)
        peer.settimeout(None)
        peer.sendall(f"join {address}\n".encode("ascii"))
        lines = peer.makefile("r", encoding="ascii")
        if lines.readline() != "ok\n":
            raise ConnectionError("the head left")
    except OSError as error:
        print(f"RuntimeError: Failed to connect to GCS at address={head}: {error}", flush=True)
        return 1
    print(f"Local node IP: {address}\n\n--------------------\nRay runtime started.\n--------------------", flush=True)
    print("--block\nThis command will now block forever until terminated by a signal.", flush=True)
    with contextlib.suppress(OSError):
        lines.read()
    print(
        "Some Ray subprocesses exited unexpectedly:\n  raylet [exit code=1]\n\nRemaining processes will be killed.",
        flush=True,
    )
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ray")
    parser.add_argument("--version", action="version", version="ray, version 2.60.0 (stand-in)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "head-process"):
        command = commands.add_parser(name)
        command.add_argument("--head", action="store_true")
        command.add_argument("--block", action="store_true")
        command.add_argument("--address", default="")
        command.add_argument("--node-ip-address", default="127.0.0.1")
        command.add_argument("--port", type=int, default=6379)
        command.add_argument("--disable-usage-stats", action="store_true")
        for known in ("--num-cpus", "--num-gpus", "--object-store-memory", "--memory", "--include-dashboard"):
            command.add_argument(known)
    args = parser.parse_args(argv)
    if args.command == "head-process":
        head_process(args.node_ip_address, args.port)
        return 0
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    if args.head == bool(args.address):
        parser.error("give either --head or --address")
    if args.head:
        return start_head(args.node_ip_address, args.port)
    return join(args.address, args.node_ip_address)


if __name__ == "__main__":
    sys.exit(main())
