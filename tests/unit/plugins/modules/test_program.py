# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.program, through its action plugin: what is sent when, written once, verified and removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import program as action
from ansible_collections.gb10.cluster.plugins.lookup.program import LookupModule
from ansible_collections.gb10.cluster.plugins.modules import program
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build

OLD = "gb10-watch-0123456789ab.pyz"


class EndedError(Exception):
    """Carries what the module would have printed."""


class Task:
    """The part of a task that the action plugin reads."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.args = args


def run(monkeypatch: pytest.MonkeyPatch, directory: Path, check: bool = False, name: str = "watch") -> dict[str, Any]:
    """Return the task's result, with the number of times that the module was executed and whether data was sent."""
    sent: list[bool] = []

    def end(_self: object, **result: Any) -> None:
        raise EndedError(result)

    def execute(_self: object, module_args: dict[str, Any], **_task: Any) -> dict[str, Any]:
        sent.append("data" in module_args)
        with patch_module_args({**module_args, "_ansible_check_mode": check}), pytest.raises(EndedError) as ended:
            program.main()
        result: dict[str, Any] = ended.value.args[0]
        return {**result, "failed": "msg" in result}

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", end)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", end)
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    monkeypatch.setattr(action.ActionModule, "_execute_module", execute)
    plugin = action.ActionModule.__new__(action.ActionModule)
    plugin._task = Task({"program": name, "directory": str(directory)})
    return {**plugin.run(), "sent": sent}


def test_it_is_sent_once_and_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "lib"
    first = run(monkeypatch, directory)
    path = directory / build("watch").name
    assert (first["changed"], first["path"], first["sent"]) == (True, str(path), [False, True])
    assert first["diff"]["after"] == f"{path}\n"
    assert path.read_bytes() == build("watch").data
    second = run(monkeypatch, directory)
    assert (second["changed"], second["sent"], second["diff"]["after"]) == (False, [False], "")


def test_check_mode_writes_and_removes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / OLD).write_text("")
    os.utime(tmp_path / OLD, (1, 1))
    result = run(monkeypatch, tmp_path, check=True)
    assert (result["changed"], result["sent"], result["removed"]) == (True, [False], [str(tmp_path / OLD)])
    assert [path.name for path in tmp_path.iterdir()] == [OLD]


def test_what_nothing_refers_to_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, tmp_path)
    (tmp_path / OLD).write_text("")
    assert run(monkeypatch, tmp_path)["removed"] == []  # it is young
    os.utime(tmp_path / OLD, (1, 1))
    result = run(monkeypatch, tmp_path)
    assert (result["changed"], result["removed"], result["diff"]["before"]) == (
        True, [str(tmp_path / OLD)], f"{tmp_path / OLD}\n",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == [build("watch").name]


def test_a_damaged_archive_is_reported_and_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / build("watch").name
    path.write_bytes(b"damaged")
    result = run(monkeypatch, tmp_path)
    assert "and its name says" in result["msg"]
    assert path.read_bytes() == b"damaged"


def test_an_unknown_program_fails_before_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="no program 'wacht'"):
        run(monkeypatch, tmp_path, name="wacht")


def test_the_lookup_returns_the_path_without_a_node() -> None:
    assert LookupModule().run(["watch"]) == [f"/usr/local/lib/gb10/{build('watch').name}"]
    with pytest.raises(AnsibleError, match="no program 'wacht'"):
        LookupModule().run(["wacht"])
