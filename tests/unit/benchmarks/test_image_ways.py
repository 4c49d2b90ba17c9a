# SPDX-License-Identifier: Apache-2.0
"""What the image benchmark concludes from its rows, and what it makes of a way that fails."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from benchmarks.image_ways import AGENT, Row, attempt, decision, ratios


def rows(**seconds: tuple[float, float]) -> list[Row]:
    """Return rows of agent and registry by ``<store>_<case>``; a negative time is a failure."""
    found = []
    for key, times in seconds.items():
        store, case = key.split("_")
        for way, value in zip((AGENT, "registry, docker push"), times, strict=True):
            found.append(Row(store, case, way, max(0.0, value), (), "broke" if value < 0 else ""))
    return found


def test_the_fastest_registry_is_compared_with_the_agent_in_the_deciding_cases() -> None:
    measured = [
        *rows(overlay2_first=(10, 20), overlay2_nothing=(1, 50)),
        Row("overlay2", "first", "registry, zstd", 12),
    ]
    assert ratios(measured) == {("overlay2", "first"): 1.2}


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (rows(overlay2_first=(10, 13), containerd_changed=(10, 5)), "a registry replaces the agent"),
        (rows(overlay2_first=(10, 13.1), containerd_changed=(10, 5)), "stays; .* in first on overlay2: 1.31 times"),
        (rows(overlay2_first=(10, 5), containerd_changed=(10, -1)), "stays; .* in changed on containerd: no figure"),
        (rows(overlay2_nothing=(10, 5)), "nothing was measured"),
    ],
)
def test_the_rule_decides_by_the_slowest_case(measured: list[Row], sentence: str) -> None:
    assert re.search(sentence, decision(measured))


def failing(times: int) -> Callable[[], tuple[float, tuple[float, ...]]]:
    left = [times]

    def run() -> tuple[float, tuple[float, ...]]:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError(f"stream broke, {left[0]} left")
        return 3.0, (1.0, 2.0)

    return run


def test_a_way_that_fails_is_tried_once_more_and_then_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    prepared: list[int] = []

    def again() -> None:
        prepared.append(1)

    assert attempt(failing(0), again, (RuntimeError,)) == (3.0, (1.0, 2.0), "")
    assert prepared == []
    assert attempt(failing(1), again, (RuntimeError,)) == (3.0, (1.0, 2.0), "")
    assert attempt(failing(2), again, (RuntimeError,)) == (0.0, (), "stream broke, 0 left")
    assert prepared == [1, 1]
    with pytest.raises(RuntimeError):
        attempt(failing(1), again, (OSError,))


def test_a_row_reads_as_a_figure_or_as_a_failure() -> None:
    assert Row("overlay2", "first", AGENT, 12.34, (100.4, 99.6)).text() == "12.3 s, 100 100 MiB"
    assert Row("overlay2", "first", AGENT, 0, (), "broken pipe").text() == "failed twice: broken pipe"
