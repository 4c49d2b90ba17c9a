# SPDX-License-Identifier: Apache-2.0
"""Program archives on a node: where they are, whether one is intact, and which of them nothing uses any more.

An archive's name carries its digest, and a file that exists is never written again: a process that started from an
archive imports from it lazily, and would read another file's bytes at the offsets of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

DIRECTORY = "/usr/local/lib/gb10"
DIGEST_CHARS = 12
NAME = re.compile(r"gb10-[a-z]+-([0-9a-f]{12})\.pyz")
#: What earlier releases put into the same directory; removed like an archive, once nothing refers to it.
EARLIER = (
    "engine_entry.py",
    "engine_prestart.py",
    "engine_stopped.py",
    "image_agent.py",
    "monitor_collect.py",
    "watch",
)
#: An archive this young may be waiting for its unit file, which another task is about to write.
GRACE_SECONDS = 3600.0
#: Files whose text may name an archive: units, transient ones too, and containers that are created but do not run.
UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/run/systemd/transient")
CONTAINERS = "/var/lib/docker/containers"


class ArchiveError(Exception):
    """An archive on the node is not what its name says; the message names both digests and what to do."""


def digest_of(data: bytes) -> str:
    """Return the digest that an archive's name carries: 12 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARS]


def verify(path: Path) -> None:
    """Compare an archive's content with the digest in its name.

    :raises ArchiveError: they differ.
    :raises OSError: the file is missing or not readable.
    """
    found = NAME.fullmatch(path.name)
    wanted = found.group(1) if found else "no digest"
    have = digest_of(path.read_bytes())
    if have != wanted:
        raise ArchiveError(
            f"{path} has the digest {have}, and its name says {wanted}: it is damaged, or was edited. It is left as it "
            "is, because a process may run from it; remove it and run again"
        )


def install(path: Path, data: bytes) -> None:
    """Write an archive that is not there yet, and verify what was written.

    :raises ArchiveError: what is on the disk is not what was meant.
    :raises OSError: as the operating system reports it.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    files.write(path, data, 0o644)
    verify(path)


def _texts_of(process: Path, seen: set[str]) -> Iterator[Callable[[], bytes]]:
    """Yield readers of a process' command line, open files and, for a mount namespace not yet seen, mounts."""
    yield (process / "cmdline").read_bytes
    yield lambda: b"\n".join(os.readlink(each).encode() for each in (process / "fd").iterdir())  # noqa: PTH115

    def mounts() -> bytes:
        space = os.readlink(process / "ns" / "mnt")  # noqa: PTH115
        text = b"" if space in seen else (process / "mountinfo").read_bytes()
        seen.add(space)
        return text

    yield mounts


def mentions(proc: Path, directories: Iterable[Path]) -> Iterator[bytes]:
    """Yield every text on a node that can name an archive in use.

    Processes: command line, open files and mounts (an archive that is mounted into a container).  Directories: every
    regular file below them of at most 1 MiB.  What vanishes meanwhile is skipped.

    :param proc: /proc.
    :param directories: of unit files and of containers' descriptions; those that do not exist are skipped.
    """
    for directory in directories:
        for folder, _folders, names in os.walk(directory):
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(OSError):
                    if path.is_file() and path.stat().st_size <= 2**20:
                        yield path.read_bytes()
    seen: set[str] = set()
    for process in (entry for entry in proc.iterdir() if entry.name.isdigit()):
        for read in _texts_of(process, seen):
            with contextlib.suppress(OSError):
                yield read()


def candidates(directory: Path, keep: str, now_s: float) -> list[Path]:
    """Return what retention may remove from the directory: archives and earlier programs, but none that is young.

    :param keep: file name of the archive that was just asked for.
    :param now_s: seconds of the epoch.
    """
    if not directory.is_dir():
        return []
    return sorted(
        path
        for path in directory.iterdir()
        if path.name != keep
        and (path.name in EARLIER or (NAME.fullmatch(path.name) and now_s - path.stat().st_mtime > GRACE_SECONDS))
    )


def unused(found: Sequence[Path], texts: Iterable[bytes]) -> list[Path]:
    """Return those of the files and directories that no text names, in the same order."""
    left = list(found)
    for text in texts:
        left = [path for path in left if str(path).encode() not in text]
        if not left:
            break
    return left


def remove(paths: Iterable[Path]) -> None:
    """Remove files, and directories with what is in them.

    :raises OSError: as the operating system reports it.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            files.remove(path)
