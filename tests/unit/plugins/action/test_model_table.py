# SPDX-License-Identifier: Apache-2.0
"""What playbooks/models.yml prints, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import model_table
from ansible_collections.gb10.cluster.plugins.plugin_utils import _action

GIVEN: dict[str, Any] = {"specs": [{"name": "m", "nodes": 2}], "images": {}, "nodes": ["a"], "memory_gib": {"a": 119.0}}


def run(monkeypatch: pytest.MonkeyPatch, json: str) -> tuple[dict[str, Any], list[str]]:
    """Run the action as far as it is this collection's own; return its result and what it printed."""
    lines: list[str] = []
    monkeypatch.setattr(_action, "Display", lambda: SimpleNamespace(display=lines.append))
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    arguments = (None, {**GIVEN, "json": json})
    monkeypatch.setattr(model_table.ActionModule, "validate_argument_spec", lambda _self, **_spec: arguments)
    return model_table.ActionModule.__new__(model_table.ActionModule).run(), lines


def test_a_table_or_one_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, lines = run(monkeypatch, "")
    assert lines[0].startswith("1 box, the smallest has 119.0 GiB\nmodel  boxes")
    assert result["changed"] is False
    assert result["models"][0]["verdict"] == "too few nodes"
    _result, lines = run(monkeypatch, "true")
    assert json.loads(lines[0])["nodes"] == {"a": 119.0}
    _result, lines = run(monkeypatch, str(tmp_path / "m.json"))
    assert lines[0].startswith("1 box")
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["models"] == result["models"]
    failed, _lines = run(monkeypatch, str(tmp_path / "no" / "m.json"))
    assert failed["msg"].endswith("m.json could not be written: No such file or directory")
