# SPDX-License-Identifier: Apache-2.0
"""The caches of models with compressed, indexed or sparse attention, layer by layer.  Pure.

Restated from the classes that own them: ``vllm/models/deepseek_v4`` and ``deepseek_v41`` (attention, compressor),
``vllm/v1/attention/backends/mla/sparse_swa.py``, ``vllm/models/glm5next/common/attention.py``,
``vllm/models/qwen4_exp`` (qsa_cache, ple_layer), ``vllm/models/minimax_m3/common/indexer.py`` and
``DeepseekV32IndexerCache``, releases 0.25.1 to 0.33.0.
Bytes, of one rank; none of these caches is split over tensor-parallel ranks but the recurrent states.
"""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import MIB, VersionRules
from ansible_collections.gb10.cluster.plugins.module_utils._memory.packing import Bucket

#: Pages of the packed layout are padded to whole strides of the decode kernel.
_PACKED_ALIGNMENT = 576
_PLAIN_ALIGNMENT = 512
#: A state of the packed layout: 448 bytes without position, 128 with it, 8 of scales.
_PACKED_STATE_BYTES = 584
#: Tokens of a block of the window's cache, and of the two compressors' states.
_WINDOW_BLOCK = 64
_COMPRESSOR_BLOCK = {4: 4, 128: 8}
#: Three 64-bit positions beside a key of Qwen's indexer, in elements of two bytes.
_ROPE_POSITIONS = 12

#: Tokens of the smallest block: DeepSeek-V4's kernel has one size, a pooled indexer wants 64 states. DeepSeek-V4.1's
#: and MiniMax-M3's kernels read pages of 128 tokens.
COMPRESSED_BLOCK = 256
SOURCES_BLOCK = MSA_BLOCK = 128
#: DeepSeek-V4.1: tokens of a block of the window's cache, and rows of the smallest ring of a compressor.
_SOURCES_WINDOW_BLOCK = 32
_SMALLEST_RING = 8
#: An indexer's buffer for prefills: longest context of the larger one, and the logits beside it.
_LONG_CONTEXT = 256 * 1024
_INDEXER_LOGITS_BYTES = 512 * MIB


def _ceil_to(value: int, step: int) -> int:
    return -(-value // step) * step


def source_buckets(
    compressed: shapes.Compressed,
    kv_cache_dtype: str,
    block_tokens: int,
    in_flight_tokens: int,
    draft_layers: int,
    speculative_tokens: int,
) -> list[Bucket]:
    """Return the caches of DeepSeek-V4.1: a window on every layer, states and keys of the source layers, their rings.

    A GB10 has the packed layout of 584 bytes (devices 10.x have another); a state for one token needs no ring.
    Parameters as for `compressed_buckets`.
    """
    alignment, state, key = _packed_sizes(compressed, kv_cache_dtype)

    def page(states: int, size: int) -> int:
        return _ceil_to(states * size, alignment)

    sources = [
        (ratio, layers) for ratio, layers in ((2, compressed.pair_sources), (1, compressed.token_sources)) if layers
    ]
    states = compressed.page_states
    if states:
        # Kernels for pages of so many states: each kind of source is in blocks of its own.
        whole = [
            Bucket(((page(states, state), layers), (page(states, key), layers)), states * ratio)
            for ratio, layers in sources
        ]
    else:
        pages = tuple((page(block_tokens // ratio, size), layers) for size in (state, key) for ratio, layers in sources)
        whole = [Bucket(pages, block_tokens)]
    block = states or _SOURCES_WINDOW_BLOCK
    window = page(block, state), compressed.layers + draft_layers
    buckets = [*whole, Bucket((window,), block, compressed.window_tokens - 1 + in_flight_tokens)]
    if compressed.pair_sources:
        # Drafts, the next token and the row before, as a power of two; a row is a state and its score in float32.
        rows = max(_SMALLEST_RING, 1 << (speculative_tokens + 1).bit_length())
        ring = rows * 2 * compressed.head_dim * 4
        buckets.append(Bucket(((ring, compressed.pair_sources),), rows, fixed_blocks=1))
    return buckets


def _packed_sizes(compressed: shapes.Compressed, kv_cache_dtype: str) -> tuple[int, int, int]:
    """Return (what pages are aligned to, bytes of a state, bytes of an indexer's key)."""
    key = compressed.index_head_dim + compressed.index_head_dim // 128 * 4
    if kv_cache_dtype == "auto" or kv_cache_dtype.startswith("fp8"):
        return _PACKED_ALIGNMENT, _PACKED_STATE_BYTES, key
    return _PLAIN_ALIGNMENT, 2 * compressed.head_dim, key


def compressed_buckets(
    compressed: shapes.Compressed, kv_cache_dtype: str, block_tokens: int, in_flight_tokens: int, draft_layers: int
) -> list[Bucket]:
    """Return the caches of DeepSeek-V4: a window on every layer, states for every 4 or 128 tokens, their compressors.

    :param kv_cache_dtype: ``auto`` and fp8 are the packed layout, ``bfloat16`` plain rows
    :param draft_layers: of the draft head, each with a window alone
    """
    alignment, state, key = _packed_sizes(compressed, kv_cache_dtype)

    def page(states: int, size: int) -> int:
        return _ceil_to(states * size, alignment)

    def window(tokens: int, block: int, *pages: tuple[int, int]) -> Bucket:
        return Bucket(tuple(each for each in pages if each[1]), block, tokens - 1 + in_flight_tokens)

    def compressor(dim: int, ratio: int) -> int:
        # Keys and scores in float32; at ratio 4 neighbouring states overlap, so there are two of each.
        overlap = 2 if ratio == 4 else 1
        return page(_COMPRESSOR_BLOCK[ratio], 2 * overlap * dim * 4)

    quarter, coarse = compressed.indexed_layers, compressed.pooled_layers
    whole = Bucket(
        (
            (page(block_tokens // 4, state), quarter),
            (page(block_tokens // 128, state), coarse),
            (page(block_tokens // 4, key), quarter),
        ),
        block_tokens,
    )
    pages = (compressor(compressed.head_dim, 4), quarter), (compressor(compressed.index_head_dim, 4), quarter)
    return [
        whole,
        window(
            compressed.window_tokens,
            _WINDOW_BLOCK,
            (page(_WINDOW_BLOCK, state), compressed.layers + draft_layers),
        ),
        window(8, _COMPRESSOR_BLOCK[4], *pages),
        window(128, _COMPRESSOR_BLOCK[128], (compressor(compressed.head_dim, 128), coarse)),
    ]


def index_page(indexer: shapes.Indexer, block_tokens: int) -> int:
    """Return the page of one indexer's keys: fp8 and a scale for every 128 elements, or bfloat16 (Qwen, MiniMax)."""
    key = (
        2 * indexer.head_dim
        if indexer.kind in (shapes.QSA, shapes.MSA)
        else indexer.head_dim + indexer.head_dim // 128 * 4
    )
    return block_tokens // indexer.tokens_per_state * key


def ring_bucket(indexer: shapes.Indexer, layers: int, speculative_tokens: int) -> Bucket | None:
    """Return the ring with the keys of the group that is still being compressed: one block a sequence."""
    ratio = indexer.tokens_per_state
    groups = -(-(ratio + speculative_tokens) // ratio)
    if indexer.kind in shapes.GROUPED_INDEXERS:
        return None
    if indexer.kind == shapes.KPOOL:
        tokens = ratio * (1 << (groups - 1).bit_length())
        width = 2 * indexer.head_dim  # a key and its score
    else:
        tokens = ratio * groups
        width = indexer.head_dim + (_ROPE_POSITIONS if indexer.rope_positions else 0)
    return Bucket(((tokens * width * 2, layers),), tokens, fixed_blocks=1)


def short_conv_bytes(conv: shapes.ShortConv, dtype: str, speculative_tokens: int) -> int:
    """Return the state of one short convolution, which every rank keeps whole."""
    return conv.width * (conv.columns + speculative_tokens) * shapes.DTYPE_BYTES[dtype]


def indexer_buffer_bytes(geometry: shapes.Geometry, max_model_len: int, rules: VersionRules) -> int:
    """Return what the indexer of sparse latent attention reserves for prefills, on every rank.

    Keys of so many times the longest context (``get_max_prefill_buffer_size`` in v1/attention/backends/mla/indexer.py),
    and the logits by which it chooses (VLLM_SPARSE_INDEXER_MAX_LOGITS_MB); both are part of vLLM's profile
    (``sparse_attn_indexer`` in model_executor/layers/sparse_attn_indexer.py).
    """
    compressed, indexer = geometry.compressed, geometry.indexer
    if compressed:
        width = compressed.index_head_dim
        tokens_per_state = 1 if compressed.token_sources else 2 if compressed.pair_sources else 4
    elif indexer and indexer.kind in (shapes.DSA, shapes.KPOOL):
        width, tokens_per_state = indexer.head_dim, indexer.tokens_per_state
    else:
        return 0
    contexts = 16 if rules.short_indexer_buffer and max_model_len > _LONG_CONTEXT else 40
    return contexts * max_model_len // tokens_per_state * (width + 4) + _INDEXER_LOGITS_BYTES
