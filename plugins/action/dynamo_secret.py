# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_secret: from memory into the cluster, never into arguments or a diff."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.render import MANAGED

DOCKER = "kubernetes.io/dockerconfigjson"


class ActionModule(DynamoAction):
    module = "dynamo_secret"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Write the secret where its content differs; the result has none of it."""
        kind, key, value = "Opaque", args["key"], os.environ.get(args["env"], "")
        if args["docker_config"]:
            kind, key = DOCKER, ".dockerconfigjson"
            file = Path(args["docker_config"]).expanduser()
            try:
                value = file.read_text(encoding="utf-8")
                auths = json.loads(value).get("auths")
            except (OSError, ValueError, AttributeError) as error:
                return {
                    "failed": True,
                    "msg": f"{file} is no Docker config.json that can be read: {type(error).__name__}.",
                }
            if not auths:
                words = "a credential helper keeps them elsewhere; write one with `docker login` without a helper."
                return {"failed": True, "msg": f"{file} has no 'auths': {words}"}
        if not value:
            # Without a value the secret stays as it is; that there is one is a prerequisite.
            return {}
        wanted = base64.b64encode(value.encode()).decode()
        live = cluster.get("Secret", args["name"], args["namespace"])
        if live is not None and (live.get("data") or {}).get(key) == wanted:
            return {}
        if not self._task.check_mode:
            cluster.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": args["name"], "namespace": args["namespace"], "labels": MANAGED},
                    "type": kind,
                    "data": {key: wanted},
                },
                force=True,
            )
        return {"changed": True}
