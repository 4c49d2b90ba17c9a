# SPDX-License-Identifier: Apache-2.0
"""What is asked of the memory model, what it answers, and which questions contradict themselves.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory import kv
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import KIB_PER_GIB, parse_meminfo

#: From harmless to fatal; a cluster is as good as its worst node.
VERDICTS = (FITS, TIGHT, UNKNOWN, REFUSED) = ("fits", "tight", "unknown", "refused")
DEVICES = (CUDA, CPU) = ("cuda", "cpu")
#: What the node is made for, of an image that does not say yet what it runs on.
AUTO = "auto"
FP4_BACKENDS = (MARLIN, FLASHINFER) = ("marlin", "flashinfer")


class MemoryModelError(shapes.ProblemsError):
    """The settings contradict themselves."""


#: ``--max-model-len auto``: vLLM takes the longest context of which one sequence fits, up to the model's own
#: (vllm/v1/core/kv_cache_utils.py, _auto_fit_max_model_len).
AUTO_LENGTH = -1


@dataclass(frozen=True)
class Settings:
    """One engine configuration on one node.

    Exactly one of ``budget_gib``, ``gpu_memory_utilization`` and ``kv_cache_memory_gib`` says how
    much memory the engine gets; a utilization beside ``kv_cache_memory_gib`` only moves vLLM's
    start-up check.  ``mem_available_gib`` is what the engine will find free when it starts;
    None stands for what is known of boxes of that size.
    """

    geometry: shapes.Geometry
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
    async_scheduling: bool = True
    pipeline_parallel_size: int = 1
    #: Ranks of the tensor-parallel group over which the tokens of a sequence are spread.
    decode_context_parallel_size: int = 1
    #: A draft model beside the target: its shape and the size of its weights.
    draft: shapes.Geometry | None = None
    draft_weights_gib: float = 0.0
    #: False where no layers draft: a search in the text (ngram, suffix).
    draft_has_layers: bool = True
    hybrid_kv_cache_manager: bool = True
    enforce_eager: bool = False
    fp4_backend: str = MARLIN
    device: str = CUDA
    #: Flags of the processor, for the CPU build; None where they are not known.
    cpu_flags: tuple[str, ...] | None = None
    #: The GPU's memory is the host's, as on a GB10; False for a card with memory of its own.
    unified_memory: bool = True
    floor_gib: float = memory_fit.DEFAULT_FLOOR_GIB
    firm_cap_gib: float | None = None

    @property
    def own_heads(self) -> bool:
        """Whether what drafts are the checkpoint's own heads."""
        return self.draft is None and self.draft_weights_gib == 0 and self.draft_has_layers


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

    #: As asked for, or what ``auto`` comes to.
    max_model_len: int
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
    #: What would have to be known: why the verdict is ``unknown``, or rests on a measured cache.
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


def gib(value: float) -> str:
    return f"{value:.2f} GiB"


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


#: Whole numbers above zero, and what each counts.
_UNITS = {
    "tensor_parallel_size": "ranks",
    "max_model_len": "tokens",
    "max_num_seqs": "sequences",
    "max_num_batched_tokens": "tokens",
    "pipeline_parallel_size": "stages",
    "decode_context_parallel_size": "ranks",
    "block_granularity": "tokens",
}
_CHOICES: Mapping[str, Sequence[str]] = {
    "kv_cache_dtype": kv.KV_CACHE_DTYPES,
    "ssm_dtype": kv.SSM_DTYPES,
    "mamba_cache_mode": kv.CACHE_MODES,
    "fp4_backend": FP4_BACKENDS,
    "device": DEVICES,
}


def _positive(settings: Settings, name: str, unit: str) -> list[str]:
    value = getattr(settings, name)
    if value is not None and not (isfinite(value) and value > 0):
        return [f"{name} is {value}, but it must be above zero ({unit})."]
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
    for name in ("budget_gib", "kv_cache_memory_gib", "firm_cap_gib", "mem_total_gib", "mem_available_gib"):
        problems += _positive(settings, name, "GiB")
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
    problems = _positive(settings, "weights_gib", "GiB")
    problems += _check_memory_arguments(settings)
    for name, unit in _UNITS.items():
        problems += _positive(settings, name, unit)
    if settings.speculative_tokens < 0:
        problems.append(f"speculative_tokens is {settings.speculative_tokens}, but it must be zero or more.")
    for name, known in _CHOICES.items():
        value = getattr(settings, name)
        if value is not None and value not in known:
            problems.append(f"{name} is {value!r}, but it must be one of {', '.join(known)}.")
    if kv.parse_version(settings.vllm_version) is None:
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
    if isinstance(recurrent, shapes.Mamba2):
        must_divide("Mamba heads", recurrent.heads)
        if recurrent.groups % ranks and recurrent.groups != 1:
            problems.append(
                f"vLLM cannot split {recurrent.groups} Mamba groups over {ranks} ranks: only a single group is "
                "replicated."
            )
    elif isinstance(recurrent, shapes.Kda):
        must_divide("heads of the delta attention", recurrent.heads)
    elif isinstance(recurrent, shapes.Mamba1 | shapes.GatedConv):
        must_divide("channels of the recurrent layers", recurrent.width)
    elif isinstance(recurrent, shapes.GatedDeltaNet):
        must_divide("key heads of the delta net", recurrent.k_heads)
        must_divide("value heads of the delta net", recurrent.v_heads)
    if geometry.moe and not settings.expert_parallel:
        must_divide("columns of each expert (expert_parallel is off)", geometry.moe.expert_intermediate_size)
    context = settings.decode_context_parallel_size
    if context > 1:
        if ranks % context:
            problems.append(f"vLLM cannot spread a sequence over {context} of {ranks} tensor-parallel ranks.")
        if geometry.windows:
            problems.append(f"vLLM cannot spread windows over {context} ranks: decode_context_parallel_size must be 1.")
    return problems


def ssm_dtype_of(settings: Settings, rules: kv.VersionRules) -> str | None:
    """Return the dtype of the recurrent states, ``auto`` for the model's own; None where an unknown processor decides.

    vLLM's CPU build keeps float32 on some (vllm/platforms/cpu.py). With AVX512-BF16 a class whose recurrent layers
    transformers calls linear attention keeps what it was asked for; Falcon-H1's are hybrid layers.
    """
    recurrent, asked, flag = settings.geometry.recurrent, settings.ssm_dtype, rules.float32_states_on
    if settings.device != CPU or not flag or recurrent is None or isinstance(recurrent, shapes.GatedConv):
        return asked
    meant = recurrent.state_dtype if asked == "auto" else asked
    heeded = flag == "avx512_bf16" and settings.geometry.architecture != "FalconH1ForCausalLM"
    if meant == "float32" or (heeded and asked != "auto"):
        return asked
    if settings.cpu_flags is None:
        return None
    return "float32" if flag in settings.cpu_flags else asked


def missing_facts(settings: Settings, rules: kv.VersionRules) -> list[str]:
    """Return one sentence for each fact without which a figure would be a guess."""
    geometry = settings.geometry
    missing = []
    packed = geometry.compressed is not None or (
        geometry.indexer is not None and geometry.indexer.kind not in shapes.GROUPED_INDEXERS
    )
    for name in ("pipeline_parallel_size", "decode_context_parallel_size"):
        size = getattr(settings, name)
        if size > 1 and (packed or geometry.indexer):
            missing.append(f"{name} is {size}: how vLLM splits a compressed or indexed cache then is not known here.")
    if settings.speculative_tokens and settings.draft_has_layers and settings.draft is None:
        if settings.draft_weights_gib:
            missing.append(
                f"speculative_tokens is {settings.speculative_tokens} and a draft model stands beside the target, "
                "whose shape is not known: drafter.geometry, or config.json of its weights."
            )
        elif geometry.mtp is None:
            missing.append(
                f"speculative_tokens is {settings.speculative_tokens}, but the geometry has no mtp section: the layers "
                "of the draft model are unknown."
            )
    if packed and not geometry.compressed and not rules.packs_any_model:
        missing.append(
            f"geometry.indexer.kind {geometry.indexer.kind if geometry.indexer else ''} with vLLM "
            f"{settings.vllm_version}: the rules of releases before 0.30 for it were not read."
        )
    dtype = kv.resolve_kv_cache_dtype(geometry, settings.kv_cache_dtype)
    if dtype.endswith("_ds_mla") and not geometry.attention.latent_dim and not geometry.compressed:
        missing.append(f"kv_cache_dtype is {dtype}, which is for latent attention, and this model has none.")
    if geometry.compressed and dtype == "nvfp4_ds_mla":
        missing.append(
            "kv_cache_dtype is nvfp4_ds_mla: the releases whose source was read refuse it for this kind of cache, so "
            "the size of a state is not known."
        )
    recurrent = geometry.recurrent
    if ssm_dtype_of(settings, rules) is None:
        missing.append(
            f"vLLM's CPU build keeps recurrent states as float32 on a processor with {rules.float32_states_on}, and "
            "that of the node is not known: run the check there, or serve with --mamba-ssm-cache-dtype float32."
        )
    if isinstance(recurrent, shapes.Mamba2) and recurrent.chunk_size is None:
        caching = kv.resolve_prefix_caching(geometry, settings.enable_prefix_caching, rules)
        mode = kv.resolve_cache_mode(recurrent, caching, settings.speculative_tokens, rules, settings.mamba_cache_mode)
        if mode == kv.ALL:
            missing.append(
                "geometry.recurrent.chunk_size: with prefix caching this version of vLLM keeps a Mamba state at every "
                "block, and a block is a multiple of the chunk."
            )
    return missing
