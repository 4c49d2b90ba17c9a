# SPDX-License-Identifier: Apache-2.0
"""Download the wheels of a lock to the control node: resumed, verified, each under its name only when it is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import CHUNK, GIB, MIB
from ansible_collections.gb10.cluster.plugins.plugin_utils._image.locks import Wheel

HOME = "https://files.pythonhosted.org"
TIMEOUT_SECONDS = 60
#: A download is given up after so many attempts in a row that brought no byte.
IDLE_ATTEMPTS = 5
#: Bytes that must stay free on the control node's disk.
RESERVE = 2 * GIB


class DownloadError(Exception):
    """Why a wheel cannot be had; the text is for the operator."""


class Sums:
    """Bytes received so far by all downloads, and bytes in all."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.received = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count received bytes; a negative number takes back what turned out damaged."""
        with self._lock:
            self.received += count


def intact(path: Path, wheel: Wheel) -> bool:
    """Return whether a file is the wheel that the lock names."""
    try:
        if path.stat().st_size != wheel.size:
            return False
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() == wheel.sha256
    except OSError:
        return False


def missing(wheels: Iterable[Wheel], folder: Path) -> list[Wheel]:
    """Return the wheels, each file once, that a directory does not hold intact."""
    distinct = list({wheel.file: wheel for wheel in wheels}.values())
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda wheel: intact(folder / wheel.file, wheel), distinct)
        return [wheel for wheel, good in zip(distinct, found, strict=True) if not good]


def room_problem(wheels: Iterable[Wheel], folder: Path) -> str:
    """Return why wheels do not fit the disk of a directory, or an empty string; what arrived of one counts."""
    needed = 0
    for wheel in wheels:
        partial = folder / f"{wheel.file}.partial"
        needed += wheel.size - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(folder).free
    if needed + RESERVE <= free:
        return ""
    return (
        f"{needed / GIB:.1f} GiB of wheels are missing in {folder}, and {RESERVE / GIB:.0f} GiB must stay free; "
        f"{free / GIB:.1f} GiB are free: {(needed + RESERVE - free) / GIB:.1f} GiB too few. Nothing was downloaded."
    )


def download(wheel: Wheel, folder: Path, mirror: str, sums: Sums, pause: Callable[[float], None] = time.sleep) -> None:
    """Bring one wheel into a directory.

    :param mirror: takes the place of https://files.pythonhosted.org in addresses; empty for none.
    :raises DownloadError: the server does not have it, sends nothing any more, or sends something else.
    """
    url = wheel.url.replace(HOME, mirror.rstrip("/"), 1) if mirror else wheel.url
    partial = folder / f"{wheel.file}.partial"
    if partial.is_file() and partial.stat().st_size > wheel.size:
        partial.unlink()
    idle, problem = 0, ""
    with partial.open("ab") as out:
        sums.add(out.tell())
        while (have := out.tell()) < wheel.size:
            headers = {"User-Agent": "gb10.cluster", **({"Range": f"bytes={have}-"} if have else {})}
            try:
                request = urllib.request.Request(url, headers=headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
                    if have and reply.status != 206:
                        out.truncate(0)
                        sums.add(-have)
                    while chunk := reply.read(CHUNK):
                        out.write(chunk)
                        sums.add(len(chunk))
            except urllib.error.HTTPError as error:
                if error.code in (401, 403, 404, 410):
                    raise DownloadError(
                        f"{url}: status {error.code}. Write the lock anew with `make lock-images`."
                    ) from error
                problem = f"status {error.code}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error)
            out.flush()
            idle = 0 if out.tell() > have else idle + 1
            if idle >= IDLE_ATTEMPTS:
                raise DownloadError(
                    f"{wheel.file} is stuck at {have} of {wheel.size} bytes: {url} sends no more "
                    f"({problem or 'the connection ended early'}). What arrived is kept; run again."
                )
            if idle:
                pause(2)
        os.fsync(out.fileno())
    if not intact(partial, wheel):
        sums.add(-partial.stat().st_size)
        partial.unlink()
        raise DownloadError(
            f"{wheel.file} from {url} does not have the locked sha256 {wheel.sha256[:16]}...: it is another file, and "
            "was removed. Run again; if it stays so, do not use this source."
        )
    partial.replace(folder / wheel.file)


def download_all(
    wheels: list[Wheel], folder: Path, mirror: str, report: Callable[[str], None], every_seconds: float = 8.0
) -> list[str]:
    """Bring wheels into a directory, four at a time; return one sentence for each that failed."""
    sums = Sums(sum(wheel.size for wheel in wheels))
    over = threading.Event()

    def show() -> None:
        before = 0
        while not over.wait(every_seconds):
            rate = (sums.received - before) / every_seconds / MIB
            before = sums.received
            report(f"{sums.received / MIB:.0f} of {sums.total / MIB:.0f} MiB of wheels, {rate:.0f} MiB/s")

    def one(wheel: Wheel) -> str:
        try:
            download(wheel, folder, mirror, sums)
        except DownloadError as problem:
            return str(problem)
        return ""

    shower = threading.Thread(target=show)
    shower.start()
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            return [problem for problem in pool.map(one, wheels) if problem]
    finally:
        over.set()
        shower.join()
