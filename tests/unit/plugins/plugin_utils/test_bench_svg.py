# SPDX-License-Identifier: Apache-2.0
"""Plots: what is drawn is where it belongs, and nothing of a page's text can break out of it."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.svg import (
    Bar,
    Limit,
    Series,
    line_chart,
    number,
    ticks,
    timeline,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("greatest", "expected"),
    [
        (68.3, [0, 20, 40, 60, 80]),
        (5, [0, 1, 2, 3, 4, 5]),
        (0.031, [0, 0.01, 0.02, 0.03, 0.04]),
        (0, [0, 1]),
        (float("nan"), [0, 1]),
    ],
)
def test_ticks(greatest: float, expected: list[float]) -> None:
    assert ticks(greatest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (68.3, "68.3"),
        (9477.4, "9 477"),
        (0.0312, "0.0312"),
        (1.0, "1"),
        (100.0, "100"),
        (0.5, "0.5"),
        (12.345, "12.3"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def dots(svg: str, colour: str) -> list[tuple[float, float]]:
    return [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in ET.fromstring(svg).iter(f"{SVG}circle")
        if each.attrib["class"].endswith(colour)
    ]


def test_a_line_goes_through_its_values_and_has_its_holes() -> None:
    svg = line_chart("t", ["1", "2", "4"], [Series("a", [10.0, 20.0, 40.0]), Series("b", [None, 5.0, None])])

    (x1, y1), (x2, y2), (x3, y3) = dots(svg, "s0")
    assert x1 < x2 < x3
    assert y1 > y2 > y3
    assert (y2 - y3) / (y1 - y2) == pytest.approx(2, rel=0.02)
    assert len(dots(svg, "s1")) == 1
    names = [each.text for each in ET.fromstring(svg).iter(f"{SVG}title")]
    assert "a, 4: 40" in names


def test_a_limit_is_drawn_at_its_height() -> None:
    svg = line_chart("t", ["1"], [Series("a", [35.0])], limits=[Limit("ceiling", 35.0)])

    (line,) = [each for each in ET.fromstring(svg).iter(f"{SVG}line") if each.attrib["class"] == "limit"]
    assert float(line.attrib["y1"]) == pytest.approx(dots(svg, "s0")[0][1], abs=0.1)
    assert "ceiling: 35" in svg


def test_a_limit_above_all_values_still_fits() -> None:
    svg = line_chart("t", ["1"], [Series("a", [1.0])], limits=[Limit("ceiling", 64.0)])
    (line,) = [each for each in ET.fromstring(svg).iter(f"{SVG}line") if each.attrib["class"] == "limit"]
    assert float(line.attrib["y1"]) > 0


def test_bars_are_as_long_as_they_lasted() -> None:
    svg = timeline("t", [Bar("r0", [("queue", 0, 10), ("prefill", 10, 15), ("decode", 15, 35)])], [("queue", "waits")])

    widths = {
        each.attrib["class"]: float(each.attrib["width"])
        for each in ET.fromstring(svg).iter(f"{SVG}rect")
        if each.attrib["height"] == "15"
    }
    assert widths["decode"] / widths["prefill"] == pytest.approx(4, rel=0.01)
    assert widths["queue"] / widths["prefill"] == pytest.approx(2, rel=0.01)


def test_text_cannot_break_out() -> None:
    evil = '<script>x</script>&"'
    for svg in (
        line_chart(evil, [evil], [Series(evil, [1.0])], x_name=evil, y_name=evil, limits=[Limit(evil, 1.0)]),
        timeline(evil, [Bar(evil, [("queue", 0, 1)], evil)], [("queue", evil)], x_name=evil),
    ):
        assert "<script" not in svg
        assert not list(ET.fromstring(svg).iter("script"))


def test_charts_without_values_are_still_charts() -> None:
    for svg in (line_chart("t", [], []), line_chart("t", ["1"], [Series("a", [None])]), timeline("t", [], [])):
        assert ET.fromstring(svg).tag == f"{SVG}svg"


def test_many_labels_do_not_run_into_each_other() -> None:
    svg = line_chart("t", [f"11-21 abc{n}" for n in range(40)], [Series("a", [1.0] * 40)])
    shown = re.findall(r"11-21 abc\d+</text>", svg)
    assert 3 < len(shown) < 12
