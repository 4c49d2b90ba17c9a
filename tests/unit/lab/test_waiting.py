# SPDX-License-Identifier: Apache-2.0
"""A wait of the lab outlasts any slowness, and ends on lack of progress."""

from __future__ import annotations

import pytest

from lab.errors import LabError
from lab.waiting import wait_until


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(clock: Clock, ready_at: float, lines_until: float) -> float:
    """Wait for `ready_at`; a line comes every 5 s until `lines_until`."""
    return wait_until(
        lambda: clock.now if clock.now >= ready_at else 0.0,
        lambda: min(clock.now, lines_until) // 5,
        lambda answer: f"nothing new; last answer {answer}",
        stall_seconds=10,
        clock=clock,
        sleep=clock.sleep,
    )


def test_a_slow_host_is_waited_for_while_anything_moves() -> None:
    assert wait(Clock(), ready_at=3600.0, lines_until=3600.0) == 3600.0


def test_the_end_of_progress_ends_the_wait() -> None:
    clock = Clock()
    with pytest.raises(LabError, match=r"nothing new; last answer 0.0"):
        wait(clock, ready_at=3600.0, lines_until=100.0)
    assert 110 <= clock.now <= 112


def test_what_is_there_already_is_not_waited_for() -> None:
    clock = Clock()
    clock.now = 1.0
    assert wait(clock, ready_at=1.0, lines_until=0.0) == 1.0
    assert clock.now == 1.0
