# SPDX-License-Identifier: Apache-2.0
"""The size and the shape of a model whose file names neither, from its repository.  Pure; a reader is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import geometry_from_hf_config
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import UnknownGeometryError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.shape import geometry_values
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository, RepositoryError

#: Reads a repository at a revision, or raises RepositoryError.
Reader = Callable[[str, str], Repository]


def complete(spec: dict[str, Any], read: Reader) -> list[str]:
    """Put size and geometry into a model, and into its drafter, that have no size; return a sentence for each.

    :param spec: a validated ``model_spec``, which is changed.
    """
    said = []
    for tree, key in ((spec, "size_gib"), (spec.get("drafter") or {}, "drafter.size_gib")):
        if not tree or tree["size_gib"]:
            continue
        try:
            found = read(tree["repo"], tree["revision"])
        except RepositoryError as problem:
            said.append(f"model_spec.{key} is 0, and the size could not be read: {problem}")
            continue
        tree["size_gib"] = max(0.001, round(found.weights_bytes / 2**30, 3))
        said.append(f"model_spec.{key} is 0: {tree['size_gib']:g} GiB, read at {found.where}.")
        if not tree.get("geometry"):
            try:
                tree["geometry"] = geometry_values(geometry_from_hf_config(found.config))
            except UnknownGeometryError as problem:
                said.append(f"The shape of {tree['repo']} is not known: {problem.missing[0]}")
    return said
