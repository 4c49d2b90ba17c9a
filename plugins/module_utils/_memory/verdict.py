# SPDX-License-Identifier: Apache-2.0
"""Will this model boot on this node, and survive: weights, cache, activations, host.

``evaluate`` turns one node's memory and one engine configuration into a verdict with
figures, reasons and suggestions; ``cluster_verdict`` names the tightest of several nodes.
Everything here is pure.  ``memory_kv`` holds the exact half (vLLM's cache layout),
``memory_fit`` the fitted one.  GiB are binary, and figures are those of one rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, floor, isfinite
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import DTYPE_BYTES, Geometry, Mamba2
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import (
    ALIGN,
    ALL,
    CACHE_MODES,
    GIB,
    KV_CACHE_DTYPES,
    MIB,
    NEWEST_READ,
    OLDEST_READ,
    SSM_DTYPES,
    Layout,
    Pool,
    VersionRules,
    fill_pool,
    parse_version,
    plan_layout,
    resolve_cache_mode,
    resolve_prefix_caching,
    rules_for,
    version_text,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import KIB_PER_GIB, parse_meminfo

FITS = "fits"
TIGHT = "tight"
REFUSED = "refused"
UNKNOWN = "unknown"

#: From harmless to fatal; a cluster is as good as its worst node.
VERDICTS = (FITS, TIGHT, UNKNOWN, REFUSED)

CUDA = "cuda"
CPU = "cpu"
DEVICES = (CUDA, CPU)

MARLIN = "marlin"
FLASHINFER = "flashinfer"
FP4_BACKENDS = (MARLIN, FLASHINFER)

#: Smallest block of the attention kernels.
_GRANULARITY = {CUDA: 16, CPU: 128}
#: A saving below this is not worth a suggestion.
_NEGLIGIBLE_GIB = 0.05
#: Largest batch that a heavy prefill was seen to survive [S0].
_VALIDATED_BATCHED_TOKENS = 8192
_SMALLEST_BATCHED_TOKENS = 2048


class MemoryModelError(ValueError):
    """The settings contradict themselves; ``problems`` holds one sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Settings:
    """One engine configuration on one node.

    Exactly one of ``budget_gib``, ``gpu_memory_utilization`` and ``kv_cache_memory_gib`` says how
    much memory the engine gets; a utilization beside ``kv_cache_memory_gib`` only moves vLLM's
    start-up check.  ``mem_available_gib`` is what the engine will find free when it starts;
    None stands for what is known of boxes of that size.
    """

    geometry: Geometry
    weights_gib: float
    vllm_version: str
    max_model_len: int
    mem_total_gib: float
    mem_available_gib: float | None = None
    tensor_parallel_size: int = 1
    expert_parallel: bool = False
    kv_cache_dtype: str = "auto"
    ssm_dtype: str = "auto"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    speculative_tokens: int = 0
    budget_gib: float | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_gib: float | None = None
    enable_prefix_caching: bool | None = None
    mamba_cache_mode: str | None = None
    block_granularity: int | None = None
    enforce_eager: bool = False
    fp4_backend: str = MARLIN
    device: str = CUDA
    floor_gib: float = memory_fit.DEFAULT_FLOOR_GIB
    firm_cap_gib: float | None = None


@dataclass(frozen=True)
class Suggestion:
    """One change, and what it gives back on each node."""

    order: int
    action: str
    #: Option of ``vllm serve`` or argument of the module -> new value.
    change: dict[str, Any]
    frees_gib: float
    #: The verdict improves with this change alone: refused becomes tight or fits, tight becomes fits.
    resolves: bool


@dataclass(frozen=True)
class Figures:
    """What the model computed for one node.  Sizes in GiB unless the name says otherwise."""

    weights_gib_per_rank: float
    kv_bytes_per_token: int
    attn_block_tokens: int
    padding_percent: float
    cache_mode: str
    recurrent_state_mib_per_seq: float
    kv_gib_per_sequence: float
    kv_pool_gib: float
    kv_pool_blocks: int
    kv_cache_tokens: int
    max_concurrency: float
    budget_gib: float
    mem_total_gib: float
    mem_available_gib: float
    #: MemAvailable that remains while a long prompt is prefilled.
    headroom_gib: float
    #: The largest budget that this node carries with these settings.
    safe_ceiling_gib: float
    #: Name of a part -> GiB; the parts inside the budget first, then what comes on top.
    breakdown: dict[str, float]


@dataclass(frozen=True)
class Budget:
    """The verdict on one node, and why."""

    verdict: str
    reasons: list[str]
    figures: Figures | None = None
    suggestions: list[Suggestion] = field(default_factory=list)
    #: Assumptions and remarks that do not change the verdict.
    notes: list[str] = field(default_factory=list)
    #: What would have to be known (verdict ``unknown`` only).
    missing: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with every figure at the top level and None where nothing is known."""
        figures: dict[str, Any] = dict.fromkeys(Figures.__dataclass_fields__)
        if self.figures is not None:
            figures = {key: _rounded(value) for key, value in asdict(self.figures).items()}
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "missing": list(self.missing),
            "suggestions": [_rounded(asdict(suggestion)) for suggestion in self.suggestions],
            **figures,
        }


def _rounded(value: Any) -> Any:
    """Return the value with every float in it cut to three decimals."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _gib(value: float) -> str:
    return f"{value:.2f} GiB"


# --------------------------------------------------------------------------------------
# The node
# --------------------------------------------------------------------------------------


def meminfo_gib(text: str) -> tuple[float, float]:
    """Return MemTotal and MemAvailable of ``/proc/meminfo`` in GiB.

    :raises ValueError: when one of them is not in it
    """
    found = parse_meminfo(text)
    for name in ("MemTotal", "MemAvailable"):
        if name not in found:
            raise ValueError(f"/proc/meminfo has no line {name}.")
    return found["MemTotal"] / KIB_PER_GIB, found["MemAvailable"] / KIB_PER_GIB


def available_on_idle_node(mem_available_gib: float, reclaim_gib: float, device: str) -> float:
    """Return what an engine will find free on a node whose MemAvailable was read before its start.

    :param reclaim_gib: what stopping the engine that runs now gives back
    """
    fit = memory_fit.CPU if device == CPU else memory_fit.GB10
    return max(0.01, mem_available_gib + reclaim_gib - fit.host_processes_gib)


def assumed_available_gib(mem_total_gib: float, device: str = CUDA) -> float:
    """Return what to expect of a node that cannot be asked: the tightest that was measured.

    Of a node of the lab, which shares its host's memory with the others, nothing is known but the total.
    """
    if device == CPU:
        return mem_total_gib
    smallest, largest = memory_fit.LARGE_BOX_TOTAL_GIB
    if smallest <= mem_total_gib <= largest:
        return min(memory_fit.TIGHTEST_AVAILABLE_GIB, mem_total_gib)
    return max(0.0, mem_total_gib - memory_fit.SYSTEM_GIB)


# --------------------------------------------------------------------------------------
# Checking the settings
# --------------------------------------------------------------------------------------


def _positive(name: str, value: float | None, unit: str) -> list[str]:
    if value is not None and not (isfinite(value) and value > 0):
        return [f"{name} is {value}, but it must be above zero{unit}."]
    return []


def _choice(name: str, value: str | None, known: Sequence[str]) -> list[str]:
    if value is not None and value not in known:
        return [f"{name} is {value!r}, but it must be one of {', '.join(known)}."]
    return []


def _check_memory_arguments(settings: Settings) -> list[str]:
    problems = []
    given = {
        name: getattr(settings, name)
        for name in ("budget_gib", "gpu_memory_utilization", "kv_cache_memory_gib")
        if getattr(settings, name) is not None
    }
    if not given:
        problems.append(
            "Nothing says how much memory the engine gets: give budget_gib, gpu_memory_utilization or "
            "kv_cache_memory_gib."
        )
    elif "budget_gib" in given and len(given) > 1:
        others = " and ".join(name for name in given if name != "budget_gib")
        problems.append(f"budget_gib and {others} exclude one another: give one of them.")
    utilization = settings.gpu_memory_utilization
    if utilization is not None and not (isfinite(utilization) and 0 < utilization <= 1):
        problems.append(
            f"gpu_memory_utilization is {utilization}, but it is a share above 0 and at most 1; "
            "a number of GiB goes into budget_gib."
        )
    problems += _positive("budget_gib", settings.budget_gib, " (GiB)")
    problems += _positive("kv_cache_memory_gib", settings.kv_cache_memory_gib, " (GiB)")
    problems += _positive("firm_cap_gib", settings.firm_cap_gib, " (GiB)")
    problems += _positive("mem_total_gib", settings.mem_total_gib, " (GiB)")
    problems += _positive("mem_available_gib", settings.mem_available_gib, " (GiB)")
    if not (isfinite(settings.floor_gib) and settings.floor_gib >= 0):
        problems.append(f"floor_gib is {settings.floor_gib}, but it must be zero or more (GiB).")
    available = settings.mem_available_gib
    if available is not None and available > settings.mem_total_gib:
        problems.append(
            f"mem_available_gib is {available}, but the node has {settings.mem_total_gib} GiB in all: "
            "are the two swapped?"
        )
    return problems


def check_settings(settings: Settings) -> list[str]:
    """Return one sentence for each value that no engine could be started with."""
    geometry = settings.geometry
    problems = _positive("weights_gib", settings.weights_gib, " (GiB)")
    problems += _check_memory_arguments(settings)
    problems += _positive("tensor_parallel_size", settings.tensor_parallel_size, " (ranks)")
    problems += _positive("max_model_len", settings.max_model_len, " (tokens)")
    problems += _positive("max_num_seqs", settings.max_num_seqs, " (sequences)")
    problems += _positive("max_num_batched_tokens", settings.max_num_batched_tokens, " (tokens)")
    problems += _positive("block_granularity", settings.block_granularity, " (tokens)")
    if settings.speculative_tokens < 0:
        problems.append(f"speculative_tokens is {settings.speculative_tokens}, but it must be zero or more.")
    problems += _choice("kv_cache_dtype", settings.kv_cache_dtype, KV_CACHE_DTYPES)
    problems += _choice("ssm_dtype", settings.ssm_dtype, SSM_DTYPES)
    problems += _choice("mamba_cache_mode", settings.mamba_cache_mode, CACHE_MODES)
    problems += _choice("fp4_backend", settings.fp4_backend, FP4_BACKENDS)
    problems += _choice("device", settings.device, DEVICES)
    if parse_version(settings.vllm_version) is None:
        problems.append(f"vllm_version is {settings.vllm_version!r}, which names no release such as 0.22.1.")
    if settings.expert_parallel and geometry.moe is None:
        problems.append("expert_parallel is set, but the geometry has no moe section: there are no experts to share.")
    seqs, tokens = settings.max_num_seqs, settings.max_num_batched_tokens
    if seqs is not None and tokens is not None and seqs > tokens > 0:
        problems.append(
            f"max_num_batched_tokens is {tokens}, below max_num_seqs {seqs}: every running sequence needs a token "
            "in each step."
        )
    head = geometry.mtp.weights_gib if geometry.mtp else None
    if head is not None and head >= settings.weights_gib > 0:
        problems.append(
            f"geometry.mtp.weights_gib is {head}, but weights_gib, which includes the MTP head, is only "
            f"{settings.weights_gib}."
        )
    return problems


def split_problems(settings: Settings) -> list[str]:
    """Return one sentence for each dimension of the model that does not split over the ranks."""
    ranks, geometry = settings.tensor_parallel_size, settings.geometry
    problems = []

    def must_divide(what: str, size: int) -> None:
        if size % ranks:
            problems.append(f"vLLM cannot split {size} {what} over {ranks} ranks.")

    attention = geometry.attention
    must_divide("attention heads", attention.heads)
    larger, smaller = max(attention.kv_heads, ranks), min(attention.kv_heads, ranks)
    if larger % smaller:
        problems.append(f"vLLM can neither split nor replicate {attention.kv_heads} KV heads over {ranks} ranks.")
    recurrent = geometry.recurrent
    if isinstance(recurrent, Mamba2):
        must_divide("Mamba heads", recurrent.heads)
        if recurrent.groups % ranks and recurrent.groups != 1:
            problems.append(
                f"vLLM cannot split {recurrent.groups} Mamba groups over {ranks} ranks: only a single group is "
                "replicated."
            )
    elif recurrent is not None:
        must_divide("key heads of the delta net", recurrent.k_heads)
        must_divide("value heads of the delta net", recurrent.v_heads)
    if geometry.moe and not settings.expert_parallel:
        must_divide("columns of each expert (expert_parallel is off)", geometry.moe.expert_intermediate_size)
    return problems


def missing_facts(settings: Settings, rules: VersionRules) -> list[str]:
    """Return one sentence for each fact without which a figure would be a guess."""
    geometry = settings.geometry
    missing = []
    if settings.speculative_tokens and geometry.mtp is None:
        missing.append(
            f"speculative_tokens is {settings.speculative_tokens}, but the geometry has no mtp section: the layers of "
            "the draft model are unknown."
        )
    recurrent = geometry.recurrent
    if isinstance(recurrent, Mamba2) and recurrent.chunk_size is None:
        caching = resolve_prefix_caching(geometry, settings.enable_prefix_caching, rules)
        mode = resolve_cache_mode(recurrent, caching, settings.speculative_tokens, rules, settings.mamba_cache_mode)
        if mode == ALL:
            missing.append(
                "geometry.recurrent.chunk_size: with prefix caching this version of vLLM keeps a Mamba state at every "
                "block, and a block is a multiple of the chunk."
            )
    return missing


# --------------------------------------------------------------------------------------
# The figures
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
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
            _fit(settings).largest_share * settings.mem_total_gib,
        ]
        if settings.firm_cap_gib is not None:
            bounds.append(settings.firm_cap_gib)
        return max(0.0, min(bounds))


def _fit(settings: Settings) -> memory_fit.Fit:
    return memory_fit.CPU if settings.device == CPU else memory_fit.GB10


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
    if head is not None and head.weights_gib is not None and not settings.speculative_tokens:
        weights -= head.weights_gib
    return weights / settings.tensor_parallel_size


def overheads_gib(settings: Settings, batched_tokens: int) -> dict[str, float]:
    """Return what the engine takes beside weights and cache, by name; see ``memory_fit``."""
    fit, geometry = _fit(settings), settings.geometry
    element = DTYPE_BYTES[geometry.dtype]
    hidden = batched_tokens * geometry.hidden_size * element / GIB
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
        "activations_gib": fit.hidden_tensors * hidden + fit.expert_tensors * experts,
        "autotuner_gib": autotuner,
        "draft_gib": fit.draft_hidden_tensors * hidden if settings.speculative_tokens else 0.0,
        "graphs_gib": 0.0 if settings.enforce_eager else fit.graphs_gib,
        "distributed_gib": fit.distributed_gib if settings.tensor_parallel_size > 1 else 0.0,
    }


def _plan(settings: Settings, rules: VersionRules) -> _Plan:
    layout = plan_layout(
        settings.geometry,
        tensor_parallel_size=settings.tensor_parallel_size,
        kv_cache_dtype=settings.kv_cache_dtype,
        ssm_dtype=settings.ssm_dtype,
        speculative_tokens=settings.speculative_tokens,
        block_granularity=settings.block_granularity or _GRANULARITY[settings.device],
        prefix_caching=settings.enable_prefix_caching,
        cache_mode=settings.mamba_cache_mode,
        rules=rules,
    )
    max_num_seqs, tokens = default_batch(settings)
    # No step is larger than all sequences together.
    tokens = min(tokens, settings.max_model_len * max_num_seqs)
    weights = weights_per_rank_gib(settings)
    overheads = overheads_gib(settings, tokens)
    beside_pool = weights + sum(overheads.values())
    if settings.kv_cache_memory_gib is not None:
        pool_bytes = int(settings.kv_cache_memory_gib * GIB)
        budget = beside_pool + settings.kv_cache_memory_gib
    else:
        budget = settings.budget_gib or (settings.gpu_memory_utilization or 0.0) * settings.mem_total_gib
        pool_bytes = int((budget - beside_pool) * GIB)
    available = settings.mem_available_gib
    fit = _fit(settings)
    hidden = tokens * settings.geometry.hidden_size * DTYPE_BYTES[settings.geometry.dtype] / GIB
    return _Plan(
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
        prefill_gib=fit.prefill_tensors_outside_budget * hidden,
    )


def _figures(plan: _Plan) -> Figures:
    settings, layout = plan.settings, plan.layout
    return Figures(
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


# --------------------------------------------------------------------------------------
# The rules
# --------------------------------------------------------------------------------------


def _pool_refusals(plan: _Plan) -> list[str]:
    """Refusals that vLLM itself would utter, minutes after its start."""
    settings, layout, pool_gib = plan.settings, plan.layout, plan.pool_bytes / GIB
    if plan.pool_bytes <= 0:
        beside = plan.budget_gib - pool_gib
        sentence = (
            f"Nothing is left for the cache: a budget of {_gib(plan.budget_gib)} less {_gib(plan.weights_gib)} of "
            f"weights and {_gib(beside - plan.weights_gib)} of activations and runtime is {_gib(pool_gib)}."
        )
        return [sentence]
    reasons = []
    if plan.sequence_gib > pool_gib:
        longest = layout.longest_sequence(plan.pool_bytes, settings.max_model_len)
        reasons.append(
            f"The cache is too small: one sequence of {settings.max_model_len} tokens takes {_gib(plan.sequence_gib)}, "
            f"the pool has {_gib(pool_gib)}, which is {_gib(plan.sequence_gib - pool_gib)} short"
            + (f"; it would hold {longest} tokens." if longest else " of anything.")
        )
    graphs = plan.rules.graphs_want_block_per_sequence and not settings.enforce_eager and settings.device == CUDA
    if graphs and layout.recurrent_groups and plan.max_num_seqs > plan.pool.blocks:
        reasons.append(
            f"CUDA graphs want a cache block for each of max_num_seqs {plan.max_num_seqs} sequences, and the pool has "
            f"{plan.pool.blocks}: set max_num_seqs to {plan.pool.blocks} or less."
        )
    return reasons


def _refusals(plan: _Plan) -> list[str]:
    """Return a sentence for each reason why this would not boot, or not survive."""
    settings, layout, fit = plan.settings, plan.layout, _fit(plan.settings)
    reasons = _pool_refusals(plan)
    too_long = layout.cache_mode == ALIGN and layout.block_tokens > plan.batched_tokens
    if plan.rules.align_block_within_batch and layout.recurrent_groups and too_long:
        reasons.append(
            f"With prefix caching a block of {layout.block_tokens} tokens must fit into max_num_batched_tokens, which "
            f"is {plan.batched_tokens}: raise it, keep the state in a smaller dtype, or switch prefix caching off."
        )
    starts = plan.startup_gib <= plan.available_gib
    if not starts:
        reasons.append(_startup_refusal(plan))
    if settings.firm_cap_gib is not None and plan.budget_gib > settings.firm_cap_gib:
        reasons.append(
            f"The budget of {_gib(plan.budget_gib)} is {_gib(plan.budget_gib - settings.firm_cap_gib)} above this "
            f"cluster's firm cap of {_gib(settings.firm_cap_gib)}."
        )
    share = plan.budget_gib / settings.mem_total_gib
    if share > fit.largest_share:
        serves, crashed = 100 * fit.largest_share, 100 * memory_fit.CRASHED_SHARE
        seen = f": up to {serves:.0f} % was seen to serve, {crashed:.0f} % to crash"
        reasons.append(
            f"The budget of {_gib(plan.budget_gib)} is {100 * share:.1f} % of the node's "
            f"{_gib(settings.mem_total_gib)}{seen if settings.device == CUDA else ''}."
        )
    short = settings.floor_gib - plan.headroom_gib
    if starts and short > 0:
        reasons.append(
            f"It would start and die at the first long prompt: of {_gib(plan.available_gib)} available the budget "
            f"takes {_gib(plan.budget_gib)} and a prefill in steps of {plan.batched_tokens} tokens "
            f"{_gib(plan.prefill_gib)}, which is {_gib(short)} too much for a floor of {_gib(settings.floor_gib)}; "
            f"the safe ceiling is {_gib(plan.safe_ceiling_gib)}."
        )
    return reasons


def _startup_refusal(plan: _Plan) -> str:
    """Return the sentence for vLLM's own check of free memory, and the way past it."""
    settings = plan.settings
    advice = ""
    if settings.budget_gib is None:
        share = floor(100 * plan.available_gib / settings.mem_total_gib) / 100
        advice = f" A gpu_memory_utilization of {share} passes this check"
        # A pool of a given size is allocated whatever the utilization says.
        advice += "; it does not change the pool." if settings.kv_cache_memory_gib is not None else "."
    return (
        f"vLLM would refuse to start: it wants {_gib(plan.startup_gib)} free and finds {_gib(plan.available_gib)}, "
        f"{_gib(plan.startup_gib - plan.available_gib)} short.{advice}"
    )


def _worries(plan: _Plan) -> list[str]:
    """Return a sentence for each reason why an accepted configuration is tight."""
    reasons = []
    if plan.settings.device == CUDA and plan.headroom_gib < memory_fit.TIGHT_HEADROOM_GIB:
        reasons.append(
            f"Only {_gib(plan.headroom_gib)} of the node's memory stay free during a long prefill; below "
            f"{_gib(memory_fit.TIGHT_HEADROOM_GIB)} nodes were seen to stall in reclaim. Start nothing else on it."
        )
    wanted = min(2, plan.settings.max_num_seqs or 1)
    if plan.pool.max_concurrency < wanted:
        reasons.append(
            f"The pool holds {plan.pool.max_concurrency:.2f} sequences of {plan.settings.max_model_len} tokens: two "
            "long requests cannot run at once."
        )
    return reasons


def _notes(plan: _Plan, newer: bool) -> list[str]:
    settings, notes = plan.settings, []
    if newer:
        notes.append(
            f"vLLM {settings.vllm_version} is newer than {version_text(NEWEST_READ)}, the newest release whose source "
            "this model was held against; its rules are assumed unchanged."
        )
    if settings.mem_available_gib is None:
        after = "after the tightest node measured" if settings.device == CUDA else "all that the node has"
        notes.append(f"mem_available_gib was not given: {_gib(plan.available_gib)} assumed, {after}.")
    if settings.max_model_len > settings.geometry.max_position_embeddings:
        notes.append(
            f"max_model_len {settings.max_model_len} is above the model's own "
            f"{settings.geometry.max_position_embeddings} tokens: vLLM wants VLLM_ALLOW_LONG_MAX_MODEL_LEN=1, and the "
            "model's position encoding must be made for it."
        )
    if settings.max_num_seqs is not None and 1 <= plan.pool.max_concurrency < settings.max_num_seqs:
        notes.append(
            f"Of max_num_seqs {settings.max_num_seqs} sequences {plan.pool.max_concurrency:.2f} fit at their full "
            f"{settings.max_model_len} tokens; beyond that, requests wait."
        )
    return notes


# --------------------------------------------------------------------------------------
# Suggestions
# --------------------------------------------------------------------------------------


def _demand_gib(plan: _Plan) -> float:
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


def _pool_change(plan: _Plan) -> _Candidate | None:
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


def _budget_change(plan: _Plan) -> _Candidate | None:
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


def _sequences_change(plan: _Plan) -> _Candidate | None:
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


def _cache_changes(plan: _Plan) -> list[_Candidate]:
    """Return the changes that make a sequence smaller."""
    settings, layout, found = plan.settings, plan.layout, []
    if layout.cache_mode == ALL:
        changed = replace(settings, mamba_cache_mode=ALIGN)
        action = "Set --mamba-cache-mode align instead of keeping a state at every block boundary"
        found.append(_Candidate(changed, {"mamba-cache-mode": ALIGN}, action))
    elif layout.cache_mode == ALIGN and layout.recurrent_groups:
        changed = replace(settings, enable_prefix_caching=False)
        action = "Switch prefix caching off, which leaves one state a sequence"
        found.append(_Candidate(changed, {"enable-prefix-caching": False}, action))
    if settings.kv_cache_dtype in ("auto", "bfloat16", "float16"):
        changed = replace(settings, kv_cache_dtype="fp8")
        found.append(_Candidate(changed, {"kv-cache-dtype": "fp8"}, "Keep the KV cache in fp8"))
    return found


def _candidates(plan: _Plan) -> list[_Candidate]:
    """Return the changes worth trying, in the documented order [S0].

    MTP first, then the number of sequences, then the budget; then what else is known to help.
    """
    settings, found = plan.settings, []
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


def _suggestions(plan: _Plan, verdict: str) -> list[Suggestion]:
    """Return the candidates that free something or improve the verdict, numbered in order."""
    found: list[Suggestion] = []
    before = _demand_gib(plan)
    for candidate in _candidates(plan):
        after = _plan(candidate.settings, plan.rules)
        freed = before - _demand_gib(after) if candidate.gib is None else candidate.gib
        resolves = VERDICTS.index(_verdict(after)[0]) < VERDICTS.index(verdict)
        if freed < _NEGLIGIBLE_GIB and not resolves:
            continue
        found.append(
            Suggestion(
                order=len(found) + 1,
                action=f"{candidate.action}: {candidate.effect.format(_gib(freed))}.",
                change=candidate.change,
                frees_gib=freed,
                resolves=resolves,
            )
        )
    return found


# --------------------------------------------------------------------------------------
# The verdict
# --------------------------------------------------------------------------------------


def _verdict(plan: _Plan) -> tuple[str, list[str]]:
    refusals = _refusals(plan)
    if refusals:
        return REFUSED, refusals
    worries = _worries(plan)
    if worries:
        return TIGHT, worries
    sentence = (
        f"{_gib(plan.budget_gib)} hold {_gib(plan.weights_gib)} of weights, "
        f"{_gib(sum(plan.overheads.values()))} of activations and runtime and a pool of "
        f"{_gib(plan.pool_bytes / GIB)}: {plan.pool.max_concurrency:.2f} sequences of "
        f"{plan.settings.max_model_len} tokens. {_gib(plan.headroom_gib)} stay free during a long prefill."
    )
    return FITS, [sentence]


def unknown(missing: Sequence[str]) -> Budget:
    """Return the honest verdict on a model of which not enough is known."""
    return Budget(verdict=UNKNOWN, reasons=["The memory of this model cannot be computed."], missing=list(missing))


def evaluate(settings: Settings) -> Budget:
    """Return the verdict on one engine configuration on one node.

    :raises MemoryModelError: with every problem at once, when the settings themselves are wrong
    """
    problems = check_settings(settings)
    if problems:
        raise MemoryModelError(problems)
    version = parse_version(settings.vllm_version) or NEWEST_READ
    if version < OLDEST_READ:
        oldest = version_text(OLDEST_READ)
        sentence = f"vLLM {settings.vllm_version} is older than {oldest}, the oldest release whose source was read."
        return unknown([sentence])
    rules = rules_for(version)
    missing = missing_facts(settings, rules)
    if missing:
        return unknown(missing)
    split = split_problems(settings)
    if split:
        return Budget(verdict=REFUSED, reasons=split)
    plan = _plan(settings, rules)
    verdict, reasons = _verdict(plan)
    return Budget(
        verdict=verdict,
        reasons=reasons,
        figures=_figures(plan),
        suggestions=[] if verdict == FITS else _suggestions(plan, verdict),
        notes=_notes(plan, version > NEWEST_READ),
    )


@dataclass(frozen=True)
class ClusterVerdict:
    """The verdict on a whole cluster: that of its tightest node."""

    verdict: str
    node: str
    reason: str
    per_node: dict[str, str]


def cluster_verdict(per_node: Mapping[str, Budget]) -> ClusterVerdict:
    """Return the verdict of the tightest node, named.

    The worst verdict comes first; among equals the node with the least headroom.

    :raises ValueError: without any node
    """
    return ClusterVerdict(**tightest_of({name: budget.as_dict() for name, budget in per_node.items()}))


def tightest_of(per_node: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Do the same for results of ``gb10.cluster.memory_budget``, which are plain data.

    :raises ValueError: without any node, or with a result that is not one of that module
    """
    if not per_node:
        raise ValueError("No node was given: there is no tightest one.")
    for name, result in per_node.items():
        if result.get("verdict") not in VERDICTS:
            raise ValueError(f"The result of {name} is not one of gb10.cluster.memory_budget: it has no verdict.")

    def looseness(name: str) -> tuple[int, float, str]:
        result = per_node[name]
        headroom = result.get("headroom_gib")
        return -VERDICTS.index(result["verdict"]), float("-inf") if headroom is None else float(headroom), name

    node = min(per_node, key=looseness)
    result = per_node[node]
    reason = " ".join([*result["reasons"], *result["missing"]])
    which = f"{node} is the tightest of {len(per_node)} nodes" if len(per_node) > 1 else node
    return {
        "verdict": result["verdict"],
        "node": node,
        "reason": f"{which} ({result['verdict']}): {reason}",
        "per_node": {name: per_node[name]["verdict"] for name in sorted(per_node)},
    }
