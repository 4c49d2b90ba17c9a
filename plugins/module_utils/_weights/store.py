# SPDX-License-Identifier: Apache-2.0
"""The files of a manifest on one machine and which of their pieces are verified.  Does I/O."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights

#: Where a node's part of a transfer has its job, its token and its status.
RUN_DIR = Path("/run/gb10/weights")
#: Below the root of all models: what has not arrived completely.
INCOMING = ".incoming"
#: Options of a tree that lies beside the one that a module is about.
BESIDE: dict[str, dict[str, Any]] = {
    "repo": {"type": "str", "required": True},
    "size_gib": {"type": "float", "required": True},
}
#: POSIX_FADV_DONTNEED of Linux.
_DONTNEED = 4
#: How long a server keeps a request for a piece open that it does not have yet.
WAIT_S = 4.0
#: Silence after which a source counts as dead; longer than WAIT_S.
SILENCE_S = 9.0


class MoveError(Exception):
    """Ends a transfer; the text says why."""


class RefusedError(Exception):
    """A source that cannot give a piece; the text is the source's own."""


def now() -> float:
    """Return the machine's running time in seconds; a clock that is set does not change it."""
    return time.monotonic()


def mark(path: Path) -> list[int]:
    """Return what changes with every write to a file: size (bytes), mtime and ctime (ns), inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def beside_bytes(root: Path, beside: Sequence[Mapping[str, Any]]) -> int:
    """Return what of other trees below a root is not there yet.

    :param beside: trees as `BESIDE` describes them; what a stopped transfer left of one counts as there.
    """
    return sum(
        max(
            0,
            int(each["size_gib"] * 2**30)
            - sum(files.used_bytes(above / each["repo"]) for above in (root, root / INCOMING)),
        )
        for each in beside
    )


def hash_file(path: Path, piece_bytes: int) -> tuple[str, bytes]:
    """Return a file's sha256 in hex and those of its pieces, 32 bytes each, from one reading."""
    complete = hashlib.sha256()
    pieces: list[bytes] = []
    view = memoryview(bytearray(piece_bytes))
    with path.open("rb", buffering=0) as handle:
        while True:
            filled = 0
            while filled < piece_bytes and (count := handle.readinto(view[filled:])):
                filled += count
            if not filled:
                return complete.hexdigest(), b"".join(pieces)
            complete.update(view[:filled])
            pieces.append(hashlib.sha256(view[:filled]).digest())


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def set_timeouts(sock: socket.socket, receive_s: float, send_s: float) -> None:
    """Set the kernel's own timeouts: a socket with Python's would lose MSG_WAITALL and blocking sendfile."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, send_s)):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def stamp(tree: Path, manifest: Mapping[str, Any]) -> None:
    """Record that a tree holds the manifest's files, whose hashes were verified."""
    marks = {file["path"]: mark(tree / file["path"]) for file in manifest["files"]}
    files.write_json(tree / weights.MARKS, marks)
    files.write_json(tree / weights.STAMP, manifest)


class Store:
    """The files of a manifest on this machine, and which of their pieces are verified."""

    def __init__(self, manifest: Mapping[str, Any], paths: Sequence[Path], complete: Sequence[bool]) -> None:
        """Take the files' paths in the manifest's order, and which of them are complete already."""
        self.manifest = manifest
        self.paths = list(paths)
        self.pieces = weights.layout(manifest)
        self.hashes: bytes | None = None
        self.have = bytearray(complete[piece.file] for piece in self.pieces)
        self.have_bytes = sum(piece.length for piece in self.pieces if complete[piece.file])
        self.served_bytes = 0
        self.changed = threading.Condition(threading.RLock())
        #: Marks that a file must still have when it is served; a source's files may change under us.
        self.marks: dict[int, list[int]] = {}
        #: Called with a piece that was found to be damaged here; returns whether it can be fetched again.
        self.repair: Callable[[weights.Piece], bool] = lambda _piece: False
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, number: int, flags: int = os.O_RDONLY) -> int:
        """Return an open descriptor of a file; it stays open and outlives a rename."""
        with self._lock:
            if number not in self._files:
                self._files[number] = os.open(self.paths[number], flags, 0o644)
            return self._files[number]

    def expected(self, piece: weights.Piece) -> bytes:
        """Return the piece's sha256, 32 bytes.

        :raises MoveError: the hashes are not known yet.
        """
        if self.hashes is None:
            raise MoveError("The hashes of the pieces are not known yet.")
        start = piece.index * weights.HASH_BYTES
        return self.hashes[start : start + weights.HASH_BYTES]

    def load_hashes(self, data: bytes, origin: str) -> None:
        """Take the pieces' hashes if the manifest has their hash.

        :raises ValueError: they are others.
        """
        if hashlib.sha256(data).hexdigest() != self.manifest["pieces_sha256"]:
            raise ValueError(f"The hashes of the pieces from {origin} do not match the manifest.")
        with self.changed:
            self.hashes = data
            self.changed.notify_all()

    def right(self, piece: weights.Piece, descriptor: int) -> bool:
        """Return whether the piece's bytes in a file have its hash."""
        data = os.pread(descriptor, piece.length, piece.offset)
        return hashlib.sha256(data).digest() == self.expected(piece)

    def add(self, piece: weights.Piece) -> None:
        """Note that a piece is verified, and wake those who wait for it."""
        with self.changed:
            if not self.have[piece.index]:
                self.have[piece.index] = 1
                self.have_bytes += piece.length
            self.changed.notify_all()

    def drop(self, piece: weights.Piece) -> None:
        """Note that a piece is damaged."""
        with self.changed:
            if self.have[piece.index]:
                self.have[piece.index] = 0
                self.have_bytes -= piece.length

    def wait_for(self, index: int, seconds: float) -> bool:
        """Wait until a piece is there; return whether it is."""
        with self.changed:
            return self.changed.wait_for(lambda: bool(self.have[index]), seconds)

    def check_mark(self, number: int) -> None:
        """Check that a source's file is still the one that was hashed.

        :raises RefusedError: it is gone or was written since.
        """
        if number not in self.marks:
            return
        path = self.paths[number]
        name = self.manifest["files"][number]["path"]
        try:
            found = mark(path)
        except OSError as problem:
            raise RefusedError(f"{name} disappeared from the source during the transfer: {problem.strerror}.") from (
                problem
            )
        # Without the time of the inode's own last change: a link made to the file is no other content.
        if [found[0], found[1], found[3]] != [self.marks[number][place] for place in (0, 1, 3)]:
            raise RefusedError(
                f"{name} was modified at the source during the transfer; wait until the file is stable and run again."
            )

    def drop_cache(self) -> None:
        """Give the page cache back: on these machines it competes with the engine for the same memory."""
        # macOS, where the control node may serve files, has no such advice.
        advise = getattr(os, "posix_fadvise", None)
        if advise is None:
            return
        with self._lock:
            for descriptor in self._files.values():
                with suppress(OSError):
                    advise(descriptor, 0, 0, _DONTNEED)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                with suppress(OSError):
                    os.close(descriptor)
            self._files.clear()
