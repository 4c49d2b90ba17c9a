# SPDX-License-Identifier: Apache-2.0
"""The tables of models in README.md and docs/models.md are those of the catalogue."""

from __future__ import annotations

import pytest

from scripts import models_page


def test_the_pages_are_what_the_script_writes() -> None:
    for path, text in models_page.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run make models-page"


def test_every_model_has_a_row_in_both_tables() -> None:
    specs = [spec for spec, _marks in models_page.models()]
    for table in (models_page.full_table(), models_page.short_table()):
        for spec in specs:
            assert table.count(f"\n| `{spec['name']}` | {spec['nodes']} |") == 1
    for line, spec in zip(models_page.full_table().splitlines()[2:], specs, strict=True):
        published = models_page.BOXES.index(spec["nodes"]) if spec["nodes"] in models_page.BOXES else None
        verdicts = line.split(" | ")[6 : 6 + len(models_page.BOXES)]
        bold = [number for number, verdict in enumerate(verdicts) if verdict.startswith("**")]
        assert bold == ([] if published is None else [published])


def test_only_the_part_between_the_marks_is_replaced() -> None:
    text = "a\n<!-- generated: x -->\nold\n<!-- end of x -->\nb\n"
    assert models_page.replaced(text, "x", "new") == "a\n<!-- generated: x -->\nnew\n<!-- end of x -->\nb\n"
    for wrong in ("no marks", text + text, "<!-- end of x --> <!-- generated: x -->"):
        with pytest.raises(ValueError, match="there must be one '<!-- generated: x -->'"):
            models_page.replaced(wrong, "x", "new")


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("# every value is that of [R] (PR 1); [C] has more\na: 1  # [P]\nb: 2  # [P]\n", ["R", "C"]),
        ("a: 1  # [S2]\nb: 2  # [S2]\nc: 3  # [V 0.22.1]\nd: 4 # [V] [V] [P]\n", ["V", "S2"]),
        ("a: 1\n", []),
    ],
)
def test_sources_of_a_file(text: str, marks: list[str]) -> None:
    assert models_page.sources(text) == marks


def test_launches_of_one_repository_are_compared() -> None:
    specs = [
        {"name": "a", "nodes": 4, "serve": {"x": 1, "same": 2, "config": {"k": 1}}, "env": {"A": "1"}},
        {"name": "b", "nodes": 4, "serve": {"same": 2, "config": {"k": 2}}, "env": {"A": "1"}},
    ]
    assert models_page._compared("o/r", specs).splitlines() == [
        "o/r, 4 nodes:",
        "",
        "| | `a` | `b` |",
        "|---|---|---|",
        "| serve.x | `1` | none |",
        "| serve.config.k | `1` | `2` |",
    ]
