# SPDX-License-Identifier: Apache-2.0
"""How vLLM lays out its cache: groups, pages, blocks, and what a pool of blocks holds.

This half of the memory model is exact: it restates the rules of vLLM's own planner, which
were read in the sources of the releases 0.18.1 to 0.33.0 (``vllm/v1/core/kv_cache_utils.py``
and, in 0.33, ``kv_cache_planning.py``; ``vllm/v1/kv_cache_interface.py``;
``vllm/platforms/interface.py``; ``vllm/model_executor/layers/mamba/mamba_utils.py``;
``vllm/model_executor/models/config.py``).  Sizes are bytes unless a name says otherwise,
and always those of one rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import lcm

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    DTYPE_BYTES,
    Geometry,
    Mamba2,
    Recurrent,
    Window,
)

GIB = 1 << 30
MIB = 1 << 20

#: Cache modes of the recurrent state.
NONE = "none"  # one state a sequence
ALIGN = "align"  # the running state and the last block boundary
ALL = "all"  # a state at every block boundary, kept for prefix caching
CACHE_MODES = (NONE, ALIGN, ALL)

_ONE_BYTE_KV = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
_SCALED_KV = ("int8_per_token_head", "fp8_per_token_head")
KV_CACHE_DTYPES = ("auto", "bfloat16", "float16", *_ONE_BYTE_KV, *_SCALED_KV, "nvfp4")
SSM_DTYPES = ("auto", *DTYPE_BYTES)


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient rounded up."""
    return -(-numerator // denominator)


# --------------------------------------------------------------------------------------
# What differs between versions
# --------------------------------------------------------------------------------------

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


@dataclass(frozen=True)
class VersionRules:
    """The rules of one vLLM release that the size of the cache depends on."""

    #: Prefix caching of a hybrid model when the command line says nothing.
    hybrid_prefix_caching: bool
    #: ``GPU KV cache size`` in the log is concurrency x max_model_len, not blocks of one group.
    tokens_from_concurrency: bool
    #: Prefix caching keeps Mamba-2 states in mode ``all``.
    mamba2_default_all: bool
    #: … unless there is speculative decoding, which then gets ``align``.
    align_when_speculative: bool
    #: Mode ``all`` exists at all.
    has_mode_all: bool
    #: Mode ``all`` also keeps a block for each speculative token.
    all_counts_speculative: bool
    #: In mode ``align`` a Mamba-2 layer keeps one more block, to export a checkpoint from a prefill.
    mamba2_checkpoint_block: bool
    #: The same for a gated delta net whose prefill runs on FlashInfer (as on GB10).
    gdn_checkpoint_block: bool
    #: ``--gpu-memory-utilization`` when the command line says nothing.
    default_utilization: float
    #: Mode ``align`` wants a whole block to fit into max_num_batched_tokens.
    align_block_within_batch: bool
    #: Full CUDA graphs of a hybrid model want a block for each of max_num_seqs sequences.
    graphs_want_block_per_sequence: bool
    #: A window keeps the tokens of every batch under way at once, of which asynchronous scheduling has two.
    windows_count_batches_in_flight: bool


def rules_for(version: Version) -> VersionRules:
    """Return the rules of a release; releases newer than the newest read get that one's."""
    return VersionRules(
        hybrid_prefix_caching=version >= (0, 26, 0),
        tokens_from_concurrency=version >= (0, 20, 1),
        mamba2_default_all=version < (0, 28, 0),
        align_when_speculative=(0, 20, 0) <= version < (0, 22, 0),
        has_mode_all=version < (0, 32, 0),
        all_counts_speculative=version >= (0, 22, 0),
        mamba2_checkpoint_block=version >= (0, 32, 0),
        gdn_checkpoint_block=version >= (0, 33, 0),
        default_utilization=0.92 if version >= (0, 20, 0) else 0.9,
        align_block_within_batch=version < (0, 27, 0),
        graphs_want_block_per_sequence=version >= (0, 20, 0),
        windows_count_batches_in_flight=version >= IN_FLIGHT,
    )


def resolve_prefix_caching(geometry: Geometry, asked: bool | None, rules: VersionRules) -> bool:
    """Return whether prefix caching is on: as asked, or the release's default for this kind of model."""
    if asked is not None:
        return asked
    return rules.hybrid_prefix_caching if geometry.recurrent else True


def resolve_cache_mode(
    recurrent: Recurrent,
    prefix_caching: bool,
    speculative_tokens: int,
    rules: VersionRules,
    asked: str | None = None,
) -> str:
    """Return the cache mode that vLLM ends up with for the recurrent layers.

    Only Mamba-2 can keep a state at every block boundary; a gated delta net gets ``align``
    whatever was asked for, and without prefix caching every mode becomes ``none``.
    """
    if not prefix_caching:
        return NONE
    can_keep_all = isinstance(recurrent, Mamba2) and rules.has_mode_all
    if asked == ALL:
        return ALL if can_keep_all else ALIGN
    if asked == ALIGN:
        return ALIGN
    if can_keep_all and rules.mamba2_default_all and not (rules.align_when_speculative and speculative_tokens):
        return ALL
    return ALIGN


# --------------------------------------------------------------------------------------
# One layer
# --------------------------------------------------------------------------------------


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
    return elements * DTYPE_BYTES[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]


def attention_bytes_per_token(geometry: Geometry, tensor_parallel_size: int, kv_cache_dtype: str) -> int:
    """Return what one layer of full attention keeps of one token."""
    attention = geometry.attention
    key = attention.latent_dim or attention.head_dim
    value = 0 if attention.latent_dim else attention.value_head_dim or attention.head_dim
    return bytes_per_token(attention.kv_heads, key, value, tensor_parallel_size, geometry.dtype, kv_cache_dtype)


def state_bytes(
    recurrent: Recurrent, dtype: str, tensor_parallel_size: int, speculative_tokens: int, ssm_dtype: str
) -> int:
    """Return the convolution state plus the temporal state of one recurrent layer.

    The convolution state remembers one more column for each speculative token.

    :param dtype: of the activations, which the convolution state keeps
    :param ssm_dtype: of the temporal state; ``auto`` is the model's own
    """
    columns = recurrent.conv_kernel - 1 + speculative_tokens
    if isinstance(recurrent, Mamba2):
        groups = recurrent.groups
        if groups % tensor_parallel_size:
            groups = tensor_parallel_size  # a single group is replicated to every rank
        width = recurrent.heads * recurrent.head_dim + 2 * groups * recurrent.state_size
        temporal = recurrent.heads // tensor_parallel_size * recurrent.head_dim * recurrent.state_size
    else:
        width = 2 * recurrent.k_heads * recurrent.k_head_dim + recurrent.v_heads * recurrent.v_head_dim
        temporal = recurrent.v_heads // tensor_parallel_size * recurrent.v_head_dim * recurrent.k_head_dim
    temporal_dtype = recurrent.state_dtype if ssm_dtype == "auto" else ssm_dtype
    return width // tensor_parallel_size * columns * DTYPE_BYTES[dtype] + temporal * DTYPE_BYTES[temporal_dtype]


# --------------------------------------------------------------------------------------
# The whole model
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowGroups:
    """The groups of layers with one window; each group has a block table of its own."""

    layers: int
    groups: int
    block_tokens: int
    bytes_per_token: int
    #: Tokens of a sequence that stay: the window and what is under way, or a chunk and what is under way.
    kept_tokens: int
    chunked: bool

    def blocks(self, length: int) -> int:
        """Return the blocks that one group keeps of a sequence."""
        kept = ceil_div(min(self.kept_tokens, length), self.block_tokens)
        # A window need not begin at the edge of a block.
        return kept if self.chunked else kept + 1


@dataclass(frozen=True)
class Layout:
    """How the cache of one model is cut up on one rank.

    A block holds the pages of ``group_layers`` layers; every group of layers has its own
    block table and draws from the one pool.
    """

    attention_layers: int
    attention_groups: int
    recurrent_groups: int
    group_layers: int
    block_tokens: int
    page_bytes: int
    block_bytes: int
    attention_bytes_per_token: int
    state_bytes: int
    #: Share by which a recurrent page is larger than the state in it, in percent.
    padding_percent: float
    cache_mode: str
    prefix_caching: bool
    recurrent_blocks_fixed: int
    recurrent_blocks_follow_length: bool
    windows: tuple[WindowGroups, ...] = ()

    @property
    def kv_bytes_per_token(self) -> int:
        """What all layers of full attention, MTP head included, keep of one token."""
        return self.attention_layers * self.attention_bytes_per_token

    @property
    def groups(self) -> int:
        return self.attention_groups + self.recurrent_groups + sum(each.groups for each in self.windows)

    def recurrent_blocks(self, length: int) -> int:
        """Return the blocks that one recurrent group keeps of a sequence."""
        growing = ceil_div(length, self.block_tokens) if self.recurrent_blocks_follow_length else 0
        return growing + self.recurrent_blocks_fixed

    def blocks_per_sequence(self, length: int) -> int:
        """Return the blocks that a sequence of ``length`` tokens takes out of the pool."""
        attention = self.attention_groups * ceil_div(length, self.block_tokens)
        windows = sum(each.groups * each.blocks(length) for each in self.windows)
        return attention + windows + self.recurrent_groups * self.recurrent_blocks(length)

    def sequence_bytes(self, length: int) -> int:
        """Return the share of the pool that a sequence of ``length`` tokens takes."""
        return self.blocks_per_sequence(length) * self.block_bytes

    def recurrent_bytes(self, length: int) -> int:
        """Return what of ``sequence_bytes`` goes to the recurrent layers."""
        return self.recurrent_groups * self.recurrent_blocks(length) * self.block_bytes

    def longest_sequence(self, pool_bytes: int, at_most: int) -> int:
        """Return the longest sequence, up to ``at_most`` tokens, that a pool holds; 0 when none fits."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_bytes(middle) <= pool_bytes:
                low = middle
            else:
                high = middle - 1
        return low


def _group_layers(*layers: int) -> int:
    """Return how many layers share a block table, from the number of layers of each kind.

    As many as the rarest kind has; as the commonest one when they are close, so that a
    draft head does not double the number of groups.
    """
    smallest, largest = min(layers), max(layers)
    return largest if largest < 1.5 * smallest else smallest


def _window_groups(
    window: Window, per_token: int, block_tokens: int, page: int, group_layers: int, in_flight_tokens: int
) -> WindowGroups:
    """Return the groups of one kind of window, in pages of the common size.

    A smaller page holds more tokens when it divides the common one, and is padded otherwise.
    """
    own_page = block_tokens * per_token
    if page % own_page == 0:
        block_tokens = block_tokens * (page // own_page)
    kept = window.tokens + in_flight_tokens - (0 if window.chunked else 1)
    return WindowGroups(
        layers=window.layers,
        groups=ceil_div(window.layers, group_layers),
        block_tokens=block_tokens,
        bytes_per_token=per_token,
        kept_tokens=kept,
        chunked=window.chunked,
    )


def _fixed_recurrent_blocks(recurrent: Recurrent, mode: str, speculative_tokens: int, rules: VersionRules) -> int:
    if mode == ALL:
        return speculative_tokens if rules.all_counts_speculative else 0
    if mode == NONE:
        return 1 + speculative_tokens
    if isinstance(recurrent, Mamba2):
        checkpoint = rules.mamba2_checkpoint_block
    else:
        # FlashInfer's prefill kernel for GB10 (SM12x) is built for heads of 128.
        checkpoint = rules.gdn_checkpoint_block and recurrent.k_head_dim == 128
    return 2 + speculative_tokens + (1 if checkpoint else 0)


def plan_layout(
    geometry: Geometry,
    *,
    tensor_parallel_size: int,
    kv_cache_dtype: str,
    ssm_dtype: str,
    speculative_tokens: int,
    block_granularity: int,
    prefix_caching: bool | None,
    cache_mode: str | None,
    rules: VersionRules,
    in_flight_tokens: int = 0,
    hybrid_manager: bool = True,
) -> Layout:
    """Return the layout that vLLM chooses on each rank.

    :param block_granularity: tokens of the smallest block of the attention kernel: 16 on CUDA,
        128 on the CPU build
    :param prefix_caching: None for the release's default
    :param cache_mode: ``--mamba-cache-mode``; None for the release's default
    :param in_flight_tokens: tokens scheduled and not yet settled, which windows keep besides
    :param hybrid_manager: False with ``--disable-hybrid-kv-cache-manager``: every window keeps all tokens
    """
    per_token = attention_bytes_per_token(geometry, tensor_parallel_size, kv_cache_dtype)
    attention_layers = geometry.attention.layers
    if speculative_tokens and geometry.mtp:
        attention_layers += geometry.mtp.attention_layers
    windows = geometry.windows
    per_window = [
        bytes_per_token(
            each.kv_heads,
            each.head_dim,
            each.value_head_dim or each.head_dim,
            tensor_parallel_size,
            geometry.dtype,
            kv_cache_dtype,
        )
        for each in windows
    ]
    caching = resolve_prefix_caching(geometry, prefix_caching, rules)
    recurrent = geometry.recurrent
    mode, state, block_tokens = NONE, 0, block_granularity
    if recurrent is not None:
        mode = resolve_cache_mode(recurrent, caching, speculative_tokens, rules, cache_mode)
        state = state_bytes(recurrent, geometry.dtype, tensor_parallel_size, speculative_tokens, ssm_dtype)
        step = block_granularity
        if mode == ALL and isinstance(recurrent, Mamba2):
            step = lcm(recurrent.chunk_size or block_granularity, block_granularity)
        # An attention page must hold a state, so that both kinds of layer can share the pool.
        block_tokens = step * ceil_div(ceil_div(state, per_token), step)
    if not hybrid_manager and windows:
        # All layers in one group: a block holds the pages of all of them.
        shared = attention_layers * per_token + sum(
            each.layers * size for each, size in zip(windows, per_window, strict=True)
        )
        return _full_attention(
            attention_layers + sum(each.layers for each in windows), per_token, shared, block_tokens, caching
        )
    if recurrent is None and not windows:
        return _full_attention(attention_layers, per_token, attention_layers * per_token, block_tokens, caching)
    page = block_tokens * max([per_token, *per_window])
    own_page = block_tokens * per_token
    kinds = [attention_layers, *(each.layers for each in windows), *([recurrent.layers] if recurrent else [])]
    group_layers = _group_layers(*kinds)
    return Layout(
        attention_layers=attention_layers,
        attention_groups=ceil_div(attention_layers, group_layers),
        recurrent_groups=ceil_div(recurrent.layers, group_layers) if recurrent else 0,
        group_layers=group_layers,
        block_tokens=block_tokens * (page // own_page) if page % own_page == 0 else block_tokens,
        page_bytes=page,
        block_bytes=group_layers * page,
        attention_bytes_per_token=per_token,
        state_bytes=state,
        padding_percent=100.0 * (page - state) / state if recurrent else 0.0,
        cache_mode=mode,
        prefix_caching=caching,
        recurrent_blocks_fixed=_fixed_recurrent_blocks(recurrent, mode, speculative_tokens, rules) if recurrent else 0,
        recurrent_blocks_follow_length=mode == ALL,
        windows=tuple(
            _window_groups(each, size, block_tokens, page, group_layers, in_flight_tokens)
            for each, size in zip(windows, per_window, strict=True)
        ),
    )


def _full_attention(layers: int, per_token: int, token_bytes: int, block_tokens: int, caching: bool) -> Layout:
    """Return the layout of a model whose layers all keep every token: one group.

    :param token_bytes: what all layers together keep of one token
    """
    return Layout(
        attention_layers=layers,
        attention_groups=1,
        recurrent_groups=0,
        group_layers=layers,
        block_tokens=block_tokens,
        page_bytes=block_tokens * per_token,
        block_bytes=block_tokens * token_bytes,
        attention_bytes_per_token=per_token,
        state_bytes=0,
        padding_percent=0.0,
        cache_mode=NONE,
        prefix_caching=caching,
        recurrent_blocks_fixed=0,
        recurrent_blocks_follow_length=False,
    )


@dataclass(frozen=True)
class Pool:
    """What a pool of a given size holds, in vLLM's own figures."""

    blocks: int
    #: Sequences of ``max_model_len`` that fit at once (``Maximum concurrency`` in the log).
    max_concurrency: float
    #: ``GPU KV cache size`` in the log; its meaning differs between releases.
    cache_tokens: int


def fill_pool(layout: Layout, pool_bytes: int, max_model_len: int, rules: VersionRules) -> Pool:
    """Return what fits into a pool of ``pool_bytes`` on every rank."""
    blocks = max(0, pool_bytes // layout.block_bytes)
    concurrency = blocks / layout.blocks_per_sequence(max_model_len)
    if rules.tokens_from_concurrency:
        tokens = int(concurrency * max_model_len)
    else:
        # Without prefix caching a recurrent block spans the whole context.
        recurrent_tokens = max_model_len if layout.cache_mode == NONE else layout.block_tokens
        per_block = min(layout.block_tokens, recurrent_tokens) if layout.recurrent_groups else layout.block_tokens
        tokens = blocks // layout.groups * per_block
    return Pool(blocks=blocks, max_concurrency=concurrency, cache_tokens=tokens)
