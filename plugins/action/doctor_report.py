# SPDX-License-Identifier: Apache-2.0
"""Judge the nodes' reports, print the diagnosis for people or programs, and fail from a chosen level on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import write
from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import PRINTED
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.diagnose import diagnose, tables
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.gather import FORMER, node_limits, node_report
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import FAIL, OK, WARN

LEVELS = {"never": {OK, WARN, FAIL}, "fail": {OK, WARN}, "warn": {OK}}


class ActionModule(ControlNodeAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, arguments = self.begin(tmp, task_vars, "doctor_report")
        known = task_vars or {}

        def of_this_run(variable: str) -> Any:
            return self._templar.template(known[variable]) if variable in known else None

        own = {node: known["hostvars"][node] for node in arguments["nodes"]}
        for former in {former for each in own.values() for former in FORMER.values() if former in each}:
            new = next(name for name, old in FORMER.items() if old == former)
            Display().warning(f"The variable {former!r} is now named {new!r}; the former name is removed in 0.3.0.")
        report = diagnose(
            {node: node_report(each) for node, each in own.items()},
            {node: node_limits(each, of_this_run) for node, each in own.items()},
        )
        text = json.dumps(report.to_dict(), indent=2)
        printed = arguments["json"].strip().lower() in PRINTED
        Display().display(text if printed else "\n".join(tables(report)))
        if arguments["json"] and not printed:
            write(Path(arguments["json"]).expanduser(), text + "\n")
        result.update(changed=False, report=report.to_dict())
        if report.level not in LEVELS[arguments["fail_on"]]:
            counts = report.counts()
            result.update(
                failed=True,
                msg=f"The diagnosis is {report.level}: {counts[FAIL]} FAIL and {counts[WARN]} WARN, see above.",
            )
            del result["report"]
        return result
