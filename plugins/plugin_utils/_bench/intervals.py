# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of means over repeats, by Student's t-distribution; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
#: With fewer repeats the factor of the interval is above 2.8, so that little more than its width is learned.
FEW = 5


def t_below(t: float, freedom: int) -> float:
    """Return the probability that a variable of Student's distribution lies between -t and t.

    :param freedom: degrees of freedom, 1 or more.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even): finite sums.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for number in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cosine**2 * number / (number + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_factor(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t within which a variable of Student's distribution lies with this probability, to 1e-9.

    :raises ValueError: fewer than one degree of freedom, or a confidence that is not between 0 and 1.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"no factor for {freedom} degrees of freedom and confidence {confidence}")
    low, high = 0.0, 1.0
    while t_below(high, freedom) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, freedom) < confidence else (low, middle)
    return high


@dataclass(frozen=True)
class Interval:
    """A mean over repeats. ``half`` is the half width of its interval in the unit of the values; None for one value."""

    count: int
    mean: float
    half: float | None


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the mean of independent repeats with its confidence interval; None without values.

    The half width is t(n - 1) by the sample's standard deviation (n - 1) by the root of n.
    """
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(count, mean, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Interval(count, mean, t_factor(count - 1, confidence) * deviation / math.sqrt(count))


def sentence(repeats: int) -> str:
    """Return what intervals over this many repeats mean, and that there are too few where that is so."""
    if repeats < 2:
        return (
            "One repeat has no interval: how far the figure would move when measured again is not known. "
            "Set bench_runs (bench_rounds of a sweep) to 5 or more."
        )
    meaning = f"± is the half width of the 95 % confidence interval of the mean over {repeats} repeats (Student's t"
    if repeats < FEW:
        return (
            f"{meaning}, factor {t_factor(repeats - 1):.1f}). {repeats} repeats are too few to tell small differences "
            "from noise: set bench_runs (bench_rounds of a sweep) to 5 or more."
        )
    return f"{meaning}, factor {t_factor(repeats - 1):.2f})."
