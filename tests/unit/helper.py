# SPDX-License-Identifier: Apache-2.0
"""What the unit tests of modules share."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest import mock

from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args


class ModuleEnd(SystemExit):
    """Ends a module as exit_json and fail_json do; carries what it would have printed."""

    def __init__(self, result: dict[str, Any]) -> None:
        """Take the result."""
        super().__init__(0)
        self.result = result


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
