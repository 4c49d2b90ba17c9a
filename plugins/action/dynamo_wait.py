# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_wait: a line at each change, and the judged cause of a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import FAILED
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.waiting import Looks, Patience, wait


class ActionModule(DynamoAction):
    module = "dynamo_wait"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Wait; in check mode nothing was started that could be waited for."""
        if self._task.check_mode:
            return {"skipped": True}
        looks = Looks(cluster, args["namespace"], args["name"])
        look = {"graph": looks.graph, "workers": looks.workers, "job": looks.job, "gone": looks.gone}[args["what"]]
        patience = Patience(args["stall_seconds"], args["passing_seconds"], args["every_seconds"])
        found = wait(look, lambda line: self.say(f"{line}"), patience)
        if found.state == FAILED:
            return {"failed": True, "msg": f"{args['name']}: {found.cause or found.line}", "line": found.line}
        return {"line": found.line}
