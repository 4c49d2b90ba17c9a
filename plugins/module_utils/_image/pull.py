# SPDX-License-Identifier: Apache-2.0
"""Make this node's Docker Engine pull an image, and report how far it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image import engine
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress

#: Where the Docker Engine and containerd unpack, unless the owner has moved them.
STORES = (Path("/var/lib/docker"), Path("/var/lib/containerd"))


def used_bytes() -> int:
    """Return how much is used of the disks that images are unpacked to."""
    found = [os.statvfs(store) for store in STORES if store.is_dir()]
    return sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in found)


def pull(source: str, sizes: Mapping[str, int], status: Path | None) -> int:
    """Pull an image and write its progress to a file every second; return the exit code.

    :param source: ``address:port/name@digest``.
    :param sizes: bytes of each layer by the 12 digits that the engine names it with.
    """
    progress = Progress(status)
    over = threading.Event()

    def report() -> None:
        while not over.wait(1):
            progress.take_disk(used_bytes())
            progress.write()

    reporter = threading.Thread(target=report)
    progress.write()
    reporter.start()
    try:
        events = engine.EngineEvents(sizes, progress)
        name, _at, digest = source.partition("@")
        for event in engine.engine_pull(name, digest):
            events.take(event)
        progress.name = source
        progress.unpacked = progress.unpack_total  # which the containerd image store does not tell
    except ImageError as problem:
        progress.error = str(problem)
    except Exception as problem:
        progress.error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        over.set()
        reporter.join()
        progress.done = True
        progress.write()
    print(progress.error or f"pulled {progress.name}: {progress.received} bytes received", flush=True)
    return 1 if progress.error else 0
