# SPDX-License-Identifier: Apache-2.0
"""Changes that make a configuration fit, in the documented order [S0], with what each one frees.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.judge import judge
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import ALIGN, ALL, GIB
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import Plan, default_batch, make_plan
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    FLASHINFER,
    MARLIN,
    VERDICTS,
    Settings,
    Suggestion,
    gib,
)

#: A saving below this is not worth a suggestion.
_NEGLIGIBLE_GIB = 0.05

#: Largest batch that a heavy prefill was seen to survive [S0].
_VALIDATED_BATCHED_TOKENS = 8192

_SMALLEST_BATCHED_TOKENS = 2048


def _demand_gib(plan: Plan) -> float:
    """Return what a configuration wants of a node: everything beside the pool, and its sequences in full.

    Where max_num_seqs is vLLM's default, one sequence counts.
    """
    sequences = plan.settings.max_num_seqs or 1
    return plan.weights_gib + sum(plan.overheads.values()) + plan.prefill_gib + sequences * plan.sequence_gib


@dataclass(frozen=True)
class _Candidate:
    """A change worth trying."""

    settings: Settings
    change: dict[str, Any]
    action: str
    #: What comes of it, with a gap for the GiB.
    effect: str = "frees {} a node"
    #: The GiB; None for the difference in demand.
    gib: float | None = None


def _pool_change(plan: Plan) -> _Candidate | None:
    """Return a better explicit pool: smaller where the host starves, larger where no sequence fits."""
    settings, over = plan.settings, plan.budget_gib - plan.safe_ceiling_gib
    pool = settings.kv_cache_memory_gib or 0.0
    if over > 0:
        target, effect = floor(10 * (pool - over)) / 10, "leaves {} more to the host"
    elif 0 < plan.sequence_gib - pool <= -over:
        target, effect = ceil(10 * plan.sequence_gib) / 10, "adds {} to the cache"
    else:
        return None
    if target <= 0:
        return None
    return _Candidate(
        settings=replace(settings, kv_cache_memory_gib=target),
        change={"kv-cache-memory-bytes": int(target * GIB)},
        action=f"Set --kv-cache-memory-bytes to {target:g} GiB ({int(target * GIB)})",
        effect=effect,
        gib=abs(target - pool),
    )


def _budget_change(plan: Plan) -> _Candidate | None:
    """Return a better budget: lower where the host starves, higher where the cache does."""
    settings, ceiling = plan.settings, plan.safe_ceiling_gib
    if settings.kv_cache_memory_gib is not None:
        return _pool_change(plan)
    pool_gib = plan.pool_bytes / GIB
    short = plan.sequence_gib - pool_gib
    relaxed = plan.available_gib - plan.prefill_gib - memory_fit.TIGHT_HEADROOM_GIB
    effect = "leaves {} more to the host"
    if plan.budget_gib > ceiling:
        target = ceiling
    elif 0 < short <= ceiling - plan.budget_gib:
        step = 1.0 if settings.budget_gib is not None else settings.mem_total_gib / 100
        target, effect = min(ceiling, plan.budget_gib + short + step), "adds {} to the cache"
    elif 0 < plan.budget_gib - relaxed <= pool_gib - 2 * plan.sequence_gib:
        target = relaxed
    else:
        return None
    if settings.budget_gib is not None:
        name, value = "gpu-memory-utilization-gb", float(floor(target))
        changed, moved = replace(settings, budget_gib=value), value - plan.budget_gib
    else:
        name, value = "gpu-memory-utilization", floor(100 * target / settings.mem_total_gib) / 100
        changed = replace(settings, gpu_memory_utilization=value)
        moved = value * settings.mem_total_gib - plan.budget_gib
    if value <= 0:
        return None
    verb = "Raise" if moved > 0 else "Lower"
    return _Candidate(changed, {name: value}, f"{verb} --{name} to {value:g}", effect, abs(moved))


def _sequences_change(plan: Plan) -> _Candidate | None:
    """Return fewer sequences: as many as fit in full, or as the pool has blocks."""
    settings, blocks = plan.settings, plan.pool.blocks
    if settings.max_num_seqs is None:
        if not 0 < blocks < plan.max_num_seqs:
            return None
        action = f"Set --max-num-seqs to {blocks}, below vLLM's default of {plan.max_num_seqs}"
        return _Candidate(replace(settings, max_num_seqs=blocks), {"max-num-seqs": blocks}, action, gib=0.0)
    fitting = max(1, min(floor(plan.pool.max_concurrency), blocks))
    if fitting >= settings.max_num_seqs:
        return None
    return _Candidate(
        settings=replace(settings, max_num_seqs=fitting),
        change={"max-num-seqs": fitting},
        action=f"Lower --max-num-seqs from {settings.max_num_seqs} to {fitting}",
        effect="asks {} less of the cache when all are full",
    )


def _cache_changes(plan: Plan) -> list[_Candidate]:
    """Return the changes that make a sequence smaller."""
    settings, layout, found = plan.settings, plan.layout, []
    if layout.cache_mode == ALIGN and layout.has_recurrent:
        changed = replace(settings, enable_prefix_caching=False)
        action = "Switch prefix caching off, which leaves one state a sequence"
        found.append(_Candidate(changed, {"enable-prefix-caching": False}, action))
    if settings.kv_cache_dtype in ("auto", "bfloat16", "float16"):
        changed = replace(settings, kv_cache_dtype="fp8")
        found.append(_Candidate(changed, {"kv-cache-dtype": "fp8"}, "Keep the KV cache in fp8"))
    return found


def _align_change(plan: Plan) -> _Candidate | None:
    """Return the cache mode that keeps a running state instead of one at every block boundary: nothing is given up."""
    if plan.layout.cache_mode != ALL:
        return None
    changed = replace(plan.settings, mamba_cache_mode=ALIGN)
    action = "Set --mamba-cache-mode align instead of keeping a state at every block boundary"
    if plan.pool_bytes > 0:
        now, then = plan.pool.max_concurrency, make_plan(changed, plan.rules).pool.max_concurrency
        action += f", so that the pool holds {then:.2f} sequences instead of {now:.2f}"
    return _Candidate(changed, {"mamba-cache-mode": ALIGN}, action)


def _candidates(plan: Plan) -> list[_Candidate]:
    """Return the changes worth trying: first what takes nothing away, then the documented order [S0].

    That is MTP, the number of sequences, the budget; then what else is known to help.
    """
    settings = plan.settings
    align = _align_change(plan)
    found = [align] if align else []
    if settings.speculative_tokens:
        changed = replace(settings, speculative_tokens=0)
        action = "Drop MTP: its head, its activations and its share of the cache"
        found.append(_Candidate(changed, {"speculative-config": None}, action))
    found += [each for each in (_sequences_change(plan), _budget_change(plan)) if each is not None]
    tokens = default_batch(settings)[1]
    smaller = min(_VALIDATED_BATCHED_TOKENS, tokens // 2)
    if smaller >= max(_SMALLEST_BATCHED_TOKENS, settings.max_num_seqs or 1):
        changed = replace(settings, max_num_batched_tokens=smaller)
        action = f"Lower --max-num-batched-tokens from {tokens} to {smaller}"
        found.append(_Candidate(changed, {"max-num-batched-tokens": smaller}, action))
    found += _cache_changes(plan)
    if settings.fp4_backend == FLASHINFER:
        changed = replace(settings, fp4_backend=MARLIN)
        action = "Use Marlin for FP4 instead of FlashInfer, whose autotuner keeps its high-water mark"
        found.append(_Candidate(changed, {"moe-backend": MARLIN}, action))
    if not settings.enforce_eager:
        changed = replace(settings, enforce_eager=True)
        action = "Switch torch.compile and CUDA graphs off, about 3 % slower"
        found.append(_Candidate(changed, {"enforce-eager": True}, action))
    longest = plan.layout.longest_sequence(max(0, plan.pool_bytes), settings.max_model_len)
    if 0 < longest < settings.max_model_len:
        changed = replace(settings, max_model_len=longest)
        action = f"Lower --max-model-len from {settings.max_model_len} to {longest}"
        found.append(_Candidate(changed, {"max-model-len": longest}, action, "asks {} less of the cache"))
    return found


def suggestions_for(plan: Plan, verdict: str) -> list[Suggestion]:
    """Return the candidates that free something or improve the verdict, numbered in order."""
    found: list[Suggestion] = []
    before = _demand_gib(plan)
    for candidate in _candidates(plan):
        after = make_plan(candidate.settings, plan.rules)
        freed = before - _demand_gib(after) if candidate.gib is None else candidate.gib
        resolves = VERDICTS.index(judge(after)[0]) < VERDICTS.index(verdict)
        if freed < _NEGLIGIBLE_GIB and not resolves:
            continue
        found.append(
            Suggestion(
                order=len(found) + 1,
                action=f"{candidate.action}: {candidate.effect.format(gib(freed))}.",
                change=candidate.change,
                frees_gib=freed,
                resolves=resolves,
            )
        )
    return found
