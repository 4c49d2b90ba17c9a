# SPDX-License-Identifier: Apache-2.0
"""Waiting that ends on lack of progress, never because a host is slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")


def wait_until(
    ask: Callable[[], T],
    progress: Callable[[], object],
    stalled: Callable[[T], str],
    *,
    stall_seconds: float,
    every_seconds: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Ask until the answer is true and return it.

    :param progress: anything that changes while what is waited for comes nearer, such as the size of a log.
    :param stalled: makes the message from the last answer.
    :raises LabError: ``progress`` gave the same for ``stall_seconds``.
    """
    seen, since = progress(), clock()
    while not (answer := ask()):
        now = progress()
        if now != seen:
            seen, since = now, clock()
        elif clock() - since > stall_seconds:
            raise LabError(stalled(answer))
        sleep(every_seconds)
    return answer
