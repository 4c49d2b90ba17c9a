# SPDX-License-Identifier: Apache-2.0
"""First process of an engine container: becomes the Ray head, a Ray worker, or vLLM itself.

It runs inside the image, so it uses the standard library alone.  What it prints is read by the probe.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence


def say(text: str) -> None:
    """Print one line for the log, at once."""
    print(f"gb10: {text}", flush=True)


def missing_environment(required: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Return the required variables that are unset or empty."""
    return [name for name in required if not environment.get(name)]


def ray_head(port: int, address: str, nodes: int, stall_seconds: float, extra: Sequence[str]) -> None:
    """Start the GCS and wait for every raylet; give up when none joins for ``stall_seconds``."""
    command = ["ray", "start", "--head", f"--port={port}", f"--node-ip-address={address}"]
    code = subprocess.run([*command, "--disable-usage-stats", *extra], check=False).returncode
    if code:
        sys.exit(f"gb10: `ray start --head` on {address}:{port} exited {code}")
    import ray  # type: ignore[import-not-found]

    ray.init(address=f"{address}:{port}", logging_level="ERROR", log_to_driver=False)
    joined, since = -1, time.monotonic()
    while joined < nodes:
        now = sum(1 for node in ray.nodes() if node["Alive"])
        if now != joined:
            joined, since = now, time.monotonic()
            say(f"ray nodes joined {joined} of {nodes}")
        elif time.monotonic() - since > stall_seconds:
            here = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
            sys.exit(f"gb10: only {joined} of {nodes} Ray nodes joined in {stall_seconds:.0f} s: {', '.join(here)}")
        time.sleep(0.5)
    ray.shutdown()


def wait_for_head(host: str, port: int) -> None:
    """Wait until the head's GCS accepts connections; boot order does not matter."""
    since = time.monotonic()
    told = 0.0
    while True:
        try:
            with socket.create_connection((host, port), timeout=2):
                return
        except OSError as error:
            waited = time.monotonic() - since
            if waited - told >= 10:
                told = waited
                say(f"waiting for the Ray head at {host}:{port} since {waited:.0f} s ({error})")
        time.sleep(0.5)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the role of this node asks for, then become the given command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "ray-head", "ray-worker"])
    parser.add_argument("--address", default="", help="this node's address on the fabric")
    parser.add_argument("--head", default="", help="the head's address on the fabric")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--stall-seconds", type=float, default=600.0)
    parser.add_argument("--require-env", default="", help="comma-separated variables that must be set")
    parser.add_argument("--ray-arg", action="append", default=[])
    given = list(sys.argv[1:] if argv is None else argv)
    # What follows `--` is the command; argparse's own REMAINDER would swallow the options before it.
    cut = given.index("--") if "--" in given else len(given)
    args, command = parser.parse_args(given[:cut]), given[cut + 1 :]
    missing = missing_environment([name for name in args.require_env.split(",") if name], dict(os.environ))
    if missing:
        sys.exit(
            f"gb10: missing environment: {', '.join(missing)} must be set in every rank's container before the engine "
            "starts; see model_spec.env"
        )
    if args.role == "ray-head":
        ray_head(args.port, args.address, args.nodes, args.stall_seconds, args.ray_arg)
    elif args.role == "ray-worker":
        command = ["ray", "start", "--block", f"--address={args.head}:{args.port}"]
        command += [f"--node-ip-address={args.address}", "--disable-usage-stats", *args.ray_arg]
        wait_for_head(args.head, args.port)
        say(f"joining Ray at {args.head}:{args.port} as {args.address}")
    say(f"exec {command[0]}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
