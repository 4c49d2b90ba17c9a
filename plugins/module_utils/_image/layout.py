# SPDX-License-Identifier: Apache-2.0
"""What an image consists of: names, digests, layers, identity.  Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity

MIB = 2**20
GIB = 2**30
#: Bytes read or written at a time.
CHUNK = MIB


class ImageError(Exception):
    """Why an image cannot be moved; the text is for the operator."""


@dataclass(frozen=True)
class Blob:
    """A layer as a registry or an archive holds it: digest of its tar, media type, digest and size in bytes."""

    diff_id: str
    type: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Image:
    """An image: its name, its configuration as Docker wrote it, its layers from the base up."""

    tag: str
    config: str
    blobs: list[Blob]

    @property
    def identity(self) -> str:
        """The identity that the image has in a Docker Engine."""
        config = json.loads(self.config)
        return identity(
            {
                "RootFS": {"Layers": [blob.diff_id for blob in self.blobs]},
                "Config": config.get("config"),
                "Architecture": config.get("architecture"),
            }
        )

    @property
    def distinct(self) -> list[Blob]:
        """Each layer once, in order; an image may contain the same layer twice."""
        return list({blob.diff_id: blob for blob in self.blobs}.values())


def tag_file(tag: str) -> str:
    """Return the file name of an image's record."""
    return f"{tag.replace('/', '_').replace(':', '@')}.json"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes as registries write it, ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the name of each layer together with all below it, as Docker's layer store keeps it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
