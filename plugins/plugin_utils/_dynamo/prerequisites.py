# SPDX-License-Identifier: Apache-2.0
"""What a cluster must have before anything is put into it: read at once, judged in sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.difference import clean
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.quantity import Room, quantity, rooms
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import Target

GROUP, PLURAL, VERSION = "nvidia.com", "dynamographdeployments", "v1beta1"
#: What the platform's chart demands from its release 1.6.0 on.
KUBERNETES = (1, 30)
GPU = "nvidia.com/gpu"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
#: (verb, group, resource) of what a run does in the namespace.
RIGHTS = (
    *((verb, GROUP, PLURAL) for verb in ("get", "list", "create", "patch", "delete")),
    *((verb, "batch", "jobs") for verb in ("get", "list", "create", "patch", "delete")),
    *((verb, "", "persistentvolumeclaims") for verb in ("get", "create", "patch")),
    *((verb, "", "secrets") for verb in ("get", "create", "patch")),
    *((verb, "", "configmaps") for verb in ("list", "create", "patch", "delete")),
    ("list", "", "pods"), ("list", "", "events"), ("get", "", "pods/log"),
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What a run is about to do, where it matters for the checks."""

    token_given: bool = False
    pull_secret_given: bool = False
    replace: bool = True
    keep_others: bool = False


@dataclass(frozen=True)
class Facts:
    """What was read of a cluster. None: this user may not read it.

    :ivar served: version → resources of the group nvidia.com.
    :ivar denied: (verb, group, resource) that this user may not do in the namespace.
    """

    version: str = ""
    served: Mapping[str, Sequence[str]] = field(default_factory=dict)
    namespace: bool = True
    operators: Sequence[Mapping[str, Any]] | None = ()
    nodes: Sequence[Mapping[str, Any]] | None = ()
    pods: Sequence[Mapping[str, Any]] | None = ()
    runtime_class: bool | None = True
    storage_classes: Sequence[Mapping[str, Any]] | None = ()
    claim: Mapping[str, Any] | None = None
    artifacts: bool = True
    pull_secret: Mapping[str, Any] | None = None
    token_secret: bool = False
    graphs: Sequence[Mapping[str, Any]] = ()
    denied: Sequence[tuple[str, str, str]] = ()


def read(cluster: Cluster, target: Target) -> Facts:
    """Read everything that `judge` needs; nothing is changed.

    :raises ClusterError: the API does not answer.
    """
    settings, space = target.settings, target.settings.namespace

    def may_be_hidden(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except ClusterError as error:
            if error.forbidden:
                return None
            raise

    version = cluster.request("GET", "/version")
    served = cluster.served(GROUP)
    known = PLURAL in served.get(VERSION, [])
    denied = [each for each in RIGHTS if not cluster.allowed(*each, namespace=space)]
    exists = may_be_hidden(lambda: cluster.get("Namespace", space))
    if exists is None and not cluster.allowed("create", "", "namespaces"):
        denied.append(("create", "", "namespaces"))
    pull = settings.pull_secret
    return Facts(
        version=str(version.get("gitVersion", "")),
        served=served,
        namespace=exists is not None,
        operators=may_be_hidden(lambda: cluster.find("Deployment", selector="app.kubernetes.io/name=dynamo-operator")),
        nodes=may_be_hidden(lambda: cluster.find("Node")),
        pods=may_be_hidden(lambda: cluster.find("Pod")),
        runtime_class=may_be_hidden(
            lambda: not target.runtime_class or cluster.get("RuntimeClass", target.runtime_class) is not None
        ),
        storage_classes=may_be_hidden(lambda: cluster.find("StorageClass")),
        claim=may_be_hidden(lambda: cluster.get("PersistentVolumeClaim", target.cache["claim"], space)),
        artifacts=settings.artifacts == "emptyDir"
        or may_be_hidden(lambda: cluster.get("PersistentVolumeClaim", settings.artifacts, space)) is not None,
        pull_secret=may_be_hidden(lambda: cluster.get("Secret", pull, space)) if pull else None,
        token_secret=may_be_hidden(lambda: cluster.get("Secret", settings.token_secret, space)) is not None,
        graphs=[clean(each) for each in may_be_hidden(lambda: cluster.find("DynamoGraphDeployment", space)) or []]
        if known
        else [],
        denied=denied,
    )


@dataclass(frozen=True)
class Verdict:
    """What hinders, what is worth knowing, and a line for each thing that was looked at."""

    problems: Sequence[str]
    notes: Sequence[str]
    lines: Sequence[str]


def judge(target: Target, facts: Facts, wanted: Wanted) -> Verdict:
    """Return every problem at once, each with its remedy."""
    made = _Judge(target, facts, wanted)
    for look in (
        made.api, made.platform, made.operator, made.rights, made.others, made.gpus, made.runtime_class, made.storage,
        made.secrets,
    ):  # fmt: skip
        look()
    return Verdict(made.problems, made.notes, made.lines)


class _Judge:
    def __init__(self, target: Target, facts: Facts, wanted: Wanted) -> None:
        self.target, self.facts, self.wanted = target, facts, wanted
        self.space = target.settings.namespace
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.lines: list[str] = []

    def _found(self, what: str, words: str, problem: str = "", note: str = "") -> None:
        self.lines.append(f"{'FAIL' if problem else 'note' if note else 'ok':4}  {what:14}  {problem or note or words}")
        if problem:
            self.problems.append(problem)
        if note:
            self.notes.append(note)

    def api(self) -> None:
        found = re.match(r"v(\d+)\.(\d+)", self.facts.version)
        old = not found or (int(found[1]), int(found[2])) < KUBERNETES
        note = (
            f"Kubernetes {self.facts.version}: the platform's chart asks for 1.30 or later from its release 1.6.0 on."
        )
        self._found("API", f"Kubernetes {self.facts.version}", note=note if old else "")
        if not self.facts.namespace:
            self._found("namespace", "", note=f"The namespace {self.space} does not exist yet: it is created.")

    def platform(self) -> None:
        versions = [version for version, plurals in self.facts.served.items() if PLURAL in plurals]
        problem = ""
        if not versions:
            problem = (
                "The cluster does not know DynamoGraphDeployment: install the Dynamo platform (chart "
                "dynamo-platform) first."
            )
        elif VERSION not in versions:
            problem = (
                f"The cluster serves DynamoGraphDeployment as {', '.join(versions)} only; {VERSION} is needed "
                "(platform 1.3.0 or later)."
            )
        self._found("platform", f"DynamoGraphDeployment {', '.join(versions)}", problem)

    def operator(self) -> None:
        found = self.facts.operators
        if found is None:
            self._found(
                "operator",
                "",
                note="This user may not see deployments of other namespaces: the operator was not looked for.",
            )
            return
        ready = [each for each in found if ((each.get("status") or {}).get("readyReplicas") or 0) > 0]
        problem = ""
        if not found:
            problem = (
                "No dynamo-operator runs in the cluster: install the Dynamo platform, or see why its "
                "deployment is gone."
            )
        elif not ready:
            where = f"{found[0]['metadata'].get('namespace')}/{found[0]['metadata']['name']}"
            problem = (
                f"The operator {where} has no ready replica: nothing would act on a deployment. Look at its pods first."
            )
        self._found(
            "operator",
            ", ".join(f"{each['metadata'].get('namespace')}/{each['metadata']['name']}" for each in ready),
            problem,
        )

    def rights(self) -> None:
        by_thing: dict[str, list[str]] = {}
        for verb, _group, resource in self.facts.denied:
            by_thing.setdefault(resource, []).append(verb)
        said = "; ".join(f"{', '.join(verbs)} {resource}" for resource, verbs in by_thing.items())
        problem = (
            f"This user may not do in namespace {self.space}: {said}. Ask for a role with these verbs." if said else ""
        )
        self._found("rights", f"{len(RIGHTS)} verbs", problem)

    def others(self) -> None:
        names = [
            each["metadata"]["name"] for each in self.facts.graphs if each["metadata"]["name"] != self.target.graph
        ]
        problem = note = ""
        if names and not self.wanted.keep_others:
            said = (
                f"{', '.join(names)} serves in this namespace; -e target={self.target.target} replaces it (it "
                "stops first)."
            )
            if self.wanted.replace:
                note = said
            else:
                problem = (
                    f"{said} dynamo_replace is false: delete it first, or set dynamo_keep_others=true where "
                    "the GPUs suffice."
                )
        self._found("deployments", "no other" if not names else f"{', '.join(names)} stays", problem, note)

    def gpus(self) -> None:
        facts, target = self.facts, self.target
        if facts.nodes is None or facts.pods is None:
            self._found(
                "GPUs", "", note="This user may not list nodes and pods of the cluster: free GPUs were not counted."
            )
            return
        needs = {GPU: target.gpus}
        if target.disaggregated:
            needs[str(target.settings.rdma["resource"])] = int(target.settings.rdma["per_gpu"]) * target.gpus
        labels = {"nvidia.com/gpu.product": f"NVIDIA-{target.gpu}", **target.settings.node_selector}
        leaving = {target.graph} | (
            set() if self.wanted.keep_others else {each["metadata"]["name"] for each in facts.graphs}
        )
        room = rooms(facts.nodes, facts.pods, list(needs), labels, leaving)
        workers = target.total_gpus // target.gpus
        fitting = sum(each.fits(needs) for each in room)
        words = f"room for {fitting} workers of {target.gpus} {target.gpu}, {workers} needed"
        self._found("GPUs", words, self._room_problem(room, needs, labels, workers, fitting))

    def _room_problem(
        self, room: Sequence[Room], needs: Mapping[str, int], labels: Mapping[str, str], workers: int, fitting: int
    ) -> str:
        if fitting >= workers:
            return ""
        said = ", ".join(f"{key}={value}" for key, value in labels.items())
        if not room:
            return (
                f"No node has the label {said}: this target needs {self.target.gpu} nodes that the GPU "
                "operator has labelled."
            )
        for name, count in needs.items():
            if name != GPU and all(each.has[name] < count for each in room):
                return (
                    f"No {self.target.gpu} node has {count} of {name}: install the RDMA device plugin, or "
                    "name its resource with dynamo_rdma."
                )
        each = "; ".join(
            f"{one.node} has {one.has[GPU]}, {one.has[GPU] - one.free[GPU]} of them requested"
            + (f" ({', '.join(one.users)})" if one.users else "")
            + ("" if one.usable else ", and takes no pods")
            for one in room
        )
        if workers == 1:
            return f"No node has {needs[GPU]} free NVIDIA-{self.target.gpu} GPUs: {each}."
        return (
            f"{workers} workers need {needs[GPU]} NVIDIA-{self.target.gpu} GPUs on one node each; there is "
            f"room for {fitting}: {each}."
        )

    def runtime_class(self) -> None:
        name, found = self.target.runtime_class, self.facts.runtime_class
        if found is None:
            self._found("runtime class", "", note="This user may not read runtime classes: not checked.")
            return
        problem = f'There is no RuntimeClass "{name}": install the GPU operator, or set dynamo_runtime_class="".'
        self._found("runtime class", name or "none", "" if found else problem)

    def storage(self) -> None:
        settings, claim = self.target.settings, self.facts.claim
        name, size = self.target.cache["claim"], f"{self.target.cache['size_gib']}Gi"
        if claim is not None:
            has = claim["spec"]["resources"]["requests"]["storage"]
            of = claim["spec"].get("storageClassName", "")
            problem = ""
            if not settings.existing_claim and quantity(has) < quantity(size):
                problem = (
                    f"{name} exists with {has}; {size} cannot be asked of it: set dynamo_existing_claim=true, "
                    "or delete it first."
                )
            elif settings.storage_class and settings.storage_class != of:
                problem = (
                    f'{name} exists with the StorageClass "{of}", which cannot be changed to '
                    f'"{settings.storage_class}": leave dynamo_storage_class empty.'
                )
            elif (
                "ReadWriteMany" not in (claim["spec"].get("accessModes") or [])
                and self.target.total_gpus > self.target.gpus
            ):
                problem = f"{name} is not ReadWriteMany: workers on several nodes cannot share it."
            self._found("model cache", f"{name}, {has}, {(claim.get('status') or {}).get('phase', 'unknown')}", problem)
        elif settings.existing_claim:
            self._found(
                "model cache",
                "",
                f"There is no claim {name} in namespace {self.space}: create it, or leave dynamo_existing_claim unset.",
            )
        else:
            self._new_claim(name, size)
        if not self.facts.artifacts:
            self._found(
                "artifacts",
                "",
                (
                    f"There is no claim {settings.artifacts} in namespace {self.space}: create it, or set "
                    "dynamo_artifacts=emptyDir."
                ),
            )

    def _new_claim(self, name: str, size: str) -> None:
        classes, chosen = self.facts.storage_classes, self.target.settings.storage_class
        if classes is None:
            self._found("model cache", "", note="This user may not list storage classes: not checked.")
            return
        names = [each["metadata"]["name"] for each in classes]
        default = [
            each["metadata"]["name"]
            for each in classes
            if (each["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"
        ]
        problem = ""
        if chosen and chosen not in names:
            problem = f'There is no StorageClass "{chosen}"; there are: {", ".join(names) or "none"}.'
        elif not chosen and not default:
            problem = (
                "The cluster has no default StorageClass: set dynamo_storage_class to one of "
                f"{', '.join(names) or 'none'}."
            )
        self._found("model cache", f"{name}, {size} of {chosen or ', '.join(default)}, is created", problem)

    def secrets(self) -> None:
        settings, wanted, found = self.target.settings, self.wanted, self.facts.pull_secret
        problem, name = "", settings.pull_secret
        if name and found is None and not wanted.pull_secret_given:
            said = f"There is no secret {name} in namespace {self.space} to pull the image with"
            problem = f'{said}: set dynamo_pull_secret_file to a Docker config.json, or dynamo_pull_secret="".'
        elif name and found is not None and found.get("type") != "kubernetes.io/dockerconfigjson":
            problem = (
                f"The secret {name} is of type {found.get('type')}, not kubernetes.io/dockerconfigjson: it "
                "pulls no image."
            )
        self._found("pull secret", name or "none", problem)
        needed = not settings.existing_claim or settings.token_in_servers
        problem = (
            f"No HF_TOKEN in the environment and no secret {settings.token_secret} in the namespace: the "
            "download needs one."
        )
        missing = needed and not wanted.token_given and not self.facts.token_secret
        self._found("token", settings.token_secret if needed else "not needed", problem if missing else "")


def restorable(facts: Facts) -> list[dict[str, Any]]:
    """Return the graphs of this collection that the namespace has, as they can be applied again."""
    mine = render.MANAGED.items()
    return [dict(each) for each in facts.graphs if mine <= (each["metadata"].get("labels") or {}).items()]
