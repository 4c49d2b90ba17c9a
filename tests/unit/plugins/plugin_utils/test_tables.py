# SPDX-License-Identifier: Apache-2.0
"""Tables of options stored as differences: each one resolves to the complete table that was read from its wheel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_check, serve_files, tables
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError

STORED = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(serve_files.OWN_TABLES.glob("*.json"))
}


def table(version: str, **options: Any) -> dict[str, Any]:
    """Return a complete table."""
    return {"vllm": version, "source": f"wheel of {version}", "options": options, "env": {"VLLM_A": {}}}


OLD = table("1.0.0", a={"kind": "int"}, b={"kind": "str"})
NEW = table("1.1.0", a={"kind": "float"}, c={"kind": "flag"})


def test_a_difference_holds_what_is_new_changed_or_gone() -> None:
    stored = tables.difference(NEW, OLD)
    assert stored["base"] == "1.0.0"
    assert stored["options"] == {"a": {"kind": "float"}, "c": {"kind": "flag"}, "b": None}
    assert stored["env"] == {}
    found = tables.complete({"1.1.0": stored, "1.0.0": OLD})
    assert found == {"1.0.0": OLD, "1.1.0": NEW}
    assert tables.digest(found["1.1.0"]) == stored["sha256"]


def test_a_chain_is_resolved_in_any_order() -> None:
    last = table("1.2.0", b={"kind": "str"})
    stored = {"1.2.0": tables.difference(last, NEW), "1.1.0": tables.difference(NEW, OLD), "1.0.0": OLD}
    assert tables.complete(stored) == {"1.0.0": OLD, "1.1.0": NEW, "1.2.0": last}
    assert tables.complete(dict(reversed(stored.items()))) == {"1.0.0": OLD, "1.1.0": NEW, "1.2.0": last}


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (
            {"1.1.0": tables.difference(NEW, OLD)},
            "the table of 1.1.0 is a difference from that of 1.0.0, which is missing",
        ),
        (
            {"1.0.0": tables.difference(OLD, NEW), "1.1.0": tables.difference(NEW, OLD)},
            "the tables 1.0.0 -> 1.1.0 -> 1.0.0 are each other's base",
        ),
    ],
)
def test_a_chain_without_an_end_is_refused(stored: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tables.complete(stored)


@pytest.mark.parametrize("version", sorted(STORED))
def test_a_shipped_table_resolves_to_what_the_wheel_said(version: str) -> None:
    found = serve_files.load_tables()[version]
    assert set(found) == {"vllm", "source", *tables.PARTS}
    assert all(entry is not None for part in tables.PARTS for entry in found[part].values())
    if "base" in STORED[version]:
        # Taken from the complete table, before it was made a difference.
        assert tables.digest(found) == STORED[version]["sha256"]


def test_one_shipped_table_is_complete_and_the_others_are_small() -> None:
    whole = [version for version, stored in STORED.items() if "base" not in stored]
    assert whole == ["0.18.1"]
    sizes = {version: (serve_files.OWN_TABLES / f"{version}.json").stat().st_size for version in STORED}
    assert all(size < sizes["0.18.1"] / 2 for version, size in sizes.items() if version not in whole), sizes


def test_a_difference_of_ones_own_may_start_from_a_shipped_table(tmp_path: Any) -> None:
    shipped = serve_files.load_tables()["0.22.1"]
    mine = {**shipped, "vllm": "0.22.2", "options": {**shipped["options"], "mine": {"kind": "int"}}}
    (tmp_path / "0.22.2.json").write_text(json.dumps(tables.difference(mine, shipped)), encoding="utf-8")
    assert serve_files.render({"mine": 1}, "0.22.2", {}, [], tables_dirs=[str(tmp_path)]).args == ["--mine", "1"]


def test_a_table_of_ones_own_changes_no_other(tmp_path: Any) -> None:
    base = STORED["0.33.0"]["base"]
    (tmp_path / "own.json").write_text(json.dumps(table(base, only={"kind": "int"})), encoding="utf-8")
    found = serve_files.load_tables((str(tmp_path),))
    assert set(found[base]["options"]) == {"only"}
    assert found["0.33.0"] == serve_files.load_tables()["0.33.0"]


def test_a_difference_without_its_base_is_named(tmp_path: Any) -> None:
    (tmp_path / "1.1.0.json").write_text(json.dumps(tables.difference(NEW, OLD)), encoding="utf-8")
    with pytest.raises(ServeError) as caught:
        serve_files.load_tables((str(tmp_path),))
    assert "is a difference from that of 1.0.0, which is missing; make it with" in caught.value.errors[0]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["1.0.0"], "1.0.0"),
        (["1.1.0", "1.0.0"], "1.0.0, 1.1.0"),
        (["1.0.0", "1.1.0", "1.1.0+cpu"], "1.0.0 to 1.1.0+cpu"),
        (["1.0.0", "1.1.0+cpu", "1.2.0", "1.10.0"], "1.0.0, 1.1.0+cpu to 1.10.0"),
        (["1.0.0", "1.10.0"], "1.0.0, 1.10.0"),
    ],
)
def test_versions_in_a_row_are_one_range(names: list[str], text: str) -> None:
    known = dict.fromkeys(["1.10.0", "1.2.0", "1.1.0+cpu", "1.1.0", "1.0.0"], OLD)
    assert serve_check.in_ranges(names, known) == text
