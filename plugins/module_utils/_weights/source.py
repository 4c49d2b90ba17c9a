# SPDX-License-Identifier: Apache-2.0
"""Asks another machine for pieces and puts them into their place of a file.  Does I/O.

What the other machine says is bounded before it is read: the head of an answer, its announced length, its error text.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import select
import socket
from collections.abc import Callable

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import headers_of
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import (
    SILENCE_S,
    RefusedError,
    set_timeouts,
    write_at,
)

#: What is received and hashed at once: few enough to stay in a core's cache, enough to be woken seldom.
RECEIVE_BYTES = 2**18
#: A pipe holds pages, and of some only a part came: room for RECEIVE_BYTES when a quarter of each was filled.
PIPE_BYTES = 4 * RECEIVE_BYTES
MAX_HEAD_BYTES = 8192
#: A source's sentence about what it refuses is no longer.
MAX_TEXT_BYTES = 4096


class SourceDeadError(Exception):
    """A source that does not answer, or not as one of ours does."""


class NotYetError(Exception):
    """A source that does not have the piece yet."""


def read_head(head: bytes) -> tuple[int, int]:
    """Return (status, announced length in bytes) of an answer's head.

    :raises ValueError: it is none.
    """
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
    length = headers_of(head).get("content-length", "")
    if len(words) < 2 or not (words[1].isascii() and words[1].isdecimal() and len(words[1]) == 3):
        raise ValueError("what it answers is not HTTP")
    if not (length.isascii() and length.isdecimal() and len(length) < 16):
        raise ValueError("its answer announces no length")
    return int(words[1]), int(length)


class Connection:
    """A connection to a source, kept open from piece to piece."""

    def __init__(self, host: str, port: int, token: str, digest: str, silence_s: float = SILENCE_S) -> None:
        """Connect.

        :raises SourceDeadError: nobody accepts there.
        """
        self.silence_s = silence_s
        self.rail = (host, port)
        self.where = f"{host}:{port}"
        self._token = token
        self._digest = digest
        try:
            self._sock = socket.create_connection((host, port), timeout=min(5.0, silence_s))
        except OSError as problem:
            raise SourceDeadError(f"{self.where}: {problem.strerror or problem}") from problem
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_timeouts(self._sock, silence_s, silence_s)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._low = 1

    def close(self) -> None:
        self._sock.close()

    def get(self, what: str, length: int) -> bytes:
        """Return what the source answers, completely; it must have the expected length in bytes.

        :raises SourceDeadError, NotYetError, RefusedError: as their names say.
        """
        announced, early = self._ask(what, recheck=False)
        self._check_length(announced, early, length)
        return self._rest(length, early)

    def fetch(
        self,
        piece: weights.Piece,
        descriptor: int,
        pipe: tuple[int, int],
        recheck: bool = False,
        progress: Callable[[int], None] = lambda _filled: None,
    ) -> bytes:
        """Fetch a piece into its place in a file, which has its length; return the sha256 of what is there then.

        :arg pipe: the ends to read from and to write to of a pipe that is empty; it is again, unless OSError is raised.
        :arg progress: called with the number of the piece's bytes that have come, after each part.
        :raises SourceDeadError, NotYetError, RefusedError: as their names say.
        :raises OSError: when the file cannot be written.
        """
        announced, early = self._ask(str(piece.index), recheck)
        self._check_length(announced, early, piece.length)
        if os.fstat(descriptor).st_size < piece.offset + piece.length:
            raise OSError(errno.EIO, "another process has shortened a file of this transfer")
        write_at(descriptor, early, piece.offset)
        hashed = hashlib.sha256(early)
        filled = len(early)
        # A piece at a time: the page tables for a model are a five-hundredth of it, in memory the engine lacks.
        with mmap.mmap(descriptor, piece.length, access=mmap.ACCESS_READ, offset=piece.offset) as mapped:
            while filled < piece.length:
                count = self._receive(pipe[1], min(RECEIVE_BYTES, piece.length - filled))
                written = 0
                while written < count:
                    offset = piece.offset + filled + written
                    written += os.splice(pipe[0], descriptor, count - written, offset_dst=offset)
                # While a core's cache holds them.
                with memoryview(mapped)[filled : filled + count] as part:
                    hashed.update(part)
                filled += count
                progress(filled)
        return hashed.digest()

    def _check_length(self, announced: int, early: bytes, expected: int) -> None:
        if announced != expected or len(early) > expected:
            raise SourceDeadError(f"{self.where}: announced {announced} bytes, expected were {expected}")

    def _ask(self, what: str, recheck: bool) -> tuple[int, bytes]:
        """Ask for something; return its length and what came of it together with the answer's head."""
        extra = "X-Recheck: 1\r\n" if recheck else ""
        request = (
            f"GET /{self._digest}/{what} HTTP/1.1\r\nHost: {self.where}\r\n"
            f"Authorization: Bearer {self._token}\r\n{extra}\r\n"
        )
        try:
            self._wake_at(1)
            self._sock.sendall(request.encode("latin-1"))
            head, early = self._head()
            status, length = read_head(head)
        except (OSError, ValueError) as problem:
            raise SourceDeadError(f"{self.where}: {problem}") from problem
        if status == 200:
            return length, early
        if length > MAX_TEXT_BYTES or len(early) > length:
            raise SourceDeadError(f"{self.where}: answered {status} with {length} bytes")
        text = self._rest(length, early)
        if status == 503:
            raise NotYetError
        if status == 403:
            # What a run that died left there knows another token, until this run has replaced it.
            raise SourceDeadError(f"{self.where}: it takes part in another transfer")
        raise RefusedError(text.decode(errors="replace"))

    def _rest(self, length: int, early: bytes) -> bytes:
        """Return an answer's body, of which a part is here."""
        data = bytearray(early)
        try:
            while len(data) < length:
                more = self._sock.recv(min(length - len(data), RECEIVE_BYTES))
                if not more:
                    raise SourceDeadError(f"{self.where}: closed the connection in the middle of an answer")
                data += more
        except BlockingIOError:
            raise SourceDeadError(f"{self.where}: silent for {self.silence_s:.0f} s") from None
        except OSError as problem:
            raise SourceDeadError(f"{self.where}: {problem}") from problem
        return bytes(data)

    def _head(self) -> tuple[bytes, bytes]:
        """Return (an answer's head, what came after it)."""
        data = b""
        while b"\r\n\r\n" not in data:
            if len(data) > MAX_HEAD_BYTES:
                raise ValueError("its answer has an endless head")
            try:
                more = self._sock.recv(16384)
            except BlockingIOError:
                raise SourceDeadError(f"{self.where}: silent for {self.silence_s:.0f} s") from None
            if not more:
                raise SourceDeadError(f"{self.where}: closed the connection")
            data += more
        head, _blank, early = data.partition(b"\r\n\r\n")
        return head, early

    def _receive(self, inlet: int, count: int) -> int:
        """Take up to so many bytes off the connection into a pipe; return how many came.

        The kernel wakes this thread when all of them are there, and not for every packet of them.
        """
        try:
            self._wake_at(count)
            if not self._poll.poll(self.silence_s * 1000):
                # Less may have come; if not, splice() would wait once more as long.
                self._wake_at(1)
                if not self._poll.poll(0):
                    raise SourceDeadError(f"{self.where}: silent for {self.silence_s:.0f} s")
            came = os.splice(self._sock.fileno(), inlet, count, flags=os.SPLICE_F_NONBLOCK)
        except OSError as problem:
            raise SourceDeadError(f"{self.where}: {problem}") from problem
        if came == 0:
            raise SourceDeadError(f"{self.where}: closed the connection in the middle of a piece")
        return came

    def _wake_at(self, count: int) -> None:
        """Let the kernel wake who waits here when so many bytes are there, or the connection has ended."""
        if count != self._low:
            self._low = count
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)


class Stream:
    """What one of the threads that fetch has for itself: connections, one a source, and a pipe."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections: dict[int, Connection] = {}
        self.pipe = os.pipe()
        fcntl.fcntl(self.pipe[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()
        for end in self.pipe:
            os.close(end)
