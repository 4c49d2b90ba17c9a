# SPDX-License-Identifier: Apache-2.0
"""What another machine or another run wrote, in the shape that its reader expects.  Standard library only.

JSON parses into anything.  A reader takes what it gets apart by keys and adds numbers up; so each reader has an example
of what it reads, and `shaped` makes any value one of that shape: what is of another kind is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

#: No figure that a machine reports is larger; a larger one cannot be added, formatted or waited for.
MAX_NUMBER = 2**53


def parsed(text: str | bytes) -> Any:
    """Return what a JSON text holds; None where it is none, nested without end, or not text at all."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def shaped(value: Any, example: Any) -> Any:
    """Return a value in the shape of an example.

    :param value: anything that JSON can hold.
    :param example: a dict: its keys are there afterwards, each in its own shape; other keys stay as they are. A list of
        one example: what is not of its kind is left out. A tuple of one dict: an object of that shape, or an empty one
        where there is none. A string, number or boolean: what stands for a value of another kind. A type (`float`,
        `int`, `str`): None stands for a value of another kind. None: anything.
    """
    if example is None:
        return value
    if isinstance(example, tuple):
        return shaped(value, example[0]) if isinstance(value, Mapping) and value else {}
    if isinstance(example, dict):
        given = value if isinstance(value, Mapping) else {}
        return {**given, **{key: shaped(given.get(key), part) for key, part in example.items()}}
    if isinstance(example, list):
        found = value if isinstance(value, list | tuple) else []
        return [shaped(each, example[0]) for each in found if _fits(each, example[0])]
    if isinstance(example, type):
        return value if _is(value, example) else None
    return value if _is(value, type(example)) else example


def _fits(value: Any, example: Any) -> bool:
    if example is None:
        return True
    if isinstance(example, dict):
        return isinstance(value, Mapping)
    return _is(value, example if isinstance(example, type) else type(example))


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        known = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return known and -MAX_NUMBER <= value <= MAX_NUMBER and math.isfinite(value)
    return isinstance(value, kind)
