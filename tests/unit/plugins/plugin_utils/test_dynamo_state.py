# SPDX-License-Identifier: Apache-2.0
"""Every verdict of the wait, from states as the operator, the kubelet and the job controller write them."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import state, waiting
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import ClusterError
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import FAILED, PENDING, READY, Progress

NAME = "g-worker-0"


def graph(
    of: str = "pending", reason: str = "pods_not_ready", message: str = "", ready: int = 0, **more: Any
) -> dict[str, Any]:
    condition = {
        "type": "Ready",
        "status": "True" if of == "successful" else "False",
        "reason": reason,
        "message": message,
    }
    status = {
        "state": of, "observedGeneration": 2, "conditions": [condition],
        "components": {"worker": {"componentKind": "Deployment", "replicas": 1, "readyReplicas": ready}},
    }  # fmt: skip
    return {"metadata": {"name": "g", "generation": 2}, "status": {**status, **more}}


def pod(
    container: dict[str, Any] | None = None, *, spec: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    statuses = [{"name": "main", "image": "registry/x:1", **container}] if container else []
    return {
        "metadata": {"name": NAME},
        "spec": spec or {},
        "status": {"phase": "Pending", "containerStatuses": statuses, **status},
    }


def crashed(code: int, **more: Any) -> dict[str, Any]:
    dead = {"exitCode": code, "reason": "Error", **more}
    return {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": dead}}


def unscheduled(message: str) -> dict[str, Any]:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])


def test_a_deployment_is_ready_only_when_the_operator_has_seen_its_newest_state() -> None:
    assert state.graph_progress(graph("successful", "all_resources_are_ready", ready=1), []).state == READY
    stale = state.graph_progress(graph("successful", "all_resources_are_ready", observedGeneration=1), [])
    assert (stale.state, stale.line) == (
        PENDING,
        "successful: worker 0/1 (all_resources_are_ready), not yet seen by the operator",
    )


def test_the_line_says_what_the_first_waiting_pod_does() -> None:
    creating = pod({"state": {"waiting": {"reason": "ContainerCreating"}}})
    assert (
        state.graph_progress(graph(), [creating]).line
        == "pending: worker 0/1 (pods_not_ready) - pod g-worker-0: ContainerCreating"
    )
    running = pod({"state": {"running": {}}}, phase="Running")
    found = state.graph_progress(graph(), [running], logs={NAME: "a\nLoading shards: 3/10\n\n"})
    assert found.line.endswith("pod g-worker-0: Loading shards: 3/10")
    other = state.graph_progress(graph(), [running], logs={NAME: "a\nLoading shards: 4/10\n"})
    assert other.mark != found.mark


@pytest.mark.parametrize(
    ("found", "logs", "free", "verdict", "words"),
    [
        (unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "", "Free GPUs: n1 2 of 8.", PENDING,
         "g-worker-0 fits on no node: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu. Free GPUs: n1 2 of 8."),
        (unscheduled('pod has unbound immediate PersistentVolumeClaims'), "", "", PENDING,
         "g-worker-0 waits for a volume: pod has unbound immediate PersistentVolumeClaims"),
        (pod({"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}},
             spec={"imagePullSecrets": [{"name": "nvcr-secret"}]}), "", "", PENDING,
         "the image registry/x:1 is not pulled with the secret nvcr-secret: ImagePullBackOff Back-off"),
        (pod({"state": {"waiting": {"reason": "ErrImagePull", "message": "unauthorized"}}}), "", "", PENDING,
         "is not pulled without a secret: ErrImagePull unauthorized"),
        (pod({"state": {"waiting": {"reason": "InvalidImageName"}}}), "", "", FAILED, "InvalidImageName"),
        (pod({"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}}}), "",
         "", FAILED, 'CreateContainerConfigError: secret "hf" not found'),
        (pod(crashed(42)), "no model at /opt/models/x", "", FAILED, "ended with 42: the model is not in the cache."),
        (pod(crashed(43)), "", "", FAILED, "ended with 43: a file of the model is missing or short."),
        (pod(crashed(96)), "", "", FAILED, "the container sees another number of GPUs"),
        (pod(crashed(97)), "", "", FAILED, "ended with 97: a GPU has more than 1024 MiB in use."),
        (pod(crashed(98)), "", "", FAILED, "ended with 98: another process computes on a GPU."),
        (pod(crashed(137, reason="OOMKilled")), "", "", FAILED, "ended with 137: it had more memory than its limit."),
        (pod(crashed(1)), "torch.OutOfMemoryError: CUDA out of memory.", "", FAILED, "ended with 1: "),
        (pod(crashed(1)), "one\ntwo", "", FAILED, "ended with 1: "),
        (pod(crashed(1)), "", "", FAILED, "ended with 1 and left no log."),
        (pod(phase="Failed", reason="Evicted", message="The node was low on ephemeral-storage."), "", "", FAILED,
         "g-worker-0: Evicted: The node was low on ephemeral-storage."),
    ],
)  # fmt: skip
def test_a_pod_that_cannot_get_ready_has_a_cause(
    found: dict[str, Any], logs: str, free: str, verdict: str, words: str
) -> None:
    seen = state.graph_progress(graph(), [found], logs={NAME: logs}, free=free)
    assert seen.state == verdict
    assert words in str(seen.cause)
    assert seen.cause is not None
    assert seen.cause.passing == (verdict == PENDING)


def test_a_known_failure_of_the_engine_is_explained_by_the_diagnosis() -> None:
    said = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity "
        "of 178.35 GiB"
    )
    cause = state.graph_progress(graph(), [pod(crashed(1))], logs={NAME: said}).cause
    assert cause is not None
    assert cause.remedy
    assert "its last lines" not in cause.what


def test_a_first_crash_is_started_again_and_waited_for() -> None:
    again = {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}
    assert state.graph_progress(graph(), [pod(again)]).cause is None
    assert state.restarted([pod(again)]) == [(NAME, "main", True)]
    assert state.restarted([pod(crashed(1))]) == [(NAME, "main", False)]


def test_a_volume_that_is_not_mounted() -> None:
    event = {"involvedObject": {"name": NAME}, "reason": "FailedMount", "message": "timed out waiting for nfs"}
    cause = state.graph_progress(graph(), [pod()], [event]).cause
    assert cause is not None
    assert "FailedMount: timed out waiting for nfs" in cause.what
    assert cause.passing


def test_what_the_operator_says_counts_where_no_pod_explains_it() -> None:
    gave_up = state.graph_progress(graph("failed", "some_resources_are_not_ready", "worker: quota exceeded"), [])
    assert gave_up.state == FAILED
    assert "The operator gave up: worker: quota exceeded." in str(gave_up.cause)
    full = state.graph_progress(
        graph(reason="insufficient_capacity", message="no room for 4 GPUs"), [], free="Free GPUs: n1 0 of 8."
    )
    assert full.state == PENDING
    assert "no room for 4 GPUs Free GPUs: n1 0 of 8." in str(full.cause)
    assert state.graph_progress(None, []).state == FAILED


def server_pod(name: str, kind: str = "worker", ready: bool = True, **meta: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    labels = {state.COMPONENT_LABEL: kind}
    return {"metadata": {"name": name, "labels": labels, **meta}, "status": {"conditions": [condition]}}


def test_workers_that_were_deleted_are_waited_for_though_the_status_is_old() -> None:
    made = {"spec": {"components": [{"type": "frontend"}, {"type": "prefill"}, {"type": "decode", "replicas": 2}]}}
    served = Progress(READY, "successful")
    front, going = server_pod("f", "frontend"), server_pod("w-0", deletionTimestamp="now")
    found = state.workers_progress(served, made, [front, going])
    assert (found.state, found.line) == (PENDING, "restarting: 0 of 3 workers ready")
    new = [server_pod(f"w-{number}") for number in range(1, 4)]
    loading = state.workers_progress(served, made, [front, going, *new[:2], server_pod("w-3", ready=False)])
    assert loading.line == "restarting: 2 of 3 workers ready"
    assert loading.mark != found.mark
    assert state.workers_progress(served, made, [front, *new]) is served
    failed = Progress(FAILED, "x")
    assert state.workers_progress(failed, made, [front]) is failed


def job(*conditions: tuple[str, str, str]) -> dict[str, Any]:
    made = [
        {"type": kind, "status": "True", "reason": reason, "message": message} for kind, reason, message in conditions
    ]
    return {"metadata": {"name": "j"}, "status": {"conditions": made}}


def test_a_download_says_its_bytes() -> None:
    running = pod({"state": {"running": {}}}, phase="Running")
    log = (
        "MODEL_DOWNLOAD_PROGRESS bytes=1073741824 total=4294967296\nMODEL_DOWNLOAD_PROGRESS bytes=2147483648 "
        "total=4294967296\n"
    )
    found = state.job_progress(job(), [running], logs={NAME: log})
    assert (found.state, found.line) == (PENDING, "running: pod g-worker-0: running, not ready, 2.0 of 4.0 GiB (50 %)")
    assert state.job_progress(job(), []).line == "no pod yet"
    assert state.job_progress(job(("Complete", "", "")), []).state == READY


def test_a_job_that_failed_says_why() -> None:
    dead = pod(
        {"state": {"terminated": {"exitCode": 43, "reason": "Error"}}}, spec={"restartPolicy": "Never"}, phase="Failed"
    )
    failed = job(("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"))
    log = "x\nMODEL_VALIDATE_FAIL class=short_shard path=/opt/m bytes=1 expected=2\n"
    found = state.job_progress(failed, [dead], logs={NAME: log})
    assert found.state == FAILED
    assert "ended with 43: a file of the model is missing or short. MODEL_VALIDATE_FAIL class=short_shard" in str(
        found.cause
    )
    bare = state.job_progress(failed, [])
    assert "BackoffLimitExceeded Job has reached the specified backoff limit." in str(bare.cause)
    # Until its limit the job starts another pod.
    assert state.job_progress(job(), [dead], logs={NAME: log}).state == PENDING
    assert state.job_progress(None, []).state == FAILED


def test_a_deletion_is_over_when_its_pods_have_gone() -> None:
    assert state.gone_progress(None, []).state == READY
    assert "1 pods left: g-worker-0" in state.gone_progress(None, [pod()]).line
    assert "the operator has to release it" in state.gone_progress(graph(), []).line


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(looks: list[Any], **patience: float) -> tuple[Progress, list[str], float]:
    """Wait for looks, the last of which repeats; return the end, the lines and the seconds."""
    clock, left = Clock(), list(looks)
    said: list[str] = []

    def look() -> Progress:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Progress)
        return found

    end = waiting.wait(look, said.append, waiting.Patience(**patience), clock=clock, sleep=clock.sleep)
    return end, [line[9:] for line in said], clock.now


CAUSE = state.Cause("no room.", "free some", passing=True)


def test_a_wait_prints_each_change_once_and_ends_when_ready() -> None:
    a, b = Progress(PENDING, "a", "1"), Progress(PENDING, "b", "2")
    end, said, _seconds = waited([a, a, b, b, a, Progress(READY, "done")])
    assert end.state == READY
    assert said == ["a", "b", "a", "done"]


def test_a_wait_ends_on_lack_of_progress_alone() -> None:
    moving = [Progress(PENDING, "loading", str(each)) for each in range(1000)]
    assert waited([*moving, Progress(READY, "done")], stall_seconds=20)[0].state == READY
    end, _said, seconds = waited([Progress(PENDING, "stuck", "1")], stall_seconds=20)
    assert (end.state, seconds) == (FAILED, 20)
    assert str(end.cause).startswith("Nothing changed for 20 s: stuck.")


def test_a_cause_that_may_pass_is_tolerated_for_a_while() -> None:
    held = Progress(PENDING, "unschedulable", "1", CAUSE)
    assert waited([held, held, Progress(READY, "done")], passing_seconds=60)[0].state == READY
    end, _said, seconds = waited([held], passing_seconds=60)
    assert (end.state, seconds) == (FAILED, 60)
    assert str(end.cause) == "no room. Remedy: free some."
    # It counts anew after it has passed.
    free = Progress(PENDING, "running", "2")
    looks = [held] * 10 + [free] + [held] * 10 + [Progress(READY, "done")]
    assert waited(looks, passing_seconds=60)[0].state == READY


def test_an_api_that_does_not_answer_is_waited_for_and_a_refusal_is_not() -> None:
    end, said, _seconds = waited([ClusterError("it does not answer"), Progress(READY, "done")])
    assert (end.state, said) == (READY, ["it does not answer", "done"])
    assert waited([ClusterError("it does not answer")], stall_seconds=30)[0].state == FAILED
    with pytest.raises(ClusterError, match="forbidden"):
        waited([ClusterError("forbidden", 403)])
