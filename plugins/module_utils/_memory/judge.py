# SPDX-License-Identifier: Apache-2.0
"""The rules that turn a plan into refused, tight or fits, each with its sentence.  Pure."""

from __future__ import annotations

from dataclasses import replace
from math import floor

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import ALIGN, ALL, GIB, NEWEST_READ, version_text
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import Plan, fit_of, make_plan
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import CUDA, FITS, REFUSED, TIGHT, gib


def _pool_refusals(plan: Plan) -> list[str]:
    """Refusals that vLLM itself would utter, minutes after its start."""
    settings, layout, pool_gib = plan.settings, plan.layout, plan.pool_bytes / GIB
    if plan.pool_bytes <= 0:
        beside = plan.budget_gib - pool_gib
        sentence = (
            f"Nothing is left for the cache: a budget of {gib(plan.budget_gib)} less {gib(plan.weights_gib)} of "
            f"weights and {gib(beside - plan.weights_gib)} of activations and runtime is {gib(pool_gib)}."
        )
        return [sentence]
    reasons = []
    if plan.sequence_gib > pool_gib:
        longest = layout.longest_sequence(plan.pool_bytes, settings.max_model_len)
        reasons.append(
            f"The cache is too small: one sequence of {settings.max_model_len} tokens takes {gib(plan.sequence_gib)}, "
            f"the pool has {gib(pool_gib)}, which is {gib(plan.sequence_gib - pool_gib)} short"
            + (f"; it would hold {longest} tokens." if longest else " of anything.")
        )
    graphs = plan.rules.graphs_want_block_per_sequence and not settings.enforce_eager and settings.device == CUDA
    if graphs and layout.has_recurrent and plan.max_num_seqs > plan.pool.blocks:
        reasons.append(
            f"CUDA graphs want a cache block for each of max_num_seqs {plan.max_num_seqs} sequences, and the pool has "
            f"{plan.pool.blocks}: set max_num_seqs to {plan.pool.blocks} or less."
        )
    return reasons


def _refusals(plan: Plan) -> list[str]:
    """Return a sentence for each reason why this would not boot, or not survive."""
    settings, layout, fit = plan.settings, plan.layout, fit_of(plan.settings)
    reasons = _pool_refusals(plan)
    too_long = layout.cache_mode == ALIGN and layout.block_tokens > plan.batched_tokens
    if plan.rules.align_block_within_batch and layout.has_recurrent and too_long:
        reasons.append(
            f"With prefix caching a block of {layout.block_tokens} tokens must fit into max_num_batched_tokens, which "
            f"is {plan.batched_tokens}: raise it, keep the state in a smaller dtype, or switch prefix caching off."
        )
    starts = plan.startup_gib <= plan.available_gib
    if not starts:
        reasons.append(_startup_refusal(plan))
    if settings.firm_cap_gib is not None and plan.budget_gib > settings.firm_cap_gib:
        reasons.append(
            f"The budget of {gib(plan.budget_gib)} is {gib(plan.budget_gib - settings.firm_cap_gib)} above this "
            f"cluster's firm cap of {gib(settings.firm_cap_gib)}."
        )
    share = plan.budget_gib / settings.mem_total_gib
    if share > fit.largest_share:
        serves, crashed = 100 * fit.largest_share, 100 * memory_fit.CRASHED_SHARE
        seen = f": up to {serves:.0f} % was seen to serve, {crashed:.0f} % to crash"
        reasons.append(
            f"The budget of {gib(plan.budget_gib)} is {100 * share:.1f} % of the node's "
            f"{gib(settings.mem_total_gib)}{seen if settings.device == CUDA else ''}."
        )
    short = settings.floor_gib - plan.headroom_gib
    if starts and short > 0:
        reasons.append(
            f"It would start and die at the first long prompt: of {gib(plan.available_gib)} available the budget "
            f"takes {gib(plan.budget_gib)} and a prefill in steps of {plan.batched_tokens} tokens "
            f"{gib(plan.prefill_gib)}, which is {gib(short)} too much for a margin of {gib(settings.floor_gib)} "
            f"(floor_gib); the safe ceiling is {gib(plan.safe_ceiling_gib)}."
        )
    return reasons


def _startup_refusal(plan: Plan) -> str:
    """Return the sentence for vLLM's own check of free memory, and the way past it."""
    settings = plan.settings
    advice = ""
    if settings.budget_gib is None:
        share = floor(100 * plan.available_gib / settings.mem_total_gib) / 100
        advice = f" A gpu_memory_utilization of {share} passes this check"
        # A pool of a given size is allocated whatever the utilization says.
        advice += "; it does not change the pool." if settings.kv_cache_memory_gib is not None else "."
    return (
        f"vLLM would refuse to start: it wants {gib(plan.startup_gib)} free and finds {gib(plan.available_gib)}, "
        f"{gib(plan.startup_gib - plan.available_gib)} short.{advice}"
    )


def _worries(plan: Plan) -> list[str]:
    """Return a sentence for each reason why an accepted configuration is tight."""
    reasons = []
    if plan.settings.device == CUDA and plan.headroom_gib < memory_fit.TIGHT_HEADROOM_GIB:
        reasons.append(
            f"Only {gib(plan.headroom_gib)} of the node's memory stay free during a long prefill; below "
            f"{gib(memory_fit.TIGHT_HEADROOM_GIB)} nodes were seen to stall in reclaim. Start nothing else on it."
        )
    wanted = min(2, plan.settings.max_num_seqs or 1)
    if plan.pool.max_concurrency < wanted:
        reasons.append(
            f"The pool holds {plan.pool.max_concurrency:.2f} sequences of {plan.settings.max_model_len} tokens: two "
            "long requests cannot run at once."
        )
    return reasons


def notes_on(plan: Plan, newer: bool) -> list[str]:
    settings, notes = plan.settings, []
    if newer:
        notes.append(
            f"vLLM {settings.vllm_version} is newer than {version_text(NEWEST_READ)}, the newest release whose source "
            "this model was held against; its rules are assumed unchanged."
        )
    if settings.mem_available_gib is None:
        after = "after the tightest node measured" if settings.device == CUDA else "all that the node has"
        notes.append(f"mem_available_gib was not given: {gib(plan.available_gib)} assumed, {after}.")
    if settings.max_model_len > settings.geometry.max_position_embeddings:
        notes.append(
            f"max_model_len {settings.max_model_len} is above the model's own "
            f"{settings.geometry.max_position_embeddings} tokens: vLLM wants VLLM_ALLOW_LONG_MAX_MODEL_LEN=1, and the "
            "model's position encoding must be made for it."
        )
    if plan.layout.cache_mode == ALL and plan.pool_bytes > 0:
        aligned = make_plan(replace(settings, mamba_cache_mode=ALIGN), plan.rules)
        notes.append(
            f"vLLM {settings.vllm_version} keeps a state at every block boundary here (--mamba-cache-mode all): "
            f"{plan.pool.max_concurrency:.2f} sequences of {settings.max_model_len} tokens; with --mamba-cache-mode "
            f"align the same pool holds {aligned.pool.max_concurrency:.2f}."
        )
    if settings.max_num_seqs is not None and 1 <= plan.pool.max_concurrency < settings.max_num_seqs:
        notes.append(
            f"Of max_num_seqs {settings.max_num_seqs} sequences {plan.pool.max_concurrency:.2f} fit at their full "
            f"{settings.max_model_len} tokens; beyond that, requests wait."
        )
    return notes


def judge(plan: Plan) -> tuple[str, list[str]]:
    refusals = _refusals(plan)
    if refusals:
        return REFUSED, refusals
    worries = _worries(plan)
    if worries:
        return TIGHT, worries
    sentence = (
        f"{gib(plan.budget_gib)} hold {gib(plan.weights_gib)} of weights, "
        f"{gib(sum(plan.overheads.values()))} of activations and runtime and a pool of "
        f"{gib(plan.pool_bytes / GIB)}: {plan.pool.max_concurrency:.2f} sequences of "
        f"{plan.settings.max_model_len} tokens. {gib(plan.headroom_gib)} stay free during a long prefill."
    )
    return FITS, [sentence]
