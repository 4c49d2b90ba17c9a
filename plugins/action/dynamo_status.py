# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_status: one screen of a namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.waiting import Looks


class ActionModule(DynamoAction):
    module = "dynamo_status"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        space = args["namespace"]
        lines: list[str] = []
        for kind, title in (("DynamoGraphDeployment", "deployment"), ("Job", "job")):
            for each in cluster.find(kind, space):
                name = each["metadata"]["name"]
                looks = Looks(cluster, space, name)
                found = looks.graph() if title == "deployment" else looks.job()
                lines.append(f"{title:11} {name:45} {found.line}")
                lines += [f"{'':11} {found.cause}"] if found.cause else []
        for claim in cluster.find("PersistentVolumeClaim", space):
            size = claim["spec"]["resources"]["requests"]["storage"]
            phase = (claim.get("status") or {}).get("phase", "unknown")
            lines.append(f"{'claim':11} {claim['metadata']['name']:45} {size}, {phase}")
        lines = lines or [f"Nothing is in the namespace {space}."]
        for line in lines:
            self.say(line)
        return {"lines": lines}
