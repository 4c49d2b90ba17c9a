# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.engine_units against a systemctl and a docker that note what they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record, started
from ansible_collections.gb10.cluster.plugins.modules import engine_units
from tests.unit.engine_node import A, B, Node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Stand a node in for this machine."""
    made = Node(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return made


def call(node: Node, capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    given = {**node.places, **arguments}
    with patch_module_args(given), pytest.raises(SystemExit):
        engine_units.main()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_alone_stops_the_others_by_name_and_no_foreign_unit(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(node, capsys, state="alone", unit=B)
    assert (result["changed"], result["stopped"]) == (True, [A])
    assert f"systemctl disable --now {A}" in node.asked
    assert "docker rm --force vllm-a" in node.asked
    assert not [command for command in node.asked if "foreign" in command or "vllm-b" in command]
    assert call(node, capsys, state="alone", unit=B)["changed"] is False


def test_alone_with_restart_stops_the_unit_itself(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(node, capsys, state="alone", unit=A)["stopped"] == []
    assert call(node, capsys, state="alone", unit=A, restart=True)["stopped"] == [A]


@pytest.mark.parametrize("state", ["failed", "deactivating", "activating"])
def test_a_unit_that_systemd_may_restart_is_stopped_too(
    node: Node, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    node.active[B] = state
    assert call(node, capsys, state="stopped")["stopped"] == [A, B]


def test_what_the_starts_of_a_stopped_engine_left_goes_with_it(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    run = node.folder / "run"
    run.mkdir()
    for name in ("a.env", "a.starts", "a.started", "b.env"):
        (run / name).touch()
    call(node, capsys, state="stopped", unit=A)
    assert [path.name for path in run.iterdir()] == ["b.env"]


def test_started_starts_once_and_enables_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that is not verified yet must not start at boot."""
    assert call(node, capsys, state="started", unit=B)["started"] == [B]
    assert f"systemctl start --no-block {B}" in node.asked
    assert B not in node.enabled
    assert call(node, capsys, state="started", unit=B)["changed"] is False
    refused = call(node, capsys, state="started", unit="vllm-c.service")
    assert refused["failed"]
    assert "vllm-c.service is not rendered" in refused["msg"]


def test_check_mode_tells_and_does_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(node, capsys, state="stopped", record={}, _ansible_check_mode=True)
    assert (result["changed"], result["stopped"], node.asked) == (True, [A], [])
    assert f"{A}: stopped" in result["diff"]["after"]


def test_the_record_is_read_and_taken_away(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"model": "a", "unit": A}
    node.units.write_record(kept)
    assert call(node, capsys, state="read")["record"] == kept
    assert call(node, capsys, state="started", unit=A)["changed"] is False
    assert call(node, capsys, state="stopped", record={})["changed"] is True
    assert call(node, capsys, state="read")["record"] == {}


def test_a_refusal_of_systemd_is_a_sentence(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.refused = (f"systemctl disable --now {A}", "Unit is masked.\n")
    result = call(node, capsys, state="stopped")
    assert (result["failed"], result["msg"]) == (True, f"{A} cannot be stopped: Unit is masked.")


def test_a_systemd_that_does_not_answer_leaves_no_engine_beside_another(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not known to have stopped must not count as stopped."""
    node.silences = 1
    result = call(node, capsys, state="alone", unit=B)
    assert result["failed"]
    assert result["msg"] == f"systemctl show {A} failed: Failed to get properties: Connection timed out"
    assert call(node, capsys, state="alone", unit=B)["stopped"] == [A]


def test_an_engine_that_runs_with_older_files_is_stale(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was killed between writing the files and restarting the engine is made good by the next one."""
    etc, run = node.folder / "etc", node.folder / "run"
    etc.mkdir()
    (etc / "a.json").write_text("old")
    started.note(run / "a.started", node.folder / A, etc)
    assert call(node, capsys)["units"][A]["stale"] is False
    (etc / "a.json").write_text("new")
    units = call(node, capsys)["units"]
    assert (units[A]["stale"], units[B]["stale"]) == (True, False)
    started.note(run / "a.started", node.folder / A, etc)
    assert call(node, capsys)["units"][A]["stale"] is False
    node.reload_needed = "yes"
    assert call(node, capsys)["units"][A]["stale"] is True


def test_a_stop_keeps_the_record_of_what_was_last_verified(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    active = node.folder / "etc" / "active.json"
    first, second = {"model": "a", "unit": A}, {"model": "b", "unit": B}
    assert record.last_verified(active) == {}
    node.units.write_record(first)
    node.units.write_record(second)
    call(node, capsys, state="stopped", record={})
    assert not active.exists()
    assert record.last_verified(active) == second


def test_a_node_of_an_earlier_release_has_the_active_record_alone(tmp_path: Path) -> None:
    active = tmp_path / "active.json"
    active.write_text(json.dumps({"model": "a"}), encoding="utf-8")
    assert record.last_verified(active) == {"model": "a"}
    record.verified_path(active).write_text('{"mod', encoding="utf-8")
    assert record.last_verified(active) == {"model": "a"}


def test_a_swap_is_reported_with_its_sentence(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(node, capsys)["swap"] == {}
    swap = {"state": "pending", "head": "n1", "stall_seconds": 900.0, "before": {"model": "a"}, "after": {"model": "b"}}
    path = Path(node.places["state_dir"]) / "swap.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(swap), encoding="utf-8")
    shown = call(node, capsys)["swap"]
    assert (shown["state"], shown["after"]) == ("pending", "b")
    assert shown["sentence"].startswith("The swap from a to b is not committed: ")
