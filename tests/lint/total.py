# SPDX-License-Identifier: Apache-2.0
"""Add up what `.ci/part` left: the end of each failed part's log, one line per part, and `N passed, N failed`.

    python -m tests.lint.total PART...

A part with a JUnit report (NAME.xml) counts its tests, every other part counts one. A part without a result, or that
failed without a failed test, counts one failure, so that a crash is never a success.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPORTS = Path(__file__).resolve().parents[2] / ".ansible" / "reports"
#: How many lines of a failed part's log stand above the closing lines.
CLOSING_LINES = 80
#: How a log names what failed, and how many such lines of a part stand beside the closing line.
REASON = re.compile(r"ERROR: |FATAL: |FAILED |fatal: \[|.*: error: ")
REASONS = 10


@dataclass(frozen=True)
class Outcome:
    """What a part gave; `seconds` is None when it left no result."""

    name: str
    seconds: int | None
    passed: int
    failed: int

    def __str__(self) -> str:
        took = "no result" if self.seconds is None else f"{self.seconds} s"
        return f"  {self.name:<24} {took:>9}  {self.passed} passed, {self.failed} failed"


def counts_of(report: Path) -> tuple[int, int]:
    """Return (passed, failed) of a JUnit report; errors count as failed, skipped tests as neither.

    A report that is missing or was not written completely has none.
    """
    try:
        suites = ET.parse(report).getroot().iter("testsuite")
    except (OSError, ET.ParseError):
        return 0, 0
    passed = failed = 0
    for suite in suites:
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        failed += number["failures"] + number["errors"]
        passed += number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    return passed, failed


def outcome_of(name: str, reports: Path) -> Outcome:
    """Return what one part gave."""
    try:
        status, seconds = (int(word) for word in (reports / f"{name}.result").read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return Outcome(name, None, 0, 1)
    passed, failed = counts_of(reports / f"{name}.xml")
    if status != 0:
        failed = failed or 1
    elif passed + failed == 0:
        passed = 1
    return Outcome(name, seconds, passed, failed)


def reasons_of(log: Path) -> list[str]:
    """Return the first lines of a log that name what failed, without their repetitions; none if there is no log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(line[:200] for line in lines if REASON.match(line)))[:REASONS]


def main(names: Sequence[str], reports: Path = REPORTS) -> int:
    """Print the sum; return 0 if there are parts and nothing failed."""
    outcomes = [outcome_of(name, reports) for name in names]
    for outcome in outcomes:
        log = reports / f"{outcome.name}.log"
        if outcome.failed and log.exists():
            print(f"\n---- the end of {log}")
            print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-CLOSING_LINES:]))
    print()
    for outcome in outcomes:
        print(outcome)
    failed = sum(outcome.failed for outcome in outcomes)
    for outcome in outcomes:
        if outcome.failed:
            for reason in reasons_of(reports / f"{outcome.name}.log"):
                print(f"{outcome.name}: {reason}")
    print(f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed", flush=True)
    return 0 if outcomes and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
