# SPDX-License-Identifier: Apache-2.0
"""What differs between releases of vLLM, and what one layer keeps; `layout` puts the layers together.

This half of the memory model is exact: it restates the rules of vLLM's own planner, which
were read in the sources of the releases 0.18.1 to 0.33.0 (``vllm/v1/core/kv_cache_utils.py``
and, in 0.33, ``kv_cache_planning.py``; ``vllm/v1/kv_cache_interface.py``;
``vllm/platforms/interface.py``; ``vllm/model_executor/layers/mamba/mamba_utils.py``;
``vllm/model_executor/models/config.py``).  Sizes are bytes unless a name says otherwise,
and always those of one rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes

GIB = 1 << 30
MIB = 1 << 20

#: Cache modes of the recurrent state.
NONE = "none"  # one state a sequence
ALIGN = "align"  # the running state and the last block boundary
ALL = "all"  # a state at every block boundary, kept for prefix caching
CACHE_MODES = (NONE, ALIGN, ALL)

_ONE_BYTE_KV = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
_SCALED_KV = ("int8_per_token_head", "fp8_per_token_head")
#: Packed states of latent attention: 512 elements, the part with the position in bfloat16, scales.
_PACKED_LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
KV_CACHE_DTYPES = ("auto", "bfloat16", "float16", *_ONE_BYTE_KV, *_SCALED_KV, "nvfp4", *_PACKED_LATENT_BYTES)
SSM_DTYPES = ("auto", *shapes.DTYPE_BYTES)


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient rounded up."""
    return -(-numerator // denominator)


_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")

#: Containers are named after the year; vLLM is nowhere near such a number.
_FIRST_YEAR = 20

OLDEST_READ = (0, 18, 0)
NEWEST_READ = (0, 33, 0)
#: The first release read in which a window counts every batch under way (``VllmConfig.max_in_flight_tokens``).
IN_FLIGHT = (0, 26, 0)

Version = tuple[int, int, int]


def parse_version(text: str) -> Version | None:
    """Return the release that a vLLM version string belongs to, or None when it names none.

    Pre-releases and local builds count as the release whose number they carry:
    ``0.22.1rc1.dev124+gace95c9cf`` is ``(0, 22, 1)``.  The tag of a vendor's container, such as
    ``26.05-py3``, is none.
    """
    match = _VERSION.match(text.strip())
    if match is None or int(match[1]) >= _FIRST_YEAR:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def version_text(version: Version) -> str:
    """Return ``0.22.1`` for ``(0, 22, 1)``."""
    return ".".join(str(part) for part in version)


def _in(first: Version = (0, 0, 0), before: Version = (_FIRST_YEAR, 0, 0)) -> dict[str, Version]:
    """Return the releases for which a rule holds: from one on, up to another."""
    return {"first": first, "before": before}


@dataclass(frozen=True)
class VersionRules:
    """The rules of one vLLM release that the size of the cache depends on."""

    #: ``--gpu-memory-utilization`` when the command line says nothing.
    default_utilization: float
    #: Architectures that get vLLM's V2 model runner while its profile does not count CUDA graphs: they come on top.
    graphs_on_top: frozenset[str]
    #: Flag of a processor on which the CPU build sets the dtype of recurrent states to float32; empty for none.
    float32_states_on: str
    #: Architectures whose windows have one token more than config.json says, the token itself.
    windows_count_the_token_itself: frozenset[str]
    #: Prefix caching of a hybrid model when the command line says nothing.
    hybrid_prefix_caching: bool = field(metadata=_in(first=(0, 26, 0)))
    #: ``GPU KV cache size`` in the log is concurrency x max_model_len, not blocks of one group.
    tokens_from_concurrency: bool = field(metadata=_in(first=(0, 20, 1)))
    #: Prefix caching keeps Mamba-2 states in mode ``all``.
    mamba2_default_all: bool = field(metadata=_in(before=(0, 28, 0)))
    #: … unless there is speculative decoding, which then gets ``align``.
    align_when_speculative: bool = field(metadata=_in(first=(0, 20, 0), before=(0, 22, 0)))
    #: Mode ``all`` exists at all.
    has_mode_all: bool = field(metadata=_in(before=(0, 32, 0)))
    #: Mode ``all`` also keeps a block for each speculative token.
    all_counts_speculative: bool = field(metadata=_in(first=(0, 22, 0)))
    #: In mode ``align`` a Mamba-2 layer keeps one more block, to export a checkpoint from a prefill.
    mamba2_checkpoint_block: bool = field(metadata=_in(first=(0, 32, 0)))
    #: The same for a gated delta net whose prefill runs on FlashInfer (as on GB10).
    gdn_checkpoint_block: bool = field(metadata=_in(first=(0, 33, 0)))
    #: The same for Kimi Delta Attention with a bounded gate, whose prefill runs on FlashKDA on GB10. 0.29.0 and 0.31.0
    #: have it for Kimi's classes, 0.32.0 for GLM's too, which come with that release.
    kda_checkpoint_block: bool = field(metadata=_in(first=(0, 29, 0)))
    #: Mode ``align`` wants a whole block to fit into max_num_batched_tokens.
    align_block_within_batch: bool = field(metadata=_in(before=(0, 27, 0)))
    #: Full CUDA graphs of a hybrid model want a block for each of max_num_seqs sequences.
    graphs_want_block_per_sequence: bool = field(metadata=_in(first=(0, 20, 0)))
    #: A window keeps the tokens of every batch under way at once, of which asynchronous scheduling has two.
    windows_count_batches_in_flight: bool = field(metadata=_in(first=IN_FLIGHT))
    #: Pages of several sizes are packed by a general rule, which models with an indexer beside recurrent states need;
    #: 0.27.1 does not have it.
    packs_any_model: bool = field(metadata=_in(first=(0, 30, 0)))
    #: Before that: a packed block is as large as its largest group, not as the most layers of each size, as in 0.26.0.
    packs_densely: bool = field(metadata=_in(first=(0, 27, 0)))
    #: An indexer's buffer is 16 instead of 40 times the longest context where that is above 256K
    #: (``sparse_mla_prefill_workspace_factor``).
    short_indexer_buffer: bool = field(metadata=_in(first=(0, 32, 0)))


def rules_for(version: Version) -> VersionRules:
    """Return the rules of a release; releases newer than the newest read get that one's."""
    holds = {
        each.name: each.metadata["first"] <= version < each.metadata["before"]
        for each in fields(VersionRules)
        if each.metadata
    }
    return VersionRules(
        **holds,
        default_utilization=0.92 if version >= (0, 20, 0) else 0.9,
        # vllm/config/vllm.py, DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES; 0.32.0 profiles them in either runner.
        graphs_on_top=frozenset({"Qwen3ForCausalLM"}) if (0, 22, 0) <= version < (0, 23, 0) else frozenset(),
        # vllm/platforms/cpu.py
        float32_states_on="avx512_bf16" if version >= (0, 29, 0) else "amx_tile" if version >= (0, 26, 0) else "",
        # vllm/model_executor/models/commandr.py
        windows_count_the_token_itself=frozenset({"Cohere2ForCausalLM", "Cohere2VisionForConditionalGeneration"})
        if version >= (0, 29, 0)
        else frozenset(),
    )


def resolve_prefix_caching(geometry: shapes.Geometry, asked: bool | None, rules: VersionRules) -> bool:
    """Return whether prefix caching is on: as asked, or the release's default for this kind of model."""
    if asked is not None:
        return asked
    return rules.hybrid_prefix_caching if geometry.recurrent else True


def resolve_cache_mode(
    recurrent: shapes.Recurrent,
    prefix_caching: bool,
    speculative_tokens: int,
    rules: VersionRules,
    asked: str | None = None,
) -> str:
    """Return the cache mode that vLLM ends up with for the recurrent layers.

    Only Mamba layers can keep a state at every block boundary; the others get ``align``
    whatever was asked for, and without prefix caching every mode becomes ``none``.
    """
    if not prefix_caching:
        return NONE
    can_keep_all = isinstance(recurrent, shapes.Mamba1 | shapes.Mamba2) and rules.has_mode_all
    if asked == ALL:
        return ALL if can_keep_all else ALIGN
    if asked == ALIGN:
        return ALIGN
    if can_keep_all and rules.mamba2_default_all and not (rules.align_when_speculative and speculative_tokens):
        return ALL
    return ALIGN


def bytes_per_token(
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    tensor_parallel_size: int,
    dtype: str,
    kv_cache_dtype: str,
) -> int:
    """Return what one layer keeps of one token: a key and a value for each of a rank's KV heads.

    With more ranks than KV heads every rank still keeps one head: they are replicated.

    :param value_dim: 0 for a latent cache, which keeps one vector that serves as both.
    :param dtype: of the model's activations, for ``kv_cache_dtype`` ``auto``.
    """
    heads = max(1, kv_heads // tensor_parallel_size)
    elements = heads * (key_dim + value_dim)
    if kv_cache_dtype in _ONE_BYTE_KV:
        return elements
    if kv_cache_dtype in _SCALED_KV:
        return elements + 2 * heads * 4  # a float32 scale for each key and value of each head
    if kv_cache_dtype == "nvfp4":
        # Half a byte an element, and a one-byte scale for every sixteen.
        return heads * sum(dim // 2 + dim // 16 for dim in (key_dim, value_dim))
    return elements * shapes.DTYPE_BYTES[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]


def latent_bytes(latent_dim: int, dtype: str, kv_cache_dtype: str) -> int:
    """Return what one layer of latent attention keeps of one token, on every rank.

    :param dtype: of the model's activations, for ``kv_cache_dtype`` ``auto``.
    """
    packed = _PACKED_LATENT_BYTES.get(kv_cache_dtype)
    return packed if packed is not None else bytes_per_token(1, latent_dim, 0, 1, dtype, kv_cache_dtype)


def attention_bytes(attention: shapes.Attention, dtype: str, tensor_parallel_size: int, kv_cache_dtype: str) -> int:
    """Return what one layer of full attention keeps of one token."""
    if attention.latent_dim:
        return latent_bytes(attention.latent_dim, dtype, kv_cache_dtype)
    value = attention.value_head_dim or attention.head_dim
    return bytes_per_token(attention.kv_heads, attention.head_dim, value, tensor_parallel_size, dtype, kv_cache_dtype)


def resolve_kv_cache_dtype(geometry: shapes.Geometry, asked: str) -> str:
    """Return ``--kv-cache-dtype`` as vLLM takes it: ``auto`` is what the checkpoint says, where it does."""
    return geometry.kv_cache_dtype if asked == "auto" else asked


def state_bytes(
    recurrent: shapes.Recurrent, dtype: str, tensor_parallel_size: int, speculative_tokens: int, ssm_dtype: str
) -> int:
    """Return the convolution state plus the temporal state of one recurrent layer.

    The convolution state remembers one more column for each speculative token, where the class can speculate.

    :param dtype: of the activations, which the convolution state keeps
    :param ssm_dtype: of the temporal state; ``auto`` is the model's own
    """
    columns = recurrent.conv_kernel - 1
    if isinstance(recurrent, shapes.GatedConv):
        return recurrent.width // tensor_parallel_size * columns * shapes.DTYPE_BYTES[dtype]
    if isinstance(recurrent, shapes.Mamba1):
        width = recurrent.width
        temporal = width // tensor_parallel_size * recurrent.state_size
    elif isinstance(recurrent, shapes.Mamba2):
        groups = recurrent.groups
        if groups % tensor_parallel_size:
            groups = tensor_parallel_size  # a single group is replicated to every rank
        width = recurrent.heads * recurrent.head_dim + 2 * groups * recurrent.state_size
        temporal = recurrent.heads // tensor_parallel_size * recurrent.head_dim * recurrent.state_size
    elif isinstance(recurrent, shapes.Kda):
        width = 3 * recurrent.heads * recurrent.head_dim
        temporal = recurrent.heads // tensor_parallel_size * recurrent.head_dim**2
    else:
        width = 2 * recurrent.k_heads * recurrent.k_head_dim + recurrent.v_heads * recurrent.v_head_dim
        temporal = recurrent.v_heads // tensor_parallel_size * recurrent.v_head_dim * recurrent.k_head_dim
    if not isinstance(recurrent, shapes.Mamba1):
        columns += speculative_tokens
    temporal_dtype = recurrent.state_dtype if ssm_dtype == "auto" else ssm_dtype
    return (
        width // tensor_parallel_size * columns * shapes.DTYPE_BYTES[dtype]
        + temporal * shapes.DTYPE_BYTES[temporal_dtype]
    )
