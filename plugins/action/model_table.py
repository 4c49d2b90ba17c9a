# SPDX-License-Identifier: Apache-2.0
"""Print what each model of the catalogue would be on this cluster, for people or programs."""

from __future__ import annotations

from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import rows


class ActionModule(ControlNodeAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, arguments = self.begin(tmp, task_vars, "model_table")
        found = rows.cluster(arguments["specs"], arguments["images"], arguments["nodes"], arguments["memory_gib"])
        wrong = self.deliver(arguments["json"], found, rows.screen(found))
        if wrong:
            result.update(failed=True, msg=wrong)
            return result
        result.update(changed=False, **found)
        return result
