# SPDX-License-Identifier: Apache-2.0
"""Groups of layers whose pages differ in size, packed side by side in one block.  Pure.

Compressed and sparse caches keep several kinds of page: latent states, an indexer's keys, windows, the state of a
compressor.  vLLM packs them (``_get_packed_kv_cache_groups`` in ``vllm/v1/core/kv_cache_utils.py``, in 0.33
``kv_cache_planning.py``; before 0.30 ``_get_kv_cache_groups_uniform_groups``, for DeepSeek-V4 alone).
Sizes are bytes of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import GeometryError


@dataclass(frozen=True)
class Bucket:
    """Layers that may share a block table.

    :ivar pages: (bytes of a page, layers with such a page)
    :ivar block_tokens: tokens of a block; of a window or a whole cache
    :ivar kept_tokens: tokens of a sequence that stay, for a window; None for all
    :ivar fixed_blocks: blocks of a sequence whatever its length, for a state
    """

    pages: tuple[tuple[int, int], ...]
    block_tokens: int = 1
    kept_tokens: int | None = None
    fixed_blocks: int | None = None
    is_recurrent: bool = False

    def blocks(self, length: int) -> int:
        """Return the blocks that a sequence of ``length`` tokens takes of each group of this bucket."""
        if self.fixed_blocks is not None:
            return self.fixed_blocks
        if self.kept_tokens is None:
            return -(-length // self.block_tokens)
        return -(-min(self.kept_tokens, length) // self.block_tokens) + 1

    @property
    def layers_by_page(self) -> dict[int, int]:
        """Layers of each size of page."""
        found: dict[int, int] = {}
        for page, layers in self.pages:
            found[page] = found.get(page, 0) + layers
        return found

    @property
    def is_balanced(self) -> bool:
        """As many layers of each size, which makes a repeating pattern."""
        return len(set(self.layers_by_page.values())) == 1

    @property
    def repeats(self) -> int:
        """The most layers of one size."""
        return max(self.layers_by_page.values())

    def widest(self, groups: int) -> int:
        """Return the bytes of the largest of ``groups`` groups."""
        return sum(-(-layers // groups) * page for page, layers in self.layers_by_page.items())


@dataclass(frozen=True)
class Packed:
    """Buckets split into groups.

    :ivar groups: (bucket, number of its groups)
    """

    groups: tuple[tuple[Bucket, int], ...]
    block_bytes: int

    @property
    def count(self) -> int:
        """Groups in all."""
        return sum(number for _bucket, number in self.groups)

    def blocks(self, length: int) -> int:
        """Return the blocks that a sequence of ``length`` tokens takes."""
        return sum(number * bucket.blocks(length) for bucket, number in self.groups)

    def recurrent_blocks(self, length: int) -> int:
        """Return those of the recurrent layers."""
        return sum(number * bucket.blocks(length) for bucket, number in self.groups if bucket.is_recurrent)

    @property
    def bytes_per_token(self) -> int:
        """What grows with each token of a sequence."""
        return sum(
            bucket.widest(1) // bucket.block_tokens
            for bucket, _number in self.groups
            if bucket.kept_tokens is None and bucket.fixed_blocks is None
        )


def approximate_gcd(values: Sequence[int], lower_bound: int) -> int:
    """Return the size of a group that wastes the fewest layers, the larger of equals (vLLM's ``_approximate_gcd``)."""
    sizes = range(max(1, lower_bound), max([*values, lower_bound, 1]) + 1)
    return min(sizes, key=lambda size: (sum(-value % size for value in values), -size))


def pack(buckets: Sequence[Bucket], alignment: int = 1) -> Packed:
    """Return the groups of vLLM 0.30 and later.

    A bucket that repeats a pattern of several page sizes stays in one piece and sets how many layers a group has;
    states go into as many groups as keep them from widening the block.

    :param alignment: bytes that the size of a block is a multiple of
    """
    patterns = [each for each in buckets if each.is_balanced]
    floor = max((each.repeats for each in patterns if len(each.layers_by_page) > 1), default=0)
    repeats = approximate_gcd([each.repeats for each in patterns], floor) if floor else None

    def number_of(bucket: Bucket) -> int:
        return -(-bucket.repeats // repeats) if repeats and bucket.is_balanced else 1

    def is_state(bucket: Bucket) -> bool:
        return bucket.fixed_blocks is not None or (repeats is None and bucket.kept_tokens is not None)

    def narrowest(bucket: Bucket) -> int:
        return bucket.widest(sum(layers for _page, layers in bucket.pages) if is_state(bucket) else number_of(bucket))

    anchor = max(narrowest(each) for each in buckets)
    groups = []
    for bucket in buckets:
        number = number_of(bucket)
        if is_state(bucket):
            states = max(1, anchor // bucket.pages[0][0])
            number = max(number, -(-sum(layers for _page, layers in bucket.pages) // states))
        groups.append((bucket, number))
    width = max(bucket.widest(number) for bucket, number in groups)
    return Packed(tuple(groups), -(-width // alignment) * alignment)


def pack_tuples(buckets: Sequence[Bucket], dense: bool) -> Packed:
    """Return the groups of releases before 0.30, which pack DeepSeek-V4 alone.

    The pages of a window are padded to the next size that the first bucket, of whole caches, has.

    :param dense: from 0.27 on a block is as large as its largest group; before, as the most layers of each size
    :raises GeometryError: a window's page is larger than every one of the first bucket
    """
    sizes = sorted(buckets[0].layers_by_page)
    largest = max(page for each in buckets for page, _layers in each.pages)
    if largest > sizes[-1]:
        sentence = (
            f"vLLM before 0.30 pads the page of a window to a page of the whole caches: this one has {largest} bytes, "
            f"the largest of theirs {sizes[-1]}. Use an image with vLLM 0.30 or later."
        )
        raise GeometryError([sentence])
    padded = [buckets[0]]
    for each in buckets[1:]:
        pages = tuple((min(size for size in sizes if size >= page), layers) for page, layers in each.pages)
        padded.append(Bucket(pages, each.block_tokens, each.kept_tokens, each.fixed_blocks, each.is_recurrent))
    repeats = approximate_gcd([each.repeats for each in padded], padded[0].repeats)
    groups = tuple((each, -(-each.repeats // repeats)) for each in padded)
    if dense:
        return Packed(groups, max(bucket.widest(number) for bucket, number in groups))
    slots = {size: max(-(-bucket.layers_by_page.get(size, 0) // number) for bucket, number in groups) for size in sizes}
    return Packed(groups, sum(size * number for size, number in slots.items()))
