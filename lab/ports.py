# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that are started later, by another process."""

from __future__ import annotations

import socket

#: Each is bound to a port that was given away, and does not listen.
_HELD: list[socket.socket] = []


def free_port() -> int:
    """Return a port that no other program gets while this process runs: not to listen, not to connect from.

    A server that sets SO_REUSEADDR, as those of Python and Go and nginx do, listens there all the same. Until then a
    connection is refused.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])
