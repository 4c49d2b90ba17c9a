# SPDX-License-Identifier: Apache-2.0
"""The caches of models with compressed, indexed or sparse attention, layer by layer.  Pure.

Restated from the classes that own them: ``vllm/models/deepseek_v4`` (attention, compressor),
``vllm/v1/attention/backends/mla/sparse_swa.py``, ``vllm/models/glm5next/common/attention.py``,
``vllm/models/qwen4_exp`` (qsa_cache, ple_layer) and ``DeepseekV32IndexerCache``, releases 0.25.1 to 0.33.0.
Bytes, of one rank; none of these caches is split over tensor-parallel ranks but the recurrent states.
"""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    DSA,
    DTYPE_BYTES,
    KPOOL,
    QSA,
    Compressed,
    Indexer,
    ShortConv,
)
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

#: Tokens of the smallest block: DeepSeek-V4's kernel has one size, a pooled indexer wants 64 states.
COMPRESSED_BLOCK = 256


def _ceil_to(value: int, step: int) -> int:
    return -(-value // step) * step


def compressed_buckets(
    compressed: Compressed, kv_cache_dtype: str, block_tokens: int, in_flight_tokens: int, draft_layers: int
) -> list[Bucket]:
    """Return the caches of DeepSeek-V4: a window on every layer, states for every 4 or 128 tokens, their compressors.

    :param kv_cache_dtype: ``auto`` and fp8 are the packed layout, ``bfloat16`` plain rows
    :param draft_layers: of the draft head, each with a window alone
    """
    packed = kv_cache_dtype == "auto" or kv_cache_dtype.startswith("fp8")
    alignment = _PACKED_ALIGNMENT if packed else _PLAIN_ALIGNMENT
    state = _PACKED_STATE_BYTES if packed else 2 * compressed.head_dim
    key = compressed.index_head_dim + compressed.index_head_dim // 128 * 4

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


def index_page(indexer: Indexer, block_tokens: int) -> int:
    """Return the page of one indexer's keys: fp8 and a scale for every 128 elements, or bfloat16 for Qwen's."""
    key = 2 * indexer.head_dim if indexer.kind == QSA else indexer.head_dim + indexer.head_dim // 128 * 4
    return block_tokens // indexer.tokens_per_state * key


def ring_bucket(indexer: Indexer, layers: int, speculative_tokens: int) -> Bucket | None:
    """Return the ring with the keys of the group that is still being compressed: one block a sequence."""
    ratio = indexer.tokens_per_state
    groups = -(-(ratio + speculative_tokens) // ratio)
    if indexer.kind == DSA:
        return None
    if indexer.kind == KPOOL:
        tokens = ratio * (1 << (groups - 1).bit_length())
        width = 2 * indexer.head_dim  # a key and its score
    else:
        tokens = ratio * groups
        width = indexer.head_dim + (_ROPE_POSITIONS if indexer.rope_positions else 0)
    return Bucket(((tokens * width * 2, layers),), tokens, fixed_blocks=1)


def short_conv_bytes(conv: ShortConv, dtype: str, speculative_tokens: int) -> int:
    """Return the state of one short convolution, which every rank keeps whole."""
    return conv.width * (conv.columns + speculative_tokens) * DTYPE_BYTES[dtype]
