# SPDX-License-Identifier: Apache-2.0
"""Records of verified images on a node: one JSON file per image below the state directory.

A record holds the image's ``identity`` (layer diff ids and configuration), its ``tag``, and what was asserted and
found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import tag_file
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: The state directory unless another is given, and what of it belongs to images.
STATE_DIR = "/var/lib/gb10"
RECORDS = "images"
REGISTRY = "image-registry"
ARCHIVES = "image-archives"
#: What earlier releases kept layers in.
FORMER = ("image-store", "incoming")
#: Transient units: the head's registry, and a node that pulls; and the file in which that node reports its progress.
OFFER_UNIT = "gb10-image-offer"
PULL_UNIT = "gb10-image-pull"
PULL_STATUS = "/run/gb10/image-pull.json"


def read(state_dir: str, tag: str) -> dict[str, Any]:
    """Return the record of an image; empty when there is none or it cannot be read."""
    return files.read_json(Path(state_dir) / RECORDS / tag_file(tag))


def write(state_dir: str, tag: str, record: dict[str, Any]) -> None:
    folder = Path(state_dir) / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / tag_file(tag), {**record, "tag": tag})


def tags(state_dir: str) -> list[str]:
    """Return the images that were verified on this node and not forgotten."""
    found = (files.read_json(path).get("tag") for path in sorted((Path(state_dir) / RECORDS).glob("*.json")))
    return [str(tag) for tag in found if tag]


def remove(state_dir: str, tag: str) -> None:
    files.remove(Path(state_dir) / RECORDS / tag_file(tag))
