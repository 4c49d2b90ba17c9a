# SPDX-License-Identifier: Apache-2.0
"""Takes memory and disk until less than a limit of each is left, and more whenever others give some back.

    python3 molecule_eat.py MEMORY_GIB DISK_GIB FILE

A node of the lab has the memory and the disk of its host, which others use as well. What is left is never less than a
GiB and a step below the limits.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

STEP = 1 << 28
GIB = 1 << 30
#: How far below the limits.
MARGIN_GIB = 1.0


def available_gib() -> float:
    """Return the memory that is available."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 / GIB if found else 0.0


def free_gib(folder: Path) -> float:
    """Return what is free on the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize / GIB


def main() -> None:
    """Take, until it is stopped."""
    memory_gib, disk_gib, path = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    held: list[bytes] = []
    size = 0
    with path.open("wb") as fill:
        while True:
            if available_gib() > memory_gib - MARGIN_GIB:
                held.append(b"x" * STEP)
            elif free_gib(path.parent) > disk_gib - MARGIN_GIB:
                os.posix_fallocate(fill.fileno(), size, STEP)
                size += STEP
            else:
                time.sleep(0.5)


if __name__ == "__main__":
    main()
