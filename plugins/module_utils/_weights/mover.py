# SPDX-License-Identifier: Apache-2.0
"""Brings a model's lacking pieces to a node and passes on every proven piece while it does.  Does I/O.

Runs on a node as ``python3 -m ...weights_mover JOB.json`` for as long as weights move; the control node
uses `Server` alone, as the first link. A node asks the node before it for one piece after the other. A
piece that has not arrived there yet is waited for, so that all nodes are busy with almost the same
bytes and each link carries one copy. Nothing counts, is passed on or is put in its place that has not
the piece's hash.

Chosen over a proxy that stores whole files because a hop then lags by a piece instead of by a shard,
and a broken transfer costs a piece. The bulk path is the kernel's: sendfile() on one side, on the other splice()
from the socket into the file, 256 KiB at a time, and hashing where the page cache has them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import heapq
import hmac
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights

#: Where a node's part of a transfer has its job, its token and its status.
RUN_DIR = Path("/run/gb10/weights")
#: What is received and hashed at once: few enough to stay in a core's cache, enough to be woken seldom.
RECEIVE_BYTES = 2**18
#: A pipe holds pages, and of some only a part came: room for RECEIVE_BYTES when a quarter of each was filled.
PIPE_BYTES = 4 * RECEIVE_BYTES
#: How long a server keeps a question open for a piece that it does not have yet.
WAIT_S = 4.0
#: Silence after which a source counts as dead; longer than WAIT_S.
SILENCE_S = 9.0
#: How long a dead source is left alone.
DOWN_S = 20.0
#: After its start a node waits so long for the one before it to start as well.
GRACE_S = 10.0
IDLE_CONNECTION_S = 300
WRONG_TWICE = 2
STATUS_EVERY_S = 0.3
#: The rate that is told is that of about ten seconds.
RATE_SAMPLES = 33


class MoveError(Exception):
    """Ends a transfer; the text says why."""


class SourceDeadError(Exception):
    """A source that does not answer."""


class NotYetError(Exception):
    """A source that has not got the piece yet."""


class RefusedError(Exception):
    """A source that cannot give the piece; the text is its own."""


def now() -> float:
    return time.monotonic()


def mark(path: Path) -> list[int]:
    """Return what changes with every write to a file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def hash_file(path: Path, piece_bytes: int) -> tuple[str, bytes]:
    """Return a file's sha256 in hex and those of its pieces one after the other, from one reading."""
    whole = hashlib.sha256()
    pieces: list[bytes] = []
    view = memoryview(bytearray(piece_bytes))
    with path.open("rb", buffering=0) as handle:
        while True:
            filled = 0
            while filled < piece_bytes and (count := handle.readinto(view[filled:])):
                filled += count
            if not filled:
                return whole.hexdigest(), b"".join(pieces)
            whole.update(view[:filled])
            pieces.append(hashlib.sha256(view[:filled]).digest())


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data to a place of a file."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def set_timeouts(sock: socket.socket, receive_s: float, send_s: float) -> None:
    """Set the kernel's own timeouts: a socket with Python's would lose MSG_WAITALL and blocking sendfile."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, send_s)):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


class Store:
    """The files of a manifest on this machine, and which of their pieces are proven."""

    def __init__(self, manifest: Mapping[str, Any], paths: Sequence[Path], whole: Sequence[bool]) -> None:
        """Take the files' paths in the manifest's order, and which of them are whole already."""
        self.manifest = manifest
        self.paths = list(paths)
        self.pieces = weights.layout(manifest)
        self.hashes: bytes | None = None
        self.have = bytearray(whole[piece.file] for piece in self.pieces)
        self.have_bytes = sum(piece.length for piece in self.pieces if whole[piece.file])
        self.served_bytes = 0
        self.changed = threading.Condition(threading.RLock())
        #: Marks that a file must still have when it is served; a source's files may change under us.
        self.marks: dict[int, list[int]] = {}
        #: Called with a piece that was found to be damaged here; returns whether it can be had again.
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
        """Return the piece's hash."""
        if self.hashes is None:
            raise MoveError("The hashes of the pieces are not known yet.")
        start = piece.index * weights.HASH_BYTES
        return self.hashes[start : start + weights.HASH_BYTES]

    def load_hashes(self, data: bytes, origin: str) -> None:
        """Take the pieces' hashes if they are those that the manifest vouches for."""
        if hashlib.sha256(data).hexdigest() != self.manifest["pieces_sha256"]:
            raise ValueError(f"The hashes of the pieces from {origin} are not those of the manifest.")
        with self.changed:
            self.hashes = data
            self.changed.notify_all()

    def right(self, piece: weights.Piece, descriptor: int) -> bool:
        """Return whether the piece's bytes in a file have its hash."""
        data = os.pread(descriptor, piece.length, piece.offset)
        return hashlib.sha256(data).digest() == self.expected(piece)

    def add(self, piece: weights.Piece) -> None:
        """Note that a piece is proven, and wake those who wait for it."""
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
        """Fail when a source's file is no longer the one that was hashed."""
        if number not in self.marks:
            return
        path = self.paths[number]
        name = self.manifest["files"][number]["path"]
        try:
            found = mark(path)
        except OSError as problem:
            raise RefusedError(f"{name} went away from the source while it was sent: {problem.strerror}.") from problem
        # Without the time of the inode's own last change: a link made to the file is no other content.
        if [found[0], found[1], found[3]] != [self.marks[number][place] for place in (0, 1, 3)]:
            raise RefusedError(
                f"{name} changed at the source while it was sent. Let it come to rest there and run again."
            )

    def drop_cache(self) -> None:
        """Give the page cache back: on these machines it competes with the engine for the same memory."""
        with self._lock:
            for descriptor in self._files.values():
                with suppress(OSError):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for descriptor in self._files.values():
                with suppress(OSError):
                    os.close(descriptor)
            self._files.clear()


class Server:
    """Hands out a store's pieces over HTTP, to those who know the token, and nothing else."""

    def __init__(self, store: Store, token: str, allow: Sequence[str]) -> None:
        self.store = store
        self.token = token
        self.allow = set(allow)
        self.listeners: list[socket.socket] = []
        self.asked_at = now()

    def listen(self, address: str, port: int) -> int:
        """Open a listening socket, serve it from a thread of its own and return its port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=256)
        self.listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Stop to accept."""
        for listener in self.listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, peer = listener.accept()
            except OSError:
                return
            if peer[0] not in self.allow:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError), client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Where the host has BBR as its default, its timer for every send costs a twentieth of the CPU.
            with suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
            set_timeouts(client, IDLE_CONNECTION_S, 60)
            lines = client.makefile("rb")
            while True:
                request = lines.readline(4096).decode("latin-1").split()
                if len(request) != 3:
                    return
                headers: dict[str, str] = {}
                while (line := lines.readline(4096)) not in (b"\r\n", b"\n", b""):
                    name, _colon, value = line.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                self._answer(client, request[0], request[1], headers)

    def _answer(self, client: socket.socket, method: str, target: str, headers: Mapping[str, str]) -> None:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if method != "GET":
            self._say(client, 405, "Only GET is answered.")
        elif not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
            self._say(client, 403, "The token of this transfer is needed.")
        else:
            self.asked_at = now()
            start = f"/{self.store.manifest['digest']}/"
            rest = target.removeprefix(start)
            if rest == target:
                self._say(client, 404, "Another manifest is being moved here.")
            elif rest == "pieces":
                self._pieces(client)
            elif rest.isdecimal() and int(rest) < len(self.store.pieces):
                self._piece(client, self.store.pieces[int(rest)], "x-recheck" in headers)
            else:
                self._say(client, 404, "There is no such piece.")

    def _pieces(self, client: socket.socket) -> None:
        with self.store.changed:
            self.store.changed.wait_for(lambda: self.store.hashes is not None, WAIT_S)
        if self.store.hashes is None:
            self._say(client, 503, "Not here yet.")
        else:
            self._head(client, 200, len(self.store.hashes))
            client.sendall(self.store.hashes)

    def _piece(self, client: socket.socket, piece: weights.Piece, recheck: bool) -> None:
        store = self.store
        if not store.wait_for(piece.index, WAIT_S):
            self._say(client, 503, "Not here yet.")
            return
        try:
            store.check_mark(piece.file)
            descriptor = store.descriptor(piece.file)
            if recheck and store.hashes is not None and not store.right(piece, descriptor):
                self._damaged(client, piece)
                return
        except (RefusedError, OSError) as problem:
            self._say(client, 410, str(problem))
            return
        self._head(client, 200, piece.length)
        offset, end = piece.offset, piece.offset + piece.length
        while offset < end:
            sent = os.sendfile(client.fileno(), descriptor, offset, end - offset)
            if sent == 0:
                raise OSError(errno.EIO, "the file is shorter than it was")
            offset += sent
            store.served_bytes += sent

    def _damaged(self, client: socket.socket, piece: weights.Piece) -> None:
        if self.store.repair(piece):
            self._say(client, 503, "Damaged here; it is being fetched again.")
        else:
            name = self.store.manifest["files"][piece.file]["path"]
            self._say(
                client, 410,
                f"{name} is damaged on {os.uname().nodename}, in the {piece.length} bytes from {piece.offset}. "
                "Run again with weights_verify=true: it is read through there and those bytes come again.",
            )  # fmt: skip

    @staticmethod
    def _head(client: socket.socket, status: int, length: int) -> None:
        text = f"HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\r\n"
        client.sendall(text.encode("latin-1"), socket.MSG_MORE if length else 0)

    def _say(self, client: socket.socket, status: int, text: str) -> None:
        body = text.encode()
        self._head(client, status, len(body))
        client.sendall(body)


class Connection:
    """A connection to a source, kept open from piece to piece."""

    def __init__(self, host: str, port: int, token: str, digest: str, silence_s: float = SILENCE_S) -> None:
        self.silence_s = silence_s
        self.rail = (host, port)
        self.where = f"{host}:{port}"
        self._token = token
        self._digest = digest
        try:
            self._sock = socket.create_connection((host, port), timeout=5)
        except OSError as problem:
            raise SourceDeadError(f"{self.where}: {problem.strerror or problem}") from problem
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_timeouts(self._sock, silence_s, silence_s)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._low = 1

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def get(self, what: str) -> bytes:
        """Return what the source answers, as a whole.

        :raises SourceDeadError, NotYetError, RefusedError: as their names say.
        """
        length, early = self._ask(what, recheck=False)
        return self._rest(length, early)

    def bring(self, piece: weights.Piece, descriptor: int, pipe: tuple[int, int], recheck: bool = False) -> bytes:
        """Fetch a piece into its place in a file, which has its length; return the sha256 of what is there then.

        :arg pipe: the ends to read from and to write to of a pipe that is empty; it is again, unless OSError is raised.
        :raises SourceDeadError, NotYetError, RefusedError: as their names say.
        :raises OSError: when the file cannot be written.
        """
        length, early = self._ask(str(piece.index), recheck)
        if length != piece.length or len(early) > length:
            raise SourceDeadError(f"{self.where}: announced {length} bytes, expected were {piece.length}")
        if os.fstat(descriptor).st_size < piece.offset + length:
            raise OSError(errno.EIO, "somebody else has shortened a file of this transfer")
        write_at(descriptor, early, piece.offset)
        hashed = hashlib.sha256(early)
        filled = len(early)
        # A piece at a time: the page tables for a whole model are a five-hundredth of it, in memory the engine lacks.
        with mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=piece.offset) as mapped:
            while filled < length:
                count = self._receive(pipe[1], min(RECEIVE_BYTES, length - filled))
                written = 0
                while written < count:
                    offset = piece.offset + filled + written
                    written += os.splice(pipe[0], descriptor, count - written, offset_dst=offset)
                # While a core's cache holds them.
                with memoryview(mapped)[filled : filled + count] as part:
                    hashed.update(part)
                filled += count
        return hashed.digest()

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
            status, length, early = self._head()
        except (OSError, ValueError, IndexError) as problem:
            raise SourceDeadError(f"{self.where}: {problem}") from problem
        if status == 200:
            return length, early
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
                more = self._sock.recv(length - len(data))
                if not more:
                    raise SourceDeadError(f"{self.where}: closed the connection in the middle of an answer")
                data += more
        except BlockingIOError:
            raise SourceDeadError(f"{self.where}: silent for {self.silence_s:.0f} s") from None
        except OSError as problem:
            raise SourceDeadError(f"{self.where}: {problem}") from problem
        return bytes(data)

    def _head(self) -> tuple[int, int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                more = self._sock.recv(16384)
            except BlockingIOError:
                raise SourceDeadError(f"{self.where}: silent for {self.silence_s:.0f} s") from None
            if not more:
                raise SourceDeadError(f"{self.where}: closed the connection")
            data += more
        head, _blank, early = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        length = next(int(line[15:]) for line in lines if line.lower().startswith("content-length:"))
        return int(lines[0].split()[1]), length, early

    def _receive(self, inlet: int, count: int) -> int:
        """Take up to so many bytes off the connection into a pipe; return how many came.

        The kernel wakes this thread when they are there as a whole, and not for every packet of them.
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
        """Close them."""
        for connection in self.connections.values():
            connection.close()
        for end in self.pipe:
            os.close(end)


class Mover:
    """One node's part of a transfer."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        manifest = job["manifest"]
        error = weights.manifest_error(manifest)
        if error:
            raise MoveError(error)
        root = Path(job["root"])
        self.tree = root / manifest["repo"]
        self.incoming = root / ".incoming" / manifest["repo"]
        self.lacking = set(job["lacking"])
        names = [file["path"] for file in manifest["files"]]
        whole = [name not in self.lacking for name in names]
        paths = [(self.tree if good else self.incoming) / name for name, good in zip(names, whole, strict=True)]
        self.store = Store(manifest, paths, whole)
        self.store.repair = self.repair
        self.server = Server(self.store, job["token"], job["allow"])
        self.sources: list[dict[str, Any]] = job["sources"]
        self.scatter: dict[str, int] = job["scatter"]
        self.grace_s = float(job.get("grace_s", GRACE_S))
        self.silence_s = float(job.get("silence_s", SILENCE_S))
        self.state = "moving"
        self.message = ""
        self.source = ""
        self.fetched_bytes = 0
        self.local_bytes = 0
        self.wrong_pieces = 0
        self.by_source: dict[str, int] = {}
        self._seen: list[tuple[float, int]] = []
        self.progress_at = self.started_at = now()
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._down: dict[int, float] = {}
        self._rails_down: dict[tuple[str, int], float] = {}
        self._taken = 0
        self._failure: str | None = None
        self._own: list[int] = []
        self._others: list[int] = []

    # Which piece next.

    def repair(self, piece: weights.Piece) -> bool:
        """Fetch a piece again that is damaged here; false for a file that is in its place already."""
        if self.store.manifest["files"][piece.file]["path"] not in self.lacking:
            return False
        with self.store.changed:
            if self.state != "moving":
                return False
            self.store.drop(piece)
        with self._lock:
            self.wrong_pieces += 1
            heapq.heappush(self._others, piece.index)
        return True

    def _queue(self) -> None:
        of, position = self.scatter["of"], self.scatter["position"]
        missing = [piece.index for piece in self.store.pieces if not self.store.have[piece.index]]
        self._own = [index for index in missing if of and index % of == position]
        self._others = [index for index in missing if not of or index % of != position]

    def _take(self, own: bool) -> weights.Piece | None:
        """Return the next piece to look for; the first ones first, as all nodes do."""
        with self._lock:
            for heap in (self._own, self._others) if own else (self._others, self._own):
                if heap:
                    self._taken += 1
                    return self.store.pieces[heapq.heappop(heap)]
            return None

    def _give_back(self, piece: weights.Piece, done: bool) -> None:
        with self._lock:
            self._taken -= 1
            if not done:
                heapq.heappush(self._others, piece.index)

    # What is here already.

    def _local(self, piece: weights.Piece) -> bool:
        """Return whether the piece was here, in what an earlier run left or in the file that is to be replaced."""
        descriptor = self.store.descriptor(piece.file, os.O_RDWR | os.O_CREAT)
        try:
            data_at = os.lseek(descriptor, piece.offset, os.SEEK_DATA)
        except OSError:
            data_at = -1
        if data_at == piece.offset and self.store.right(piece, descriptor):
            return True
        try:
            old = os.open(self.tree / self.store.manifest["files"][piece.file]["path"], os.O_RDONLY)
        except OSError:
            return False
        try:
            data = os.pread(old, piece.length, piece.offset)
        finally:
            os.close(old)
        if hashlib.sha256(data).digest() != self.store.expected(piece):
            return False
        write_at(descriptor, data, piece.offset)
        return True

    # What comes from others.

    def _alive(self, places: Sequence[int]) -> list[int]:
        """Return the sources to try, those left out that did not answer a moment ago, unless all of them."""
        alive = [place for place in places if self._down.get(place, 0.0) < now()]
        return alive or list(places)

    def _note_dead(self, place: int, problem: SourceDeadError) -> bool:
        """Leave a source alone for a while; return False while it may yet have to start."""
        if now() - self.started_at < self.grace_s and not self.by_source.get(self.sources[place]["name"]):
            time.sleep(0.05)
            return False
        with self._lock:
            self._down[place] = now() + DOWN_S
            self.message = f"{self.sources[place]['name']} does not answer ({problem})."
        return True

    def _fetch(self, piece: weights.Piece, stream: Stream) -> bool:
        """Fetch a piece into its file; return False when no source has it yet.

        :raises MoveError: when every source gave it with a wrong hash, or none can give it.
        """
        wrong: dict[int, int] = {}
        refusals: list[str] = []
        descriptor = self.store.descriptor(piece.file, os.O_RDWR | os.O_CREAT)
        places = weights.order(self.sources, piece.index, self.scatter["of"], self.scatter["position"])
        for place in self._alive(places):
            name = self.sources[place]["name"]
            while wrong.get(place, 0) < WRONG_TWICE and not self.stopping.is_set():
                self.source = name
                bring = partial(
                    Connection.bring, piece=piece, descriptor=descriptor, pipe=stream.pipe, recheck=place in wrong
                )
                try:
                    found = self._ask(place, stream, bring)
                except NotYetError:
                    return False
                except SourceDeadError as problem:
                    if not self._note_dead(place, problem):
                        return False
                    break
                except RefusedError as problem:
                    refusals.append(str(problem))
                    break
                with self._lock:
                    self.fetched_bytes += piece.length
                    self.by_source[name] = self.by_source.get(name, 0) + piece.length
                if found == self.store.expected(piece):
                    return True
                wrong[place] = wrong.get(place, 0) + 1
                with self._lock:
                    self.wrong_pieces += 1
        if refusals:
            raise MoveError(refusals[0])
        if wrong and max(wrong.values()) >= WRONG_TWICE:
            file = self.store.manifest["files"][piece.file]["path"]
            raise MoveError(
                f"{file} came with wrong bytes twice from {', '.join(self.sources[place]['name'] for place in wrong)}, "
                f"in the {piece.length} bytes from {piece.offset}: the source is damaged or has changed."
            )
        return False

    def _ask(self, place: int, stream: Stream, what: Callable[[Connection], bytes]) -> bytes:
        """Ask one source, over the connection of this stream; streams take turns among the rails that answer."""
        rails = [(str(host), int(port)) for host, port in self.sources[place]["rails"]]
        turn = stream.number % len(rails)
        rails = rails[turn:] + rails[:turn]
        dead: SourceDeadError | None = None
        for rail in [rail for rail in rails if self._rails_down.get(rail, 0.0) < now()] or rails:
            try:
                connection = stream.connections.get(place)
                if connection is None:
                    digest = self.store.manifest["digest"]
                    connection = Connection(*rail, self.job["token"], digest, self.silence_s)
                    stream.connections[place] = connection
                return what(connection)
            except SourceDeadError as problem:
                failed = stream.connections.pop(place, None)
                if failed is not None:
                    failed.close()
                with self._lock:
                    self._rails_down[failed.rail if failed is not None else rail] = now() + DOWN_S
                dead = problem
        raise dead or SourceDeadError(f"{self.sources[place]['name']} has no address")

    def _work(self, number: int, own: bool) -> None:
        stream = Stream(number)
        try:
            while not self.stopping.is_set() and self._failure is None:
                piece = self._take(own)
                if piece is None:
                    if self._taken == 0:
                        return
                    time.sleep(0.02)
                    continue
                done = False
                try:
                    done = self._bring(piece, stream)
                finally:
                    self._give_back(piece, done)
        except MoveError as problem:
            self._failure = self._failure or str(problem)
        except OSError as problem:
            self._failure = self._failure or self.explain(problem)
        finally:
            stream.close()

    def _bring(self, piece: weights.Piece, stream: Stream) -> bool:
        if self._local(piece):
            with self._lock:
                self.local_bytes += piece.length
        elif not self._fetch(piece, stream):
            if now() - self.progress_at > self.job["patience_s"]:
                raise MoveError(
                    f"Nothing came for {weights.duration(now() - self.progress_at)}. {self.message}".strip()
                    + " Run again when it answers; what has arrived is kept."
                )
            time.sleep(0.05)
            return False
        self.store.add(piece)
        self.progress_at = now()
        return True

    def explain(self, problem: OSError) -> str:
        """Return a sentence for what the operating system refused."""
        if problem.errno == errno.ENOSPC:
            return f"{self.job['root']} is full; something else filled it while weights arrived. What arrived is kept."
        if problem.errno == errno.EROFS:
            return f"{self.job['root']} is on a file system that is mounted read-only."
        return f"{problem.filename or self.job['root']}: {problem.strerror or problem}."

    # The whole.

    def _load_hashes(self) -> None:
        """Get the pieces' hashes, from here or from where the pieces come."""
        given = [Path(self.job["pieces"])] if self.job.get("pieces") else []
        for path in (self.tree / weights.PIECES, self.incoming / weights.PIECES, *given):
            with suppress(OSError, ValueError):
                self.store.load_hashes(path.read_bytes(), str(path))
                return
        while not self.stopping.is_set():
            for place in self._alive(range(len(self.sources))):
                stream = Stream(0)
                self.source = self.sources[place]["name"]
                try:
                    data = self._ask(place, stream, lambda connection: connection.get("pieces"))
                    self.store.load_hashes(data, self.source)
                except NotYetError:
                    continue
                except SourceDeadError as problem:
                    self._note_dead(place, problem)
                except (RefusedError, ValueError) as problem:
                    self.message = str(problem)
                else:
                    if self.lacking:
                        self.incoming.mkdir(parents=True, exist_ok=True)
                        (self.incoming / weights.PIECES).write_bytes(data)
                    return
                finally:
                    stream.close()
            if now() - self.progress_at > self.job["patience_s"]:
                raise MoveError(f"Nobody sent the hashes of the pieces. {self.message}".strip())
            time.sleep(0.05)

    def _clear(self) -> None:
        """Remove what an earlier run left for another manifest; lengthen and shorten files to their size."""
        wanted = {file["path"]: file["size"] for file in self.store.manifest["files"] if file["path"] in self.lacking}
        if self.incoming.is_dir():
            for path in sorted(self.incoming.rglob("*"), reverse=True):
                name = str(path.relative_to(self.incoming))
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif (name not in wanted and name != weights.PIECES) or path.is_symlink():
                    path.unlink()
        for number, file in enumerate(self.store.manifest["files"]):
            if file["path"] in wanted:
                self.store.paths[number].parent.mkdir(parents=True, exist_ok=True)
                os.ftruncate(self.store.descriptor(number, os.O_RDWR | os.O_CREAT), file["size"])

    def move(self) -> None:
        """Bring everything, then put it in its place.

        :raises MoveError: when it cannot be done; what has arrived stays for the next run.
        """
        if self.job["complete"]:
            with suppress(OSError, ValueError):
                self.store.load_hashes((self.tree / weights.PIECES).read_bytes(), str(self.tree))
            self.state = "whole"
            return
        self._load_hashes()
        self._clear()
        while not self.stopping.is_set():
            self._bring_all()
            # From here on a piece that is found to be damaged is not taken back.
            with self.store.changed:
                if all(self.store.have):
                    self.state = "placing"
                    break
        if self.state == "placing":
            try:
                self._place()
            except OSError as problem:
                raise MoveError(self.explain(problem)) from problem
            self.state = "whole"

    def _bring_all(self) -> None:
        """Bring what is missing, with all streams."""
        self._queue()
        streams = weights.streams_for(self.job["streams"], len(self.store.pieces), os.cpu_count() or 2)
        kinds = [False] * streams + ([True] * streams if self.scatter["of"] else [])
        threads = [
            threading.Thread(target=self._work, args=(number, own), daemon=True) for number, own in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure:
            raise MoveError(self._failure)

    def _place(self) -> None:
        """Move the proven files to their place; the stamp comes last."""
        manifest = self.store.manifest
        for number, file in enumerate(manifest["files"]):
            if file["path"] in self.lacking:
                os.fsync(self.store.descriptor(number, os.O_RDWR | os.O_CREAT))
        self.tree.mkdir(parents=True, exist_ok=True)
        old: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            old = json.loads((self.tree / weights.STAMP).read_text(encoding="utf-8"))
        (self.tree / weights.STAMP).unlink(missing_ok=True)
        for file in manifest["files"]:
            if file["path"] in self.lacking:
                target = self.tree / file["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.incoming / file["path"]).replace(target)
        names = {file["path"] for file in manifest["files"]}
        for file in old.get("files", []):
            if file["path"] not in names and not weights.path_error(file["path"]):
                (self.tree / file["path"]).unlink(missing_ok=True)
        if self.store.hashes is not None:
            write(self.tree / weights.PIECES, self.store.hashes)
        stamp(self.tree, manifest)
        shutil.rmtree(self.incoming, ignore_errors=True)
        # Directories above that another model's transfer still needs are not empty and stay.
        for folder in list(self.incoming.parents)[: len(Path(manifest["repo"]).parts)]:
            try:
                folder.rmdir()
            except OSError:
                break

    def status(self) -> dict[str, Any]:
        """Return how far this node is; the rate is that of the last calls."""
        self._seen = [*self._seen[-RATE_SAMPLES:], (now(), self.store.have_bytes)]
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return {
            "rate_bytes_per_s": round((last - first) / (last_at - first_at)) if last_at > first_at else 0,
            "run": self.job["run"],
            "state": self.state,
            "message": self.message,
            "source": self.source if self.state == "moving" else "",
            "have_bytes": self.store.have_bytes,
            "total_bytes": self.store.manifest["bytes"],
            "fetched_bytes": self.fetched_bytes,
            "local_bytes": self.local_bytes,
            "served_bytes": self.store.served_bytes,
            "wrong_pieces": self.wrong_pieces,
            "by_source": dict(self.by_source),
            "idle_s": round(now() - self.progress_at, 1) if self.state == "moving" else 0.0,
            "cpu_s": round(time.process_time(), 2),
        }


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power failure."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def stamp(tree: Path, manifest: Mapping[str, Any]) -> None:
    """Say that a tree holds the manifest's files, of which the hashes were seen to be right."""
    marks = {file["path"]: mark(tree / file["path"]) for file in manifest["files"]}
    write(tree / weights.MARKS, json.dumps(marks).encode())
    write(tree / weights.STAMP, json.dumps(manifest, indent=1).encode())
    folder = os.open(tree, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def main() -> int:
    """Run a job until it is told to stop or nobody has asked for it for a while."""
    os.umask(0o022)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(job["run_dir"])
    mover = Mover(job)
    status = folder / "status.json"
    news = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        mover.stopping.set()
        news.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        for address in job["listen"]:
            mover.server.listen(address, job["port"])
    except OSError as problem:
        mover.state, mover.message = "failed", f"It cannot listen on {address}:{job['port']}: {problem.strerror}."
        write(status, json.dumps(mover.status()).encode())
        return 0

    def work() -> None:
        try:
            mover.move()
        except (MoveError, OSError) as problem:
            mover.message = str(problem) if isinstance(problem, MoveError) else mover.explain(problem)
            mover.state = "failed"
            mover.stopping.set()
        news.set()

    threading.Thread(target=work, daemon=True).start()
    lease = folder / "lease"
    touched, touched_at = 0, now()
    while True:
        news.wait(STATUS_EVERY_S)
        news.clear()
        stopped = mover.stopping.is_set()
        temporary = folder / "status.tmp"
        temporary.write_text(json.dumps(mover.status()), encoding="utf-8")
        temporary.replace(status)
        if stopped:
            break
        # By this machine's running time: the clock may be put right while weights move.
        if (mark_ns := lease.stat().st_mtime_ns) != touched:
            touched, touched_at = mark_ns, now()
        if now() - max(touched_at, mover.server.asked_at) > job["lease_s"]:
            break
    mover.server.close()
    mover.store.drop_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
