# SPDX-License-Identifier: Apache-2.0
"""Ask a node over a connection that may have broken meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ansible.errors import AnsibleConnectionFailure

T = TypeVar("T")


def ask(connection: Any, question: Callable[[], T]) -> T:
    """Ask once more over a new connection where it broke: SSH gives up on a node that is silent for a minute.

    :param question: one that may be repeated.
    :raises AnsibleConnectionFailure: it broke twice.
    """
    try:
        return question()
    except AnsibleConnectionFailure:
        connection.reset()
        return question()
