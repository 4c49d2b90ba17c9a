# SPDX-License-Identifier: Apache-2.0
"""The diagnosis is printed, written, and fails from the chosen level on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import doctor_report

SILENT = {"__doctor_node": {"unreachable": True, "msg": "No route to host"}}


def run(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, Any] | None = None, **arguments: Any
) -> tuple[dict[str, Any], list[str]]:
    """Run the action for one node that does not answer; return its result and what it printed."""
    action = doctor_report.ActionModule.__new__(doctor_report.ActionModule)
    action._templar = SimpleNamespace(template=lambda value: value)
    printed: list[str] = []
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    monkeypatch.setattr(
        doctor_report, "Display", lambda: SimpleNamespace(display=printed.append, warning=printed.append)
    )
    given = {"nodes": ["gx10-1"], "json": "", "fail_on": "fail", **arguments}
    monkeypatch.setattr(doctor_report.ActionModule, "validate_argument_spec", lambda _self, **_spec: (None, given))
    return action.run(None, {"hostvars": {"gx10-1": {**SILENT, **(own or {})}}, "doctor_gpu": False}), printed


def test_a_failure_is_printed_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    result, printed = run(monkeypatch)
    assert result["failed"]
    assert result["msg"].startswith("The diagnosis is FAIL: 2 FAIL and 0 WARN")
    assert "No route to host" in printed[0]


def test_never_fails_when_told_so_and_returns_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _printed = run(monkeypatch, fail_on="never")
    assert "failed" not in result
    assert result["report"]["level"] == "FAIL"


def test_a_former_name_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    _result, printed = run(monkeypatch, own={"doctor_clock_skew_s": 1})
    assert printed[0].startswith("The variable 'doctor_clock_skew_s' is now named 'doctor_clock_skew_seconds'")


def test_json_goes_to_the_terminal_or_into_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _result, printed = run(monkeypatch, json="-")
    assert json.loads(printed[0])["level"] == "FAIL"
    target = tmp_path / "report.json"
    _result, printed = run(monkeypatch, json=str(target))
    assert json.loads(target.read_text())["counts"]["FAIL"] == 2
    assert printed[0].lstrip().startswith("== gx10-1")
