# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Ray: nodes that know of one another, and nothing that computes."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

__version__ = "2.60.0"

_head: list[tuple[str, int]] = []


def init(address: str = "auto", **_options: Any) -> None:
    """Remember the head and see that it answers.

    :raises ConnectionError: when it does not.
    """
    where = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _colon, port = where.rpartition(":")
    if not host:
        raise ConnectionError(f"ray.init: '{where}' is not <address>:<port>; set RAY_ADDRESS")
    _head[:] = [(host, int(port))]
    nodes()


def nodes() -> list[dict[str, Any]]:
    """Return the nodes that have joined, each with ``Alive`` and ``NodeManagerAddress``."""
    if not _head:
        raise ConnectionError("ray.init was not called")
    with socket.create_connection(_head[0], timeout=5) as head:
        head.sendall(b"nodes\n")
        found: list[dict[str, Any]] = json.loads(head.makefile("r", encoding="utf-8").readline())
    return found


def shutdown() -> None:
    """Forget the head."""
    _head.clear()
