# SPDX-License-Identifier: Apache-2.0
"""Run the packaged registry for as long as somebody uses it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

#: A registry ends after so many seconds without an open connection: longer than a node takes to unpack a layer.
IDLE_SECONDS = 1800.0
_ESTABLISHED = "01"


def connected(table: str, port: int) -> bool:
    """Return whether a connection to a local port is open.

    :param table: /proc/net/tcp.
    """
    rows = [line.split() for line in table.splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == _ESTABLISHED for row in rows)


def serve(
    config: str,
    port: int,
    idle_seconds: float = IDLE_SECONDS,
    poll_seconds: float = 5.0,
    table: str = "/proc/net/tcp",
) -> int:
    """Run a registry until it ends, or nobody has been connected for a while; return the exit code."""
    with subprocess.Popen(["docker-registry", "serve", config]) as registry:
        used = time.monotonic()
        while True:
            try:
                return registry.wait(poll_seconds)
            except subprocess.TimeoutExpired:
                if connected(Path(table).read_text(encoding="utf-8"), port):
                    used = time.monotonic()
                elif time.monotonic() - used > idle_seconds:
                    registry.terminate()
                    registry.wait()
                    return 0
