# SPDX-License-Identifier: Apache-2.0
"""What another machine may write: any JSON, JSON that is nearly what a reader expects, and bytes from a port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Nothing may fail because a machine is slow; what an example costs is bounded by its size.
bounded = settings(
    deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

#: Half of a surrogate pair, a number that no float holds, one that no calendar holds.
ODD = st.sampled_from(["", "\ud800", "\x1b[2J", "9" * 40, -1, 10**400, 1e300, float("nan"), float("inf"), 2**63])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
DEEP = "[" * 100_000


def near(example: Any) -> st.SearchStrategy[Any]:
    """Return values of an example's shape, in which any part may be missing or be anything else (`_node.shape`)."""
    if isinstance(example, tuple):
        return near(example[0])
    if isinstance(example, Mapping):
        return JSON | st.fixed_dictionaries({}, optional={key: near(part) for key, part in example.items()})
    if isinstance(example, list):
        return JSON | st.lists(near(example[0]), max_size=3)
    kinds: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(),
        str: st.text(max_size=20),
    }
    kind = example if isinstance(example, type) else type(example)
    return JSON | kinds.get(kind, JSON) | (st.none() if isinstance(example, type) else st.just(example))


@contextmanager
def serving(answer: bytes) -> Iterator[int]:
    """Answer each connection's first request with some bytes and hang up; the port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _where = server.accept()
                    with peer, suppress(OSError):
                        peer.recv(65536)
                        peer.sendall(answer)
                        peer.shutdown(socket.SHUT_WR)
                        # What was not read when a socket is closed resets the connection, and the answer with it.
                        while peer.recv(65536):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
