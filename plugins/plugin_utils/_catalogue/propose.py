# SPDX-License-Identifier: Apache-2.0
"""From what a repository says of itself to a model file for one inventory.  Pure.

Every value has its reason. What no source says is marked as unknown and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import geometry_from_hf_config
from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_values import EXPERTS
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import Geometry, UnknownGeometryError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import UNKNOWN, MemoryModelError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import is_whole
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import deep_merge
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import budget, drafts, families, pooling
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.budget import Fit
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import Path
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.images import (
    ProposalError,
    architecture_of,
    choose_image,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.shape import geometry_values
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository, chat_template

GIB = 2**30
#: MemTotal of a GB10 with 128 GB, by `free` [S0]; taken for nodes that were not asked.
ASSUMED_MEMORY_GIB = 119.0
#: A rendezvous port for each model, as the catalogue has them.
FIRST_PORT, PORT_STEP, LAST_PORT = 29510, 10, 29990
#: On which the roles listen by default: engine_tether_port, engine_swap_port, edge_engine_port.
OUR_PORTS = (29600, 29601, 29602)
#: The context of a model whose cache cannot be computed: a start, to be raised after it has served.
CAUTIOUS_TOKENS = 32768

_NAME = re.compile(r"[^a-z0-9.-]+")


@dataclass(frozen=True)
class Cluster:
    """What the model is to run on.

    :ivar memory_gib: MemTotal of each node, the head first; None for one that did not answer.
    :ivar ports: rendezvous ports that other models have.
    """

    memory_gib: Sequence[float | None]
    images: Mapping[str, Any]
    ports: Sequence[int] = ()

    def tightest_gib(self, nodes: int) -> float:
        """Return the memory of the tightest of the first nodes; those beyond the inventory count as the tightest."""
        known = [each for each in self.memory_gib if each is not None]
        first = [each if each is not None else ASSUMED_MEMORY_GIB for each in self.memory_gib[:nodes]]
        rest = [min(known) if known else ASSUMED_MEMORY_GIB] if nodes > len(first) else []
        return min([*first, *rest])


@dataclass(frozen=True)
class Wanted:
    """What the owner asked for; empty or 0 leaves the choice.

    :ivar overrides: merged into the model, for what is the same for every model of a cluster.
    :ivar drafts: what drafts, of ``drafts.KINDS``.
    :ivar task: what it is served for, of ``pooling.TASKS``.
    """

    name: str = ""
    nodes: int = 0
    image: str = ""
    drafts: str = ""
    task: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Proposal:
    """A model file before it is written.

    :ivar fits: what the model would get on one, two and four boxes.
    """

    spec: dict[str, Any]
    reasons: dict[Path, str]
    header: list[str]
    vllm_version: str
    fits: list[Fit]
    notes: list[str]


def model_name(repo: str) -> str:
    """Return the name for ``-e model=`` of a repository."""
    return _NAME.sub("-", repo.rsplit("/", 1)[-1].lower()).strip("-.")


def free_port(taken: Sequence[int]) -> int:
    """Return a rendezvous port that no other model has.

    :raises ProposalError: all of them are taken.
    """
    for port in range(FIRST_PORT, LAST_PORT + 1, PORT_STEP):
        if port not in taken and port not in OUR_PORTS:
            return port
    raise ProposalError(f"Every rendezvous port from {FIRST_PORT} to {LAST_PORT} is taken; give ports.master yourself.")


class _Maker:
    """Collects the values of one model file, each with its reason."""

    def __init__(self, repository: Repository, cluster: Cluster, wanted: Wanted) -> None:
        self.repository, self.cluster, self.wanted = repository, cluster, wanted
        self.reasons: dict[Path, str] = {}
        self.notes: list[str] = []
        self.serve: dict[str, Any] = {}
        self.env: dict[str, Any] = {}

    def because(self, reason: str, *path: str) -> None:
        """Note the reason for a value."""
        self.reasons[path] = reason

    def rows(self, architecture: str, quantisation: str, experts: bool, version: str) -> None:
        """Take what is published for the class, as far as the chat template has use for it."""
        rows = families.rows_for(architecture, quantisation, experts, version)
        template = chat_template(self.repository)
        left = {}
        for row in rows or []:
            if row.template and row.template not in template:
                left[row.key] = f"{row.key} {row.value} (no '{row.template}')"
                continue
            (self.env if row.place == families.ENV else self.serve)[row.key] = row.value
            self.because(row.source, row.place, row.key)
        left = {key: shown for key, shown in left.items() if key not in self.serve and key not in self.env}
        for option, what in (("reasoning-parser", "thinking is"), ("tool-call-parser", "tool calls are")):
            if option not in left and option not in self.serve:
                self.because(
                    f"no source here says how {what} parsed of {architecture}; see the model's card",
                    families.SERVE,
                    option,
                )
        if left:
            self.because(
                f"left out, as the chat template has no use for it: {', '.join(left.values())}", families.SERVE
            )
        if "auto_map" in self.repository.config and "trust-remote-code" not in self.serve:
            self.because(
                "config.json names code of the repository (auto_map), and no source here says whether vLLM needs it",
                families.SERVE,
                "trust-remote-code",
            )
        if not template:
            self.notes.append("The repository has no chat template: /v1/chat/completions needs one (chat-template).")

    def sampling(self) -> None:
        """Note what generation_config.json sets, which vLLM applies to every request."""
        found = self.repository.documents.get("generation_config.json", {})
        shown = [
            f"{key} {found[key]}" for key in ("temperature", "top_p", "top_k", "repetition_penalty") if key in found
        ]
        if shown:
            self.notes.append(f"generation_config.json sets {', '.join(shown)}, where a request says nothing.")


def _proposed_draft(
    make: _Maker, geometry: Geometry | None, version: str, read_drafter: drafts.Reader
) -> dict[str, Any]:
    """Return ``drafter`` and ``speculative-config`` as published for the class, or nothing; note why."""
    wanted = make.wanted.drafts
    if wanted == drafts.NONE or geometry is None:
        return {}
    found, why_not = drafts.published(make.repository, geometry, version, wanted)
    if found is None:
        make.notes += [why_not] if why_not else []
        return {}
    made: dict[str, Any] = {}
    if found.drafter:
        made["drafter"], problem = drafts.drafter_of(found, read_drafter)
        if problem:
            make.notes.append(problem)
            return {}
        make.because(found.source, "drafter")
    make.because(f"{found.source}; -e add_model_drafts=none leaves it out", "serve", drafts.OPTION)
    if geometry.recurrent:
        make.notes.append(
            "Drafts with prefix caching corrupted the output of hybrid models in some releases (vllm#43559, #53912): "
            "compare answers with -e add_model_drafts=none."
        )
    return {**made, "serve": {drafts.OPTION: dict(found.config)}}


def propose(
    repository: Repository, cluster: Cluster, wanted: Wanted, read_drafter: drafts.Reader = drafts.unread
) -> Proposal:
    """Return the model file of a repository for one cluster.

    :param read_drafter: returns the repository of a draft model, or raises RepositoryError.
    :raises ProposalError: the model cannot be served here; nothing is guessed instead.
    """
    found = architecture_of(repository)
    image, why_image = choose_image(found, cluster.images, wanted.image)
    make = _Maker(repository, cluster, wanted)
    quantisation = families.quantisation_of(repository.config, repository.documents.get("hf_quant_config.json", {}))
    geometry, gaps = _geometry(repository)
    experts = geometry.moe is not None if geometry else any(map(repository.text.get, EXPERTS))
    task, why_task = pooling.task_of(found, repository, wanted.task)
    size_gib = round(repository.weights_bytes / GIB, 2 if repository.weights_bytes >= GIB else 6)
    _check_size(repository, make)
    spec: dict[str, Any] = {
        "name": wanted.name or model_name(repository.repo),
        "repo": repository.repo,
        "revision": repository.revision,
        "served_name": repository.repo,
        "size_gib": size_gib,
        "nodes": 1,
        "engine": "native",
        "image": image.name,
        "mods": [],
        "shm_size": "16g",
        "ports": {"api": 8000, "master": free_port(cluster.ports)},
        "serve": {"tensor-parallel-size": 1},
        "env": make.env,
        **({"geometry": geometry_values(geometry)} if geometry else {}),
        "memory": {},
        "provenance": {"status": "computed", "source": f"{repository.repo} at {repository.revision}"},
    }
    if task == pooling.GENERATE:
        make.rows(found.name, quantisation, experts, image.version)
        spec["serve"] |= {"max-num-seqs": 8, "max-num-batched-tokens": 8192, **make.serve}
        spec = deep_merge(spec, _proposed_draft(make, geometry, image.version, read_drafter))
    else:
        made, reasons = pooling.values(found, repository, task, why_task, wanted.overrides)
        make.reasons |= reasons
        spec = deep_merge(spec, made)
    spec = deep_merge(spec, wanted.overrides)
    chosen, fits = _fits(spec, repository, geometry, gaps, image.version, cluster, wanted.nodes)
    spec = budget.with_ranks(spec, chosen.nodes, chosen.serve)
    if geometry is None and "max-model-len" not in spec["serve"]:
        longest = _longest(repository) - (pooling.PADDED_POSITIONS if "Roberta" in found.name else 0)
        spec["serve"]["max-model-len"] = min(CAUTIOUS_TOKENS, longest) if longest > 0 else CAUTIOUS_TOKENS
    _explain(make, spec, chosen, geometry, gaps, why_image, quantisation)
    if task == pooling.GENERATE:
        make.sampling()
    if make.notes:
        spec["notes"] = [*spec.get("notes", []), *make.notes]
    header = [
        f"{repository.repo} on {_nodes(chosen.nodes)}, as playbooks/add_model.yml worked it out.",
        "Sources in brackets: docs/sources.md. Calculated values are not measured: the first bench is the baseline.",
    ]
    return Proposal(spec, make.reasons, header, image.version, fits, make.notes)


def _geometry(repository: Repository) -> tuple[Geometry | None, list[str]]:
    """Return (the geometry or None, what of it is not known)."""
    try:
        return geometry_from_hf_config(repository.config), []
    except UnknownGeometryError as problem:
        return None, problem.missing


def _longest(repository: Repository) -> int:
    """Return the model's own context in tokens; 0 when config.json does not say."""
    value = repository.text.get("max_position_embeddings")
    return value if is_whole(value, "max_position_embeddings") else 0


def _check_size(repository: Repository, make: _Maker) -> None:
    """Note a size that contradicts the index: the tensors of an index are nearly all of the files."""
    said, found = repository.index_bytes, repository.weights_bytes
    if said and abs(said - found) > 0.05 * found:
        make.notes.append(
            f"The index says {said / GIB:.2f} GiB of tensors and the files have {found / GIB:.2f} GiB; the files count."
        )


def _fits(
    spec: Mapping[str, Any],
    repository: Repository,
    geometry: Geometry | None,
    gaps: Sequence[str],
    version: str,
    cluster: Cluster,
    wanted: int,
) -> tuple[Fit, list[Fit]]:
    """Return (what is chosen for this cluster, what one, two and four boxes would give).

    :raises ProposalError: it does not fit, or does not split as it was asked to.
    """
    here = len(cluster.memory_gib)

    def on(nodes: int) -> Fit:
        tightest = cluster.tightest_gib(nodes)
        if geometry is None:
            return budget.fit_by_weights(repository.text, float(spec["size_gib"]), nodes, tightest, " ".join(gaps))
        try:
            return budget.fit(spec, version, nodes, tightest)
        except MemoryModelError as problem:
            raise ProposalError(f"The budget of {repository.repo} cannot be computed: {problem}") from problem

    if wanted < 0 or wanted > here:
        raise ProposalError(f"nodes is {wanted}, and this inventory has {here}: give 1 to {here}.")
    every = {nodes: on(nodes) for nodes in sorted({*range(1, here + 1), *budget.BOXES})}
    boxes = [every[nodes] for nodes in budget.BOXES]
    longest = geometry.max_position_embeddings if geometry else _longest(repository)
    chosen = budget.choose([every[wanted]] if wanted else [every[nodes] for nodes in range(1, here + 1)], longest)
    if chosen is not None:
        return chosen, boxes
    size = f"{repository.repo} ({float(spec['size_gib']):.1f} GiB of weights)"
    able = [each.nodes for each in every.values() if each.serves or each.verdict == UNKNOWN]
    if wanted:
        others = [nodes for nodes in able if nodes <= here]
        hint = f" It would be possible here on {', '.join(map(str, others))}." if others else ""
        raise ProposalError(f"{size} does not run on {_nodes(wanted)}: {every[wanted].reason}{hint}")
    more = (
        f"By the same calculation it would need {_nodes(min(able))}."
        if able
        else f"It does not fit on {_nodes(max(every))} of this size either."
    )
    best = every[max((nodes for nodes in every if nodes <= here), default=1)]
    raise ProposalError(f"{size} is too large for the {_nodes(here)} of this inventory: {best.reason} {more}")


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _explain(
    make: _Maker,
    spec: Mapping[str, Any],
    chosen: Fit,
    geometry: Geometry | None,
    gaps: Sequence[str],
    why_image: str,
    quantisation: str,
) -> None:
    """Note why each of the remaining values is what it is."""
    repository, cluster = make.repository, make.cluster
    because = make.because
    because(
        "the commit that was read" if repository.revision != "main" else "the directory has no note of its commit",
        "revision",
    )
    because(f"read at {repository.where}", "repo")
    because(f"of {len(repository.weights)} weight files, {quantisation or 'not quantised'}", "size_gib")
    because(_why_nodes(chosen, geometry, cluster, make.wanted), "nodes")
    because(why_image, "image")
    pools = spec["serve"].get("runner") == "pooling"
    if not pools:
        because("free choice; published launches have 4 to 16", "serve", "max-num-seqs")
        because("16384 killed the driver in a long prefill [S0]", "serve", "max-num-batched-tokens")
    if geometry is None:
        why = "a cautious start: the cache is not computed; raise it after it has served"
        because("the model's own, as far as it is known" if pools else why, "serve", "max-model-len")
        because(" ".join(gaps), "geometry")
        because(
            "a measured point {pool_gib, tokens, source} from vLLM's log lets memory.yml judge", "expected", "kv_cache"
        )
    else:
        why = f"calculated, docs/memory.md: {chosen.reason}"
        because(f"of the model's own {geometry.max_position_embeddings}; {why}", "serve", "max-model-len")
        share = "a small share, as [A] for an embedding model" if pools else "owners serve with .80 to .87 [P]"
        because(f"{share}; see max-model-len", "serve", "gpu-memory-utilization")
        because(f"config.json of the repository at {repository.revision}", "geometry")
    make.reasons |= {tuple(path.split(".")): why for path, why in families.PUBLISHED["why"].items()}
    for path in _leaves(make.wanted.overrides):
        because("add_model_overrides", *path)
    _drop_reasons_without_a_choice(make, spec)


def _why_nodes(chosen: Fit, geometry: Geometry | None, cluster: Cluster, wanted: Wanted) -> str:
    asked = [each for each in cluster.memory_gib[: chosen.nodes] if each is not None]
    memory = f"{cluster.tightest_gib(chosen.nodes):.1f} GiB"
    source = f"nodes of {memory}" if len(asked) == chosen.nodes else f"{memory} assumed, as not all answered [S0]"
    if wanted.nodes:
        return f"-e nodes={wanted.nodes}; {source}"
    if geometry is None:
        return f"the fewest whose memory has room beside the weights; {source}"
    return f"the fewest that hold a useful context; {source}"


def _leaves(values: Mapping[str, Any], above: Path = ()) -> list[Path]:
    """Return the paths of all values that are no dictionaries."""
    found: list[Path] = []
    for key, value in values.items():
        path = (*above, str(key))
        found += _leaves(value, path) if isinstance(value, Mapping) and value else [path]
    return found


#: Values that may be missing without being unknown.
_OPTIONAL: tuple[Path, ...] = (("serve", "gpu-memory-utilization"), ("serve", "max-num-batched-tokens"))


def _drop_reasons_without_a_choice(make: _Maker, spec: Mapping[str, Any]) -> None:
    """Forget the reasons of values that the owner took out."""
    for path in [*_OPTIONAL, *_leaves(make.wanted.overrides)]:
        value: Any = spec
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            make.reasons.pop(path, None)
