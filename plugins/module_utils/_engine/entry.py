# SPDX-License-Identifier: Apache-2.0
"""First process of an engine's container: gathers the ranks, starts Ray where needed, runs vLLM and watches it.

While the engine starts, MemAvailable of the node is watched: below the start floor the container ends at once, because
a host without memory accepts no commands any more.  What it prints is read by the probe.

It runs inside the image: standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._engine import ray
from ansible_collections.gb10.cluster.plugins.module_utils._engine.group import Group
from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import Life, say
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import available_gib

MEMORY_POLL_S = 0.25
HEALTH_POLL_S = 2.0
MEMINFO = Path("/proc/meminfo")


def missing_environment(required: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    return [name for name in required if not environment.get(name)]


def watch_memory(floor_gib: float, serving: threading.Event, life: Life) -> None:
    """End the start when MemAvailable falls under the start floor; return when the engine serves."""
    while not serving.is_set():
        have = available_gib(MEMINFO.read_text(encoding="ascii"))
        if have < floor_gib:
            life.end(1, f"stopped: MemAvailable {have:.2f} GiB is below the start floor of {floor_gib:.2f} GiB")
        serving.wait(MEMORY_POLL_S)


def await_health(url: str, serving: threading.Event) -> None:
    """Set ``serving`` when the API reports that it is healthy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=10) as answer:
                if answer.status == 200:
                    serving.set()
                    return
        except (OSError, ValueError):
            pass
        time.sleep(HEALTH_POLL_S)


def mark(path: Path, serving: threading.Event) -> None:
    """Create a file for the node once the engine serves."""
    serving.wait()
    try:
        path.touch()
    except OSError as error:
        say(f"{path} cannot be created: {error}")


def announce(url: str, serving: threading.Event, group: Group | None) -> None:
    """Wait until the API is healthy, and tell the other ranks that the start is over."""
    await_health(url, serving)
    if group:
        group.send({"serving": True})


def names(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name for name in text.split(",") if name]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the command behind `--`; argparse's own REMAINDER would swallow the options before it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "ray-head", "ray-worker"])
    parser.add_argument("--model", default="", help="name of the model; ranks of another one are not let in")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--members", default="", help="node=fabric address of every rank, comma-separated")
    parser.add_argument("--tether-port", type=int, default=0, help="where the ranks meet, on the head's address")
    parser.add_argument("--tether-key", default="", help="file with the key that the ranks of a deployment share")
    parser.add_argument(
        "--silence-seconds", type=float, default=30.0, help="a rank without a heartbeat for this long is gone"
    )
    parser.add_argument("--health", default="", help="URL that answers 200 when the engine serves")
    parser.add_argument("--serving-file", default="", help="created once the engine serves")
    parser.add_argument("--floor-gib", type=float, default=0.0, help="MemAvailable that a start must leave")
    parser.add_argument("--port", type=int, default=6379, help="Ray's port on the head")
    parser.add_argument("--stall-seconds", type=float, default=600.0)
    parser.add_argument("--require-env", type=names, default=[], help="comma-separated variables that must be set")
    parser.add_argument("--same-env", type=names, default=[], help="variables that must be the same on every rank")
    parser.add_argument("--ray-arg", action="append", default=[])
    given = list(argv)
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def main(argv: Sequence[str]) -> None:
    """Gather the ranks, do what the role of this node asks for, run the command and watch it."""
    args, command = parse(argv)
    missing = missing_environment(args.require_env, os.environ)
    if missing:
        sys.exit(
            f"gb10: missing environment: {', '.join(missing)} must be set in every rank's container before the engine "
            "starts; see model_spec.env"
        )
    life = Life()
    life.handle_stop_signals()
    addresses = [member.partition("=")[2] for member in args.members.split(",")]
    serving = threading.Event()
    group = Group(args, life) if args.tether_port and len(addresses) > 1 else None
    if group:
        serving = group.serving
        group.gather()
    if args.floor_gib > 0:
        threading.Thread(target=watch_memory, args=(args.floor_gib, serving, life), daemon=True).start()
    if args.serving_file:
        threading.Thread(target=mark, args=(Path(args.serving_file), serving), daemon=True).start()
    if args.health:
        threading.Thread(target=announce, args=(args.health, serving, group), daemon=True).start()
    if args.role == "ray-head":
        ray.start_head(life, args.port, addresses[args.rank], len(addresses), args.stall_seconds, args.ray_arg)
    elif args.role == "ray-worker":
        command = ["ray", "start", "--block", f"--address={addresses[0]}:{args.port}"]
        command += [f"--node-ip-address={addresses[args.rank]}", "--disable-usage-stats", *args.ray_arg]
        ray.wait_for_head(addresses[0], args.port)
        say(f"joining Ray at {addresses[0]}:{args.port} as {addresses[args.rank]}")
    life.run(command)
