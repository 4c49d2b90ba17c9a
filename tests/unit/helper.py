# SPDX-License-Identifier: Apache-2.0
"""What the unit tests of modules share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from lab.locks import locked
from lab.waiting import wait_until


def until(done: Callable[[], bool]) -> None:
    """Wait for what is bound to come; a process that was killed may take a moment to be gone."""
    wait_until(done, lambda: None, lambda answer: "nothing came of it in 300 s", stall_seconds=300, every_seconds=0.1)


class ModuleEnd(SystemExit):
    """Ends a module as exit_json and fail_json do; carries what it would have printed."""

    def __init__(self, result: dict[str, Any]) -> None:
        """Take the result."""
        super().__init__(0)
        self.result = result


@contextmanager
def made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a directory and a record that the processes of one run of the tests share; the first one fills both.

    :param factory: of the process.
    :param name: of the directory, which no other fixture has.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    file = folder / "record.json"
    with locked(folder / "lock"):
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        yield folder, record
        file.write_text(json.dumps(record), encoding="utf-8")


def run_module(
    module: ModuleType, args: dict[str, Any], *, check: bool = False, diff: bool = False, run_command: Any = None
) -> dict[str, Any]:
    """Run an Ansible module's `main` in this process and return its result; ``failed`` is set when it failed.

    :param module: the imported module.
    :param args: its options.
    :param run_command: takes the place of AnsibleModule.run_command; called with the command and its keyword arguments.
    """

    def leave(_self: object, **result: Any) -> None:
        raise ModuleEnd(result)

    def fail(_self: object, msg: str, **result: Any) -> None:
        raise ModuleEnd({"failed": True, "msg": msg, **result})

    replaced: dict[str, Any] = {"exit_json": leave, "fail_json": fail}
    if run_command is not None:
        replaced["run_command"] = lambda _self, command, **options: run_command(command, **options)
    options = {**args, "_ansible_check_mode": check, "_ansible_diff": diff}
    with mock.patch.multiple(basic.AnsibleModule, **replaced), patch_module_args(options):
        try:
            module.main()
        except ModuleEnd as end:
            return end.result
    raise AssertionError(f"{module.__name__} ended without a result")


#: Answers a command with exit code, stdout and stderr; None stands for success without output.
Answer = Callable[[list[str]], "tuple[int, str, str] | None"]


class EndedError(Exception):
    """The result of a module."""

    def __init__(self, failed: bool, result: dict[str, Any]) -> None:
        """Take what the module would have printed, and whether it failed."""
        super().__init__(result.get("msg", ""))
        self.failed = failed
        self.result = result


class NodeModule:
    """Stands for AnsibleModule on a node whose commands a function of the test answers."""

    def __init__(self, params: dict[str, Any], answer: Answer = lambda _argv: None, check: bool = False) -> None:
        """Take the module's options, the answers and whether this is check mode."""
        self.params = params
        self.answer = answer
        self.check_mode = check
        self.missing: set[str] = set()
        self.warnings: list[str] = []
        self.calls: list[list[str]] = []
        self.data: list[str | None] = []
        self.run_command_environ_update: dict[str, str] = {}

    def get_bin_path(self, name: str, required: bool = False) -> str | None:
        """Return the name, unless the test listed it in ``missing``."""
        del required
        return None if name in self.missing else name

    def run_command(self, argv: list[str], data: str | None = None, **_options: Any) -> tuple[int, str, str]:
        """Record the command and its standard input, and return the test's answer."""
        self.calls.append(argv)
        self.data.append(data)
        return self.answer(argv) or (0, "", "")

    def warn(self, text: str) -> None:
        """Record a warning."""
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> None:
        """End the module."""
        raise EndedError(False, result)

    def fail_json(self, **result: Any) -> None:
        """End the module with a failure."""
        raise EndedError(True, result)


def ended(module: Any, monkeypatch: pytest.MonkeyPatch, fake: NodeModule) -> EndedError:
    """Run a module's `main` with a stand-in for AnsibleModule and return how it ended."""
    monkeypatch.setattr(module, "AnsibleModule", lambda **_spec: fake)
    with pytest.raises(EndedError) as end:
        module.main()
    return end.value
