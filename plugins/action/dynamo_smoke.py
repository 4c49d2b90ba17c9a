# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_smoke: the published request through the API server, and one to be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import smoke
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError

CHAT = "/v1/chat/completions"
#: A first completion may compile kernels.
ANSWER_SECONDS = 600.0

Ask = Callable[[str, str, bytes | None], tuple[int, str]]


def through(cluster: Cluster, prefix: str) -> Ask:
    """Return what asks a server: behind the API server by its proxy, or below another URL."""

    def ask(method: str, path: str, body: bytes | None) -> tuple[int, str]:
        answer = cluster.ask(method, f"{prefix}{path}", body=body, seconds=ANSWER_SECONDS)
        return answer.status, answer.body.decode(errors="replace")

    return ask


def direct(url: str) -> Cluster:
    """Return a connection to a URL without any of the cluster's credentials."""
    import urllib3

    return Cluster(url, urllib3.PoolManager(), {})


class ActionModule(DynamoAction):
    module = "dynamo_smoke"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """Ask three times; in check mode nothing serves yet."""
        if self._task.check_mode:
            return {"skipped": True}
        if args["url"]:
            ask = through(direct(args["url"]), "")
        else:
            service = f"{args['service']}:{args['port']}"
            ask = through(cluster, f"/api/v1/namespaces/{args['namespace']}/services/{service}/proxy")
        model, wanted = args["model"], args["smoke"]
        wrong = smoke.wrong_models(*ask("GET", "/v1/models", None), model)
        if not wrong:
            status, text = ask("POST", CHAT, smoke.request_body(wanted, model))
            wrong = smoke.wrong_answer(status, text)
        if wrong:
            raise ClusterError(f"{args['service']}: {wrong}")
        odd = smoke.wrong_refusal(wanted, *ask("POST", CHAT, smoke.refused_body(wanted, model)))
        if odd:
            self._display.warning(odd)
        return {"answer": text, "refused": not odd}
