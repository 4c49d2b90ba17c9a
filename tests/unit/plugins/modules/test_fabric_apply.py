# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_apply on its way back, with a systemd that notes what it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._node import files, restore, rollback
from ansible_collections.gb10.cluster.plugins.modules import fabric_apply

SERVICE = "gb10-fabric-rollback.service"


class Machine:
    """A node whose rollback may fail."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[str] = []
        self.stuck = False

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        self.asked.append(" ".join(command))
        if command[:2] == ["systemctl", "start"]:
            if self.stuck:
                return 1, "", f"Job for {SERVICE} failed.\n"
            (self.place / "pending").rename(self.place / "rolled-back")
        return 0, "[]" if command[:2] == ["ip", "-json"] else "", ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Replace this machine by a node with a change that nobody has confirmed."""
    made = Machine(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(fabric_apply, "DIRECTORY", tmp_path)
    monkeypatch.setattr(rollback, "UNITS", tmp_path)
    (tmp_path / "pending").write_text("0\n", encoding="utf-8")
    (tmp_path / SERVICE).write_text("", encoding="utf-8")
    return made


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_apply.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_rolling_back(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, state="rolled_back", _ansible_check_mode=True)["changed"]
    assert machine.asked == []
    assert call(capsys, state="rolled_back")["changed"]
    assert f"systemctl disable --quiet {SERVICE}" in machine.asked
    assert call(capsys, state="rolled_back")["changed"] is False
    assert "before it could be confirmed" in call(capsys, state="confirmed")["msg"]


def test_a_rollback_that_fails_is_reported_and_stays_armed(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.stuck = True
    failed = call(capsys, state="rolled_back")
    assert failed["failed"]
    assert f"was not rolled back on this node (Job for {SERVICE} failed.)" in failed["msg"]
    assert str(machine.place / "rollback.log") in failed["msg"]
    assert (machine.place / "pending").exists()
    assert not any("disable" in said for said in machine.asked)
    # The next change is refused.
    later = call(capsys, state="applied", backend="networkd")
    assert later["failed"]
    assert "was not rolled back" in later["msg"]
    machine.stuck = False
    assert call(capsys, state="rolled_back")["changed"]


def test_confirming_disarms(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, state="confirmed")["changed"] is False
    assert not (machine.place / "pending").exists()
    assert not (machine.place / SERVICE).exists()
    assert "systemctl stop gb10-fabric-rollback-timer.timer" in machine.asked


@pytest.mark.usefixtures("machine")
def test_the_old_names_of_options_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, state="rolled_back", rollback_after_s=5, settle_s=1)["changed"]
    assert "Unsupported parameters" in call(capsys, state="rolled_back", rollback_after_h=5)["msg"]


def test_a_definition_of_the_owners_returns_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KEPT_ROOTS", (f"{tmp_path}/etc/",))
    path = tmp_path / "etc" / "50-owner.yaml"
    aside = path.with_name("50-owner.yaml.gb10-disabled")
    path.parent.mkdir()
    path.write_text("network: {}\n", encoding="utf-8")
    path.chmod(0o600)
    fabric_apply.put_aside(path, aside)
    assert [each.name for each in path.parent.iterdir()] == [aside.name]
    for name, entry in files.read_json(files.BEFORE / "manifest.json")["files"].items():
        restore.restore_file(name, entry, check=False)
    assert path.read_text(encoding="utf-8") == "network: {}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not aside.exists()


def test_a_directory_that_is_made_is_noted_for_the_teardown(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "KEPT_ROOTS", (f"{tmp_path}/etc/",))
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "network" / "10-gb10-eth1.network"
    wanted = {"path": str(path), "content": "[Match]\n", "mode": "0644"}
    assert call(capsys, state="applied", backend="networkd", files=[wanted], settle_seconds=0)["pending"]
    assert path.read_text(encoding="utf-8") == "[Match]\n"
    assert list(files.read_json(files.BEFORE / "manifest.json")["directories"]) == [str(path.parent)]
    assert (machine.place / "pending").exists()


def test_a_service_that_is_enabled_was_noted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["UnitFileState=disabled\nActiveState=inactive\n", "UnitFileState=enabled\nActiveState=active\n"])
    with patch_module_args({}):
        module = AnsibleModule(argument_spec={})
    monkeypatch.setattr(module, "run_command", lambda *_command: (0, next(states), ""))
    fabric_apply.keep_unit(module, "systemd-networkd.service")
    fabric_apply.keep_unit(module, "systemd-networkd.service")
    noted = files.read_json(files.BEFORE / "manifest.json")["units"]["systemd-networkd.service"]
    assert noted == {"enabled": "disabled", "active": "inactive"}
    assert restore.unit_verbs(noted, "enabled", "active") == ["disable", "stop"]
