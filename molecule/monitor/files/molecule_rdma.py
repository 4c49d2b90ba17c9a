# SPDX-License-Identifier: Apache-2.0
"""Writes the files that the kernel shows of two RDMA ports, and lets their counters run: a container has no RDMA."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

ROOT = Path(sys.argv[1])
BYTES_PER_WORD = 4


def put(path: Path, text: str) -> None:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(f"{text}\n", encoding="ascii")
    fresh.replace(path)


def main() -> None:
    """Count for ever."""
    words, marked, start = 0.0, 0, time.monotonic()
    while True:
        rate = 4e9 * (1.2 + math.sin((time.monotonic() - start) / 20))
        words += rate / BYTES_PER_WORD
        marked += int(rate / 2e9)
        for device in ("imitated0", "imitated1"):
            port = ROOT / device / "ports" / "1"
            put(port / "state", "4: ACTIVE")
            put(port / "counters" / "port_rcv_data", str(int(words)))
            put(port / "counters" / "port_xmit_data", str(int(words * 0.9)))
            put(port / "counters" / "link_downed", "0")
            put(port / "hw_counters" / "np_cnp_sent", str(marked))
            put(port / "hw_counters" / "out_of_sequence", "0")
        time.sleep(1)


if __name__ == "__main__":
    main()
