# SPDX-License-Identifier: Apache-2.0
"""From the arguments of ``gb10.cluster.memory_budget`` to the verdict: shapes, measured caches, settings.

The one reader of those arguments, for the module and for what asks on the control node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import (
    geometry_from_hf_config,
    keeps_nothing,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Geometry,
    UnknownGeometryError,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.measured import points_from, verdict_from_points
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import UNKNOWN, Budget, Settings
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate, unknown

#: Arguments that do not go into the settings as they are.
APART = ("geometry", "config_json", "draft_geometry", "draft_config_json", "measured", "reclaim_gib")

#: Reads the config.json at a path, or in the directory at that path.
Reader = Callable[[str], Mapping[str, Any]]


def nothing_to_read(path: str) -> Mapping[str, Any]:
    """Return nothing: for a caller whose models are elsewhere.

    :raises UnknownGeometryError: always
    """
    raise UnknownGeometryError([f"{path} is not read here."])


def _shape(values: Mapping[str, Any] | None, path: str | None, read: Reader, sentence: str) -> Geometry:
    """Return a shape from a dictionary, else from a file.

    :raises GeometryError: the dictionary is wrong
    :raises UnknownGeometryError: neither is there, or the file does not say enough
    """
    if values:
        return geometry_from_dict(values)
    if not path:
        raise UnknownGeometryError([sentence])
    return geometry_from_hf_config(read(path))


def answer(asked: Mapping[str, Any], read: Reader = nothing_to_read) -> Budget:
    """Return the verdict on one node.

    :param asked: the module's arguments, with ``mem_total_gib``; what is None counts as not given
    :raises GeometryError: a shape is wrong
    :raises MemoryModelError: the settings contradict themselves
    :raises ValueError: from ``read``
    """
    points = points_from(asked.get("measured") or [])
    draft: Geometry | None = None
    try:
        sentence = "The shape of the model is not given, so its cache is not computed."
        geometry = _shape(asked.get("geometry"), asked.get("config_json"), read, sentence)
        if asked.get("draft_weights_gib") and asked.get("speculative_tokens"):
            sentence = "The shape of the draft model is not given, so its cache is not computed."
            described, path = asked.get("draft_geometry"), asked.get("draft_config_json")
            if not described and path and keeps_nothing(read(path)):
                asked = {**asked, "draft_has_layers": False}
            else:
                draft = _shape(described, path, read, sentence)
    except UnknownGeometryError as error:
        return verdict_from_points(points, error.missing, asked) if points else unknown(error.missing)
    plain = {name: value for name, value in asked.items() if name not in APART and value is not None}
    budget = evaluate(Settings(geometry=geometry, draft=draft, **plain))
    if budget.verdict == UNKNOWN and points:
        return verdict_from_points(points, budget.missing, asked)
    return budget
