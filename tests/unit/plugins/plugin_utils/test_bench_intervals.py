# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals, compared with the printed tables of Student's distribution."""

from __future__ import annotations

import math

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.intervals import (
    interval,
    sentence,
    t_below,
    t_factor,
)


@pytest.mark.parametrize(
    ("freedom", "confidence", "factor"),
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (10, 0.95, 2.228),
        (29, 0.95, 2.045), (30, 0.95, 2.042), (120, 0.95, 1.980), (1, 0.99, 63.657), (5, 0.99, 4.032), (8, 0.9, 1.860),
    ],
)  # fmt: skip
def test_factors_are_those_of_the_tables(freedom: int, confidence: float, factor: float) -> None:
    assert t_factor(freedom, confidence) == pytest.approx(factor, abs=6e-4)


def test_the_distribution_with_one_degree_is_cauchys_and_with_many_the_normal_one() -> None:
    assert t_below(1.0, 1) == pytest.approx(0.5)
    assert t_below(1.96, 100_000) == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_what_has_no_factor_is_refused(freedom: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_factor(freedom, confidence)


def test_the_interval_of_five_values() -> None:
    found = interval([9.0, 10.0, 11.0, 10.0, 10.0])
    assert found is not None
    assert (found.count, found.mean) == (5, 10.0)
    # Sample deviation sqrt(2 / 4), by the root of 5, times 2.776.
    assert found.half == pytest.approx(2.7764 * math.sqrt(0.5) / math.sqrt(5), abs=1e-4)


def test_one_value_has_no_interval_and_none_has_nothing() -> None:
    one = interval([7.0])
    assert one is not None
    assert (one.mean, one.half) == (7.0, None)
    assert interval([]) is None


def test_the_sentence_says_when_there_are_too_few() -> None:
    assert "One repeat has no interval" in sentence(1)
    assert "factor 4.3). 3 repeats are too few" in sentence(3)
    assert "too few" not in sentence(5)
    assert "factor 2.78" in sentence(5)
