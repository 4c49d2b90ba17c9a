# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG that a page can hold without fetching anything; pure.

Colours are classes (s0 to s5, queue, prefill, decode, failed, limit), which the page styles for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
HEIGHT = 300
LEFT = 64
RIGHT = 16
TOP = 34
BOTTOM = 44
LEGEND_STEP = 150
COLOURS = 6
BAR_HEIGHT = 15
BAR_GAP = 4
LABEL_CHARS = 14


@dataclass(frozen=True)
class Series:
    """One line of a chart; None leaves a hole."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Limit:
    """A level that is drawn across a chart."""

    name: str
    value: float


@dataclass(frozen=True)
class Bar:
    """One row of a timeline: its label, and its parts as (class, begin, end)."""

    label: str
    parts: Sequence[tuple[str, float, float]]
    note: str = ""


def ticks(greatest: float, wanted: int = 5) -> list[float]:
    """Return round numbers from 0 to at least the greatest value.

    >>> ticks(68.3)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if not greatest > 0 or not math.isfinite(greatest):
        return [0.0, 1.0]
    raw = greatest / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= raw * 0.999)
    return [step * number for number in range(math.ceil(greatest / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Return a number for people: three digits that matter, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def _open(title: str, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" class="plot">',
        f"<title>{escape(title)}</title>",
        _text(LEFT, 16, title, "title", "start"),
    ]


def _frame(levels: Sequence[float], bottom: float, top: float) -> list[str]:
    out = []
    for level in levels:
        y = bottom - (bottom - top) * level / levels[-1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(_text(LEFT - 6, y + 4, number(level), "tick", "end"))
    return out


def _segments(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Cut a line at its holes."""
    found: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            found.append([])
        else:
            found[-1].append(point)
    return [segment for segment in found if segment]


def line_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_name: str = "",
    y_name: str = "",
    limits: Sequence[Limit] = (),
) -> str:
    """Return a chart of lines over labelled places."""
    values = [value for each in series for value in each.values if value is not None]
    levels = ticks(max([*values, *(limit.value for limit in limits)], default=1.0))
    shown = [each for each in series if any(value is not None for value in each.values)]
    rows = math.ceil(len(shown) * LEGEND_STEP / (WIDTH - LEFT - RIGHT)) or 1
    top, bottom = TOP + 4 + 14 * rows, HEIGHT - BOTTOM
    out = [*_open(title, HEIGHT), *_frame(levels, bottom, top)]
    room = WIDTH - LEFT - RIGHT
    places = [LEFT + room * (index + 0.5) / max(1, len(labels)) for index in range(len(labels))]
    every = max(1, math.ceil(len(labels) * 7 * max((len(label) for label in labels), default=1) / room))
    for index, (x, label) in enumerate(zip(places, labels, strict=True)):
        if index % every == 0:
            out.append(_text(x, bottom + 16, label, "tick"))
    out.append(_text(LEFT + room / 2, HEIGHT - 8, x_name, "axis"))
    out.append(
        f'<text x="14" y="{(top + bottom) / 2:.1f}" text-anchor="middle" class="axis" '
        f'transform="rotate(-90 14 {(top + bottom) / 2:.1f})">{escape(y_name)}</text>'
    )
    for limit in limits:
        y = bottom - (bottom - top) * limit.value / levels[-1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="limit"/>')
        out.append(_text(WIDTH - RIGHT, y - 5, f"{limit.name}: {number(limit.value)}", "limit-name", "end"))
    per_row = max(1, room // LEGEND_STEP)
    for index, each in enumerate(shown):
        colour = f"s{index % COLOURS}"
        x, y = LEFT + LEGEND_STEP * (index % per_row), TOP + 14 * (index // per_row)
        out.append(f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" class="line {colour}"/>')
        out.append(_text(x + 23, y, each.name, "legend", "start"))
        points = [
            None if value is None else (place, bottom - (bottom - top) * value / levels[-1])
            for place, value in zip(places, each.values, strict=True)
        ]
        for segment in _segments(points):
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in segment)
            out.append(f'<polyline points="{path}" class="line {colour}"/>')
        for label, value, point in zip(labels, each.values, points, strict=True):
            if point is not None and value is not None:
                words = escape(f"{each.name}, {label}: {number(value)}")
                dot = f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3.5" class="dot {colour}">'
                out.append(f"{dot}<title>{words}</title></circle>")
    return "\n".join([*out, "</svg>"])


def timeline(title: str, bars: Sequence[Bar], legend: Sequence[tuple[str, str]], *, x_name: str = "") -> str:
    """Return horizontal bars over one axis from 0 on; the legend is (class, name)."""
    levels = ticks(max((end for row in bars for _kind, _begin, end in row.parts), default=1.0), 6)
    top = TOP + 12
    height = top + len(bars) * (BAR_HEIGHT + BAR_GAP) + BOTTOM
    bottom = height - BOTTOM
    room = WIDTH - LEFT - RIGHT
    out = _open(title, height)
    for index, (kind, name) in enumerate(legend):
        x = float(LEFT + LEGEND_STEP * index)
        out.append(f'<rect x="{x:.0f}" y="{TOP - 11}" width="12" height="10" class="{kind}"/>')
        out.append(_text(x + 17, TOP - 2, name, "legend", "start"))
    for level in levels:
        x = LEFT + room * level / levels[-1]
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}" class="grid"/>')
        out.append(_text(x, bottom + 16, number(level), "tick"))
    out.append(_text(LEFT + room / 2, height - 8, x_name, "axis"))
    for index, row in enumerate(bars):
        y = top + index * (BAR_HEIGHT + BAR_GAP)
        out.append(_text(LEFT - 6, y + BAR_HEIGHT - 4, row.label[:LABEL_CHARS], "tick", "end"))
        for kind, begin, end in row.parts:
            left, width = LEFT + room * begin / levels[-1], max(1.0, room * (end - begin) / levels[-1])
            words = escape(f"{row.label}: {kind} {number(end - begin)} s{', ' + row.note if row.note else ''}")
            box = f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" class="{kind}">'
            out.append(f"{box}<title>{words}</title></rect>")
    return "\n".join([*out, "</svg>"])
