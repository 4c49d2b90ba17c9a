# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what the tests' cluster does not have: the operator's statuses, a kubelet, and nodes with GPUs.

The order and the shapes of the statuses are those of the operator's API (docs/sources.md [S3r]); no container runs.
"""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError, path_of
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import COMPONENT_LABEL, GRAPH_LABEL

GRAPH = "DynamoGraphDeployment"
MERGE = "application/merge-patch+json"
PAUSE_SECONDS = 0.2
IMAGE = {"image": "registry.invalid/x:1", "imageID": "", "restartCount": 1, "ready": False}


def _waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def _crash(code: int, reason: str = "Error") -> dict[str, Any]:
    ended = {"exitCode": code, "reason": reason, "startedAt": None, "finishedAt": None}
    return {**_waiting("CrashLoopBackOff", "back-off 10s"), "lastState": {"terminated": ended}}


#: Fault → the status of a worker's container, as a kubelet writes it.
CONTAINER_FAULTS: Mapping[str, Mapping[str, Any]] = {
    "image": _waiting("ImagePullBackOff", "Back-off pulling image"),
    "config": _waiting("CreateContainerConfigError", 'secret "hf-token-secret" not found'),
    "oom": _crash(137, "OOMKilled"),
    "crash": _crash(1),
    **{f"exit{code}": _crash(code) for code in (42, 43, 96, 97, 98)},
}


@dataclass
class Behaviour:
    """What goes wrong; the tests change it while the stand-ins run.

    :ivar faults: graph → a key of CONTAINER_FAULTS, or unschedulable, volume, evicted, failed, stall.
    :ivar job_exits: value of the label gb10.cluster/job → exit code.
    :ivar logs: pod's beginning → the log of its container.
    """

    faults: dict[str, str] = field(default_factory=dict)
    job_exits: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)


class _Kubelet(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        """Answer /containerLogs/NAMESPACE/POD/CONTAINER."""
        pod = (self.path.split("?")[0].split("/") + [""] * 4)[3]
        text = next((text for start, text in self.behaviour.logs.items() if pod.startswith(start)), "")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


class Standin:
    """Operator and kubelet of one cluster, in one thread."""

    def __init__(self, cluster: Cluster, behaviour: Behaviour) -> None:
        self.cluster, self.behaviour = cluster, behaviour
        self.errors: list[str] = []
        self._stop = threading.Event()

    def run(self) -> None:
        """Act until stopped; an object that changed meanwhile is looked at again."""
        while not self._stop.wait(PAUSE_SECONDS):
            try:
                for graph in self.cluster.find(GRAPH):
                    self._graph(graph)
                for pod in self.cluster.find("Pod"):
                    self._pod(pod)
            except ClusterError as error:
                if error.status not in (0, 404, 409):
                    self.errors.append(str(error))

    def stop(self) -> None:
        """End `run` after its present round."""
        self._stop.set()

    def _status(self, kind: str, item: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        meta = item["metadata"]
        path = f"{path_of(kind, meta['namespace'], meta['name'])}/status"
        self.cluster.request("PATCH", path, {"status": status}, content=MERGE)

    def _graph(self, graph: Mapping[str, Any]) -> None:
        meta = graph["metadata"]
        if meta.get("deletionTimestamp"):
            return
        fault = self.behaviour.faults.get(meta["name"], "")
        pods = self.cluster.find("Pod", meta["namespace"], f"{GRAPH_LABEL}={meta['name']}")
        wanted = {
            f"{meta['name']}-{part['name'].lower()}-{number}": part
            for part in graph["spec"]["components"]
            for number in range(part.get("replicas", 1))
        }
        there = {pod["metadata"]["name"] for pod in pods}
        for name in sorted(set(wanted) - there):
            self._start(graph, name, wanted[name])
        ready = {pod["metadata"]["name"] for pod in pods if _ready(pod)}
        parts = {
            part["name"]: {
                "componentKind": "Deployment",
                "componentNames": [f"{meta['name']}-{part['name'].lower()}"],
                "replicas": part.get("replicas", 1),
                "updatedReplicas": part.get("replicas", 1),
                "readyReplicas": sum(wanted[name] is part for name in wanted if name in ready),
            }
            for part in graph["spec"]["components"]
        }
        done = ready == set(wanted)
        state, reason = ("successful", "all_resources_are_ready") if done else ("pending", "pods_not_ready")
        if fault == "failed":
            state, reason = "failed", "some_resources_are_not_ready"
        status = {
            "state": state,
            "observedGeneration": meta["generation"],
            "conditions": [
                {"type": "Ready", "status": "True" if done else "False", "reason": reason, "message": reason}
            ],
            "components": parts,
        }
        if graph.get("status") != status:
            self._status(GRAPH, graph, status)

    def _start(self, graph: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> None:
        meta, template = graph["metadata"], part["podTemplate"]
        spec = {**template["spec"]}
        held = self.behaviour.faults.get(meta["name"]) in ("unschedulable", "volume")
        if not held:
            spec["nodeName"] = "gpu-1"
        own = {GRAPH_LABEL: meta["name"], COMPONENT_LABEL: part["type"]}
        labels = {**(template.get("metadata") or {}).get("labels", {}), **own}
        owner = {"apiVersion": graph["apiVersion"], "kind": GRAPH, "name": meta["name"], "uid": meta["uid"]}
        pod = {
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "labels": labels, "ownerReferences": [{**owner, "blockOwnerDeletion": True}]},
        }  # fmt: skip
        self.cluster.request("POST", path_of("Pod", meta["namespace"]), pod)

    def _pod(self, pod: Mapping[str, Any]) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            path = path_of("Pod", meta["namespace"], meta["name"])
            self.cluster.request("DELETE", path, {"gracePeriodSeconds": 0})
            return
        labels = meta.get("labels") or {}
        if GRAPH_LABEL in labels:
            status = self._server_status(pod, self.behaviour.faults.get(labels[GRAPH_LABEL], ""))
        elif "gb10.cluster/job" in labels:
            if not pod["spec"].get("nodeName"):
                self._bind(pod)
                return
            status = self._job_status(pod, self.behaviour.job_exits.get(labels["gb10.cluster/job"], 0))
        else:
            return
        if not status.items() <= (pod.get("status") or {}).items():
            self._status("Pod", pod, status)

    def _bind(self, pod: Mapping[str, Any]) -> None:
        meta = pod["metadata"]
        binding = {
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": meta["name"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "gpu-1"},
        }  # fmt: skip
        self.cluster.request("POST", f"{path_of('Pod', meta['namespace'], meta['name'])}/binding", binding)

    def _server_status(self, pod: Mapping[str, Any], fault: str) -> dict[str, Any]:
        worker = "frontend" not in pod["metadata"]["name"]
        if not worker or not fault or fault == "failed":
            running = {
                **IMAGE,
                "name": "main",
                "ready": True,
                "started": True,
                "state": {"running": {"startedAt": None}},
            }
            return {"phase": "Running", "conditions": [_condition("Ready", "True")], "containerStatuses": [running]}
        if fault == "unschedulable":
            words = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
            return {"phase": "Pending", "conditions": [_condition("PodScheduled", "False", "Unschedulable", words)]}
        if fault == "volume":
            words = "pod has unbound immediate PersistentVolumeClaims."
            return {"phase": "Pending", "conditions": [_condition("PodScheduled", "False", "Unschedulable", words)]}
        if fault == "evicted":
            return {"phase": "Failed", "reason": "Evicted", "message": "The node was low on ephemeral-storage."}
        shown = CONTAINER_FAULTS.get(fault, {"state": {"running": {"startedAt": None}}})
        made = {**IMAGE, "name": "main", **shown}
        return {"phase": "Pending", "conditions": [_condition("Ready", "False")], "containerStatuses": [made]}

    def _job_status(self, pod: Mapping[str, Any], code: int) -> dict[str, Any]:
        name = pod["spec"]["containers"][0]["name"]
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": None, "finishedAt": None}
        shown = {**IMAGE, "name": name, "restartCount": 0, "state": {"terminated": ended}}
        return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [shown]}


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, **({"reason": reason, "message": message} if reason else {})}


def furnish(cluster: Cluster, kubelet_port: int) -> None:
    """Put into a cluster what an owner's has: GPU nodes, storage and runtime class, the operator's deployment."""
    for name, product, gpus in (("gpu-1", "NVIDIA-B200", 8), ("gpu-2", "NVIDIA-H200", 8)):
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}},
        }
        cluster.request("POST", path_of("Node"), node)
        size = {"cpu": "64", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": str(gpus), "rdma/ib": str(gpus)}
        status = {
            "capacity": size,
            "allocatable": size,
            "conditions": [_condition("Ready", "True")],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        }
        cluster.request("PATCH", f"{path_of('Node', name=name)}/status", {"status": status}, content=MERGE)
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    made: list[tuple[str, str, dict[str, Any]]] = [
        (
            "storage.k8s.io/v1",
            "StorageClass",
            {"metadata": {"name": "files", "annotations": default}, "provisioner": "x/y"},
        ),
        ("node.k8s.io/v1", "RuntimeClass", {"metadata": {"name": "nvidia"}, "handler": "nvidia"}),
        ("v1", "Namespace", {"metadata": {"name": "dynamo-system"}}),
    ]
    for version, kind, body in made:
        cluster.request("POST", path_of(kind), {"apiVersion": version, "kind": kind, **body})
    labels = {"app.kubernetes.io/name": "dynamo-operator"}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "dynamo-operator", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "manager", "image": "registry.invalid/operator:1"}]},
            },
        },
    }  # fmt: skip
    cluster.request("POST", path_of("Deployment", "dynamo-system"), deployment)
    ready = {"status": {"replicas": 1, "readyReplicas": 1}}
    path = f"{path_of('Deployment', 'dynamo-system', 'dynamo-operator')}/status"
    cluster.request("PATCH", path, ready, content=MERGE)


@contextlib.contextmanager
def acting(cluster: Cluster, directory: Path) -> Iterator[Behaviour]:
    """Furnish a cluster and run the stand-ins; they end with the context, and what went wrong in them is raised."""
    behaviour = Behaviour()
    handler = type("Kubelet", (_Kubelet,), {"behaviour": behaviour})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    furnish(cluster, server.server_address[1])
    standin = Standin(cluster, behaviour)
    threads = [threading.Thread(target=work, daemon=True) for work in (server.serve_forever, standin.run)]
    for thread in threads:
        thread.start()
    try:
        yield behaviour
    finally:
        standin.stop()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(10)
    assert not standin.errors, standin.errors[:5]
