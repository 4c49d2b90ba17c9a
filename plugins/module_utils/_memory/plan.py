# SPDX-License-Identifier: Apache-2.0
"""One configuration worked out on one node: layout, pool, weights, overheads.  Pure.

`kv` holds the exact half (vLLM's cache layout), `fit` the fitted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import DTYPE_BYTES
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import (
    GIB,
    MIB,
    VersionRules,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.layout import (
    Asked,
    Layout,
    Pool,
    fill_pool,
    plan_layout,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    CPU,
    CUDA,
    FLASHINFER,
    Figures,
    Settings,
    assumed_available_gib,
    ssm_dtype_of,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.sparse import indexer_buffer_bytes

#: Smallest block of the attention kernels.
_GRANULARITY = {CUDA: 16, CPU: 128}


@dataclass(frozen=True)
class Plan:
    """Everything that the rules below look at."""

    settings: Settings
    rules: VersionRules
    layout: Layout
    pool: Pool
    pool_bytes: int
    max_num_seqs: int
    batched_tokens: int
    weights_gib: float
    overheads: dict[str, float]
    budget_gib: float
    available_gib: float
    prefill_gib: float

    @property
    def headroom_gib(self) -> float:
        return self.available_gib - self.budget_gib - self.prefill_gib

    @property
    def sequence_gib(self) -> float:
        return self.layout.sequence_bytes(self.settings.max_model_len) / GIB

    @property
    def startup_gib(self) -> float:
        """Free memory that vLLM demands before it starts.

        A pool of a given size does not switch off the check of the utilization.
        """
        settings = self.settings
        if settings.device == CPU:
            return 0.0
        if settings.budget_gib is not None:
            return settings.budget_gib
        utilization = settings.gpu_memory_utilization or self.rules.default_utilization
        return ceil(settings.mem_total_gib * utilization * GIB) / GIB

    @property
    def safe_ceiling_gib(self) -> float:
        settings = self.settings
        bounds = [
            self.available_gib - self.prefill_gib - settings.floor_gib,
            fit_of(settings).largest_share * settings.mem_total_gib,
        ]
        if settings.firm_cap_gib is not None:
            bounds.append(settings.firm_cap_gib)
        return max(0.0, min(bounds))


def fit_of(settings: Settings) -> memory_fit.Fit:
    if settings.device == CPU:
        return memory_fit.CPU
    return memory_fit.GB10 if settings.unified_memory else memory_fit.DISCRETE


def default_batch(settings: Settings) -> tuple[int, int]:
    """Return vLLM's own max_num_seqs and max_num_batched_tokens where the settings are silent."""
    if settings.device == CPU:
        seqs, tokens = 128 * settings.tensor_parallel_size, 2048 * settings.tensor_parallel_size
    elif settings.mem_total_gib >= 70:
        seqs, tokens = 1024, 8192
    else:
        seqs, tokens = 256, 2048
    tokens = settings.max_num_batched_tokens or tokens
    return settings.max_num_seqs or min(seqs, tokens), tokens


def weights_per_rank_gib(settings: Settings) -> float:
    """Return one rank's share of the weights; the MTP head is loaded only when it is used."""
    weights, head = settings.weights_gib, settings.geometry.mtp
    if head is not None and head.weights_gib is not None and not (settings.speculative_tokens and settings.own_heads):
        weights -= head.weights_gib
    if settings.speculative_tokens:
        # A draft model is split over the same ranks, and is in every stage's way only once.
        weights += settings.draft_weights_gib
    return weights / (settings.tensor_parallel_size * settings.pipeline_parallel_size)


def overheads_gib(settings: Settings, batched_tokens: int) -> dict[str, float]:
    """Return what the engine takes beside weights and cache, by name; see ``memory_fit``."""
    fit, geometry = fit_of(settings), settings.geometry
    element = DTYPE_BYTES[geometry.dtype]
    hidden = batched_tokens * geometry.hidden_size * element / GIB
    wide = geometry.intermediate_size
    if wide is None and geometry.moe is None:
        wide = int(memory_fit.USUAL_INNER_WIDTH * geometry.hidden_size)
    dense = batched_tokens * (wide or 0) / settings.tensor_parallel_size * element / GIB
    experts = 0.0
    if geometry.moe:
        inner = geometry.moe.expert_intermediate_size
        if not settings.expert_parallel:
            inner //= settings.tensor_parallel_size
        width = (geometry.moe.latent_size or geometry.hidden_size) + inner
        experts = batched_tokens * geometry.moe.experts_per_token * width * element / GIB
    autotuner = fit.autotuner_expert_tensors * experts if settings.fp4_backend == FLASHINFER else 0.0
    return {
        "runtime_gib": fit.runtime_gib,
        "activations_gib": _activations_gib(settings, fit, hidden, dense, experts),
        "autotuner_gib": autotuner,
        "draft_gib": fit.draft_hidden_tensors * hidden if settings.speculative_tokens else 0.0,
        "graphs_gib": 0.0 if settings.enforce_eager else fit.graphs_gib,
        "distributed_gib": fit.distributed_gib
        if settings.tensor_parallel_size * settings.pipeline_parallel_size > 1
        else 0.0,
    }


def _activations_gib(settings: Settings, fit: memory_fit.Fit, hidden: float, dense: float, experts: float) -> float:
    """Return the most that is live at once: in a layer, or in the logits at the end of the step.

    :param hidden: GiB of tokens x hidden size; ``dense`` and ``experts`` of what an MLP of either kind works on
    """
    layer = fit.hidden_tensors * hidden + max(fit.dense_tensors * dense, fit.expert_tensors * experts)
    if not settings.enforce_eager:
        layer += fit.compiled_hidden_tensors * hidden
    rows = default_batch(settings)[0] * (1 + settings.speculative_tokens)
    logits = rows * (settings.geometry.vocab_size or 0) * fit.logits_bytes / GIB
    return max(layer, logits)


def in_flight_tokens(settings: Settings, batched_tokens: int, rules: VersionRules) -> int:
    """Return the tokens that may be scheduled and not yet settled, which windows keep besides their own."""
    if not rules.windows_count_batches_in_flight:
        return batched_tokens
    # The CPU build switches asynchronous scheduling off (vllm/platforms/cpu.py).
    overlaps = settings.async_scheduling and settings.device != CPU
    return batched_tokens * (settings.pipeline_parallel_size + (1 if overlaps else 0))


def make_plan(settings: Settings, rules: VersionRules) -> Plan:
    max_num_seqs, tokens = default_batch(settings)
    layout = plan_layout(
        settings.geometry,
        Asked(
            tensor_parallel_size=settings.tensor_parallel_size,
            kv_cache_dtype=settings.kv_cache_dtype,
            ssm_dtype=ssm_dtype_of(settings, rules) or settings.ssm_dtype,
            speculative_tokens=settings.speculative_tokens,
            block_granularity=settings.block_granularity or _GRANULARITY[settings.device],
            prefix_caching=settings.enable_prefix_caching,
            cache_mode=settings.mamba_cache_mode,
            rules=rules,
            in_flight_tokens=in_flight_tokens(settings, tokens, rules),
            hybrid_manager=settings.hybrid_kv_cache_manager,
            draft=settings.draft if settings.speculative_tokens else None,
            own_heads=settings.own_heads,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            decode_context_parallel_size=settings.decode_context_parallel_size,
        ),
    )
    # No step is larger than all sequences together.
    tokens = min(tokens, settings.max_model_len * max_num_seqs)
    weights = weights_per_rank_gib(settings)
    overheads = overheads_gib(settings, tokens)
    if settings.device != CPU:
        overheads["indexer_gib"] = indexer_buffer_bytes(settings.geometry, settings.max_model_len, rules) / GIB
    on_top_gib = 0.0
    if settings.geometry.architecture in rules.graphs_on_top:
        on_top_gib, overheads["graphs_gib"] = overheads["graphs_gib"], 0.0
    beside_pool = weights + sum(overheads.values())
    if settings.kv_cache_memory_gib is not None:
        pool_bytes = int(settings.kv_cache_memory_gib * GIB)
        budget = beside_pool + settings.kv_cache_memory_gib
    else:
        budget = settings.budget_gib or (settings.gpu_memory_utilization or 0.0) * settings.mem_total_gib
        pool_bytes = int((budget - beside_pool) * GIB)
    available = settings.mem_available_gib
    fit = fit_of(settings)
    hidden = tokens * settings.geometry.hidden_size * DTYPE_BYTES[settings.geometry.dtype] / GIB
    return Plan(
        settings=settings,
        rules=rules,
        layout=layout,
        pool=fill_pool(layout, pool_bytes, settings.max_model_len, rules),
        pool_bytes=pool_bytes,
        max_num_seqs=max_num_seqs,
        batched_tokens=tokens,
        weights_gib=weights,
        overheads=overheads,
        budget_gib=budget,
        available_gib=assumed_available_gib(settings.mem_total_gib, settings.device)
        if available is None
        else available,
        prefill_gib=max(fit.least_outside_budget_gib, fit.prefill_tensors_outside_budget * hidden) + on_top_gib,
    )


def figures_of(plan: Plan) -> Figures:
    settings, layout = plan.settings, plan.layout
    return Figures(
        max_model_len=settings.max_model_len,
        weights_gib_per_rank=plan.weights_gib,
        kv_bytes_per_token=layout.kv_bytes_per_token,
        attn_block_tokens=layout.block_tokens,
        padding_percent=layout.padding_percent,
        cache_mode=layout.cache_mode,
        recurrent_state_mib_per_seq=layout.recurrent_bytes(settings.max_model_len) / MIB,
        kv_gib_per_sequence=plan.sequence_gib,
        kv_pool_gib=plan.pool_bytes / GIB,
        kv_pool_blocks=plan.pool.blocks,
        kv_cache_tokens=plan.pool.cache_tokens,
        max_concurrency=plan.pool.max_concurrency,
        budget_gib=plan.budget_gib,
        mem_total_gib=settings.mem_total_gib,
        mem_available_gib=plan.available_gib,
        headroom_gib=plan.headroom_gib,
        safe_ceiling_gib=plan.safe_ceiling_gib,
        breakdown={
            "weights_gib": plan.weights_gib,
            **plan.overheads,
            "kv_pool_gib": plan.pool_bytes / GIB,
            "prefill_outside_budget_gib": plan.prefill_gib,
            "floor_gib": settings.floor_gib,
        },
    )
