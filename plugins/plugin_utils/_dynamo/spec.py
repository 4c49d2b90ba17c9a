# SPDX-License-Identifier: Apache-2.0
"""The key ``dynamo`` of a model: its targets on Kubernetes with NVIDIA Dynamo, checked and merged.  Pure.

Source of the shape: the recipe that docs/sources.md names [S3] and the operator's API (DynamoGraphDeployment,
nvidia.com/v1beta1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import nearest
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_args import ServeArgs, render_serve
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError, Table

AGGREGATED = "agg"
DISAGGREGATED = "disagg"
GPUS = ("B200", "H200")
WORKLOADS = ("chat", "agentic")
RDMA = {"resource": "rdma/ib", "per_gpu": 1, "devices": "mlx5_0:1", "interface": "eth0"}
#: Options of ``python3 -m dynamo.vllm`` that vLLM itself does not have.
DYNAMO_OPTIONS = ("dyn-tool-call-parser", "dyn-reasoning-parser", "disaggregation-mode")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_SEMANTIC = re.compile(r"^v?\d+\.\d+\.\d+([-+].*)?$")
_RELEASE = re.compile(r"^\d+\.\d+\.\d+$")
_TARGET_KEYS = {
    "name", "gpu", "gpus", "topology", "workload", "serve", "env", "runtime_class", "reference", "label",
}  # fmt: skip


class DynamoError(ValueError):
    """A target cannot be deployed; ``problems`` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Settings:
    """What an owner decides for a cluster; see roles/dynamo/defaults/main.yml.

    :ivar token_in_servers: whether the server pods get the Hugging Face token; they read from the cache alone.
    :ivar rdma: resource, count a GPU, UCX devices and network interface of a disaggregated target.
    """

    namespace: str
    storage_class: str = ""
    existing_claim: bool = False
    pull_secret: str = "nvcr-secret"
    token_secret: str = "hf-token-secret"
    token_in_servers: bool = False
    revision: str = ""
    replicas: int = 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    runtime_class: str | None = None
    runtime_version: str = ""
    artifacts: str = "emptyDir"
    rdma: Mapping[str, Any] = field(default_factory=lambda: dict(RDMA))


@dataclass(frozen=True)
class Target:
    """One deployment, complete.

    :ivar args: the arguments of ``python3 -m dynamo.vllm``, without the ones that differ between prefill and decode.
    :ivar env: the graph's environment in the recipe's order.
    :ivar reference: the published row: concurrency, user_tokens_per_s, tokens_per_s_per_gpu.
    """

    target: str
    graph: str
    part_of: str
    gpu: str
    gpus: int
    topology: str
    workload: str
    label: str
    model: str
    repo: str
    image: str
    revision: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    block_size: int
    cache: Mapping[str, Any]
    frontend: Mapping[str, Any]
    workers: Mapping[str, Any]
    runtime_class: str
    reference: Mapping[str, Any]
    trace: str
    smoke: Mapping[str, Any]
    settings: Settings
    notes: tuple[str, ...] = ()

    @property
    def disaggregated(self) -> bool:
        return self.topology == DISAGGREGATED

    @property
    def total_gpus(self) -> int:
        """GPUs of the whole deployment: prefill and decode have as many each."""
        return self.gpus * (2 if self.disaggregated else 1) * self.settings.replicas


def model_of(specs: Sequence[Mapping[str, Any]], target: str) -> Mapping[str, Any]:
    """Return the model that has a target.

    :raises DynamoError: no model has it; the sentence lists the targets there are.
    """
    known = {name: spec for spec in specs for name in (spec.get("dynamo") or {}).get("targets") or {}}
    if not known:
        raise DynamoError(["No model of the catalogue has targets on Kubernetes: none has a key 'dynamo'."])
    if not target:
        raise DynamoError([f"Which target? Give -e target=NAME: {', '.join(known)}."])
    if target not in known:
        near = nearest(target, known)
        hint = f" Did you mean '{near}'?" if near else ""
        raise DynamoError([f"There is no target '{target}'.{hint} Known: {', '.join(known)}."])
    return known[target]


def chosen(
    specs: Sequence[Mapping[str, Any]], target: str, settings: Mapping[str, Any], tables: Mapping[str, Table]
) -> Target:
    """Return a target of whichever model has it.

    :param settings: the fields of `Settings`.
    :raises DynamoError: with every problem at once.
    """
    return resolve(model_of(specs, target), target, Settings(**settings), tables)


def resolve(spec: Mapping[str, Any], target: str, settings: Settings, tables: Mapping[str, Table]) -> Target:
    """Return one target of a model, with its command checked against the image's vLLM.

    :param spec: the ``model_spec`` that has it; see `model_of`.
    :param target: name of a target.
    :param tables: option tables by vLLM version.
    :raises DynamoError: with every problem at once.
    """
    dynamo = spec["dynamo"]
    chosen = dynamo["targets"][target]
    problems = _wrong(target, chosen) + _wrong_settings(settings, str(dynamo["image"]["tag"]))
    if problems:
        raise DynamoError(problems)
    rendered = _command(dynamo, chosen, tables)
    env = {**dynamo["env"], **(dynamo.get("env_agg") or {} if chosen["topology"] == AGGREGATED else {})}
    env |= {**(dynamo.get("env_last") or {}), **(chosen.get("env") or {})}
    serve = {**dynamo["serve"], **chosen["serve"]}
    return Target(
        target=target,
        graph=str(chosen["name"]),
        part_of=str(dynamo["part_of"]),
        gpu=str(chosen["gpu"]),
        gpus=int(chosen["gpus"]),
        topology=str(chosen["topology"]),
        workload=str(chosen["workload"]),
        label=str(chosen["label"]),
        model=str(dynamo.get("served_name") or spec["repo"]),
        repo=str(spec["repo"]),
        image=f"{dynamo['image']['name']}:{dynamo['image']['tag']}",
        revision=settings.revision or str(dynamo.get("revision") or "main"),
        args=tuple(rendered.args),
        env=tuple((str(key), str(value)) for key, value in env.items()),
        block_size=int(serve["block-size"]),
        cache=dynamo["cache"],
        frontend=dynamo["frontend"],
        workers=dynamo["workers"],
        runtime_class=str(
            chosen.get("runtime_class", "") if settings.runtime_class is None else settings.runtime_class
        ),
        reference=chosen.get("reference") or {},
        trace=str((dynamo.get("traces") or {}).get(chosen["workload"], "")),
        smoke=dynamo["smoke"],
        settings=settings,
        notes=(*rendered.notes, *_notes(settings, dynamo)),
    )


def _notes(settings: Settings, dynamo: Mapping[str, Any]) -> list[str]:
    notes = []
    if not settings.revision and str(dynamo.get("revision") or "main") == "main":
        notes.append("The recipe pins no revision of the model: main is taken as it is. Pin it with dynamo_revision.")
    if not settings.storage_class and not settings.existing_claim:
        notes.append("dynamo_storage_class is empty: the cluster's default class is taken.")
    return notes


def _wrong(name: str, chosen: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that is wrong with a target as written."""
    where = f"dynamo.targets.{name}"
    problems = []
    for key in chosen:
        if key not in _TARGET_KEYS:
            near = nearest(str(key), _TARGET_KEYS)
            problems.append(f"{where}.{key} is not a known key.{f' Did you mean {near!r}?' if near else ''}")
    optional = {"env", "runtime_class", "reference"}
    problems += [f"{where}.{key} is missing." for key in sorted(_TARGET_KEYS - optional - set(chosen))]
    if problems:
        return problems
    if not _NAME.match(str(chosen["name"])):
        problems.append(
            f"{where}.name '{chosen['name']}' is no Kubernetes name: lower-case letters, digits and dashes, at most 63."
        )
    for key, known in (("gpu", GPUS), ("topology", (AGGREGATED, DISAGGREGATED)), ("workload", WORKLOADS)):
        if chosen[key] not in known:
            problems.append(f"{where}.{key} is {chosen[key]!r}, but it must be one of {', '.join(known)}.")
    ranks = chosen["serve"].get("tensor-parallel-size")
    if ranks != chosen["gpus"]:
        problems.append(f"{where}: tensor-parallel-size is {ranks}, but a worker has {chosen['gpus']} GPUs.")
    return problems


def _wrong_settings(settings: Settings, tag: str) -> list[str]:
    problems = []
    if not settings.namespace or settings.namespace == "default":
        problems.append('Give -e dynamo_namespace=NAME: nothing is put into "default".')
    elif not _NAME.match(settings.namespace):
        problems.append(f"dynamo_namespace '{settings.namespace}' is no Kubernetes name.")
    if settings.replicas < 1:
        problems.append(f"dynamo_replicas is {settings.replicas}, but it must be 1 or more.")
    if not _SEMANTIC.match(tag) and not settings.runtime_version:
        problems.append(
            f"The image's tag '{tag}' is no version: set dynamo_runtime_version (MAJOR.MINOR.PATCH), which the "
            "operator's webhook demands then."
        )
    if settings.runtime_version and not _RELEASE.match(settings.runtime_version):
        problems.append(f"dynamo_runtime_version '{settings.runtime_version}' must be MAJOR.MINOR.PATCH.")
    return problems + [f"dynamo_rdma.{key} is missing." for key in RDMA if not settings.rdma.get(key)]


def _command(dynamo: Mapping[str, Any], chosen: Mapping[str, Any], tables: Mapping[str, Table]) -> ServeArgs:
    """Return the worker's arguments: vLLM's own checked against its version, Dynamo's put back into their places."""
    serve = {**dynamo["serve"], **chosen["serve"]}
    order = [*dynamo["order"], *(key for key in serve if key not in dynamo["order"])]
    ordered = {key: serve[key] for key in order if serve.get(key) is not None}
    checked = {key: value for key, value in ordered.items() if key not in DYNAMO_OPTIONS}
    try:
        rendered = render_serve(checked, str(dynamo["image"]["vllm_version"]), tables)
    except ServeError as error:
        raise DynamoError([each.replace("serve.", "dynamo.serve.", 1) for each in error.errors]) from None
    by_option: dict[str, list[str]] = {}
    current: list[str] = []
    for word in rendered.args:
        if word.startswith("--"):
            current = by_option[word[2:]] = []
        current.append(word)
    args = ["--model", "$MODEL_PATH"]
    for key, value in ordered.items():
        if key in DYNAMO_OPTIONS:
            args += [f"--{key}", str(value)]
        else:
            args += by_option.get(key) or by_option[f"no-{key}"]
    return ServeArgs(args=args, env={}, notes=rendered.notes, table=rendered.table)
