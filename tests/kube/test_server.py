# SPDX-License-Identifier: Apache-2.0
"""The rendered objects and the waits against a real API server: rounds, refusals, conflicts, and every verdict."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import difference, prerequisites, render
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError, connect
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import Target, chosen
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import FAILED, READY, Progress
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.waiting import Looks, Patience, wait
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files
from lab.kube.server import find_binaries
from tests.kube.conftest import HOW, PATIENT, Kube, gone

REPO = Path(__file__).resolve().parents[2]
FILES = (REPO / "playbooks" / "group_vars").glob("model_*.yml")
SPECS = [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in FILES]
TARGETS = [name for spec in SPECS for name in (spec.get("dynamo") or {}).get("targets", {})]
TABLES = serve_files.load_tables()
GRAPH = "DynamoGraphDeployment"
ROUNDS = 20


def target(name: str, namespace: str, **settings: Any) -> Target:
    return chosen(SPECS, name, {"namespace": namespace, **settings}, TABLES)


def ready(cluster: Cluster, name: str, space: str, patience: Patience = PATIENT) -> Progress:
    return wait(Looks(cluster, space, name).graph, lambda _line: None, patience)


def test_which_server_is_used(record_property: Any) -> None:
    """Always runs, so that a report says what the others ran against."""
    found = find_binaries()
    said = found.origin if found else f"none: {HOW}"
    record_property("server", said)
    print(f"Kubernetes API server: {said}")


@pytest.mark.parametrize("name", TARGETS)
def test_the_server_accepts_every_target_in_a_dry_run(kube: Kube, space: str, name: str) -> None:
    for made in render.objects(target(name, space)).values():
        kube.api.cluster.apply(made, dry_run=True)
    assert kube.api.cluster.find(GRAPH, space) == []


def test_rounds_of_apply_switch_and_delete(kube: Kube, space: str) -> None:
    cluster = kube.api.cluster
    former = ""
    for number in range(ROUNDS):
        made = render.graph(target(TARGETS[number % 4], space))
        name = made["metadata"]["name"]
        cluster.apply(made, dry_run=True)
        if former:
            cluster.delete(GRAPH, former, space)
            assert gone(cluster, former, space).state == READY
        cluster.apply(made)
        assert ready(cluster, name, space).state == READY
        live = cluster.get(GRAPH, name, space)
        assert live is not None
        assert not difference.differs(live, cluster.apply(made, dry_run=True)), f"round {number} would change again"
        former = name
    cluster.delete(GRAPH, former, space)
    assert gone(cluster, former, space).state == READY
    assert cluster.find("Pod", space) == []


def test_the_prerequisites_are_those_of_the_furnished_cluster(kube: Kube, space: str) -> None:
    found = target("agg-b200-chat-mtp", space, pull_secret="")
    facts = prerequisites.read(kube.api.cluster, found)
    verdict = prerequisites.judge(found, facts, prerequisites.Wanted(token_given=True))
    assert verdict.problems == []
    assert any("room for 2 workers of 4 B200, 1 needed" in line for line in verdict.lines)


def test_a_user_without_rights_is_refused_in_one_sentence(kube: Kube, space: str) -> None:
    nobody = connect(str(kube.api.kubeconfig), "nobody")
    found = target("agg-b200-chat-mtp", space, pull_secret="", existing_claim=True)
    facts = prerequisites.read(nobody, found)
    said = "\n".join(prerequisites.judge(found, facts, prerequisites.Wanted(token_given=True)).problems)
    assert (
        f"This user may not do in namespace {space}: get, list, create, patch, delete dynamographdeployments;" in said
    )
    with pytest.raises(ClusterError, match="forbidden"):
        nobody.apply(render.graph(found), dry_run=True)


def changed(made: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(made)
    *way, last = [int(each) if each.isdigit() else each for each in path.split(".")]
    at: Any = made
    for each in way:
        at = at[each]
    at[last] = value
    return made


POD = "spec.components.1.podTemplate.spec"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.backendFramework", "vlm", 'spec.backendFramework: Unsupported value: "vlm"'),
        ("spec.components.1.type", "worke", 'Unsupported value: "worke"'),
        ("spec.components.1.name", "wor_ker", "spec.components.name in body should match"),
        ("spec.components.1.replicas", -1, "should be greater than or equal to 0"),
        ("spec.components.1.runtimeVersionOverride", "1.3", "runtimeVersionOverride"),
        ("spec.components.1.name", "Frontend", "Duplicate value"),
        (f"{POD}.containers.0.image", 7, "image"),
        (f"{POD}.containers.0.resources.limits", {"nvidia.com/gpu": True}, "limits"),
        (f"{POD}.containers", [{"image": "x"}], "name"),
        ("metadata.name", "Ultra_Chat", "Invalid value"),
    ],
)
def test_the_servers_own_words_reach_the_owner(kube: Kube, space: str, path: str, value: Any, words: str) -> None:
    made = changed(render.graph(target("agg-b200-chat-mtp", space)), path, value)
    with pytest.raises(ClusterError) as caught:
        kube.api.cluster.apply(made, dry_run=True)
    assert words in str(caught.value)


def test_a_field_of_another_manager_is_a_conflict_with_its_owner(kube: Kube, space: str) -> None:
    cluster, made = kube.api.cluster, render.graph(target("agg-b200-chat-mtp", space))
    cluster.apply(made)
    path = f"/apis/nvidia.com/v1beta1/namespaces/{space}/dynamographdeployments/{made['metadata']['name']}"
    theirs = {"spec": {"backendFramework": "sglang"}}
    cluster.request(
        "PATCH", path, theirs, query={"fieldManager": "kubectl-edit"}, content="application/merge-patch+json"
    )
    with pytest.raises(ClusterError) as caught:
        cluster.apply(made, dry_run=True)
    assert caught.value.status == 409
    said = difference.conflict(caught.value.causes, made["metadata"]["name"])
    assert "kubectl-edit owns spec.backendFramework" in said
    assert cluster.apply(made, force=True)["spec"]["backendFramework"] == "vllm"


@pytest.mark.parametrize(
    ("fault", "log", "words"),
    [
        (
            "unschedulable",
            "",
            "fits on no node: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu. Free GPUs: gpu-1 8 of 8.",
        ),
        ("volume", "", "waits for a volume: pod has unbound immediate PersistentVolumeClaims."),
        ("image", "", "is not pulled with the secret nvcr-secret: ImagePullBackOff"),
        ("config", "", 'CreateContainerConfigError: secret "hf-token-secret" not found'),
        ("exit42", "", "ended with 42: the model is not in the cache."),
        ("exit43", "", "ended with 43: a file of the model is missing or short."),
        ("exit96", "", "ended with 96: the container sees another number of GPUs than it requested."),
        ("exit97", "", "ended with 97: a GPU has more than 1024 MiB in use."),
        ("exit98", "", "ended with 98: another process computes on a GPU."),
        ("oom", "", "ended with 137: it had more memory than its limit."),
        ("crash", "first\nlast words", "last words"),
        ("crash", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "Remedy: "),
        ("evicted", "", "Evicted: The node was low on ephemeral-storage."),
        ("failed", "", "The operator gave up: some_resources_are_not_ready."),
        ("stall", "", "Nothing changed for"),
    ],
)
def test_every_verdict_of_the_wait(kube: Kube, space: str, fault: str, log: str, words: str) -> None:
    made = render.graph(target("agg-b200-chat-mtp", space))
    name = made["metadata"]["name"]
    kube.behaviour.faults[name] = fault
    kube.behaviour.logs[f"{name}-worker"] = log
    kube.api.cluster.apply(made)
    # Only a fault that shows no cause is waited for as long as that.
    patience = Patience(stall_seconds=5 if fault == "stall" else 60, passing_seconds=3, every_seconds=0.2)
    found = ready(kube.api.cluster, name, space, patience)
    assert found.state == FAILED
    assert words in str(found.cause)


@pytest.mark.parametrize(("code", "state"), [(0, READY), (43, FAILED)])
def test_a_job_runs_to_its_end(kube: Kube, space: str, code: int, state: str) -> None:
    if not kube.api.has_manager:
        pytest.skip("there is no kube-controller-manager beside this API server")
    kube.behaviour.job_exits["model-validate"] = code
    kube.behaviour.logs["nemotron-ultra-model-validate"] = "MODEL_VALIDATE_FAIL class=missing_file path=/opt/x\n"
    made = render.validate_job(target("agg-b200-chat-mtp", space))
    kube.api.cluster.apply(made)
    found = wait(Looks(kube.api.cluster, space, made["metadata"]["name"]).job, lambda _line: None, PATIENT)
    assert found.state == state
    if state == FAILED:
        assert "a file of the model is missing or short. MODEL_VALIDATE_FAIL class=missing_file" in str(found.cause)
    with pytest.raises(ClusterError, match="immutable"):
        kube.api.cluster.apply(changed(made, "spec.template.spec.containers.0.image", "other"), dry_run=True)
