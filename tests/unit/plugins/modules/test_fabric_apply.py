# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_apply on its way back, with a systemd that notes what it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import fabric_apply


class Machine:
    """A node whose way back may fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stuck = False

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        self.asked.append(" ".join(command))
        if command[:2] == ["systemctl", "start"]:
            if self.stuck:
                return 1, "", "Job for gb10-fabric-rollback.service failed.\n"
            fabric_apply.PENDING.rename(fabric_apply.ROLLED_BACK)
        return 0, "", ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Stand a node in for this machine, with a change that nobody has confirmed."""
    made = Machine()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    for name in ("PENDING", "ROLLED_BACK", "UNIT", "LOG"):
        monkeypatch.setattr(fabric_apply, name, tmp_path / name)
    fabric_apply.PENDING.touch()
    return made


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_apply.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_going_back(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, state="rolled_back", _ansible_check_mode=True)["changed"]
    assert machine.asked == []
    assert call(capsys, state="rolled_back")["changed"]
    assert "systemctl disable --quiet UNIT" in machine.asked
    assert call(capsys, state="rolled_back")["changed"] is False
    assert "taken back before it could be confirmed" in call(capsys, state="confirmed")["msg"]


def test_a_node_that_cannot_go_back_says_so_and_stays_armed(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.stuck = True
    stuck = call(capsys, state="rolled_back")
    assert stuck["failed"]
    assert "did not go back to what was before (Job for gb10-fabric-rollback.service failed.)" in stuck["msg"]
    assert str(fabric_apply.LOG) in stuck["msg"]
    assert fabric_apply.PENDING.exists()
    assert not any("disable" in said for said in machine.asked)
    # Nothing is built upon it.
    later = call(capsys, state="applied", backend="networkd")
    assert later["msg"].startswith("A change of the fabric was never confirmed. This node did not go back")
    machine.stuck = False
    assert call(capsys, state="rolled_back")["changed"]
