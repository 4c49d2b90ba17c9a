# SPDX-License-Identifier: Apache-2.0
"""What serves is what was last verified, unless the command line names something else."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.model import Head, choose, placement_error

FILES = {"model_a": frozenset({"model_spec"}), "model_b_c": frozenset({"model_spec"})}


def head(**record: Any) -> Head:
    """Return a head with a record."""
    return Head("n1", record)


@pytest.mark.parametrize(
    ("named", "own", "answer", "model", "source"),
    [
        ("b-c", "a", None, "b-c", "-e model"),
        ("inventory", "a", head(model="b-c"), "a", "the inventory, as -e model=inventory says"),
        ("", "a", None, "a", "the inventory"),
        ("", "a", head(), "a", "the inventory; nothing was verified on n1 yet"),
        ("", "a", head(model="a"), "a", "the inventory; it is what was last verified on n1"),
        ("", "b_c", head(model="b-c"), "b_c", "the inventory; it is what was last verified on n1"),
        (
            "",
            "a",
            head(model="b-c"),
            "b-c",
            "what was last verified on n1; the inventory names 'a' (-e model=inventory for that)",
        ),
        (
            "",
            "a",
            Head("n1", {}, "timed out"),
            "a",
            "the inventory; n1 could not be asked what was last verified: timed out",
        ),
    ],
)
def test_who_decides(named: str, own: str, answer: Head | None, model: str, source: str) -> None:
    choice = choose(named, own, answer, FILES)
    assert (choice.model, choice.source, choice.error) == (model, source, "")


def test_a_recorded_model_that_is_not_known_here_is_refused_with_both_names() -> None:
    error = choose("", "a", head(model="gone"), FILES).error
    for words in ("n1 last verified 'gone'", "the inventory names 'a'", "no file model_gone.yml", "-e model=inventory"):
        assert words in error


def test_variables_that_would_stay_in_force_are_refused_with_both_names() -> None:
    files = {**FILES, "model_a": frozenset({"model_spec", "engine_stall_seconds"})}
    error = choose("", "a", head(model="b-c"), files).error
    assert "model_a.yml sets engine_stall_seconds, which model_b_c.yml does not" in error
    assert not choose("", "b-c", head(model="a"), files).error


def test_the_inventory_must_name_a_model_to_be_asked_for_it() -> None:
    assert "names no model" in choose("inventory", "", None, FILES).error
    assert choose("", "", head(model="a"), FILES).model == "a"


PLAN = {"model": "a", "members": ["n1", "n2"], "spec": {"engine": "native"}}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"model": "b", "members": ["n1"], "engine": "ray"},
        {"model": "a", "members": ["n1", "n2"], "engine": "native"},
        {"model": "a", "members": ["n1", "n2"]},  # of a release that did not record the engine
    ],
)
def test_what_was_verified_may_be_planned_again(record: dict[str, Any]) -> None:
    assert placement_error(record, PLAN, "n1") == ""


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"model": "a", "members": ["n1"]}, "on 1 node(s) (n1); the inventory plans it on 2 node(s) (n1, n2)"),
        (
            {"model": "a", "members": ["n1", "n2"], "engine": "ray"},
            "on 2 node(s) (n1, n2) with ray; the inventory plans it on 2 node(s) (n1, n2) with native",
        ),
        ({"model": "a", "members": ["n2", "n1"], "engine": "native"}, "on 2 node(s) (n2, n1)"),
    ],
)
def test_another_placement_is_refused(record: dict[str, Any], words: str) -> None:
    error = placement_error(record, PLAN, "n1")
    assert words in error
    assert "-e model=a" in error
