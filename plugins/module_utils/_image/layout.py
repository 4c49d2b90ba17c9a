# SPDX-License-Identifier: Apache-2.0
"""Names, digests and sizes of what an image consists of.  Standard library only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

MIB = 2**20
GIB = 2**30
#: Bytes read or written at a time.
CHUNK = MIB
#: A digest as registries write it; its group is the hexadecimal part.
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class ImageError(Exception):
    """Why an image cannot be moved; the text is for the operator."""


def tag_file(tag: str) -> str:
    return f"{tag.replace('/', '_').replace(':', '@')}.json"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes as registries write it, ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the name of each layer together with all below it, as Docker's layer store keeps it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
