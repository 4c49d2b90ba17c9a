# SPDX-License-Identifier: Apache-2.0
"""What a connection between ranks takes for a message of the other one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._engine import tether
from tests.unit.plugins.module_utils.hostile import bounded

KEY = b"5" * 64


@pytest.fixture
def pair() -> Iterator[tuple[tether.Channel, tether.Channel]]:
    """Return the head's and the rank's side of a proven connection."""
    head, rank = socket.socketpair()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(tether.accept(head, KEY, 60.0)))
    thread.start()
    theirs = tether.connect(rank, KEY, {"rank": 1}, 60.0)
    thread.join()
    hello, ours = found[0]
    assert hello == {"rank": 1}
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_arrive_in_both_directions(pair: tuple[tether.Channel, tether.Channel]) -> None:
    head, rank = pair
    head.send({"go": True})
    head.send({})
    rank.send({"end": "why\nso"})
    messages = rank.messages()
    assert [next(messages), next(messages)] == [{"go": True}, {}]
    assert next(head.messages()) == {"end": "why\nso"}


@pytest.mark.parametrize("how", ["added", "replayed", "turned round", "unproven", "endless"])
def test_nothing_is_added_replayed_or_turned_round(pair: tuple[tether.Channel, tether.Channel], how: str) -> None:
    head, rank = pair
    rank.send({"end": "x"})
    line = head.peer.recv(4096)
    if how == "turned round":
        head.peer.sendall(line)
        with pytest.raises(ValueError, match="without the proof of its sender"):
            next(rank.messages())
        return
    sent = {
        "added": line.replace(b"x", b"y"),
        "replayed": line + line,
        "unproven": b'{"end": "x"}\n',
        "endless": b"x" * (tether.MAX_MESSAGE_BYTES + 5000),
    }[how]
    thread = threading.Thread(target=rank.peer.sendall, args=(sent,))
    thread.start()
    with pytest.raises(ValueError, match="without an end" if how == "endless" else "without the proof of its sender"):
        list(head.messages())
    head.close()
    thread.join()


def test_a_handshake_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tether, "HANDSHAKE_SECONDS", 0.2)
    head, rank = socket.socketpair()
    with head, rank, pytest.raises((tether.UnprovenError, TimeoutError)):
        tether.accept(head, KEY, 5.0)


NONCES = st.text(max_size=20) | st.characters(categories=["Cs"]) | st.none() | st.integers()
HELLOS = st.binary(max_size=200) | st.fixed_dictionaries(
    {}, optional={"nonce": NONCES, "hello": NONCES, "mac": NONCES, "more": st.lists(NONCES, max_size=3)}
).map(lambda hello: json.dumps(hello).encode())


@pytest.mark.parametrize("side", ["head", "rank"])
@bounded
@given(HELLOS)
def test_whatever_comes_without_the_key_is_unproven(side: str, data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data.replace(b"\n", b"") + b"\n")
        theirs.shutdown(socket.SHUT_WR)
        if side == "head":
            with pytest.raises(tether.UnprovenError):
                tether.accept(ours, KEY, 5.0)
            return
        # A rank answers any nonce; what the head sends after it has to hold the proof.
        with suppress(tether.UnprovenError):
            channel = tether.connect(ours, KEY, {"rank": 1}, 5.0)
            assert list(channel.messages()) == []


def test_the_key_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ValueError, match="key cannot be read: "):
        tether.read_key(path)
    path.write_text("short")
    with pytest.raises(ValueError, match="has 5 characters instead of 64"):
        tether.read_key(path)
    path.write_text("a" * 64 + "\n")
    assert tether.read_key(path) == b"a" * 64
