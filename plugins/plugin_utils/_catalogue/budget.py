# SPDX-License-Identifier: Apache-2.0
"""How many nodes a new model needs, and which context and memory budget fit there.  Pure; the memory model decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import FITS, REFUSED, TIGHT, UNKNOWN
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.rows import budget_of

#: What owners serve with, highest first: .80 to .87 is common [P]; less where a long prefill needs the room.
UTILIZATIONS = (0.85, 0.8, 0.75, 0.7)
#: A pooling model wants little beside its weights: the smallest share that fits.
POOLING_UTILIZATIONS = (0.3, 0.5, 0.7, 0.85)
#: A context below it is taken only where no larger number of nodes gives more.
USEFUL_TOKENS = 32768
SHORTEST_TOKENS = 4096
#: Options that give the engine its memory: one that the owner sets is not touched.
_POOL = ("gpu-memory-utilization", "gpu-memory-utilization-gb", "kv-cache-memory-bytes")
#: Without a geometry: the largest share of a node that weights may take, so that something is left for a cache.
WEIGHTS_SHARE = 0.7

BOXES = (1, 2, 4)


@dataclass(frozen=True)
class Fit:
    """What a model gets on a number of nodes.

    :ivar serve: options that differ from the model's own: context and budget.
    :ivar verdict: fits, tight, refused or unknown.
    """

    nodes: int
    verdict: str
    reason: str
    serve: Mapping[str, Any]
    kv_cache_tokens: int | None = None
    concurrency: float | None = None

    @property
    def serves(self) -> bool:
        """Whether it would start and survive."""
        return self.verdict in (FITS, TIGHT)

    @property
    def context(self) -> int:
        """Longest sequence in tokens; 0 when it is not known."""
        return int(self.serve.get("max-model-len") or 0)


def with_ranks(spec: Mapping[str, Any], nodes: int, serve: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model on another number of nodes, with some options changed."""
    return {**spec, "nodes": nodes, "serve": {**spec["serve"], "tensor-parallel-size": nodes, **serve}}


def contexts(longest: int) -> list[int]:
    """Return the contexts to try: the model's own, then the powers of two below it."""
    found, size = [longest], 1 << max(0, longest - 1).bit_length()
    while (size := size // 2) >= SHORTEST_TOKENS:
        if size < longest:
            found.append(size)
    return found


def _choices(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options to try, the best first."""
    serve = spec["serve"]
    own = any(option in serve for option in _POOL)
    shares = POOLING_UTILIZATIONS if serve.get("runner") == "pooling" else UTILIZATIONS
    longest = spec["geometry"]["max_position_embeddings"]
    for length in [serve["max-model-len"]] if "max-model-len" in serve else contexts(longest):
        for share in (None,) if own else shares:
            yield {"max-model-len": length, **({} if share is None else {"gpu-memory-utilization": share})}


def fit(spec: Mapping[str, Any], version: str, nodes: int, memory_gib: float) -> Fit:
    """Return the best that a model gets on some nodes: the longest context that fits, else that is tight.

    :param spec: a model with its geometry, without nodes, context and budget, unless the owner gave them.
    :param memory_gib: MemTotal of the tightest node.
    :raises GeometryError: the geometry is wrong.
    :raises MemoryModelError: the options contradict themselves.
    """
    tried: list[Fit] = []
    for serve in _choices(spec):
        budget = budget_of(with_ranks(spec, nodes, serve), version, memory_gib)
        figures = budget.figures
        reason = " ".join([*budget.reasons, *budget.missing])
        if figures is None:
            # It does not split over the nodes, or is not known: no other context or share changes that.
            return Fit(nodes, budget.verdict, reason, {})
        found = Fit(nodes, budget.verdict, reason, serve, figures.kv_cache_tokens, figures.max_concurrency)
        if found.verdict == FITS:
            return found
        tried.append(found)
    return next((each for each in tried if each.serves), tried[0])


def fit_by_weights(config: Mapping[str, Any], weights_gib: float, nodes: int, memory_gib: float, why: str) -> Fit:
    """Return what is known without a geometry: whether the weights leave room on each node.

    :param config: what config.json says of the language model, for the number of heads.
    :param why: what is not known of the cache.
    """
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % nodes:
        return Fit(nodes, REFUSED, f"vLLM cannot split {heads} attention heads over {nodes} ranks.", {})
    share = weights_gib / nodes
    if share > WEIGHTS_SHARE * memory_gib:
        return Fit(
            nodes,
            REFUSED,
            f"{share:.1f} GiB of weights are {100 * share / memory_gib:.0f} % of a node's {memory_gib:.1f} GiB: what "
            "is left for cache and activations is too little.",
            {},
        )
    return Fit(nodes, UNKNOWN, f"{share:.1f} GiB of weights on each node; {why}", {})


def choose(fits: Sequence[Fit], longest: int) -> Fit | None:
    """Return the smallest number of nodes that serves a useful context, else the one with the longest; or None.

    :param longest: the model's own context in tokens.
    """
    wanted = min(USEFUL_TOKENS, longest)
    able = [each for each in fits if each.serves or each.verdict == UNKNOWN]
    useful = [each for each in able if each.verdict == UNKNOWN or each.context >= wanted]
    if useful:
        return min(useful, key=lambda each: each.nodes)
    return max(able, key=lambda each: (each.context, -each.nodes)) if able else None
