# SPDX-License-Identifier: Apache-2.0
"""Random tensors that are the same on every machine, and the safetensors format."""

from __future__ import annotations

import json
import random
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tensor:
    """A bfloat16 tensor: name, shape, and the little-endian bytes of its elements."""

    name: str
    shape: tuple[int, ...]
    data: bytes


class Weights:
    """Source of tensors; the same seed gives the same bytes on every machine.

    ``random.Random.random`` is specified to the bit, and only products and sums of it are
    used (no logarithm or cosine whose last digit depends on the C library).
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.tensors: list[Tensor] = []

    def add(self, name: str, shape: tuple[int, ...], values: Sequence[float]) -> None:
        self.tensors.append(Tensor(name, shape, bfloat16_bytes(values)))

    def noise(self, count: int, spread: float) -> list[float]:
        draw = self._random.random
        return [(2.0 * draw() - 1.0) * spread for _unused in range(count)]

    def add_noise(self, name: str, shape: tuple[int, ...], spread: float, centre: float = 0.0) -> None:
        count = 1
        for length in shape:
            count *= length
        self.add(name, shape, [centre + x for x in self.noise(count, spread)])

    def add_constant(self, name: str, shape: tuple[int, ...], value: float) -> None:
        count = 1
        for length in shape:
            count *= length
        self.add(name, shape, [value] * count)


def bfloat16_bytes(values: Sequence[float]) -> bytes:
    """Round finite numbers to bfloat16, to nearest with ties to even, as little-endian bytes.

    >>> bfloat16_bytes([1.0, -2.0]).hex()
    '803f00c0'
    """
    bits = array("I")
    if bits.itemsize != 4:
        raise RuntimeError(f"array('I') has {bits.itemsize} bytes an item on this platform, 4 are needed")
    bits.frombytes(struct.pack(f"={len(values)}f", *values))
    rounded = array("H", ((b + 0x7FFF + ((b >> 16) & 1)) >> 16 for b in bits))
    return struct.pack(f"<{len(rounded)}H", *rounded)


def safetensors_bytes(tensors: Sequence[Tensor]) -> bytes:
    """Serialise tensors in the safetensors format: length, JSON header, contiguous data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + len(tensor.data)
        header[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(t.data for t in tensors)
