# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.lease on the head's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record
from ansible_collections.gb10.cluster.plugins.modules import lease
from tests.unit.helper import run_module

HOLDER = {"run": "a", "who": "ada", "where": "desk", "what": "serve.yml", "process": {"pid": 1}}


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the module on leases of the test."""
    monkeypatch.setattr(record, "ACTIVE", tmp_path / "active.json")

    def run(run: str = "a", check: bool = False, **given: Any) -> dict[str, Any]:
        arguments = {"folder": str(tmp_path / "lease"), "holder": {**HOLDER, "run": run}, **given}
        return run_module(lease, arguments, check=check)

    return run


def test_it_is_taken_once_and_names_its_holder(ask: Any) -> None:
    assert ask() == {"changed": True, "holders": [], "record": {}}
    assert ask()["changed"] is False
    refused = ask("b")
    assert (refused["changed"], {each["who"] for each in refused["holders"]}) == (False, {"ada"})
    assert ask("b", state="read")["holders"] == refused["holders"]
    assert ask("b", ended=["a"])["changed"] is True
    assert ask("a", take_over=True)["changed"] is True
    assert ask("a", state="released")["changed"] is True
    assert ask("b", state="read")["holders"] == []


def test_check_mode_takes_none(ask: Any, tmp_path: Path) -> None:
    assert ask(check=True) == {"changed": False, "holders": [], "record": {}}
    assert not (tmp_path / "lease").exists()
    ask()
    assert len(ask("b", check=True)["holders"]) == 2


def test_what_was_last_verified_comes_with_it(ask: Any, tmp_path: Path) -> None:
    record.write(tmp_path / "active.json", {"model": "m"})
    assert ask()["record"] == {"model": "m"}


def test_it_needs_its_action_plugin(ask: Any) -> None:
    assert "action plugin" in ask("")["msg"]


def test_a_directory_that_cannot_be_made_is_named(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "x") in ask(folder=str(tmp_path / "file" / "x"))["msg"]
