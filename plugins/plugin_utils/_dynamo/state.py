# SPDX-License-Identifier: Apache-2.0
"""How far a deployment or a job is, and why it cannot get further.  Pure: what the API returned in, a verdict out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine

PENDING, READY, FAILED = "pending", "ready", "failed"
GRAPH_LABEL = "nvidia.com/dynamo-graph-deployment-name"
COMPONENT_LABEL = "nvidia.com/dynamo-component-type"
_DOWNLOAD = "run dynamo_delete.yml, which keeps the cache, and dynamo.yml again: it downloads what is missing"
#: Exit codes of the recipe's own checks [S3r] and of these jobs → (cause, remedy).
EXITS = {
    42: ("the model is not in the cache", _DOWNLOAD),
    43: ("a file of the model is missing or short", _DOWNLOAD),
    96: (
        "the container sees another number of GPUs than it requested",
        "check the device plugin and the runtime class",
    ),
    97: ("a GPU has more than 1024 MiB in use", "end what uses it; nvidia-smi on the node lists it"),
    98: ("another process computes on a GPU", "end it; nvidia-smi on the node lists it"),
}
_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
_PROGRESS = re.compile(r"^MODEL_DOWNLOAD_PROGRESS bytes=(\d+)(?: total=(\d+))?", re.MULTILINE)
_REFUSED = re.compile(r"^MODEL_\w+_FAIL .*$", re.MULTILINE)
GIB = 2**30


@dataclass(frozen=True)
class Cause:
    """Why something cannot get further.

    :ivar passing: it may pass automatically (a new node, a registry that answers again): it is waited for a while.
    """

    what: str
    remedy: str
    passing: bool = False

    def __str__(self) -> str:
        return f"{self.what} Remedy: {self.remedy}." if self.remedy else self.what


@dataclass(frozen=True)
class Progress:
    """One look.

    :ivar line: what a person reads; printed when it changes.
    :ivar mark: changes whenever anything went on, also where the line does not.
    """

    state: str
    line: str
    mark: str = ""
    cause: Cause | None = None


def _statuses(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def restarted(pods: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """Return (pod, container, whether of the run before) of each container whose log may name a cause."""
    found = []
    for pod in pods:
        for each in _statuses(pod):
            state, last = each.get("state") or {}, each.get("lastState") or {}
            if "terminated" in state and state["terminated"].get("exitCode"):
                found.append((pod["metadata"]["name"], each["name"], False))
            elif "terminated" in last:
                found.append((pod["metadata"]["name"], each["name"], "running" in state))
    return found


def _of_log(text: str) -> tuple[str, str] | None:
    """Return what a log says of an end: the refusal of a job, a known failure of the engine, or its last lines."""
    refused = _REFUSED.findall(text)
    if refused:
        return refused[-1], ""
    findings = diagnose(LogLine(line, source="engine") for line in text.splitlines())
    if findings:
        return findings[0].cause, findings[0].remedy
    lines = [line for line in text.splitlines() if line.strip()][-20:]
    return ("its last lines:\n" + "\n".join(f"    {line}" for line in lines), "") if lines else None


def _ended(name: str, each: Mapping[str, Any], logs: Mapping[str, str], final: bool) -> Cause | None:
    """Return the cause of a container that ended with an error, or None where none did or it is simply started again.

    :param final: whether the pod starts no container again.
    """
    state = each.get("state") or {}
    waiting = (state.get("waiting") or {}).get("reason", "")
    dead = state.get("terminated") or (each.get("lastState") or {}).get("terminated") or {}
    code = dead.get("exitCode", 0)
    over = waiting == "CrashLoopBackOff" or code in EXITS or (final and "terminated" in state)
    if not code or not over:
        return None
    said = _of_log(logs.get(name, ""))
    what = f"{name} ended with {code}"
    if dead.get("reason") == "OOMKilled":
        return Cause(
            f"{what}: it had more memory than its limit.", "raise the limit, or see what else runs on the node"
        )
    if code in EXITS:
        cause, remedy = EXITS[code]
        return Cause(f"{what}: {cause}." + (f" {said[0]}" if said else ""), remedy)
    if said:
        return Cause(f"{what}: {said[0]}", said[1])
    return Cause(f"{what} and left no log.", "kubectl describe shows its events")


def _waits(name: str, each: Mapping[str, Any], secrets: Sequence[str]) -> Cause | None:
    waiting = (each.get("state") or {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), " ".join(str(waiting.get("message", "")).split())
    if reason in _PULL:
        by = f" with the secret {', '.join(secrets)}" if secrets else " without a secret"
        return Cause(
            f"{name}: the image {each.get('image', '')} is not pulled{by}: {reason} {words}".rstrip(),
            "check the image's name and dynamo_pull_secret",
            passing=reason not in ("InvalidImageName", "ErrImageNeverPull"),
        )
    if reason in _CONFIG:
        return Cause(f"{name}: {reason}: {words}", "create what it names, or correct the setting")
    return None


def pod_cause(
    pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]], logs: Mapping[str, str], free: str
) -> Cause | None:
    """Return why one pod does not get ready, or None where it may."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            words = " ".join(str(each.get("message", "")).split())
            if "PersistentVolumeClaim" in words:
                return Cause(f"{name} waits for a volume: {words}", "see why the claim is not bound", passing=True)
            return Cause(
                f"{name} fits on no node: {words} {free}".rstrip(),
                "free what it needs, or change the placement",
                passing=True,
            )
    if status.get("phase") == "Failed" and status.get("reason"):
        return Cause(f"{name}: {status['reason']}: {status.get('message', '')}".rstrip(": "), "look at the node")
    secrets = [one["name"] for one in (pod.get("spec") or {}).get("imagePullSecrets") or []]
    final = (pod.get("spec") or {}).get("restartPolicy") == "Never"
    for each in _statuses(pod):
        cause = _ended(name, each, logs, final) or _waits(name, each, secrets)
        if cause:
            return cause
    for event in events:
        of = event.get("involvedObject") or {}
        if of.get("name") == name and event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            return Cause(
                f"{name}: {event['reason']}: {event.get('message', '')}", "see the claim and its storage", passing=True
            )
    return None


def _doing(pod: Mapping[str, Any], logs: Mapping[str, str]) -> str:
    """Return in a few words what a pod that is not ready does."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for each in _statuses(pod):
        state = each.get("state") or {}
        if "waiting" in state:
            return f"pod {name}: {state['waiting'].get('reason', 'waiting')}"
        last = [line for line in logs.get(name, "").splitlines() if line.strip()]
        if "running" in state:
            return f"pod {name}: {last[-1].strip()[:120]}" if last else f"pod {name}: running, not ready"
    return f"pod {name}: {status.get('phase', 'unknown')}"


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def worker_pods(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the pods of a deployment that compute and are not being deleted: all but the frontend's."""
    return [
        pod
        for pod in pods
        if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) != "frontend"
        and not pod["metadata"].get("deletionTimestamp")
    ]


def workers_progress(found: Progress, graph: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Progress:
    """Return how far a deployment is whose workers were deleted: the operator's status may be older than its pods.

    :param found: how far it is by its status.
    """
    parts = (graph.get("spec") or {}).get("components") or []
    wanted = sum(int(part.get("replicas", 1)) for part in parts if part.get("type") != "frontend")
    there = worker_pods(pods)
    ready = sum(_is_ready(pod) for pod in there)
    if found.state != READY or ready >= wanted:
        return found
    mark = repr([(pod["metadata"]["name"], pod.get("status")) for pod in pods])
    return Progress(PENDING, f"restarting: {ready} of {wanted} workers ready", mark)


def graph_progress(
    graph: Mapping[str, Any] | None,
    pods: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]] = (),
    logs: Mapping[str, str] | None = None,
    free: str = "",
) -> Progress:
    """Return how far a DynamoGraphDeployment is.

    :param logs: pod → last lines of the log that counts for it.
    :param free: a sentence about what the nodes have free, put behind a pod that fits nowhere.
    """
    if graph is None:
        return Progress(FAILED, "gone", cause=Cause("The deployment was deleted while it was waited for.", "run again"))
    logs = logs or {}
    status, meta = graph.get("status") or {}, graph["metadata"]
    state = status.get("state", "initializing")
    ready: Mapping[str, Any] = next(
        (each for each in status.get("conditions") or [] if each.get("type") == "Ready"), {}
    )
    parts = status.get("components") or {}
    counts = ", ".join(
        f"{name} {one.get('readyReplicas') or 0}/{one.get('replicas', 0)}" for name, one in parts.items()
    )
    seen = status.get("observedGeneration") == meta.get("generation")
    if seen and state == "successful" and ready.get("status") == "True":
        return Progress(READY, f"successful: {counts}")
    waiting = [pod for pod in pods if not _is_ready(pod)]
    line = f"{state}: {counts or 'nothing yet'}"
    if ready.get("reason"):
        line += f" ({ready['reason']})"
    if not seen:
        line += ", not yet seen by the operator"
    if waiting:
        line += f" - {_doing(waiting[0], logs)}"
    mark = repr(
        [line, *((pod["metadata"]["name"], pod.get("status"), logs.get(pod["metadata"]["name"])) for pod in pods)]
    )
    causes = [cause for pod in waiting if (cause := pod_cause(pod, events, logs, free))]
    cause = next((each for each in causes if not each.passing), causes[0] if causes else None)
    if cause:
        return Progress(PENDING if cause.passing else FAILED, line, mark, cause)
    if seen and state == "failed":
        words = str(ready.get("message") or ready.get("reason") or "it gives no reason")
        return Progress(
            FAILED, line, mark, Cause(f"The operator gave up: {words}.", "kubectl describe dgd shows its events")
        )
    if ready.get("reason") == "insufficient_capacity":
        words = str(ready.get("message") or "insufficient capacity")
        return Progress(PENDING, line, mark, Cause(f"{words} {free}".rstrip(), "free what it needs", passing=True))
    return Progress(PENDING, line, mark)


def _bytes(log: str) -> str:
    found = _PROGRESS.findall(log)
    if not found:
        return ""
    done, total = found[-1]
    share = f" of {int(total) / GIB:.1f} GiB ({int(done) * 100 // int(total)} %)" if total and int(total) else " GiB"
    return f", {int(done) / GIB:.1f}{share}"


def job_progress(
    job: Mapping[str, Any] | None,
    pods: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]] = (),
    logs: Mapping[str, str] | None = None,
    free: str = "",
) -> Progress:
    """Return how far a job is; the bytes of a download are read in its log."""
    if job is None:
        return Progress(FAILED, "gone", cause=Cause("The job was deleted while it was waited for.", "run again"))
    logs = logs or {}
    conditions = {
        each["type"]: each for each in (job.get("status") or {}).get("conditions") or [] if each["status"] == "True"
    }
    if "Complete" in conditions:
        return Progress(READY, "complete")
    newest = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))[-1:]
    causes = [cause for pod in newest if (cause := pod_cause(pod, events, logs, free))]
    if "Failed" in conditions:
        end = conditions["Failed"]
        words = Cause(
            f"The job ended without success: {end.get('reason', '')} {end.get('message', '')}".strip() + ".",
            "its pods' logs say more",
        )
        return Progress(FAILED, "failed", cause=causes[0] if causes else words)
    doing = "".join(f": {_doing(pod, {})}{_bytes(logs.get(pod['metadata']['name'], ''))}" for pod in newest)
    mark = repr([(pod["metadata"]["name"], pod.get("status"), logs.get(pod["metadata"]["name"])) for pod in newest])
    cause = causes[0] if causes else None
    # A container that ended with an error is started again by the job until its limit.
    return Progress(
        PENDING, f"running{doing}" if newest else "no pod yet", mark, cause if cause and cause.passing else None
    )


def gone_progress(graph: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> Progress:
    """Return how far a deletion is."""
    left = [pod["metadata"]["name"] for pod in pods]
    if graph is None and not left:
        return Progress(READY, "gone")
    names = f"{len(left)} pods left: {', '.join(left)}" if left else "the operator has to release it"
    cause = Cause(
        f"It is not gone: {names}.", "see that the operator runs, and the finalizers of what is left", passing=True
    )
    return Progress(PENDING, f"stopping, {names}", repr([names, graph]), cause)
