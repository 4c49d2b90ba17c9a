# SPDX-License-Identifier: Apache-2.0
"""Download the wheels of a lock to the control node: resumed, verified, each under its name only when it is right."""

from __future__ import annotations

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

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import CHUNK, GIB, MIB, file_sha256
from ansible_collections.gb10.cluster.plugins.plugin_utils._image.locks import Wheel

HOME = "https://files.pythonhosted.org"
TIMEOUT_SECONDS = 60
#: A download is given up after so many attempts in a row that brought no byte.
IDLE_ATTEMPTS = 5
#: Bytes that must stay free on the control node's disk.
RESERVE = 2 * GIB


class DownloadError(Exception):
    """Why a wheel cannot be had; the text is for the operator."""


class OtherFileError(DownloadError):
    """An address gives another file than at the first fetch."""


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
        return path.stat().st_size == wheel.size and file_sha256(path) == wheel.sha256
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


def _receive(
    file: str, url: str, size: int, partial: Path, sums: Sums, pause: Callable[[float], None], remedy: str
) -> None:
    """Append to a partial file until it has its size, synchronised to disk.

    :raises DownloadError: the server does not have it, or sends nothing any more.
    """
    if partial.is_file() and partial.stat().st_size > size:
        partial.unlink()
    idle, problem = 0, ""
    with partial.open("ab") as out:
        sums.add(out.tell())
        while (have := out.tell()) < size:
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
                    raise DownloadError(f"{url}: status {error.code}. {remedy}") from error
                problem = f"status {error.code}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error)
            out.flush()
            idle = 0 if out.tell() > have else idle + 1
            if idle >= IDLE_ATTEMPTS:
                raise DownloadError(
                    f"{file} is stuck at {have} of {size} bytes: {url} sends no more "
                    f"({problem or 'the connection ended early'}). What arrived is kept; run again."
                )
            if idle:
                pause(2)
        os.fsync(out.fileno())


def download(wheel: Wheel, folder: Path, mirror: str, sums: Sums, pause: Callable[[float], None] = time.sleep) -> None:
    """Bring one wheel into a directory.

    :param mirror: takes the place of https://files.pythonhosted.org in addresses; empty for none.
    :raises DownloadError: the server does not have it, sends nothing any more, or sends something else.
    """
    url = wheel.url.replace(HOME, mirror.rstrip("/"), 1) if mirror else wheel.url
    partial = folder / f"{wheel.file}.partial"
    _receive(wheel.file, url, wheel.size, partial, sums, pause, "Write the lock anew with `make lock-images`.")
    if not intact(partial, wheel):
        sums.add(-partial.stat().st_size)
        partial.unlink()
        raise DownloadError(
            f"{wheel.file} from {url} does not have the locked sha256 {wheel.sha256[:16]}...: it is another file, and "
            "was removed. Run again; if it stays so, do not use this source."
        )
    partial.replace(folder / wheel.file)


def size_of(url: str) -> int:
    """Return the size in bytes of a file by its address.

    :raises DownloadError: the server does not answer, or does not say.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "gb10.cluster"}, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            return int(reply.headers["Content-Length"])
    except (OSError, http.client.HTTPException, TypeError, ValueError) as problem:
        raise DownloadError(
            f"{url} cannot be fetched: {problem}. Check the control node's way to it, or the address in gb10_images."
        ) from problem


def by_address(url: str, file: str, folder: Path, known: str, pause: Callable[[float], None] = time.sleep) -> str:
    """Bring the wheel of an address into a directory; return its digest, ``sha256:<hex>``.

    :param known: the digest that was recorded at the first fetch; empty before.
    :raises OtherFileError: it is another file than at the first fetch.
    :raises DownloadError: it cannot be had, or does not fit the disk.
    """
    path, partial = folder / file, folder / f"{file}.partial"
    if not path.is_file():
        size = size_of(url)
        problem = room_problem([Wheel(file, "", "", url, size)], folder)
        if problem:
            raise DownloadError(problem)
        _receive(file, url, size, partial, Sums(size), pause, "Correct the address in gb10_images.")
    arrived = path if path.is_file() else partial
    found = f"sha256:{file_sha256(arrived)}"
    if known and found != known:
        if arrived == partial:
            partial.unlink()
        remedy = "It was removed" if arrived == partial else f"Remove {path}"
        raise OtherFileError(
            f"{file} from {url} has {found[:23]}..., recorded at the first fetch is {known[:23]}...: it is another "
            f"file. {remedy}; to accept it, run with -e image_relock=true."
        )
    if arrived == partial:
        partial.replace(path)
    return found


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
