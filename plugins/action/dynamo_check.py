# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_check: a line for each prerequisite of a cluster, and all problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import prerequisites, render
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import chosen
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files


class ActionModule(DynamoAction):
    module = "dynamo_check"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        target = chosen(args["specs"], args["target"], args["settings"], serve_files.load_tables())
        facts = prerequisites.read(cluster, target)
        token_given = bool(os.environ.get(args["token_env"]))
        wanted = prerequisites.Wanted(
            token_given=token_given, **{key: args[key] for key in ("pull_secret_given", "replace", "keep_others")}
        )
        verdict = prerequisites.judge(target, facts, wanted)
        for line in [*verdict.lines, *(f"note  {note}" for note in target.notes)]:
            self.say(line)
        graphs = prerequisites.restorable(facts)
        found: dict[str, Any] = {
            "target": render.described(target),
            "notes": list(verdict.notes),
            "problems": list(verdict.problems),
            "namespace_exists": facts.namespace,
            "before": [each for each in graphs if each["metadata"]["name"] == target.graph],
            "others": []
            if args["keep_others"]
            else [each for each in graphs if each["metadata"]["name"] != target.graph],
        }
        if verdict.problems:
            return {"failed": True, "msg": "\n".join(verdict.problems), "problems": found["problems"]}
        return found
