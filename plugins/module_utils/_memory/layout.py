# SPDX-License-Identifier: Apache-2.0
"""How vLLM lays out its cache: groups, pages, blocks, and what a pool of blocks holds.  Pure.

It restates the rules of vLLM's own planner; `kv` names the sources that were read.  Sizes are bytes unless a name says
otherwise, and always those of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory import kv, sparse
from ansible_collections.gb10.cluster.plugins.module_utils._memory.packing import Bucket, Packed, pack, pack_tuples

#: Hybrids with latent attention round their block up to this (``Platform._align_hybrid_block_size``).
_LATENT_HYBRID_BLOCK = 128
_MAMBA1_CHUNK = 2048


@dataclass(frozen=True)
class Kind:
    """Layers that keep the same of a token.

    :ivar tokens: of the window or chunk; None where a layer keeps every token
    """

    layers: int
    bytes_per_token: int
    tokens: int | None = None
    chunked: bool = False
    #: KV heads and widths: layers of another form are apart, even if they keep as many bytes.
    form: tuple[int, int, int] = (0, 0, 0)
    #: Tokens of a block, where it is not the common one.
    block_tokens: int | None = None

    def page(self, block_tokens: int) -> int:
        """Return the bytes of a page, from the tokens of a common block."""
        return (self.block_tokens or block_tokens) * self.bytes_per_token


@dataclass(frozen=True)
class KindGroups:
    """The groups of one further kind of layer; each group has a block table of its own."""

    layers: int
    groups: int
    block_tokens: int
    bytes_per_token: int
    #: Tokens of a sequence that stay: the window and what is under way, or a chunk and what is under way; None for all.
    kept_tokens: int | None
    chunked: bool

    def blocks(self, length: int) -> int:
        """Return the blocks that one group keeps of a sequence."""
        if self.kept_tokens is None:
            return kv.ceil_div(length, self.block_tokens)
        kept = kv.ceil_div(min(self.kept_tokens, length), self.block_tokens)
        # A window need not begin at the edge of a block.
        return kept if self.chunked else kept + 1


@dataclass(frozen=True)
class State:
    """How recurrent layers keep theirs: tokens of a block that holds one, and blocks of a sequence of any length."""

    mode: str
    bytes: int
    block_tokens: int
    fixed_blocks: int


@dataclass(frozen=True)
class Layout:
    """How the cache of one model is cut up on one rank.

    A block holds the pages of ``group_layers`` layers; every group of layers has its own
    block table and draws from the one pool.
    """

    attention_layers: int
    block_tokens: int
    page_bytes: int
    block_bytes: int
    attention_bytes_per_token: int
    state: State
    attention_groups: int = 0
    recurrent_groups: int = 0
    group_layers: int = 0
    #: Windows, chunks, and layers of a draft model.
    others: tuple[KindGroups, ...] = ()
    #: Pages of several sizes in one block; the groups above are none then.
    packed: Packed | None = None
    #: Ranks over which the tokens of a whole cache are spread (``--decode-context-parallel-size``).
    token_ranks: int = 1
    #: What grows with each token, where it is not the attention layers of one size alone.
    growing_bytes: int | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """What all layers that keep every token, draft layers included, keep of one token."""
        if self.packed is not None:
            return self.packed.bytes_per_token
        if self.growing_bytes is not None:
            return self.growing_bytes
        further = sum(each.layers * each.bytes_per_token for each in self.others if each.kept_tokens is None)
        return self.attention_layers * self.attention_bytes_per_token + further

    @property
    def groups(self) -> int:
        if self.packed is not None:
            return self.packed.count
        return self.attention_groups + self.recurrent_groups + sum(each.groups for each in self.others)

    @property
    def cache_mode(self) -> str:
        return self.state.mode

    @property
    def has_recurrent(self) -> bool:
        return self.state.bytes > 0

    @property
    def padding_percent(self) -> float:
        """Share by which a recurrent page is larger than the state in it, in percent."""
        return 100.0 * (self.page_bytes - self.state.bytes) / self.state.bytes if self.has_recurrent else 0.0

    def recurrent_blocks(self, length: int) -> int:
        """Return the blocks that one recurrent group keeps of a sequence."""
        growing = kv.ceil_div(length, self.block_tokens) if self.state.mode == kv.ALL else 0
        return growing + self.state.fixed_blocks

    def blocks_per_sequence(self, length: int) -> int:
        """Return the blocks that a sequence of ``length`` tokens takes out of the pool."""
        if self.packed is not None:
            return self.packed.blocks(length)
        attention = self.attention_groups * kv.ceil_div(kv.ceil_div(length, self.token_ranks), self.block_tokens)
        others = sum(each.groups * each.blocks(length) for each in self.others)
        return attention + others + self.recurrent_groups * self.recurrent_blocks(length)

    def sequence_bytes(self, length: int) -> int:
        """Return the share of the pool that a sequence of ``length`` tokens takes."""
        return self.blocks_per_sequence(length) * self.block_bytes

    def recurrent_bytes(self, length: int) -> int:
        """Return what of ``sequence_bytes`` goes to the recurrent layers."""
        if self.packed is not None:
            return self.packed.recurrent_blocks(length) * self.block_bytes
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


def _kinds(geometry: shapes.Geometry, ranks: int, kv_cache_dtype: str, rules: kv.VersionRules) -> list[Kind]:
    """Return what the layers of a model keep, those that keep every token first."""
    attention, dtype = geometry.attention, geometry.dtype
    itself = geometry.architecture in rules.windows_count_the_token_itself

    def form(each: shapes.Attention | shapes.Window) -> tuple[int, int, int]:
        return max(1, each.kv_heads // ranks), each.head_dim, each.value_head_dim or each.head_dim

    size = kv.attention_bytes(attention, dtype, ranks, kv_cache_dtype)
    found = [Kind(attention.layers, size, form=form(attention))]
    for each in geometry.windows:
        value = each.value_head_dim or each.head_dim
        kept = "auto" if each.block_tokens else kv_cache_dtype
        size = kv.bytes_per_token(each.kv_heads, each.head_dim, value, ranks, dtype, kept)
        found.append(Kind(each.layers, size, each.tokens + itself, each.chunked, form(each), each.block_tokens))
    return found


def _merged(kinds: Sequence[Kind]) -> list[Kind]:
    """Return the kinds with equal ones put together, as the planner does with equal specifications."""
    found: dict[Kind, int] = {}
    for each in kinds:
        kind = replace(each, layers=0)
        found[kind] = found.get(kind, 0) + each.layers
    return [replace(kind, layers=layers) for kind, layers in found.items()]


def _kind_groups(kind: Kind, block_tokens: int, page: int, group_layers: int, in_flight_tokens: int) -> KindGroups:
    """Return the groups of one kind, in pages of the common size.

    A smaller page holds more tokens when it divides the common one, and is padded otherwise.
    """
    own_page = kind.page(block_tokens)
    block_tokens = kind.block_tokens or block_tokens
    if page % own_page == 0:
        block_tokens = block_tokens * (page // own_page)
    kept = None
    if kind.tokens is not None:
        kept = kind.tokens + in_flight_tokens - (0 if kind.chunked else 1)
    return KindGroups(
        layers=kind.layers,
        groups=kv.ceil_div(kind.layers, group_layers),
        block_tokens=block_tokens,
        bytes_per_token=kind.bytes_per_token,
        kept_tokens=kept,
        chunked=kind.chunked,
    )


def _fixed_recurrent_blocks(
    recurrent: shapes.Recurrent, mode: str, speculative_tokens: int, rules: kv.VersionRules
) -> int:
    if mode == kv.ALL:
        return speculative_tokens if rules.all_counts_speculative else 0
    if mode == kv.NONE:
        return 1 + speculative_tokens
    if isinstance(recurrent, shapes.Mamba2):
        checkpoint = rules.mamba2_checkpoint_block
    elif isinstance(recurrent, shapes.Kda):
        checkpoint = rules.kda_checkpoint_block and recurrent.bounded_gate and recurrent.head_dim == 128
    else:
        # FlashInfer's prefill kernel for GB10 (SM12x) is built for heads of 128; the other kinds export none there.
        is_delta_net = isinstance(recurrent, shapes.GatedDeltaNet) and recurrent.k_head_dim == 128
        checkpoint = rules.gdn_checkpoint_block and is_delta_net
    return 2 + speculative_tokens + (1 if checkpoint else 0)


@dataclass(frozen=True)
class Asked:
    """What a layout depends on besides the shape; see `Settings` for the fields of the same names."""

    tensor_parallel_size: int
    kv_cache_dtype: str
    ssm_dtype: str
    speculative_tokens: int
    #: Tokens of the smallest block of the attention kernel: 16 on CUDA, 128 on the CPU build; or --block-size.
    block_granularity: int
    #: None for the release's default.
    prefix_caching: bool | None
    #: --mamba-cache-mode; None for the release's default.
    cache_mode: str | None
    rules: kv.VersionRules
    #: Tokens scheduled and not yet settled, which windows keep besides.
    in_flight_tokens: int = 0
    #: False with --disable-hybrid-kv-cache-manager: every window keeps all tokens.
    hybrid_manager: bool = True
    #: A draft model with a cache of its own.
    draft: shapes.Geometry | None = None
    #: The checkpoint's own heads draft, not a model beside it or a search in the text.
    own_heads: bool = True
    pipeline_parallel_size: int = 1
    decode_context_parallel_size: int = 1


def _draft_layers(geometry: shapes.Geometry, asked: Asked) -> int:
    """Return the attention layers of the checkpoint's own heads, where these draft."""
    return geometry.mtp.attention_layers if geometry.mtp and asked.speculative_tokens and asked.own_heads else 0


def _state_of(geometry: shapes.Geometry, asked: Asked, per_token: int) -> State:
    """Return how the recurrent state is kept, and the tokens of an attention block that holds one."""
    recurrent = geometry.recurrent
    step = asked.block_granularity
    if geometry.compressed:
        step = (
            lcm(step, sparse.SOURCES_BLOCK) if geometry.compressed.has_sources else max(step, sparse.COMPRESSED_BLOCK)
        )
    elif geometry.indexer and geometry.indexer.kind == shapes.MSA:
        step = lcm(step, sparse.MSA_BLOCK)
    elif geometry.indexer and geometry.indexer.kind == shapes.KPOOL:
        step = lcm(step, 64 * geometry.indexer.tokens_per_state)
    if recurrent is None:
        return State(kv.NONE, 0, step, 0)
    if geometry.attention.latent_dim:
        step = max(step, _LATENT_HYBRID_BLOCK)
    speculative = asked.speculative_tokens
    caching = kv.resolve_prefix_caching(geometry, asked.prefix_caching, asked.rules)
    mode = kv.resolve_cache_mode(recurrent, caching, speculative, asked.rules, asked.cache_mode)
    state = kv.state_bytes(recurrent, geometry.dtype, asked.tensor_parallel_size, speculative, asked.ssm_dtype)
    if mode == kv.ALL:
        # Mamba-1 has no chunks: vLLM takes 2048 (`ModelConfig.get_mamba_chunk_size`).
        chunk = _MAMBA1_CHUNK if isinstance(recurrent, shapes.Mamba1) else getattr(recurrent, "chunk_size", None)
        step = lcm(chunk or step, step)
    largest = state
    if geometry.short_conv:
        largest = max(state, sparse.short_conv_bytes(geometry.short_conv, geometry.dtype, speculative))
    # An attention page must hold a state, so that both kinds of layer can share the pool.
    block_tokens = step * kv.ceil_div(kv.ceil_div(largest, per_token), step)
    return State(mode, state, block_tokens, _fixed_recurrent_blocks(recurrent, mode, speculative, asked.rules))


def plan_layout(geometry: shapes.Geometry, asked: Asked) -> Layout:
    """Return the layout that vLLM chooses on each rank."""
    kv_cache_dtype = kv.resolve_kv_cache_dtype(geometry, asked.kv_cache_dtype)
    ranks = asked.tensor_parallel_size
    if geometry.compressed:
        kinds = [Kind(geometry.attention.layers, 1)]  # replaced by its compressed states
    else:
        kinds = _kinds(geometry, ranks, kv_cache_dtype, asked.rules)
    per_token = kinds[0].bytes_per_token
    kinds[0] = replace(kinds[0], layers=kinds[0].layers + _draft_layers(geometry, asked))
    if asked.draft is not None:
        plain = "fp8" if kv_cache_dtype.endswith("_ds_mla") else kv_cache_dtype  # the packed states are the target's
        kinds += _kinds(asked.draft, ranks, plain, asked.rules)
    kinds = _merged(kinds)
    state = _state_of(geometry, asked, per_token)
    if geometry.compressed or (geometry.indexer and geometry.indexer.kind not in shapes.GROUPED_INDEXERS):
        return _packed_layout(geometry, asked, kinds, state, kv_cache_dtype)
    whole = [each for each in kinds if each.tokens is None]
    recurrent = geometry.recurrent
    page = max(each.page(state.block_tokens) for each in kinds)
    if geometry.attention.latent_dim and any(page % (state.block_tokens * each.bytes_per_token) for each in kinds):
        # Latent rows cannot be padded: the windows of a draft model are kept whole.
        whole = kinds
    if recurrent is None and (len(whole) == len(kinds) or not asked.hybrid_manager):
        return _one_group(kinds, geometry, asked, state)
    own_page = state.block_tokens * per_token
    layers = [*(each.layers for each in kinds), *([recurrent.layers] if recurrent else [])]
    group_layers = _group_layers(*layers)
    return Layout(
        attention_layers=kinds[0].layers,
        attention_groups=kv.ceil_div(kinds[0].layers, group_layers),
        recurrent_groups=kv.ceil_div(recurrent.layers, group_layers) if recurrent else 0,
        group_layers=group_layers,
        block_tokens=state.block_tokens * (page // own_page) if page % own_page == 0 else state.block_tokens,
        page_bytes=page,
        block_bytes=kv.ceil_div(group_layers, asked.pipeline_parallel_size) * page,
        attention_bytes_per_token=per_token,
        state=state,
        others=tuple(
            _kind_groups(each, state.block_tokens, page, group_layers, asked.in_flight_tokens) for each in kinds[1:]
        ),
        token_ranks=asked.decode_context_parallel_size,
    )


def _one_group(kinds: Sequence[Kind], geometry: shapes.Geometry, asked: Asked, state: State) -> Layout:
    """Return the layout of a model whose layers all keep every token: one group, whatever each keeps of it."""
    stages, block_tokens = asked.pipeline_parallel_size, state.block_tokens
    per_token = kinds[0].bytes_per_token
    sizes = [(each.layers, each.bytes_per_token) for each in kinds]
    if geometry.indexer:
        without = geometry.attention.layers - (geometry.indexer.layers or geometry.attention.layers)
        sizes.append((kinds[0].layers - without, sparse.index_page(geometry.indexer, 1)))
    layers = sum(each.layers for each in kinds)
    return Layout(
        attention_layers=layers,
        attention_groups=1,
        group_layers=layers,
        block_tokens=block_tokens,
        page_bytes=block_tokens * per_token,
        block_bytes=block_tokens * sum(kv.ceil_div(count, stages) * size for count, size in sizes),
        attention_bytes_per_token=per_token,
        state=state,
        token_ranks=asked.decode_context_parallel_size,
        growing_bytes=sum(count * size for count, size in sizes),
    )


def _packed_layout(
    geometry: shapes.Geometry, asked: Asked, kinds: Sequence[Kind], state: State, kv_cache_dtype: str
) -> Layout:
    """Return the layout of a model with pages of several sizes."""
    block, in_flight = state.block_tokens, asked.in_flight_tokens
    buckets: list[Bucket] = []
    if geometry.compressed:
        draft = _draft_layers(geometry, asked)
        if geometry.compressed.has_sources:
            speculative = asked.speculative_tokens
            buckets += sparse.source_buckets(geometry.compressed, kv_cache_dtype, block, in_flight, draft, speculative)
        else:
            buckets += sparse.compressed_buckets(geometry.compressed, kv_cache_dtype, block, in_flight, draft)
        kinds = kinds[1:]
    indexer, attention_layers = geometry.indexer, geometry.attention.layers
    if indexer:
        attention_layers = kinds[0].layers
        pages = (
            (block * kinds[0].bytes_per_token, attention_layers),
            (sparse.index_page(indexer, block), attention_layers),
        )
        buckets.append(Bucket(pages, block))
        ring = sparse.ring_bucket(indexer, attention_layers, asked.speculative_tokens)
        buckets += [ring] if ring else []
        kinds = kinds[1:]
    per_token = 0
    if not geometry.compressed:
        per_token = kv.attention_bytes(geometry.attention, geometry.dtype, asked.tensor_parallel_size, kv_cache_dtype)
    page = block * per_token
    for recurrent in (geometry.recurrent, geometry.short_conv):
        if recurrent:
            buckets.append(Bucket(((page, recurrent.layers),), block, None, state.fixed_blocks, is_recurrent=True))
    whole = tuple((block * each.bytes_per_token, each.layers) for each in kinds if each.tokens is None)
    buckets[0] = Bucket((*buckets[0].pages, *whole), block)
    for each in kinds:
        if each.tokens is not None:
            window = ((block * each.bytes_per_token, each.layers),)
            buckets.append(Bucket(window, block, each.tokens - 1 + in_flight))
    rules = asked.rules
    packed = pack(buckets) if rules.packs_any_model else pack_tuples(buckets, rules.packs_densely)
    return Layout(
        attention_layers=attention_layers,
        block_tokens=block,
        page_bytes=page,
        block_bytes=packed.block_bytes,
        attention_bytes_per_token=per_token,
        state=state,
        packed=packed,
    )


@dataclass(frozen=True)
class Pool:
    """What a pool of a given size holds, in vLLM's own figures."""

    blocks: int
    #: Sequences of ``max_model_len`` that fit at once (``Maximum concurrency`` in the log).
    max_concurrency: float
    #: ``GPU KV cache size`` in the log; its meaning differs between releases.
    cache_tokens: int


def fill_pool(layout: Layout, pool_bytes: int, max_model_len: int, rules: kv.VersionRules) -> Pool:
    """Return what fits into a pool of ``pool_bytes`` on every rank."""
    blocks = max(0, pool_bytes // layout.block_bytes)
    concurrency = blocks / layout.blocks_per_sequence(max_model_len)
    if rules.tokens_from_concurrency:
        tokens = int(concurrency * max_model_len)
    else:
        # Without prefix caching a recurrent block spans the whole context.
        recurrent_tokens = max_model_len if layout.cache_mode == kv.NONE else layout.block_tokens
        per_block = min(layout.block_tokens, recurrent_tokens) if layout.has_recurrent else layout.block_tokens
        tokens = blocks // layout.groups * per_block
    return Pool(blocks=blocks, max_concurrency=concurrency, cache_tokens=tokens)
