# SPDX-License-Identifier: Apache-2.0
"""What skopeo is asked for, and whether its answers are those of a digest.  Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError, digest_of
from ansible_collections.gb10.cluster.plugins.module_utils._image.remote import Reference


def source(reference: Reference, digest: str) -> str:
    """Return an image of a registry by its digest, as skopeo takes it."""
    return f"docker://{reference.host or 'docker.io'}/{reference.full_name}@{digest}"


def tls(reference: Reference, option: str) -> list[str]:
    """Return the option for plain HTTP, which only registries on this machine get."""
    return [f"--{option}=false"] if reference.url.startswith("http:") else []


def manifest(raw: bytes, digest: str, where: str) -> dict[str, Any]:
    """Return the manifest, or index of manifests, that a registry gave for a digest.

    :raises ImageError: it is another one.
    """
    if digest_of(raw) != digest:
        raise ImageError(f"{where} gives {digest_of(raw)[:19]} for {digest[:19]}: it is not the image of the lock.")
    try:
        found = json.loads(raw)
    except ValueError as problem:
        raise ImageError(f"{where} gives no manifest for {digest[:19]}: {problem}.") from problem
    return dict(found)


def instance(index: dict[str, Any], architecture: str, where: str) -> str:
    """Return the digest of the image for an architecture; empty when the manifest is that of one image.

    :raises ImageError: there is none for it.
    """
    if "manifests" not in index:
        return ""
    platforms = {
        str((entry.get("platform") or {}).get("architecture")): str(entry["digest"])
        for entry in index["manifests"]
        if (entry.get("platform") or {}).get("os") == "linux"
    }
    if architecture not in platforms:
        have = ", ".join(sorted(platforms)) or "none"
        raise ImageError(f"{where} has no image for {architecture}; it has {have}.")
    return platforms[architecture]


def layers(found: dict[str, Any], where: str) -> list[tuple[str, int]]:
    """Return digest and size in bytes of each layer that a manifest names.

    :raises ImageError: it is not the manifest of an image.
    """
    try:
        return [(str(layer["digest"]), int(layer["size"])) for layer in found["layers"]]
    except (KeyError, TypeError, ValueError) as problem:
        raise ImageError(f"{where} gives a manifest without layers ({problem!r}).") from problem


def require_layers(archived: Sequence[str], named: Sequence[str], where: str) -> None:
    """Compare the layers of an archive with those that the manifest of the digest names.

    :raises ImageError: they differ.
    """
    if list(archived) != list(named):
        raise ImageError(f"What skopeo wrote has other layers than {where} names: it was refused.")
