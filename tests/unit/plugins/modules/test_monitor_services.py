# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.monitor_services against a systemctl that notes what it is asked."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import monitor_services

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

    def file(self, name: str, age_s: float) -> str:
        """Make a file that was written so long ago."""
        path = self.folder / name
        path.touch()
        os.utime(path, (0, time.time() - age_s))
        return str(path)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command as systemctl does."""
        if command[1] == "show":
            return (
                0,
                f"LoadState={self.load}\nActiveState={self.active}\nUnitFileState={self.enabled}\n"
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
        elif command[1] == "enable":
            self.enabled = "enabled"
        elif command[1] in ("start", "restart"):
            self.active, self.started = "active", time.monotonic()
        return 0, "", ""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Stand a node in for this machine."""
    made = Node(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    return made


def call(node: Node, capsys: pytest.CaptureFixture[str], check: bool = False, **files: list[str]) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    given = {
        "services": [{"name": UNIT, **files}],
        "stamps": str(node.folder / "stamps"),
        "_ansible_check_mode": check,
    }
    with patch_module_args(given), pytest.raises(SystemExit):
        monitor_services.main()
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
    assert call(node, capsys, reload=[fresh])["changed"] is False


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


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_a_service_that_does_not_run_is_started(node: Node, capsys: pytest.CaptureFixture[str], state: str) -> None:
    node.active, node.enabled = state, "disabled"
    assert call(node, capsys)["actions"] == {UNIT: "start"}
    assert node.asked == [f"systemctl enable {UNIT}", f"systemctl start {UNIT}"]


def test_a_service_that_would_not_start_at_boot_is_enabled(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.enabled = "disabled"
    assert call(node, capsys)["actions"] == {UNIT: "enable"}
    assert node.asked == [f"systemctl enable {UNIT}"]


def test_a_unit_that_nobody_brought_is_named(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.load, node.active = "not-found", "inactive"
    result = call(node, capsys)
    assert "There is no unit prometheus.service on this node" in result["msg"]


def test_check_mode_tells_and_does_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.load, node.active = "not-found", "inactive"
    result = call(node, capsys, check=True)
    assert (result["changed"], result["actions"], node.asked) == (True, {UNIT: "start"}, [])
    assert not (node.folder / "stamps").exists()
