# SPDX-License-Identifier: Apache-2.0
"""What the actions of the role dynamo have in common: they run on the control node and talk to one cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError, connect
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import DynamoError


class DynamoAction(ControlNodeAction):
    """An action of one cluster; `module` has its documentation, `act` is its work."""

    module: str

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments, connect, act; what the cluster refuses is the failure's message."""
        result, args = self.begin(tmp, task_vars, self.module)
        result["changed"] = False
        try:
            result.update(self.act(connect(args["kubeconfig"], args["context"]), args, task_vars or {}))
        except (ClusterError, DynamoError) as error:
            result.update(failed=True, msg=str(error))
        return result

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Do the work and return what goes into the result.

        :raises ClusterError: the cluster refused.
        """
        raise NotImplementedError

    def say(self, words: str) -> None:
        """Print a line now."""
        self._display.display(f"  {words}")
