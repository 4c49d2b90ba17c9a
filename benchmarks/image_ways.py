# SPDX-License-Identifier: Apache-2.0
"""What the ways to distribute an image took, and whether a registry replaces the agent.  Pure but for `attempt`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: A registry that is within this factor of the agent in each case below, on each image store, replaces it.
BOUND = 1.3
CASES = ("first", "changed", "nothing")
DECIDING = ("first", "changed")
AGENT = "agent"


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


def ratios(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Return (store, case) → seconds of the fastest registry over the agent's, where both have a figure."""
    found = [row for row in rows if row.case in DECIDING and not row.problem]
    agent = {(row.store, row.case): row.seconds for row in found if row.way == AGENT}
    registry: dict[tuple[str, str], float] = {}
    for row in found:
        if row.way.startswith("registry"):
            key = row.store, row.case
            registry[key] = min(row.seconds, registry.get(key, row.seconds))
    return {key: registry[key] / agent[key] for key in agent if key in registry}


def decision(rows: Iterable[Row]) -> str:
    """Return the sentence of the rule: who distributes images from now on."""
    measured = list(rows)
    cases = [(row.store, row.case) for row in measured if row.way == AGENT and row.case in DECIDING]
    seen = ratios(measured)
    slow = [
        f"{case} on {store}: {f'{seen[store, case]:.2f} times the agent' if (store, case) in seen else 'no figure'}"
        for store, case in cases
        if seen.get((store, case), BOUND + 1) > BOUND
    ]
    if not cases:
        return "nothing was measured"
    if slow:
        return f"the agent stays; a registry is not within {BOUND} times in {'; '.join(slow)}"
    return f"a registry replaces the agent: it is within {BOUND} times in each case"
