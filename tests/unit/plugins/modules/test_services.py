# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.services against a systemctl that notes what it is asked."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._node import services as decide
from ansible_collections.gb10.cluster.plugins.modules import services

UNIT = "prometheus.service"


class Node:
    """One unit, and the commands that were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.load, self.active, self.enabled, self.reload_needed = "loaded", "active", "enabled", "no"
        self.started = time.monotonic() - 100
        self.fails = ""
        self.asked: list[str] = []
        self.old = folder / "old"
        self.old.touch()
        os.utime(self.old, (0, time.time() - 500))

    def file(self, name: str, age_s: float, content: str = "") -> str:
        """Make a file that was written so long ago."""
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        os.utime(path, (0, time.time() - age_s))
        return str(path)

    def reboot(self) -> None:
        """Lose what does not outlive a boot, and start the unit anew."""
        for path in (self.folder / "notes").glob("*"):
            path.unlink()
        self.started = time.monotonic()

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command as systemctl does."""
        if command[1] == "show":
            return (
                0,
                f"Id={UNIT}\nLoadState={self.load}\nActiveState={self.active}\nUnitFileState={self.enabled}\n"
                f"NeedDaemonReload={self.reload_needed}\nInactiveExitTimestampMonotonic={int(self.started * 1e6)}\n",
                "",
            )
        self.asked.append(" ".join(command))
        if command[0] == "journalctl":
            return 0, "the journal's last words", ""
        if command[1] == self.fails:
            return 1, "", "Job failed."
        if command[1] == "daemon-reload":
            self.reload_needed = "no"
        elif command[1] in ("enable", "disable"):
            self.enabled = f"{command[1]}d"
        elif command[1] in ("start", "restart"):
            self.active, self.started = "active", time.monotonic()
        elif command[1] == "stop":
            self.active = "inactive"
        return 0, "", ""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Stand a node in for this machine."""
    made = Node(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    return made


def call(node: Node, capsys: pytest.CaptureFixture[str], check: bool = False, **service: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    given = {
        "services": [{"name": UNIT, **service}],
        "notes_dir": str(node.folder / "notes"),
        "_ansible_check_mode": check,
    }
    with patch_module_args(given), pytest.raises(SystemExit):
        services.main()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_service_that_runs_with_the_files_of_now_is_left_alone(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(node, capsys, restart=[str(node.old)], reload=[str(node.old), str(node.folder / "absent")])
    assert (result["changed"], result["actions"], node.asked) == (False, {UNIT: "none"}, [])


def test_a_changed_configuration_is_reloaded_once(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = node.file("fresh", 10)
    result = call(node, capsys, reload=[fresh], restart=[str(node.old)])
    assert (result["changed"], result["actions"]) == (True, {UNIT: "reload"})
    assert node.asked == [f"systemctl reload {UNIT}"]
    assert call(node, capsys, reload=[fresh], restart=[str(node.old)])["changed"] is False


def test_a_reload_that_fails_is_owed_and_done_by_the_next_run(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = node.file("fresh", 10)
    node.fails = "reload"
    result = call(node, capsys, reload=[fresh])
    assert result["failed"] is True
    assert "systemctl reload prometheus.service failed: Job failed.\nthe journal's last words" in result["msg"]
    node.fails = ""
    assert call(node, capsys, reload=[fresh])["actions"] == {UNIT: "reload"}


def test_another_command_line_wants_a_restart_even_when_the_configuration_changed_too(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = node.file("fresh", 10)
    node.reload_needed = "yes"
    result = call(node, capsys, reload=[fresh], restart=[fresh])
    assert result["actions"] == {UNIT: "restart"}
    assert node.asked == ["systemctl daemon-reload", f"systemctl restart {UNIT}"]
    assert call(node, capsys, reload=[fresh], restart=[fresh])["changed"] is False


def test_a_file_that_was_rewritten_with_the_same_content_wants_nothing(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    path = node.file("fresh", 10, "a")
    call(node, capsys, restart=[path])
    node.file("fresh", -10, "a")
    assert call(node, capsys, restart=[path])["changed"] is False
    node.file("fresh", 1000, "b")
    assert call(node, capsys, restart=[path])["actions"] == {UNIT: "restart"}


def test_a_file_that_was_removed_wants_a_restart(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    call(node, capsys, restart=[str(node.old)])
    node.old.unlink()
    assert call(node, capsys, restart=[str(node.old)])["actions"] == {UNIT: "restart"}
    assert call(node, capsys, restart=[str(node.old)])["changed"] is False


def test_a_file_of_the_future_wants_one_restart_not_one_on_every_run(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    # Written while the clock was an hour ahead.
    path = node.file("fresh", -3600)
    assert call(node, capsys, restart=[path])["actions"] == {UNIT: "restart"}
    assert call(node, capsys, restart=[path])["changed"] is False


def test_notes_count_for_the_start_that_they_were_made_of(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    path = node.file("fresh", 500, "a")
    call(node, capsys, restart=[path])
    # Another content, and somebody else restarted the service since.
    node.file("fresh", 50, "b")
    node.started = time.monotonic() - 5
    assert call(node, capsys, restart=[path])["changed"] is False


def test_after_a_boot_nothing_is_owed(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    path = node.file("fresh", 10, "a")
    node.reboot()
    assert call(node, capsys, restart=[path])["changed"] is False


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_a_service_that_does_not_run_is_started(node: Node, capsys: pytest.CaptureFixture[str], state: str) -> None:
    node.active, node.enabled = state, "disabled"
    assert call(node, capsys)["actions"] == {UNIT: "enable + start"}
    assert node.asked == [f"systemctl enable {UNIT}", f"systemctl start {UNIT}"]


def test_a_service_that_would_not_start_at_boot_is_enabled(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.enabled = "disabled"
    assert call(node, capsys)["actions"] == {UNIT: "enable"}
    assert node.asked == [f"systemctl enable {UNIT}"]


@pytest.mark.parametrize("enabled", ["static", "indirect", "alias", "generated"])
def test_a_unit_that_cannot_be_enabled_just_runs(node: Node, capsys: pytest.CaptureFixture[str], enabled: str) -> None:
    node.enabled = enabled
    assert call(node, capsys)["changed"] is False


def test_a_masked_unit_is_named_with_the_remedy(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.active, node.enabled = "inactive", "masked"
    result = call(node, capsys)
    assert result["msg"].endswith("Remedy: systemctl unmask prometheus.service")
    assert node.asked == []


def test_current_restarts_what_runs_and_starts_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.enabled = "disabled"
    fresh = node.file("fresh", 10)
    assert call(node, capsys, state="current", restart=[fresh])["actions"] == {UNIT: "restart"}
    node.active = "inactive"
    node.file("fresh", 1, "b")
    assert call(node, capsys, state="current", restart=[fresh])["changed"] is False
    node.load, node.enabled = "not-found", ""
    assert call(node, capsys, state="current", restart=[fresh])["changed"] is False


def test_stopped_ends_and_disables_once(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    call(node, capsys, restart=[str(node.old)])
    assert call(node, capsys, state="stopped")["actions"] == {UNIT: "disable + stop"}
    assert list((node.folder / "notes").iterdir()) == []
    assert call(node, capsys, state="stopped")["changed"] is False
    node.load, node.enabled = "not-found", ""
    assert call(node, capsys, state="stopped")["changed"] is False


def test_a_unit_that_nobody_brought_is_named(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.load, node.active = "not-found", "inactive"
    result = call(node, capsys)
    assert "There is no unit prometheus.service on this node" in result["msg"]


def test_check_mode_reports_and_does_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.load, node.active = "not-found", "inactive"
    result = call(node, capsys, check=True)
    assert (result["changed"], result["actions"], node.asked) == (True, {UNIT: "enable + start"}, [])
    assert result["diff"]["after"] == f"{UNIT}: enable + start\n"
    assert not (node.folder / "notes").exists()


def test_the_units_of_one_answer_are_told_apart() -> None:
    answer = "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n"
    assert [unit["Id"] for unit in decide.parse_show(answer)] == ["a.service", "b.service"]
