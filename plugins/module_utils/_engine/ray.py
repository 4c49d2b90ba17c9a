# SPDX-License-Identifier: Apache-2.0
"""Ray's part of an engine's start.  Standard library, and the image's own Ray on the head."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import Life, say

REPORT_EVERY_S = 10.0


def start_head(life: Life, port: int, address: str, nodes: int, stall_seconds: float, extra: Sequence[str]) -> None:
    """Start the GCS and wait for every raylet; give up when none joins for ``stall_seconds``."""
    # Nobody uses the dashboard; a worker that is given this option dies, so it is the head's alone.
    command = ["ray", "start", "--head", f"--port={port}", f"--node-ip-address={address}", "--include-dashboard=false"]
    code = subprocess.run([*command, "--disable-usage-stats", *extra], check=False).returncode
    if code:
        sys.exit(f"gb10: `ray start --head` on {address}:{port} exited {code}")
    import ray  # type: ignore[import-not-found]

    ray.init(address=f"{address}:{port}", logging_level="ERROR", log_to_driver=False)
    life.handle_stop_signals()  # Ray has replaced them by a handler that ends this process as if it had failed
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
    since = time.monotonic()
    shown = 0.0
    while True:
        try:
            with socket.create_connection((host, port), timeout=2):
                return
        except OSError as error:
            waited = time.monotonic() - since
            if waited - shown >= REPORT_EVERY_S:
                shown = waited
                say(f"waiting for the Ray head at {host}:{port} since {waited:.0f} s ({error})")
        time.sleep(0.5)
