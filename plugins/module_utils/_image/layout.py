# SPDX-License-Identifier: Apache-2.0
"""The store of image layers: file names, digests and manifests.  Pure, standard library only.

A store is a directory with two folders: ``layers/`` holds each layer once, compressed, under its diff id
(``<hex>.tar.zst`` and its description ``<hex>.json``); ``images/`` holds one manifest per image.  The control node's
backup has the same layout.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MIB = 2**20
GIB = 2**30
#: Bytes read or written at a time.
CHUNK = MIB


class ImageError(Exception):
    """Why an image cannot be moved; the text is for the operator."""


@dataclass(frozen=True)
class Layer:
    """A layer in a store.

    ``diff_id``: digest of the layer's tar; ``bytes``: size of the tar; ``file_bytes`` and ``sha256`` (hex): size and
    digest of the compressed file.
    """

    diff_id: str
    bytes: int
    file_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse what another machine may have written to lead a file name out of the store."""
        if not (
            isinstance(self.diff_id, str)
            and isinstance(self.sha256, str)
            and _DIGEST.fullmatch(self.diff_id)
            and _HEX.fullmatch(self.sha256)
            and all(
                isinstance(size, int) and not isinstance(size, bool) and size >= 0
                for size in (self.bytes, self.file_bytes)
            )
        ):
            raise ImageError(
                f"The description of a layer is damaged: its digest {str(self.diff_id)[:80]!r} is not sha256: and 64 "
                "hexadecimal digits, or its sizes or checksum are not possible. Nothing was read or removed for it."
            )

    @property
    def hex(self) -> str:
        return self.diff_id.partition(":")[2]

    @property
    def file(self) -> str:
        return layer_file(self.diff_id)


@dataclass(frozen=True)
class Manifest:
    """An image in a store: its name, its configuration as Docker wrote it, its layers from the base up."""

    tag: str
    config: str
    layers: list[Layer]

    @property
    def distinct(self) -> list[Layer]:
        """Each layer once, in order; an image may contain the same layer twice."""
        return list({layer.diff_id: layer for layer in self.layers}.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def manifest_from_json(text: str) -> Manifest:
    """Return the manifest that a text holds.

    :raises ImageError: when the text is no manifest, or its layers are not those of its configuration.
    """
    try:
        data = json.loads(text)
        layers = [Layer(**layer) for layer in data["layers"]]
        manifest = Manifest(str(data["tag"]), str(data["config"]), layers)
        wanted = json.loads(manifest.config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ImageError(f"The image's manifest cannot be read: {problem!r}. Export the image again.") from problem
    if [layer.diff_id for layer in layers] != wanted:
        raise ImageError(f"The manifest of {manifest.tag} names other layers than its configuration.")
    return manifest


def tag_file(tag: str) -> str:
    """Return the file name of an image's record, manifest or backup."""
    return f"{tag.replace('/', '_').replace(':', '@')}.json"


def layer_file(diff_id: str) -> str:
    """Return the file name of a layer in a store."""
    return f"{diff_id.partition(':')[2]}.tar.zst"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes as registries write it, ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the name of each layer together with all below it, as Docker's layer store keeps it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
