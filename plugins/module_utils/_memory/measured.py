# SPDX-License-Identifier: Apache-2.0
"""The verdict on a model whose cache has no rule here, from a cache size that somebody measured.  Pure.

``expected.kv_cache`` of a model file names points: so many tokens in a pool of so many GiB a rank.  From the nearest
one follows what other pools hold.  What a node needs besides is estimated without the model's shape, so the best
verdict is ``tight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    AUTO_LENGTH,
    REFUSED,
    TIGHT,
    Budget,
    MemoryModelError,
    assumed_available_gib,
    gib,
)


@dataclass(frozen=True)
class Point:
    """A measured cache: ``tokens`` in ``pool_gib`` on each rank, as vLLM's log states both."""

    pool_gib: float
    tokens: int
    source: str


def points_from(values: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the points of a model file.

    :raises MemoryModelError: with one sentence for each that is no point
    """
    points, problems = [], []
    for number, each in enumerate(values):
        where = f"expected.kv_cache[{number}]"
        pool, tokens = each.get("pool_gib"), each.get("tokens")
        if not isinstance(pool, (int, float)) or isinstance(pool, bool) or not (isfinite(pool) and pool > 0):
            problems.append(f"{where}.pool_gib is {pool!r}, but it must be above zero (GiB a rank).")
        elif not isinstance(tokens, int) or isinstance(tokens, bool) or tokens <= 0:
            problems.append(f"{where}.tokens is {tokens!r}, but it must be a whole number above zero.")
        else:
            points.append(Point(float(pool), tokens, str(each.get("source", "no source"))))
    if problems:
        raise MemoryModelError(problems)
    return points


def verdict_from_points(points: Sequence[Point], missing: Sequence[str], asked: Mapping[str, Any]) -> Budget:
    """Return the verdict for one node from measured caches.

    :param points: at least one.
    :param missing: why the memory model cannot size this cache.
    :param asked: the module's arguments (see gb10.cluster.memory_budget), with mem_total_gib set.
    :raises MemoryModelError: nothing says how much memory the engine gets
    """
    total = float(asked["mem_total_gib"])
    available = asked.get("mem_available_gib")
    available = assumed_available_gib(total) if available is None else float(available)
    ranks = int(asked.get("tensor_parallel_size") or 1) * int(asked.get("pipeline_parallel_size") or 1)
    weights = float(asked["weights_gib"]) / ranks
    fit = memory_fit.GB10
    beside = fit.runtime_gib + (0.0 if asked.get("enforce_eager") else fit.graphs_gib)
    beside += fit.distributed_gib if ranks > 1 else 0.0
    if asked.get("kv_cache_memory_gib") is not None:
        pool = float(asked["kv_cache_memory_gib"])
        budget = weights + beside + pool
    elif asked.get("budget_gib") is not None or asked.get("gpu_memory_utilization") is not None:
        budget = float(asked.get("budget_gib") or total * float(asked["gpu_memory_utilization"]))
        pool = budget - weights - beside
    else:
        raise MemoryModelError(
            [
                "Nothing says how much memory the engine gets: give budget_gib, gpu_memory_utilization or "
                "kv_cache_memory_gib."
            ]
        )
    near = min(points, key=lambda point: abs(point.pool_gib - pool))
    tokens = int(max(0.0, pool) / near.pool_gib * near.tokens)
    wanted, floor = max(1, int(asked["max_model_len"])), float(asked.get("floor_gib") or 0.0)
    reasons = []
    if pool <= 0:
        reasons.append(
            f"Nothing is left for the cache: of {gib(budget)} the weights take {gib(weights)} a rank and the runtime "
            f"about {gib(beside)}."
        )
    elif tokens < wanted:
        needed = near.pool_gib * wanted / near.tokens
        reasons.append(
            f"The cache is too small: a pool of {gib(pool)} holds about {tokens} tokens, {wanted} are asked for, which "
            f"take about {gib(needed)}: {gib(needed - pool)} short."
        )
    over = budget + floor - available
    if over > 0:
        reasons.append(
            f"The node cannot spare it: {gib(budget)} and a margin of {gib(floor)} are {gib(over)} more than the "
            f"{gib(available)} available."
        )
    measured = f"measured were {near.tokens} tokens in {gib(near.pool_gib)} a rank ({near.source})"
    auto = ""
    if asked["max_model_len"] == AUTO_LENGTH:
        auto = " max-model-len auto takes what one sequence of them fits, up to the model's own limit."
    held = f"A pool of {gib(pool)} a rank holds about {tokens} tokens: {measured}. The activations are not known.{auto}"
    return Budget(verdict=REFUSED if reasons else TIGHT, reasons=reasons or [held], missing=list(missing))
