# SPDX-License-Identifier: Apache-2.0
"""Judge what the nodes told, print it for people or programs, and fail when it is bad enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.diagnose import (
    FAIL,
    OK,
    WARN,
    Limits,
    diagnose,
    tables,
)

LEVELS = {"never": {OK, WARN, FAIL}, "fail": {OK, WARN}, "warn": {OK}}


class ActionModule(ActionBase):  # type: ignore[misc]
    """See the module of the same name for the documentation."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Diagnose, print, and decide."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        _validation, arguments = self.validate_argument_spec(
            argument_spec={
                "told": {"type": "dict", "required": True},
                "limits": {"type": "dict", "required": True},
                "json": {"type": "str", "default": ""},
                "fail_on": {"type": "str", "choices": list(LEVELS), "default": "fail"},
            },
        )
        limits = {
            name: Limits(**{**given, "open_ports": tuple(int(port) for port in given["open_ports"])})
            for name, given in arguments["limits"].items()
        }
        report = diagnose(arguments["told"], limits)
        display = Display()
        text = json.dumps(report.to_dict(), indent=2)
        if arguments["json"] == "-":
            display.display(text)
        else:
            display.display("\n".join(tables(report)))
        if arguments["json"] not in ("", "-"):
            Path(arguments["json"]).write_text(text + "\n", encoding="utf-8")
        result.update(changed=False)
        if report.level not in LEVELS[arguments["fail_on"]]:
            counts = report.counts()
            result.update(
                failed=True,
                msg=f"The diagnosis is {report.level}: {counts[FAIL]} FAIL and {counts[WARN]} WARN, see above.",
            )
        else:
            result["report"] = report.to_dict()
        return result
