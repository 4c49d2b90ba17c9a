# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.owner_state against a machine that notes what is run on it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files, restore
from ansible_collections.gb10.cluster.plugins.modules import owner_state

from .conftest import Run


class Machine:
    """Units, packages and accounts, and the commands that changed them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = ""

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        if command[:2] == ["systemctl", "list-unit-files"]:
            return 0, "vllm-a.service enabled enabled\ngb10-x@.service static -\n", ""
        if command[:2] == ["systemctl", "show"]:
            return 0, "UnitFileState=enabled\nActiveState=active\n", ""
        if command[0] == "dpkg-query":
            return 0, "ii  earlyoom\nii  rsync\n", ""
        self.asked.append(" ".join(command))
        return (1, "", "no") if self.fails and self.fails in self.asked[-1] else (0, "", "")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Stand a machine in for this one, with a kept state."""
    made = Machine()
    (tmp_path / "etc").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "swappiness").write_text("1\n", encoding="utf-8")
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(files, "KEPT_ROOTS", (f"{tmp_path}/etc/",))
    monkeypatch.setattr(files, "OWN", (f"{tmp_path}/own",))
    monkeypatch.setattr(owner_state, "PROC_SYS", tmp_path)
    monkeypatch.setattr(
        owner_state, "account_groups", {"operator": ["systemd-journal", "video"], "ann": ["docker"]}.get
    )
    return made


def test_nothing_was_kept_and_nothing_is_given_back_but_our_units(machine: Machine, run_module: Run) -> None:
    result = run_module(owner_state, state="restored")
    assert machine.asked == ["systemctl disable --now vllm-a.service", "systemctl daemon-reload"]
    assert result["left"] == []


def test_everything_that_was_noted_is_given_back(machine: Machine, tmp_path: Path, run_module: Run) -> None:
    run_module(owner_state, accounts=["operator", "ann"], links=[str(tmp_path / "etc" / "default.target")])
    # One account did not exist when it was noted, the other had no groups.
    manifest = files.read_json(files.BEFORE / "manifest.json")
    manifest["accounts"] = {"operator": None, "ann": []}
    files.write_json(files.BEFORE / "manifest.json", manifest)
    files.write(tmp_path / "etc" / "conf", "ours\n")
    files.keep("sysctls", "swappiness", "60")
    files.keep("units", "docker.service", {"enabled": "disabled", "active": "inactive"})
    for name in ("earlyoom", "gone"):
        files.keep("packages", name, None)
    (tmp_path / "etc" / "default.target").symlink_to("/ours")

    shown = run_module(owner_state, check=True, state="restored")
    assert (shown["changed"], machine.asked, (tmp_path / "own").is_dir()) == (True, [], True)

    result = run_module(owner_state, state="restored")
    assert result["done"] == shown["done"]
    assert machine.asked == [
        "systemctl disable --now vllm-a.service",
        "apt-get --yes --quiet purge earlyoom",
        "usermod --groups  ann",
        "userdel operator",
        "systemctl daemon-reload",
        "systemctl disable docker.service",
        "systemctl stop docker.service",
    ]
    assert (tmp_path / "swappiness").read_text(encoding="utf-8") == "60"
    assert list((tmp_path / "etc").iterdir()) == []
    assert not (tmp_path / "own").exists()
    assert not files.BEFORE.exists()


def test_what_could_not_be_given_back_keeps_its_notes(machine: Machine, tmp_path: Path, run_module: Run) -> None:
    files.keep("packages", "earlyoom", None)
    machine.fails = "purge"
    result = run_module(owner_state, state="restored")
    assert result["left"] == ["apt-get --yes --quiet purge earlyoom failed: no"]
    assert (files.BEFORE / "manifest.json").exists()
    assert tmp_path.is_dir()


def test_packages_stay_on_request(machine: Machine, run_module: Run) -> None:
    files.keep("packages", "earlyoom", None)
    run_module(owner_state, state="restored", packages=False)
    assert not [command for command in machine.asked if "apt-get" in command]


@pytest.mark.usefixtures("machine")
def test_the_first_note_counts_and_is_no_change(run_module: Run) -> None:
    assert run_module(owner_state, accounts=["operator"], hostname=True)["changed"] is False
    noted = files.read_json(files.BEFORE / "manifest.json")
    assert noted == {"accounts": {"operator": ["systemd-journal", "video"]}, "names": {"hostname": platform.node()}}
    files.keep("names", "hostname", "other")
    assert files.read_json(files.BEFORE / "manifest.json") == noted


@pytest.mark.usefixtures("machine")
def test_check_mode_notes_nothing(run_module: Run) -> None:
    run_module(owner_state, check=True, accounts=["operator"])
    assert not files.BEFORE.exists()


# --- one role alone --------------------------------------------------------------------------------------------


def test_a_role_that_another_one_needs_is_refused_before_anything_is_changed(machine: Machine, run_module: Run) -> None:
    ended = run_module(owner_state, state="restored", roles=["edge"])
    assert ended["msg"] == (
        "edge cannot be removed while engine needs it. Nothing was changed. Name these roles as well, or none to give "
        "everything back."
    )
    assert machine.asked == []


def test_one_role_goes_and_the_others_stay(
    machine: Machine, tmp_path: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        restore,
        "OWNED",
        {
            "monitor": restore.Owned(("early*", f"{tmp_path}/etc/monitor*", "shared*"), ("monitor",)),
            "watch": restore.Owned(("vllm-*", "rsync", f"{tmp_path}/etc/watch*", "shared*"), ("watch",)),
        },
    )
    monkeypatch.setattr(owner_state, "OWNED", restore.OWNED)
    for name in ("monitor", "watch", "other"):
        files.write(tmp_path / "etc" / f"{name}.conf", "ours\n")
        (tmp_path / "own" / name).mkdir()
    for name in ("earlyoom", "rsync"):
        files.keep("packages", name, None)
    files.keep("accounts", "operator", None)

    shown = run_module(owner_state, check=True, state="restored", roles=["monitor"])
    assert machine.asked == []
    result = run_module(owner_state, state="restored", roles=["monitor"])
    assert result["done"] == shown["done"]
    assert machine.asked == ["apt-get --yes --quiet purge earlyoom", "systemctl daemon-reload"]
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["other.conf", "watch.conf"]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["other", "watch"]
    # The rest can still be given back.
    run_module(owner_state, state="restored")
    assert list((tmp_path / "etc").iterdir()) == []
    assert not files.BEFORE.exists()


@pytest.mark.parametrize(
    ("name", "roles", "goes"),
    [
        ("/etc/hosts", [], True),
        ("/etc/hosts", ["edge", "engine", "fabric", "monitor", "watch"], False),
        ("prometheus-alertmanager", ["monitor"], True),
        ("/etc/default/prometheus-node-exporter", ["monitor"], True),
        ("/etc/systemd/system/prometheus.service.d/10-gb10.conf", ["monitor"], True),
        ("nginx-light", ["monitor"], False),  # the proxy has it as well
        ("nginx-light", ["edge", "monitor"], True),
        ("/etc/systemd/system/nginx.service", ["edge"], False),
        ("vllm-qwen.service", ["engine"], True),
        ("vllm-qwen.service", ["monitor"], False),
        ("gb10-firewall.service", ["edge"], True),
        ("gb10-watch.timer", ["watch"], True),
        ("/etc/netplan/50-cloud-init.yaml", ["fabric"], True),
        ("/etc/ssh/sshd_config.d/10-gb10.conf", ["fabric"], False),
        ("docker.io", ["edge", "engine", "fabric", "monitor", "watch"], False),
    ],
)
def test_what_goes_with_a_role(name: str, roles: list[str], goes: bool) -> None:
    assert restore.belongs(name, roles) is goes


def test_who_needs_what() -> None:
    assert restore.users_left(["monitor"]) == {}
    assert restore.users_left(["edge", "engine"]) == {"engine": ["watch"]}
    assert restore.users_left(["edge", "engine", "fabric", "watch"]) == {}
