# SPDX-License-Identifier: Apache-2.0
"""A geometry as a model file has it.  Pure."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import Geometry

#: What a geometry begins with, as in the files of the catalogue.
_FIRST = ("architecture", "layers", "hidden_size", "vocab_size", "max_position_embeddings")


def geometry_values(geometry: Geometry) -> dict[str, Any]:
    """Return a geometry as a model file has it: without what is empty or the default."""
    values = _given(geometry)
    rest = [key for key in values if key not in _FIRST]
    sections = [key for key in rest if isinstance(values[key], (dict, list))]
    order = [*_FIRST, *(key for key in rest if key not in sections), *sections]
    return {key: values[key] for key in order if key in values}


def _given(record: Any) -> dict[str, Any]:
    """Return the fields of a record that differ from their defaults, records below it likewise."""
    kind = getattr(record, "kind", None)
    found: dict[str, Any] = {} if kind is None else {"kind": kind}
    for each in fields(record):
        value = getattr(record, each.name)
        if value == each.default:
            continue
        if is_dataclass(value):
            value = _given(value)
        elif isinstance(value, tuple):
            value = [_given(item) for item in value]
        found[each.name] = value
    return found
