# SPDX-License-Identifier: Apache-2.0
"""The control node's side of a pull: what it shows, and when it gives up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.gb10.cluster.plugins.action import image_pull


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ('unit=active\n{"received": 5}\n', ({"received": 5}, True)),
        ('unit=inactive\n{\n  "received": 5\n}\n', ({"received": 5}, False)),
        ("unit=activating\n", ({}, True)),
        ("unit=active\n{half\n", ({}, True)),
        ("unit=active\n[]\n", ({}, True)),
        # systemd, or the node's shell, gave no answer: the unit is not known to have ended.
        ('unit=\n{"received": 5}\n', ({"received": 5}, True)),
        ("", ({}, True)),
    ],
)
def test_a_look_at_a_node(text: str, parsed: tuple[dict[str, Any], bool]) -> None:
    assert image_pull.parse_look(text) == parsed


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Screen:
    """Keeps what would be shown."""

    lines: list[str] = []  # noqa: RUF012

    def display(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a plugin that looks at a node whose answers the test gives."""
    monkeypatch.setattr(image_pull, "time", Clock())
    monkeypatch.setattr(image_pull, "Display", Screen)
    monkeypatch.setattr(Screen, "lines", [])
    plugin = image_pull.ActionModule.__new__(image_pull.ActionModule)
    plugin._connection = None

    def answer(looks: list[str]) -> list[str]:
        commands: list[str] = []
        left = iter(looks)
        last = [""]

        def execute(command: str) -> dict[str, str]:
            commands.append(command)
            if "is-active" in command:
                last[0] = next(left, last[0])
                return {"stdout": last[0]}
            return {"stdout": "Traceback: agent"}

        monkeypatch.setattr(plugin, "_low_level_execute_command", execute, raising=False)
        return commands

    return plugin, answer


def look(running: bool = True, **status: Any) -> str:
    return f"unit={'active' if running else 'inactive'}\n{json.dumps(status)}\n"


def test_bytes_are_shown_at_least_every_ten_seconds(watched: Any) -> None:
    plugin, answer = watched
    answer([look(received=n * 2**20, total=2**30) for n in range(30)] + [look(received=2**30, total=2**30, done=True)])
    status, problem = plugin.watch("gx10-2", 600)
    assert problem == ""
    assert status["done"] is True
    # 30 looks, 2 s apart: a line every 8 s, and the last one.
    assert len(Screen.lines) == 8
    assert Screen.lines[0].startswith("gx10-2: 4 of 1024 MiB received")
    assert Screen.lines[-1].startswith("gx10-2: 1024 of 1024 MiB received")


def test_a_pull_that_stands_still_is_given_up(watched: Any) -> None:
    plugin, answer = watched
    commands = answer([look(received=2**20, total=2**30)])
    _status, problem = plugin.watch("gx10-2", 60)
    assert problem.startswith("no byte was received or unpacked for 60 s (gx10-2: 1 of 1024 MiB received")
    assert "systemctl stop gb10-image-pull.service" in commands


def test_a_pull_that_only_unpacks_is_not_given_up(watched: Any) -> None:
    plugin, answer = watched
    answer([look(received=1, unpacked=n) for n in range(100)] + [look(done=True)])
    assert plugin.watch("gx10-2", 60)[1] == ""


def test_a_pull_of_which_only_the_disk_tells_is_not_given_up(watched: Any) -> None:
    """The containerd image store does not report how far it has unpacked a layer."""
    plugin, answer = watched
    answer([look(received=1, disk=n) for n in range(100)] + [look(done=True)])
    assert plugin.watch("gx10-2", 60)[1] == ""


def test_a_connection_that_broke_once_is_opened_again(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, _answer = watched
    answers: list[Any] = [look(), AnsibleConnectionFailure("silent"), look(done=True)]
    resets: list[int] = []

    def execute(_command: str) -> dict[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"stdout": answer}

    monkeypatch.setattr(plugin, "_low_level_execute_command", execute, raising=False)
    monkeypatch.setattr(plugin, "_connection", SimpleNamespace(reset=lambda: resets.append(1)), raising=False)
    assert plugin.watch("gx10-2", 60)[1] == ""
    assert resets == [1]


def test_an_agent_that_died_is_quoted(watched: Any) -> None:
    plugin, answer = watched
    answer([look(running=False)])
    _status, problem = plugin.watch("gx10-2", 60)
    assert problem == "the pull ended without a result; its journal: Traceback: agent"


def test_an_agent_that_failed_is_quoted(watched: Any) -> None:
    plugin, answer = watched
    answer([look(running=False, done=True, error="no room")])
    assert plugin.watch("gx10-2", 60)[1] == "no room"


#: Stands for systemctl or cat on a node: gives the state of the pull, then lets the pull end if its turn has come.
TOOL = """#!/bin/sh
cd {folder}
echo x >> looks
case "$0" in
    */systemctl) if [ -e ended ]; then echo inactive; else echo active; fi ;;
    *) if [ -e ended ]; then echo '{done}'; else echo '{moving}'; fi ;;
esac
[ "$(wc -l < looks)" -ge {turn} ] && touch ended
exit 0
"""


@pytest.mark.parametrize("turn", range(1, 7))
def test_a_pull_that_ends_while_it_is_looked_at_is_not_called_failed(
    watched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """The end comes after each of the looks in turn: between unit and report, and between two rounds."""
    plugin, _answer = watched
    done, moving = json.dumps({"received": 9, "done": True, "name": "x"}), json.dumps({"received": 5})
    for tool in ("systemctl", "cat"):
        path = tmp_path / tool
        path.write_text(TOOL.format(folder=tmp_path, done=done, moving=moving, turn=turn), encoding="utf-8")
        path.chmod(0o755)
    path_of_tools = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def execute(command: str) -> dict[str, str]:
        ran = subprocess.run(
            ["/bin/sh", "-c", command],
            env={"PATH": path_of_tools},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return {"stdout": ran.stdout}

    monkeypatch.setattr(plugin, "_low_level_execute_command", execute, raising=False)
    status, problem = plugin.watch("gx10-2", 600)
    assert (problem, status["name"]) == ("", "x")
