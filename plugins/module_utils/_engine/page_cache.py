# SPDX-License-Identifier: Apache-2.0
"""Drop the page cache periodically while an engine starts: the weights' file pages take unified memory from it.

It runs on the node beside the container, because /proc/sys is read-only there.  Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
POLL_SECONDS = 1.0


def drop_until_serving(serving: Path, pid: int, every_seconds: float, target: Path = DROP_CACHES) -> int:
    """Drop clean pages now and at each interval, until the engine serves or its process is gone; return how often.

    Nothing is synchronised before: dirty pages stay, and a disk that does not answer blocks nobody.

    :param serving: a file that the first process in the container creates once the engine serves.
    :raises OSError: the kernel does not allow it.
    """
    dropped, due = 0, time.monotonic()
    while not serving.exists() and Path(f"/proc/{pid}").exists():
        if time.monotonic() >= due:
            target.write_text("3\n", encoding="ascii")
            dropped, due = dropped + 1, time.monotonic() + every_seconds
        time.sleep(min(POLL_SECONDS, every_seconds))
    return dropped


def in_background(work: Callable[[], object]) -> None:
    """Run something in a process of its own, which is nobody's child but that of the init process."""
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    try:
        if os.fork() == 0:
            work()
    except OSError as error:
        print(f"gb10: the page cache is not dropped: {error}", flush=True)
    finally:
        os._exit(0)
