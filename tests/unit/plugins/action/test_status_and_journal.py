# SPDX-License-Identifier: Apache-2.0
"""What playbooks/status.yml and playbooks/logs.yml print, and what they write."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import cluster_status, journal_merge
from ansible_collections.gb10.cluster.plugins.plugin_utils import _action

STATUS = {"nodes": ["gx10-1"], "head": "gx10-1", "reports": {}, "problems": {"gx10-1": "No route to host"}}
ENTRIES = {"gx10-1": [{"time_us": 5, "unit": "vllm-a.service", "text": "hello"}]}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the terminal."""
    lines: list[str] = []
    for module in (_action, journal_merge):
        monkeypatch.setattr(module, "Display", lambda: SimpleNamespace(display=lines.append))
    return lines


def run(plugin: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an action as far as it is this collection's own."""
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    defaults: dict[str, Any] = {"problems": {}, "json": "", "file": None}
    monkeypatch.setattr(
        plugin.ActionModule, "validate_argument_spec", lambda _self, **_spec: (None, {**defaults, **arguments})
    )
    result: dict[str, Any] = action.run()
    return result


def test_the_screen_is_printed(printed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(cluster_status, STATUS, monkeypatch)
    assert "gx10-1 does not answer: No route to host" in printed[0]
    assert result["changed"] is False
    assert result["cluster"]["unreachable"] == ["gx10-1"]
    assert "\n".join(result["screen"]) == printed[0]


@pytest.mark.parametrize("wish", ["true", "True", "-", "yes"])
def test_one_document_is_printed(printed: list[str], monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    run(cluster_status, {**STATUS, "json": wish}, monkeypatch)
    assert json.loads(printed[0])["unreachable"] == ["gx10-1"]


def test_a_path_gets_the_document_and_the_terminal_the_screen(
    printed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(cluster_status, {**STATUS, "json": str(tmp_path / "s.json")}, monkeypatch)
    assert json.loads((tmp_path / "s.json").read_text())["unreachable"] == ["gx10-1"]
    assert "does not answer" in printed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    failed = run(cluster_status, {**STATUS, "json": str(tmp_path / "no" / "s.json")}, monkeypatch)
    assert failed["failed"]
    assert failed["msg"].endswith("s.json could not be written: No such file or directory")


def test_false_is_no_path(printed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run(cluster_status, {**STATUS, "json": "False"}, monkeypatch)
    assert "does not answer" in printed[0]
    assert not list(tmp_path.iterdir())


def test_the_log_is_printed_or_written(printed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {"reports": ENTRIES, "problems": {"gx10-2": "timed\nout"}}
    assert run(journal_merge, asked, monkeypatch)["lines"] == 1
    assert printed[0].splitlines() == [
        "# gx10-2 gave no journal: timed out",
        "1970-01-01 00:00:00.000 gx10-1 vllm-a hello",
    ]
    run(journal_merge, {**asked, "file": str(tmp_path / "all.log")}, monkeypatch)
    assert (tmp_path / "all.log").read_text() == printed[0] + "\n"
    assert printed[1].splitlines()[-1] == f"1 lines in {tmp_path}/all.log"
    failed = run(journal_merge, {**asked, "file": str(tmp_path / "no" / "all.log")}, monkeypatch)
    assert failed["msg"].endswith("all.log could not be written: No such file or directory")


def test_no_line_is_said(printed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(journal_merge, {"reports": {"gx10-1": []}}, monkeypatch)
    assert printed == ["# No line matches."]
