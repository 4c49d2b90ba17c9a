# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.owner_facts on a directory that stands for the root, and commands of a machine that people use."""

from __future__ import annotations

import json
import pwd
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.modules import owner_facts

from .conftest import Run


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what each program prints, by its first two words."""
    given = {
        "loginctl list-sessions": "2 1000 ann seat0 tty2 active no -\nc1 120 gdm seat0 tty1 active no -\n",
        "loginctl show-session 2": "Name=ann\nType=wayland\nClass=user\nState=active\n",
        "loginctl show-session c1": "Name=gdm\nType=wayland\nClass=greeter\nState=online\n",
        "systemctl list-units": "ssh.service loaded active running\nsmbd.service loaded active running\n"
        "ufw.service loaded active exited\n",
        "docker container": "a1 db\nb2 vllm-tiny\nc3 gb10-keep-x\n",
    }
    for path, text in {
        "etc/docker/daemon.json": json.dumps({"log-driver": "journald", "runtimes": {}}),
        "etc/netplan/50-cloud-init.yaml": "",
        "etc/netplan/90-gb10.yaml": "",
        "etc/NetworkManager/system-connections/Home.nmconnection": "",
        "etc/ufw/ufw.conf": "ENABLED=no\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")

    def run(_self: object, command: list[str], **_rest: object) -> tuple[int, str, str]:
        words = [word for word in command if not word.startswith("--")]
        found = given.get(" ".join(words), given.get(" ".join(command[:2])))
        return (1, "", "no") if found is None else (0, found, "")

    people = [
        SimpleNamespace(pw_name="root", pw_uid=0, pw_shell="/bin/bash"),
        SimpleNamespace(pw_name="ann", pw_uid=1000, pw_shell="/bin/bash"),
        SimpleNamespace(pw_name="svc", pw_uid=1001, pw_shell="/usr/sbin/nologin"),
        SimpleNamespace(pw_name="nobody", pw_uid=65534, pw_shell="/bin/sh"),
    ]
    monkeypatch.setattr(AnsibleModule, "run_command", run)
    monkeypatch.setattr(owner_facts, "ROOT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(pwd, "getpwall", lambda: people)
    sockets = [
        {"address": "0.0.0.0", "port": 445, "process": "smbd", "container": ""},
        {"address": "0.0.0.0", "port": 8000, "process": "VLLM::EngineCor", "container": "vllm-tiny"},
    ]
    monkeypatch.setattr(owner_facts, "listeners", lambda _containers: sockets)
    return given


def test_a_session_that_ends_while_they_are_read_hides_no_other(answers: dict[str, str], run_module: Run) -> None:
    answers["loginctl list-sessions"] = "9 0 root - - active no -\n" + answers["loginctl list-sessions"]
    assert run_module(owner_facts)["owner"]["desktop_sessions"] == ["ann"]


@pytest.mark.usefixtures("answers")
def test_what_people_have_on_a_machine(tmp_path: Path, run_module: Run) -> None:
    result = run_module(owner_facts)
    found = result["owner"]
    assert result["changed"] is False
    assert found["desktop_sessions"] == ["ann"]
    assert found["containers"] == ["db"]
    assert (found["log_driver"], found["daemon_keys"]) == ("journald", ["log-driver", "runtimes"])
    # A ufw.service that is active with ENABLED=no is no firewall.
    assert found["services"] == {"Samba": ["smbd.service"]}
    assert found["listeners"] == ["0.0.0.0:445 (smbd)"]
    assert found["accounts"] == ["ann"]
    assert found["networks"] == [
        str(tmp_path / "etc/NetworkManager/system-connections/Home.nmconnection"),
        str(tmp_path / "etc/netplan/50-cloud-init.yaml"),
    ]
    (tmp_path / "etc/ufw/ufw.conf").write_text("ENABLED=yes\n", encoding="utf-8")
    assert run_module(owner_facts)["owner"]["services"]["firewall"] == ["ufw.service"]


def test_a_machine_without_any_of_these_programs(answers: dict[str, str], tmp_path: Path, run_module: Run) -> None:
    answers.clear()
    (tmp_path / "etc/docker/daemon.json").write_text("{", encoding="utf-8")
    found = run_module(owner_facts)["owner"]
    assert (found["desktop_sessions"], found["containers"], found["services"]) == ([], [], {})
    assert found["log_driver"] == ""
