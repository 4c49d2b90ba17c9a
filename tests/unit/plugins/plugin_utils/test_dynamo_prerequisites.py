# SPDX-License-Identifier: Apache-2.0
"""Each prerequisite of a cluster: its line, and its sentence with a remedy where it is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.prerequisites import (
    RIGHTS,
    Facts,
    Wanted,
    judge,
    restorable,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.quantity import quantity, rooms
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import Target, chosen
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

GROUP_VARS = Path(__file__).resolve().parents[4] / "playbooks" / "group_vars"
SPECS = [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in GROUP_VARS.glob("model_*.yml")]
TABLES = serve_files.load_tables()
GPU = "nvidia.com/gpu"
GRAPH_LABEL = "nvidia.com/dynamo-graph-deployment-name"


def target(name: str = "agg-b200-chat-mtp", **settings: Any) -> Target:
    return chosen(SPECS, name, {"namespace": "ultra", **settings}, TABLES)


def node(name: str, gpus: int = 8, product: str = "NVIDIA-B200", rdma: int = 8, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}},
        "spec": spec,
        "status": {
            "allocatable": {GPU: str(gpus), "rdma/ib": str(rdma)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(on: str, gpus: int, graph: str = "", phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"p-{graph or 'x'}",
            "namespace": "other",
            "labels": {GRAPH_LABEL: graph} if graph else {},
        },
        "spec": {"nodeName": on, "containers": [{"resources": {"limits": {GPU: str(gpus)}}}]},
        "status": {"phase": phase},
    }


def graph(name: str, ours: bool = True) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "gb10.cluster"} if ours else {}}}


def claim(size: str = "1200Gi", of: str = "nfs", mode: str = "ReadWriteMany") -> dict[str, Any]:
    spec = {"accessModes": [mode], "storageClassName": of, "resources": {"requests": {"storage": size}}}
    return {"spec": spec, "status": {"phase": "Bound"}}


GOOD = Facts(
    version="v1.31.2",
    served={"v1alpha1": ["dynamographdeployments"], "v1beta1": ["dynamographdeployments"]},
    operators=[{"metadata": {"name": "op", "namespace": "dynamo-system"}, "status": {"readyReplicas": 1}}],
    nodes=[node("gpu-1")],
    pods=[],
    storage_classes=[
        {"metadata": {"name": "nfs", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
    ],
    pull_secret={"type": "kubernetes.io/dockerconfigjson"},
    token_secret=True,
)


def test_a_good_cluster_has_no_problem_and_a_line_for_each_thing() -> None:
    found = judge(target(), GOOD, Wanted())
    assert (found.problems, found.notes) == ([], [])
    assert [line.split()[1] for line in found.lines] == [
        "API", "platform", "operator", "rights", "deployments", "GPUs", "runtime", "model", "pull", "token"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"served": {}},
            (
                "The cluster does not know DynamoGraphDeployment: install the Dynamo platform (chart "
                "dynamo-platform) first."
            ),
        ),
        (
            {"served": {"v1alpha1": ["dynamographdeployments"]}},
            "serves DynamoGraphDeployment as v1alpha1 only; v1beta1 is needed (platform 1.3.0 or later).",
        ),
        ({"operators": []}, "No dynamo-operator runs in the cluster:"),
        (
            {"operators": [{"metadata": {"name": "op", "namespace": "d"}, "status": {}}]},
            "The operator d/op has no ready replica:",
        ),
        (
            {
                "denied": [
                    ("create", "nvidia.com", "dynamographdeployments"),
                    ("patch", "nvidia.com", "dynamographdeployments"),
                    ("get", "", "pods/log"),
                ]
            },
            (
                "This user may not do in namespace ultra: create, patch dynamographdeployments; get pods/log. "
                "Ask for a role with these verbs."
            ),
        ),
        ({"nodes": []}, "No node has the label nvidia.com/gpu.product=NVIDIA-B200: this target needs B200 nodes"),
        (
            {"nodes": [node("gpu-3")], "pods": [pod("gpu-3", 6, "other-graph")]},
            "No node has 4 free NVIDIA-B200 GPUs: gpu-3 has 8, 6 of them requested (other/p-other-graph).",
        ),
        (
            {"nodes": [node("a", 3), node("b", 3)]},
            "No node has 4 free NVIDIA-B200 GPUs: a has 3, 0 of them requested; b has 3, 0 of them requested.",
        ),
        ({"nodes": [node("a", unschedulable=True)]}, "a has 8, 0 of them requested, and takes no pods."),
        (
            {"runtime_class": False},
            'There is no RuntimeClass "nvidia": install the GPU operator, or set dynamo_runtime_class="".',
        ),
        (
            {"storage_classes": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]},
            "The cluster has no default StorageClass: set dynamo_storage_class to one of a, b.",
        ),
        (
            {"claim": claim("800Gi")},
            (
                "shared-model-cache exists with 800Gi; 1200Gi cannot be asked of it: set "
                "dynamo_existing_claim=true, or delete it first."
            ),
        ),
        ({"artifacts": False}, "There is no claim emptyDir in namespace ultra"),
        (
            {"pull_secret": None},
            ("There is no secret nvcr-secret in namespace ultra to pull the image with: set dynamo_pull_secret_file"),
        ),
        (
            {"pull_secret": {"type": "Opaque"}},
            "The secret nvcr-secret is of type Opaque, not kubernetes.io/dockerconfigjson: it pulls no image.",
        ),
        (
            {"token_secret": False},
            ("No HF_TOKEN in the environment and no secret hf-token-secret in the namespace: the download needs one."),
        ),
    ],
)
def test_each_thing_that_is_missing_is_one_sentence(facts: dict[str, Any], sentence: str) -> None:
    found = judge(target(), replace(GOOD, **facts), Wanted())
    assert len(found.problems) == 1
    assert sentence in found.problems[0]
    assert sum(line.startswith("FAIL") for line in found.lines) == 1


@pytest.mark.parametrize(
    ("name", "settings", "facts", "sentence"),
    [
        (
            "agg-b200-chat-mtp",
            {"storage_class": "nfs-fast"},
            {},
            'There is no StorageClass "nfs-fast"; there are: nfs.',
        ),
        (
            "agg-b200-chat-mtp",
            {"storage_class": "fast"},
            {"claim": claim()},
            (
                'shared-model-cache exists with the StorageClass "nfs", which cannot be changed to "fast": '
                "leave dynamo_storage_class empty."
            ),
        ),
        (
            "agg-b200-chat-mtp",
            {"existing_claim": True},
            {},
            "There is no claim shared-model-cache in namespace ultra: create it",
        ),
        (
            "agg-b200-chat-mtp",
            {"replicas": 2},
            {"claim": claim(mode="ReadWriteOnce")},
            "shared-model-cache is not ReadWriteMany",
        ),
        (
            "agg-b200-chat-mtp",
            {"replicas": 3},
            {},
            "3 workers need 4 NVIDIA-B200 GPUs on one node each; there is room for 2: gpu-1 has 8",
        ),
        (
            "disagg-b200-agentic",
            {},
            {"nodes": [node("a", rdma=0)]},
            ("No B200 node has 4 of rdma/ib: install the RDMA device plugin, or name its resource with dynamo_rdma."),
        ),
        ("agg-h200-chat-mtp", {}, {}, "No node has the label nvidia.com/gpu.product=NVIDIA-H200"),
        (
            "agg-b200-chat-mtp",
            {"node_selector": {"pool": "x"}},
            {},
            "No node has the label nvidia.com/gpu.product=NVIDIA-B200, pool=x",
        ),
    ],
)
def test_an_owners_choice_that_the_cluster_does_not_have(
    name: str, settings: dict[str, Any], facts: dict[str, Any], sentence: str
) -> None:
    found = judge(target(name, **settings), replace(GOOD, **facts), Wanted())
    assert [sentence in problem for problem in found.problems] == [True]


def test_everything_is_reported_at_once() -> None:
    found = judge(target(), replace(GOOD, served={}, nodes=[], pull_secret=None, token_secret=False), Wanted())
    assert len(found.problems) == 4


def test_what_this_user_may_not_read_is_said_and_is_no_problem() -> None:
    hidden = replace(GOOD, operators=None, nodes=None, pods=None, storage_classes=None, runtime_class=None)
    found = judge(target(), hidden, Wanted())
    assert (len(found.problems), len(found.notes)) == (0, 4)


def test_old_kubernetes_and_a_new_namespace_are_notes() -> None:
    found = judge(target(), replace(GOOD, version="v1.20.2", namespace=False), Wanted())
    assert found.problems == []
    assert [note.split(":")[0] for note in found.notes] == [
        "Kubernetes v1.20.2",
        "The namespace ultra does not exist yet",
    ]


def test_what_serves_is_replaced_and_its_gpus_count_as_free() -> None:
    busy = replace(GOOD, graphs=[graph("old")], pods=[pod("gpu-1", 8, "old")])
    found = judge(target(), busy, Wanted())
    assert found.problems == []
    assert found.notes == ["old serves in this namespace; -e target=agg-b200-chat-mtp replaces it (it stops first)."]
    refused = judge(target(), busy, Wanted(replace=False))
    assert "dynamo_replace is false: delete it first" in refused.problems[0]
    beside = judge(target(), busy, Wanted(keep_others=True))
    assert [problem.split(":")[0] for problem in beside.problems] == ["No node has 4 free NVIDIA-B200 GPUs"]


def test_a_token_or_a_pull_secret_that_will_be_written_is_not_missing() -> None:
    bare = replace(GOOD, pull_secret=None, token_secret=False)
    assert judge(target(), bare, Wanted(token_given=True, pull_secret_given=True)).problems == []
    assert (
        judge(target(existing_claim=True, pull_secret=""), replace(bare, claim=claim("1Gi")), Wanted()).problems == []
    )


def test_only_what_this_collection_made_is_restored() -> None:
    assert [
        each["metadata"]["name"] for each in restorable(replace(GOOD, graphs=[graph("a"), graph("b", ours=False)]))
    ] == ["a"]


def test_pods_that_ended_and_nodes_that_are_not_ready_do_not_count() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-B200"}
    found = rooms([node("a")], [pod("a", 8, phase="Succeeded")], [GPU], labels)
    assert found[0].fits({GPU: 4}) == 2
    sick = node("a")
    sick["status"]["conditions"][0]["status"] = "Unknown"
    assert rooms([sick], [], [GPU], labels)[0].fits({GPU: 4}) == 0


@pytest.mark.parametrize(
    ("text", "number"), [("4", 4), ("500m", 0.5), ("1200Gi", 1200 * 2**30), ("1.5G", 1.5e9), (8, 8)]
)
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == number


def test_what_is_no_quantity() -> None:
    with pytest.raises(ValueError, match="'4 apples' is no quantity of Kubernetes"):
        quantity("4 apples")


def test_the_rights_are_those_of_a_run() -> None:
    assert len(RIGHTS) == len(set(RIGHTS))
