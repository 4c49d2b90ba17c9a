# SPDX-License-Identifier: Apache-2.0
"""What the ways to distribute an image took.  Pure but for `attempt`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

CASES = ("first", "changed", "nothing")


@dataclass(frozen=True)
class Row:
    """One way in one case: ``seconds`` from the head's first read to the last worker; ``received_mib`` by each worker.

    ``problem`` is the reason of a way that failed twice; its seconds are 0.
    """

    store: str
    case: str
    way: str
    seconds: float
    received_mib: tuple[float, ...] = ()
    problem: str = ""

    def text(self) -> str:
        if self.problem:
            return f"failed twice: {self.problem[-160:]}"
        return f"{self.seconds:.1f} s, {' '.join(f'{mib:.0f}' for mib in self.received_mib)} MiB"


def attempt(
    run: Callable[[], tuple[float, tuple[float, ...]]],
    again: Callable[[], None],
    failures: tuple[type[Exception], ...],
) -> tuple[float, tuple[float, ...], str]:
    """Run one way, once more after a failure; return (seconds, MiB received by each worker, problem).

    :param again: prepares the second attempt.
    :param failures: what counts as a failure of the way; everything else ends the benchmark.
    """
    problem = ""
    for number in range(2):
        try:
            if number:
                time.sleep(5)
                again()
            seconds, received = run()
        except failures as failure:
            problem = str(failure) or type(failure).__name__
        else:
            return seconds, received, ""
    return 0.0, (), problem
