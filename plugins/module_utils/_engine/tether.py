# SPDX-License-Identifier: Apache-2.0
"""Authenticated connections between the ranks of an engine.  Standard library only.

The head sends a nonce; the rank answers with a nonce of its own, its hello, and an HMAC over all three with the key of
the deployment.  From then on each message carries an HMAC with a key of this session, its direction and its number, so
that nobody without the key can begin, take over, replay or add to a connection.  The key itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed

#: A handshake takes one round trip; who is slower is no rank.
HANDSHAKE_SECONDS = 5.0
MAX_HELLO_BYTES = 2**16
MAX_MESSAGE_BYTES = 2**20
#: Hexadecimal digits of a key: 256 bits.
KEY_CHARS = 64


class UnprovenError(Exception):
    """The other side did not prove that it has the key; the message says what it sent."""


def read_key(path: Path) -> bytes:
    """Return the key of the deployment.

    :raises ValueError: the file is missing, not readable or holds no key; the message names it.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"the tether key {path} cannot be read: {error}") from error
    if len(text) < KEY_CHARS:
        raise ValueError(f"the tether key {path} has {len(text)} characters instead of {KEY_CHARS}")
    return text.encode()


def _mac(key: bytes, *parts: bytes) -> str:
    """Return an HMAC over parts whose lengths count too."""
    total = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def _line(peer: socket.socket, until_s: float) -> bytes:
    """Return one line of the handshake, byte by byte so that nothing behind it is lost."""
    line = b""
    while not line.endswith(b"\n"):
        left = until_s - time.monotonic()
        if left <= 0:
            raise UnprovenError(f"no proof within {HANDSHAKE_SECONDS:.0f} s")
        peer.settimeout(left)
        byte = peer.recv(1)
        if not byte:
            raise UnprovenError("it closed the connection before its proof")
        line += byte
        if len(line) > MAX_HELLO_BYTES:
            raise UnprovenError(f"more than {MAX_HELLO_BYTES} bytes without a proof")
    return line


class Channel:
    """One proven connection; `messages` raises TimeoutError after a silence of ``silence_seconds``."""

    def __init__(self, peer: socket.socket, session: bytes, directions: tuple[bytes, bytes], silence_s: float) -> None:
        self.peer = peer
        self._session = session
        self._ours, self._theirs = directions
        self._sent = 0
        self._lock = threading.Lock()
        peer.settimeout(silence_s)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        :raises OSError: the connection is gone.
        """
        data = json.dumps(message).encode()
        with self._lock:
            mac = _mac(self._session, self._ours, self._sent.to_bytes(8, "big"), data)
            self._sent += 1
            self.peer.sendall(mac.encode() + b" " + data + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield messages until the other side closes.

        :raises TimeoutError: silence for too long.
        :raises ValueError: a message that the other rank did not send, or one without an end.
        """
        rest, number = b"", 0
        while True:
            part = self.peer.recv(4096)
            if not part:
                return
            *complete, rest = (rest + part).split(b"\n")
            for line in complete:
                mac, _space, data = line.partition(b" ")
                wanted = _mac(self._session, self._theirs, number.to_bytes(8, "big"), data).encode()
                if not hmac.compare_digest(mac, wanted):
                    raise ValueError("a message without the proof of its sender")
                number += 1
                message = parsed(data)
                if isinstance(message, dict):
                    yield message
            if len(rest) > MAX_MESSAGE_BYTES:
                raise ValueError("a message without an end")

    def close(self) -> None:
        self.peer.close()


def _session(key: bytes, nonces: tuple[bytes, bytes]) -> bytes:
    return _mac(key, b"session", *nonces).encode()


def accept(peer: socket.socket, key: bytes, silence_s: float) -> tuple[dict[str, Any], Channel]:
    """Let a rank prove itself to the head; return its hello and the connection.

    :raises UnprovenError: it did not.
    :raises OSError: the connection is gone.
    """
    until_s = time.monotonic() + HANDSHAKE_SECONDS
    nonce = secrets.token_hex(16)
    peer.settimeout(HANDSHAKE_SECONDS)
    peer.sendall(json.dumps({"nonce": nonce}).encode() + b"\n")
    try:
        answer = json.loads(_line(peer, until_s))
        # Half of a surrogate pair is text in JSON, and no text that can be encoded.
        theirs, text, mac = (str(answer[part]).encode() for part in ("nonce", "hello", "mac"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnprovenError("what it sent is no hello") from error
    if not hmac.compare_digest(mac, _mac(key, b"hello", nonce.encode(), theirs, text).encode()):
        raise UnprovenError("its proof does not match the key of this node")
    hello = parsed(text)
    if not isinstance(hello, dict):
        raise UnprovenError("what it sent is no hello")
    return hello, Channel(peer, _session(key, (nonce.encode(), theirs)), (b"head", b"rank"), silence_s)


def connect(peer: socket.socket, key: bytes, hello: Mapping[str, Any], silence_s: float) -> Channel:
    """Prove this rank to the head; the head proves itself with its first message.

    :raises UnprovenError: the other side does not speak this protocol.
    :raises OSError: the connection is gone.
    """
    try:
        theirs = str(json.loads(_line(peer, time.monotonic() + HANDSHAKE_SECONDS))["nonce"]).encode()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnprovenError("what it sent is no nonce") from error
    nonce, text = secrets.token_hex(16), json.dumps(hello)
    mac = _mac(key, b"hello", theirs, nonce.encode(), text.encode())
    peer.sendall(json.dumps({"nonce": nonce, "hello": text, "mac": mac}).encode() + b"\n")
    return Channel(peer, _session(key, (theirs, nonce.encode())), (b"rank", b"head"), silence_s)
