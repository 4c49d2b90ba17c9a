# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.docker_daemon against a systemctl and a dockerd that note what they are asked."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.modules import docker_daemon

from .conftest import Run

OWNERS = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, "log-driver": "json-file"}


class Node:
    """Docker Engine, the engines beside it, and the commands that were run."""

    def __init__(self, folder: Path) -> None:
        self.pid, self.engines, self.refuses, self.fails = "100", "", "", False
        self.asked: list[str] = []
        self.warned: list[str] = []
        self.containers = ["vllm-a", "gb10-keep-x"]
        self.path = folder / "docker" / "daemon.json"
        self.path.parent.mkdir()
        self.path.write_text(json.dumps(OWNERS), encoding="utf-8")
        self.path.chmod(0o600)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        if command[1] == "--help":
            return 0, "--validate", ""
        if command[1] == "--validate":
            return (1, "", self.refuses) if self.refuses else (0, "", "")
        if command[1] == "show":
            return 0, f"ActiveState={'active' if self.pid else 'inactive'}\nMainPID={self.pid or 0}\n", ""
        if command[1] == "list-units":
            return 0, self.engines, ""
        if command[1] == "container":
            return 0, "\n".join(self.containers), ""
        self.asked.append(command[1])
        if command[1] in ("restart", "reload") and self.fails:
            self.fails = False
            return 1, "", "Job for docker.service failed."
        if command[1] == "restart":
            self.pid = str(int(self.pid) + 1)
        return 0, "", ""

    def config(self) -> dict[str, Any]:
        """Return what daemon.json holds."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Stand a node in for this machine."""
    made = Node(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_rest: f"/usr/bin/{name}")
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: made.warned.append(text))
    monkeypatch.setattr(docker_daemon, "OWED", tmp_path / "run" / "owed")
    return made


def call(node: Node, run_module: Run, check: bool = False, **more: Any) -> dict[str, Any]:
    return run_module(docker_daemon, check=check, path=str(node.path), **more)


def test_what_is_there_changes_nothing(node: Node, run_module: Run) -> None:
    result = call(node, run_module, config={"log-driver": "json-file"})
    assert (result["changed"], result["action"], node.asked) == (False, "none", [])


def test_a_key_that_is_taken_over_is_a_reload(node: Node, run_module: Run) -> None:
    result = call(node, run_module, config={"registry-mirrors": ["https://a.example"]})
    assert (result["changed"], result["action"]) == (True, "reload")
    assert node.config() == {**OWNERS, "registry-mirrors": ["https://a.example"]}
    assert stat.S_IMODE(node.path.stat().st_mode) == 0o600
    assert node.asked[-1] == "reload"


def test_another_key_waits_for_the_engine_and_is_owed_until_then(node: Node, run_module: Run) -> None:
    node.engines = "vllm-a.service loaded active running\n"
    result = call(node, run_module, config={"log-opts": {"max-file": "3"}})
    assert (result["action"], result["protected"], node.asked) == ("deferred", ["vllm-a.service"], [])
    assert "would end vllm-a.service" in node.warned[0]
    again = call(node, run_module, config={"log-opts": {"max-file": "3"}})
    assert (again["action"], again["changed"]) == ("deferred", False)
    node.engines = ""
    assert call(node, run_module, config={"log-opts": {"max-file": "3"}})["action"] == "restart"
    assert call(node, run_module, config={"log-opts": {"max-file": "3"}})["changed"] is False


def test_an_owners_container_is_not_ended_without_a_word(node: Node, run_module: Run) -> None:
    node.containers.append("db")
    result = call(node, run_module, config={"log-opts": {"max-file": "3"}})
    assert (result["action"], result["protected"], node.asked) == ("deferred", ["container db"], [])
    assert "would end container db" in node.warned[0]
    assert call(node, run_module, config={"log-opts": {"max-file": "3"}}, restart="always")["action"] == "restart"


def test_containers_that_outlive_docker_do_not_defer(node: Node, run_module: Run) -> None:
    node.containers.append("db")
    node.path.write_text(json.dumps({**OWNERS, "live-restore": True}), encoding="utf-8")
    assert call(node, run_module, config={"log-opts": {"max-file": "3"}})["action"] == "restart"


def test_a_restart_by_hand_settles_the_debt(node: Node, run_module: Run) -> None:
    node.engines = "vllm-a.service loaded active running\n"
    call(node, run_module, config={"log-opts": {"max-file": "3"}})
    node.pid = "200"
    assert call(node, run_module, config={"log-opts": {"max-file": "3"}})["action"] == "none"


def test_a_docker_that_does_not_run_needs_nothing(node: Node, run_module: Run) -> None:
    node.pid = ""
    result = call(node, run_module, config={"log-opts": {"max-file": "3"}})
    assert (result["changed"], result["action"], node.asked) == (True, "none", [])


def test_a_file_that_dockerd_refuses_is_not_written(node: Node, run_module: Run) -> None:
    node.refuses = "unknown option"
    result = call(node, run_module, config={"no-such": 1})
    assert "dockerd refuses the merged configuration, nothing was changed: unknown option" in result["msg"]
    assert node.config() == OWNERS


def test_the_previous_file_returns_when_docker_does_not_start(node: Node, run_module: Run) -> None:
    node.fails = True
    result = call(node, run_module, config={"storage-driver": "no-such"})
    assert "Docker did not restart" in result["msg"]
    assert "runs with it." in result["msg"]
    assert node.config() == OWNERS


def test_check_mode_reports_the_restart_and_writes_nothing(node: Node, run_module: Run) -> None:
    result = call(node, run_module, check=True, config={"log-opts": {"max-file": "3"}})
    assert (result["changed"], result["action"], node.asked, node.config()) == (True, "restart", [], OWNERS)


def test_what_is_no_json_is_named(node: Node, run_module: Run) -> None:
    node.path.write_text('{"log-driver"', encoding="utf-8")
    assert "is not valid JSON (line 1" in call(node, run_module, config={})["msg"]
