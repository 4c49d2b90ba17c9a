# SPDX-License-Identifier: Apache-2.0
"""The storage of the head's packaged registry: which images it holds, whether they are intact, what nothing needs.

The registry (distribution 2 and later) keeps each blob once, under its digest, and a link to a manifest for each tag.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import DIGEST, file_sha256
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity

_TREE = Path("docker/registry/v2")


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


@dataclass(frozen=True)
class Held(Image):
    """An image that the registry holds completely, under the digest by which it is pulled."""

    digest: str


def blob_path(storage: Path, digest: str) -> Path:
    """Return the file of a blob.

    :raises ValueError: it is no digest.
    """
    found = DIGEST.fullmatch(digest)
    if found is None:
        raise ValueError(f"{digest[:80]!r} is no digest")
    return storage / _TREE / "blobs" / "sha256" / found[1][:2] / found[1] / "data"


def _tag_link(storage: Path, tag: str) -> Path:
    name, _colon, mark = tag.rpartition(":")
    return storage / _TREE / "repositories" / name / "_manifests" / "tags" / mark / "current" / "link"


def _document(storage: Path, digest: str) -> Any:
    return json.loads(blob_path(storage, digest).read_text(encoding="utf-8"))


def read(storage: Path, tag: str) -> Held | None:
    """Return an image of the registry; None when it, or a part of it, is not there."""
    try:
        digest = _tag_link(storage, tag).read_text(encoding="utf-8").strip()
        manifest = _document(storage, digest)
        if "manifests" in manifest:  # an index: BuildKit puts what it attests beside the image
            manifest = next(
                _document(storage, entry["digest"])
                for entry in manifest["manifests"]
                if (entry.get("platform") or {}).get("os") == "linux" and blob_path(storage, entry["digest"]).is_file()
            )
        config = blob_path(storage, manifest["config"]["digest"]).read_text(encoding="utf-8")
        blobs = [
            Blob(diff_id, layer["mediaType"], layer["digest"], int(layer["size"]))
            for diff_id, layer in zip(json.loads(config)["rootfs"]["diff_ids"], manifest["layers"], strict=True)
        ]
        complete = all(blob_path(storage, blob.digest).stat().st_size == blob.bytes for blob in blobs)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration):
        return None
    return Held(tag, config, blobs, digest) if complete else None


def _blobs(storage: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((storage / _TREE / "blobs" / "sha256").glob("*/*/data")):
        yield f"sha256:{path.parent.name}", path


def remove_damaged(storage: Path) -> list[str]:
    """Remove each blob whose content is not that of its digest, read side by side; return their digests.

    The next push brings them again.
    """
    found = list(_blobs(storage))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(lambda each: f"sha256:{file_sha256(each[1])}", found))
    damaged = [(name, path) for (name, path), digest in zip(found, digests, strict=True) if name != digest]
    for _name, path in damaged:
        shutil.rmtree(path.parent)
    return [name for name, _path in damaged]


def _named(storage: Path, digest: str) -> set[str]:
    """Return the digests of a manifest and of all that it names."""
    try:
        document = _document(storage, digest)
        parts: list[Mapping[str, Any]] = [*document.get("layers", []), *filter(None, [document.get("config")])]
        return {digest, *(str(part["digest"]) for part in parts)}.union(
            *(_named(storage, str(entry["digest"])) for entry in document.get("manifests", []))
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {digest}


def prune(storage: Path, keep: Collection[str], check_mode: bool) -> int:
    """Forget every image but those to keep, then remove the blobs that none of them names; return their bytes."""
    needed: set[str] = set()
    repositories = storage / _TREE / "repositories"
    for link in sorted(repositories.rglob("_manifests/tags/*/current/link")):
        tag = f"{link.parents[4].relative_to(repositories)}:{link.parents[1].name}"
        if tag in keep:
            needed |= _named(storage, link.read_text(encoding="utf-8").strip())
        elif not check_mode:
            shutil.rmtree(link.parents[1])
    freed = 0
    for digest, path in _blobs(storage):
        if digest not in needed:
            freed += path.stat().st_size
            if not check_mode:
                shutil.rmtree(path.parent)
    if not check_mode:
        for folder in list(repositories.rglob("_uploads")):  # of a push that was interrupted
            shutil.rmtree(folder)
    return freed
