# SPDX-License-Identifier: Apache-2.0
"""Wrong options and variables, each with the whole sentence that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@dataclass(frozen=True)
class Bad:
    """One wrong input and every sentence that it gets, in order."""

    sentences: Sequence[str]
    serve: dict[Any, Any] = field(default_factory=dict)
    env: dict[Any, Any] = field(default_factory=dict)
    version: str = "0.22.1"
    mods: Sequence[str] = ()


TABLES = yaml.safe_load((FIXTURES / "serve" / "bad_input.yml").read_text(encoding="utf-8"))
BAD = {part: [Bad(**each) for each in found] for part, found in TABLES.items()}
NAMES, VARIABLES = BAD["names"], BAD["variables"]
ALL = [bad for found in BAD.values() for bad in found]


def name_of(bad: Bad) -> str:
    return "-".join(str(each) for each in (*bad.serve, *bad.env, *bad.mods, bad.version))


@pytest.mark.parametrize("bad", ALL, ids=name_of)
def test_each_gets_its_sentence(bad: Bad) -> None:
    with pytest.raises(ServeError) as caught:
        serve_files.render(bad.serve, bad.version, bad.env, bad.mods)
    assert caught.value.errors == bad.sentences


@pytest.mark.parametrize("option", ["hf-overrides", "compilation-config", "speculative-config"])
def test_values_that_json_cannot_hold_get_a_sentence(option: str) -> None:
    circle: dict[str, Any] = {}
    circle["method"] = circle
    deep: dict[str, Any] = {}
    for _level in range(2000):
        deep = {"method": deep}
    for value, said in (
        (circle, "contains itself, which JSON cannot"),
        (deep, "cannot be written as JSON"),
        ("[" * 50_000, "takes a dictionary or JSON"),
    ):
        with pytest.raises(ServeError) as caught:
            serve_files.render({option: value}, "0.30.0", {}, [])
        assert said in str(caught.value)


def test_there_are_enough_of_them() -> None:
    assert len(ALL) >= 45
    assert len({tuple(bad.sentences) for bad in ALL}) == len(ALL)


def test_all_errors_come_at_once() -> None:
    """Every wrong option that contradicts no other, together: each still gets its sentence."""
    together: dict[Any, Any] = {}
    expected: list[str] = []
    for bad in NAMES:
        if bad.version == "0.22.1" and not bad.mods:
            together.update(bad.serve)
            expected.extend(bad.sentences)
    variables = {key: value for bad in VARIABLES[2:4] for key, value in bad.env.items()}
    expected.extend(sentence for bad in VARIABLES[2:4] for sentence in bad.sentences)
    with pytest.raises(ServeError) as caught:
        serve_files.render(together, "0.22.1", variables, [])
    assert caught.value.errors == expected
    assert len(expected) > 20
    assert str(caught.value) == "\n".join(expected)


def test_secrets_are_never_repeated() -> None:
    with pytest.raises(ServeError) as caught:
        serve_files.render({"api-key": "sesame", "hf-token": "sesame"}, "0.22.1", {}, [])
    assert "sesame" not in str(caught.value)
