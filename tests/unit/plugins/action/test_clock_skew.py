# SPDX-License-Identifier: Apache-2.0
"""The clock of a node is read over its connection, and the fastest answer counts."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import clock_skew


def run(monkeypatch: pytest.MonkeyPatch, answers: list[str], samples: int = 4) -> dict[str, Any]:
    """Run the action on a node that answers `date` in this way."""
    action = clock_skew.ActionModule.__new__(clock_skew.ActionModule)
    left = iter(answers)
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    monkeypatch.setattr(
        clock_skew.ActionModule, "validate_argument_spec", lambda _self, **_spec: (None, {"samples": samples})
    )
    monkeypatch.setattr(
        clock_skew.ActionModule,
        "_low_level_execute_command",
        lambda _self, _command, sudoable: {"stdout": next(left)},
        raising=False,
    )
    result: dict[str, Any] = action.run(None, {})
    return result


def test_a_clock_that_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, [f"{time.time() + 100:.9f}\n"] * 4)
    assert found["changed"] is False
    assert found["skew_s"] == pytest.approx(100, abs=5)
    assert 0 <= found["error_s"] < 5


def test_an_answer_that_is_no_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, ["Welcome!\n", "", f"a motd\n{time.time() - 50:.9f}\n"], samples=3)
    assert found["skew_s"] == pytest.approx(-50, abs=5)


def test_a_node_without_any_answer_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, ["", "x"], samples=2)
    assert (found["failed"], found["msg"]) == (True, "The node did not answer `date +%s.%N` with a time.")
