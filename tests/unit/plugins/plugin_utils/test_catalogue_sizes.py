# SPDX-License-Identifier: Apache-2.0
"""A model whose file names no size is sized by its repository, or a sentence says why not."""

from __future__ import annotations

from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import geometry_from_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.sizes import complete
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository, RepositoryError
from tests.unit.repositories import GIB, MOE, UNREAD


def reader(config: dict[str, Any], size: int = 29 * GIB) -> Any:
    return lambda repo, revision: Repository(
        repo, revision, f"http://hub/{repo}", {"model.safetensors": size}, ("model.safetensors",), config
    )


def nothing(repo: str, _revision: str) -> Repository:
    raise RepositoryError(f"{repo} is not there.")


def test_size_and_shape_come_from_the_repository() -> None:
    spec: dict[str, Any] = {"repo": "o/m", "revision": "abc", "size_gib": 0, "geometry": {}, "drafter": {}}
    assert complete(spec, reader(MOE)) == ["model_spec.size_gib is 0: 29 GiB, read at http://hub/o/m."]
    assert spec["size_gib"] == 29
    assert geometry_from_dict(spec["geometry"]).layers == 48


def test_a_drafter_counts_too_and_what_is_known_is_kept() -> None:
    own = {"layers": 1}
    spec: dict[str, Any] = {
        "repo": "o/m", "revision": "abc", "size_gib": 3, "geometry": {},
        "drafter": {"repo": "o/d", "revision": "main", "size_gib": 0, "geometry": own},
    }  # fmt: skip
    assert complete(spec, reader(MOE, 100)) == ["model_spec.drafter.size_gib is 0: 0.001 GiB, read at http://hub/o/d."]
    assert (spec["geometry"], spec["drafter"]["geometry"]) == ({}, own)


def test_what_cannot_be_read_is_said() -> None:
    spec: dict[str, Any] = {"repo": "o/m", "revision": "abc", "size_gib": 0, "geometry": {}, "drafter": {}}
    assert complete(spec, nothing) == ["model_spec.size_gib is 0, and the size could not be read: o/m is not there."]
    assert spec["size_gib"] == 0
    found = complete(spec, reader(UNREAD))
    assert found[1].startswith("The shape of o/m is not known: The memory model has no rules for the architecture")
    assert spec["size_gib"] == 29
