# SPDX-License-Identifier: Apache-2.0
"""Serves a store's pieces to the other machines of a transfer.  Does I/O.

Whoever does not show the token costs little: such connections are few, short-lived and the oldest of them makes room
for the next, so that they can neither use up descriptors and memory nor keep the cluster's own nodes out.
"""

from __future__ import annotations

import errno
import hmac
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import (
    WAIT_S,
    RefusedError,
    Store,
    now,
    set_timeouts,
)

#: A connection that knows the token is closed after so long without a request.
IDLE_CONNECTION_S = 300
#: A connection that has not shown the token yet is closed after so long.
UNKNOWN_S = 30
#: As many connections may be open that have not shown the token; one more closes the oldest.
MAX_UNKNOWN = 64
#: A request's head is no longer than this; ours have 300 bytes.
MAX_HEAD_BYTES = 8192


class Server:
    """Hands out a store's pieces over HTTP, to those who know the token, and nothing else."""

    def __init__(self, store: Store, token: str, allow: Sequence[str]) -> None:
        """Take the addresses that may connect at all."""
        self.store = store
        self.token = token
        self.allow = set(allow)
        self.listeners: list[socket.socket] = []
        self.asked_at = now()
        self._unknown: dict[socket.socket, None] = {}
        self._lock = threading.Lock()

    def listen(self, address: str, port: int) -> int:
        """Open a listening socket, serve it from a thread of its own and return its port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=256)
        self.listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        for listener in self.listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, peer = listener.accept()
            except OSError as problem:
                if problem.errno in (errno.EBADF, errno.EINVAL):
                    return
                # Descriptors or memory are short, or the peer was gone again: the next one may fare better.
                self._close_oldest()
                time.sleep(0.05)
                continue
            if peer[0] not in self.allow:
                client.close()
                continue
            with self._lock:
                self._unknown[client] = None
                crowded = len(self._unknown) > MAX_UNKNOWN
            if crowded:
                self._close_oldest()
            try:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            except RuntimeError:  # no thread can be started
                self._known(client)
                client.close()

    def _close_oldest(self) -> None:
        """End the oldest connection that has not shown the token; its own thread closes it."""
        with self._lock:
            oldest = next(iter(self._unknown), None)
            if oldest is not None:
                del self._unknown[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)

    def _known(self, client: socket.socket) -> None:
        with self._lock:
            self._unknown.pop(client, None)

    def _serve(self, client: socket.socket) -> None:
        try:
            with suppress(OSError, ValueError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Where the host has BBR as its default, its timer for every send costs a twentieth of the CPU.
                with suppress(OSError, AttributeError):
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                deadline: float | None = now() + UNKNOWN_S
                received = b""
                while True:
                    head, received = self._request(client, received, deadline)
                    words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
                    if len(words) != 3:
                        return
                    if self._answer(client, words[0], words[1], headers_of(head)):
                        self._known(client)
                        deadline = None
        finally:
            # In this order: a closed socket must not be found among those that may be shut down.
            self._known(client)
            client.close()

    @staticmethod
    def _request(client: socket.socket, received: bytes, deadline: float | None) -> tuple[bytes, bytes]:
        """Return (a request's head, what came after it).

        :raises OSError: the client is gone, too slow, or sends more than a head.
        """
        while b"\r\n\r\n" not in received:
            if len(received) > MAX_HEAD_BYTES:
                raise OSError(errno.EMSGSIZE, "the head of a request is too long")
            left = IDLE_CONNECTION_S if deadline is None else deadline - now()
            if left <= 0:
                raise OSError(errno.ETIMEDOUT, "no request with the token")
            set_timeouts(client, max(left, 0.001), 60)
            more = client.recv(4096)
            if not more:
                raise OSError(errno.ECONNRESET, "closed")
            received += more
        head, _blank, rest = received.partition(b"\r\n\r\n")
        return head, rest

    def _answer(self, client: socket.socket, method: str, target: str, headers: Mapping[str, str]) -> bool:
        """Answer a request; return whether it showed the token."""
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
            self._say(client, 403, "The token of this transfer is needed.")
            return False
        if method != "GET":
            self._say(client, 405, "Only GET is answered.")
            return True
        self.asked_at = now()
        start = f"/{self.store.manifest['digest']}/"
        rest = target.removeprefix(start)
        if rest == target:
            self._say(client, 404, "Another manifest is being moved here.")
        elif rest == "pieces":
            self._pieces(client)
        elif rest.isdecimal() and len(rest) < 12 and int(rest) < len(self.store.pieces):
            self._piece(client, self.store.pieces[int(rest)], "x-recheck" in headers)
        else:
            self._say(client, 404, "There is no such piece.")
        return True

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
                "Run again with weights_verify=true: that node then reads its copy completely and fetches those bytes "
                "again.",
            )  # fmt: skip

    @staticmethod
    def _head(client: socket.socket, status: int, length: int) -> None:
        text = f"HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\r\n"
        client.sendall(text.encode("latin-1"), getattr(socket, "MSG_MORE", 0) if length else 0)

    def _say(self, client: socket.socket, status: int, text: str) -> None:
        body = text.encode()
        self._head(client, status, len(body))
        client.sendall(body)


def headers_of(head: bytes) -> dict[str, str]:
    """Return the headers of a request's or an answer's head by their names in lower case."""
    found = {}
    for line in head.split(b"\r\n")[1:]:
        name, _colon, value = line.decode("latin-1").partition(":")
        found[name.strip().lower()] = value.strip()
    return found
