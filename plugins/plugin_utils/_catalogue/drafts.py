# SPDX-License-Identifier: Apache-2.0
"""What drafts tokens for a class of models: its own heads or a model beside it, as published.json has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import geometry_from_hf_config
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import Geometry, UnknownGeometryError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.families import PUBLISHED
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.shape import geometry_values
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository, RepositoryError
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import parse

OPTION = "speculative-config"
#: The switch: as published, nothing, the checkpoint's own heads, a model beside it.
NONE, HEADS, DRAFTER = "none", "heads", "drafter"
KINDS = ("", NONE, HEADS, DRAFTER)

#: Reads the repository of a draft model at a revision.
Reader = Callable[[str, str], Repository]


def unread(repo: str, _revision: str) -> Repository:
    """Refuse to read: for a caller without a hub.

    :raises RepositoryError: always
    """
    raise RepositoryError(f"{repo} was not read")


@dataclass(frozen=True)
class Draft:
    """One published way to draft.

    :ivar key: key of config.json that must be there, where the heads are not those of multi-token prediction alone.
    :ivar drafter: repository and revision of a model beside the target; empty for the checkpoint's own heads.
    :ivar shape: layers and width of the target that the drafter was trained for.
    :ivar since: first release of vLLM that takes it.
    """

    classes: Sequence[str]
    config: Mapping[str, Any]
    source: str
    key: str = ""
    drafter: Sequence[str] = ()
    shape: Sequence[int] = ()
    since: str = ""


#: The first that a repository can use is proposed.
DRAFTS = tuple(Draft(**each) for each in PUBLISHED["drafts"])


def _has_head_tensors(repository: Repository, layers: int) -> bool:
    """Tell whether the index has tensors beyond the model's own layers; true without an index.

    Some quantised repositories name the heads in config.json and leave their weights out.
    """
    if repository.tensors is None:
        return True
    for name in repository.tensors:
        parts = name.split(".")
        if "mtp" in parts:
            return True
        if "layers" in parts[:-1]:
            number = parts[parts.index("layers") + 1]
            if number.isdecimal() and int(number) >= layers:
                return True
    return False


def published(repository: Repository, geometry: Geometry, version: str, wanted: str) -> tuple[Draft | None, str]:
    """Return (what is published for a model and its image, why not where that is of interest).

    :param wanted: of ``KINDS``, not ``none``.
    """
    why_not = ""
    for each in DRAFTS:
        if geometry.architecture not in each.classes or (wanted and (wanted == DRAFTER) != bool(each.drafter)):
            continue
        if each.since and parse(version).release < parse(each.since).release:
            continue
        if each.drafter:
            if [geometry.layers, geometry.hidden_size] == each.shape:
                return each, ""
            continue
        if geometry.mtp is None or (each.key and not repository.text.get(each.key)):
            continue
        if _has_head_tensors(repository, geometry.layers):
            return each, ""
        why_not = "config.json names draft heads, and the index has no tensors of them: nothing drafts."
    if wanted:
        return None, why_not or f"add_model_drafts is {wanted}, and no source here says which that is for this model."
    if geometry.mtp and not why_not:
        why_not = "The checkpoint has draft heads, and no source here says how they are used: serve.speculative-config."
    return None, why_not


def drafter_of(found: Draft, read: Reader) -> tuple[dict[str, Any], str]:
    """Return (``drafter`` of a model file, nothing), or (nothing, why there is none)."""
    repo, revision = found.drafter
    try:
        repository = read(repo, revision)
    except RepositoryError as problem:
        return {}, f"{repo} drafts for this model ({found.source}) and could not be read, so nothing drafts: {problem}"
    made: dict[str, Any] = {
        "repo": repository.repo,
        "revision": repository.revision,
        "size_gib": round(repository.weights_bytes / 2**30, 2),
    }
    try:
        shape = geometry_from_hf_config(repository.config)
    except UnknownGeometryError:
        return made, ""
    made["geometry"] = geometry_values(shape)
    return made, ""
