# SPDX-License-Identifier: Apache-2.0
"""The difference between two clocks from a few questions and answers; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """When we asked, when the answer was here, and what it said; all in seconds since the epoch."""

    sent_s: float
    received_s: float
    said_s: float


def best(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the other clock's lead and the most that it may be off by, from the fastest answer.

    The answer was given at some moment between question and answer; the middle is the best guess, and half of the
    time between them bounds the error, however uneven the ways there and back are.
    """
    fastest = min(samples, key=lambda sample: sample.received_s - sample.sent_s)
    error_s = (fastest.received_s - fastest.sent_s) / 2
    return fastest.said_s - (fastest.sent_s + fastest.received_s) / 2, error_s
