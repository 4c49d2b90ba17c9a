# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.model_choice on the head's side."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record
from ansible_collections.gb10.cluster.plugins.modules import model_choice
from tests.unit.helper import run_module


def test_the_head_returns_what_was_last_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ACTIVE", tmp_path / "engine" / "active.json")
    assert run_module(model_choice, {}) == {"changed": False, "record": {}}
    record.write(record.ACTIVE, {"model": "m", "members": ["n1"]})
    record.write(record.ACTIVE, {})
    assert run_module(model_choice, {})["record"] == {"model": "m", "members": ["n1"]}
