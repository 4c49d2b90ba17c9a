# SPDX-License-Identifier: Apache-2.0
"""Wait for a deployment, a job or a deletion: a line at each change, and an end when nothing goes on any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.quantity import requested, rooms
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import (
    FAILED,
    GRAPH_LABEL,
    PENDING,
    Cause,
    Progress,
    gone_progress,
    graph_progress,
    job_progress,
    restarted,
    workers_progress,
)

LOG_LINES = 200


@dataclass(frozen=True)
class Patience:
    """How long is waited, in seconds.

    :ivar stall_seconds: without any change.
    :ivar passing_seconds: with a cause that may pass automatically, such as a node that has yet to come.
    :ivar every_seconds: between two looks.
    """

    stall_seconds: float = 1800.0
    passing_seconds: float = 300.0
    every_seconds: float = 5.0


def wait(
    look: Callable[[], Progress],
    say: Callable[[str], None],
    patience: Patience,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Look until something is ready or has failed; return the last look, its cause filled in where it failed."""
    line = mark = ""
    changed = clock()
    held: float | None = None
    while True:
        try:
            found = look()
        except ClusterError as error:
            if error.status:
                raise
            found = Progress(PENDING, str(error), mark)
        now = clock()
        if found.line != line:
            line = found.line
            say(f"{time.strftime('%H:%M:%S')} {line}")
        if found.state != PENDING:
            return found
        if found.mark != mark:
            mark, changed = found.mark, now
        held = (now if held is None else held) if found.cause else None
        if found.cause and held is not None and now - held >= patience.passing_seconds:
            return replace(found, state=FAILED)
        if now - changed >= patience.stall_seconds:
            words = f"Nothing changed for {now - changed:.0f} s: {line}."
            return replace(
                found,
                state=FAILED,
                cause=found.cause or Cause(words, "kubectl describe shows the events of what waits"),
            )
        sleep(patience.every_seconds)


class Looks:
    """What is read of a cluster for one look at a deployment, a job or a deletion."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        return self.cluster.find("Pod", self.namespace, selector)

    def _logs(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return pod → the log that counts: of the run that ended, else of the one that runs."""
        logs = {}
        dead = {name: (container, previous) for name, container, previous in restarted(pods)}
        for pod in pods:
            name = pod["metadata"]["name"]
            running = [
                each["name"]
                for each in (pod.get("status") or {}).get("containerStatuses") or []
                if "running" in (each.get("state") or {})
            ]
            if name in dead:
                container, previous = dead[name]
                logs[name] = self.cluster.log(name, self.namespace, container, LOG_LINES, previous=previous)
            elif running:
                logs[name] = self.cluster.log(name, self.namespace, running[0], LOG_LINES)
        return logs

    def _events(self) -> list[dict[str, Any]]:
        try:
            return self.cluster.find("Event", self.namespace)
        except ClusterError as error:
            if error.forbidden:
                return []
            raise

    def _free(self, pods: Sequence[Mapping[str, Any]]) -> str:
        """Return what the nodes that a pod may use have free, where one fits nowhere and this user may see nodes."""
        homeless = [pod for pod in pods if not pod["spec"].get("nodeName") and requested(pod, "nvidia.com/gpu")]
        if not homeless:
            return ""
        labels = homeless[0]["spec"].get("nodeSelector") or {}
        try:
            found = rooms(self.cluster.find("Node"), self.cluster.find("Pod"), ["nvidia.com/gpu"], labels)
        except ClusterError as error:
            if error.forbidden:
                return ""
            raise
        free = ", ".join(
            f"{each.node} {max(each.free['nvidia.com/gpu'], 0)} of {each.has['nvidia.com/gpu']}" for each in found
        )
        return f"Free GPUs: {free or 'no node has its labels'}."

    def graph(self) -> Progress:
        """Return how far the deployment is."""
        graph = self.cluster.get("DynamoGraphDeployment", self.name, self.namespace)
        pods = self._pods(f"{GRAPH_LABEL}={self.name}")
        return graph_progress(graph, pods, self._events(), self._logs(pods), self._free(pods))

    def workers(self) -> Progress:
        """Return how far the deployment is after its workers were deleted."""
        found = self.graph()
        graph = self.cluster.get("DynamoGraphDeployment", self.name, self.namespace)
        return workers_progress(found, graph, self._pods(f"{GRAPH_LABEL}={self.name}")) if graph else found

    def job(self) -> Progress:
        """Return how far the job is."""
        job = self.cluster.get("Job", self.name, self.namespace)
        pods = self._pods(f"job-name={self.name}")
        return job_progress(job, pods, self._events(), self._logs(pods), self._free(pods))

    def gone(self) -> Progress:
        """Return how far the deletion of the deployment is."""
        graph = self.cluster.get("DynamoGraphDeployment", self.name, self.namespace)
        return gone_progress(graph, self._pods(f"{GRAPH_LABEL}={self.name}"))
