# SPDX-License-Identifier: Apache-2.0
"""Which numbers of a file can be a size of a model.  Pure."""

from __future__ import annotations

from typing import TypeGuard

#: Above every size of a model: a larger number in a file is damage, and what is made of it would overflow.
MOST = 2**31 - 1
#: Above the layers of every model, which are gone through one by one.
MOST_LAYERS = 10_000


def most(key: str) -> int:
    """Return the largest value that a key may have."""
    return MOST_LAYERS if key.endswith("layers") else MOST


def is_whole(value: object, key: str) -> TypeGuard[int]:
    """Tell whether a value is a whole number that a key of a model may have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most(key)
