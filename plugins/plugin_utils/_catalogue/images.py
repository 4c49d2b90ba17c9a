# SPDX-License-Identifier: Apache-2.0
"""The class that serves a repository, and the image whose vLLM has it.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import families
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import VersionError, parse


class ProposalError(Exception):
    """No model file can be made; the message is one sentence for the owner."""


def architecture_of(repository: Repository) -> families.Architecture:
    """Return the class that serves a repository.

    :raises ProposalError: config.json names none, or one that cannot be served.
    """
    named = repository.config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ProposalError(f"config.json of {repository.repo} names no architecture, so no vLLM can load it.")
    found = families.architecture(named[0])
    read = families.releases_read()
    if found is None:
        raise ProposalError(
            f"{repository.repo} is a {named[0][:100]!r}, which no release of vLLM that was read has ({read[0]} to "
            f"{read[-1]}): it needs a newer vLLM or a fork, and a model file by hand (docs/model_spec.md)."
        )
    if found.kind == "draft":
        raise ProposalError(f"{repository.repo} is a {named[0]}, a draft model: it is not served alone.")
    return found


@dataclass(frozen=True)
class Image:
    """An image that can be chosen.

    :ivar version: of its vLLM; of a fork, the release that it follows.
    """

    name: str
    version: str
    fork: bool
    own_wheels: bool


def _image(images: Mapping[str, Any], name: str) -> Image | None:
    """Return an image of the catalogue or of a reference; None when it does not say which vLLM it has."""
    recipe, errors = image_recipe.resolve(images, name)
    if errors:
        return None
    version = str(recipe["vllm_upstream"] or recipe["vllm_version"] or "")
    try:
        parse(version)
    except VersionError:
        return None
    return Image(name, version, bool(recipe["vllm_upstream"]), any(step["wheels"] for step in recipe["steps"]))


def choose_image(found: families.Architecture, images: Mapping[str, Any], wanted: str) -> tuple[Image, str]:
    """Return (the image that serves a class, why this one): the newest release, public before wheels of the owner's.

    A fork is for the models that its makers name, and is taken when the owner asks for it.

    :param wanted: the owner's choice, a key of the catalogue or a reference; empty for the newest.
    :raises ProposalError: none of them can.
    """
    known = [image for name in images if (image := _image(images, name))]
    if wanted:
        image = _image(images, wanted)
        if image is None:
            raise ProposalError(
                f"Image '{wanted}' is not in gb10_images, or does not say which vLLM it has. Known: "
                f"{families.names(each.name for each in known)}."
            )
        if families.has_class(found, image.version):
            return image, f"add_model_image; its vLLM {image.version} has {found.name} [V]"
        if image.fork:
            return image, f"add_model_image; a fork of vLLM {image.version}, which has no {found.name}: it may, or not"
        raise ProposalError(f"Image '{wanted}' has vLLM {image.version}, which has no {found.name}: {_since(found)}.")
    able = [each for each in known if not each.fork and families.has_class(found, each.version)]
    if not able:
        have = families.names(f"{each.name} {each.version}" for each in known)
        raise ProposalError(
            f"No image of gb10_images has {found.name}: {_since(found)}, and they have {have}. Add an image "
            "(docs/roles/image.md)."
        )
    # Of equal ones the first of the catalogue: min() keeps it.
    best = min(able, key=lambda each: (each.own_wheels, [-part for part in parse(each.version).release]))
    kind = "vLLM in gb10_images, from wheels of your own," if best.own_wheels else "public vLLM in gb10_images"
    return best, f"the newest {kind} that has {found.name} [V {best.version}]"


def _since(found: families.Architecture) -> str:
    last = "" if found.releases[-1] == families.releases_read()[-1] else f", gone after {found.releases[-1]}"
    return f"it is in vLLM from {found.releases[0]} on{last}"
