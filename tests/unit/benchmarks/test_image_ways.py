# SPDX-License-Identifier: Apache-2.0
"""What the image benchmark makes of a way that fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.image_ways import Row, attempt


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
    assert Row("overlay2", "first", "the role", 12.34, (100.4, 99.6)).text() == "12.3 s, 100 100 MiB"
    assert Row("overlay2", "first", "the role", 0, (), "broken pipe").text() == "failed twice: broken pipe"
