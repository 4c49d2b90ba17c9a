# SPDX-License-Identifier: Apache-2.0
"""Merge the nodes' reports into one state of the cluster, and print it for people or programs."""

from __future__ import annotations

import time
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import document, screen
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction


class ActionModule(ControlNodeAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, arguments = self.begin(tmp, task_vars, "cluster_status")
        found = document(
            arguments["nodes"], arguments["head"], arguments["reports"], arguments["problems"], round(time.time(), 3)
        )
        lines = screen(found)
        wrong = self.deliver(arguments["json"], found, lines)
        if wrong:
            result.update(failed=True, msg=wrong)
            return result
        result.update(changed=False, cluster=found, screen=lines)
        return result
