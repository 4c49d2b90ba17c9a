# SPDX-License-Identifier: Apache-2.0
"""Whether an image fits the disks of a node before it is moved.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB, MIB, chain_ids


def missing_layers(layers: Sequence[Mapping[str, Any]], held: Collection[str]) -> list[Mapping[str, Any]]:
    """Return the layers of an image that a node must be sent.

    :param layers: dictionaries with ``diff_id``, from the base up.
    :param held: chain ids of the layers that the node has.
    """
    chains = chain_ids(layer["diff_id"] for layer in layers)
    return [layer for layer, chain in zip(layers, chains, strict=True) if chain not in held]


def images_root(docker_info: str, containerd_config: str) -> str:
    """Return the directory in which a Docker Engine keeps its images: its own, or containerd's.

    :param docker_info: two lines of ``docker info``: ``DockerRootDir``, and ``DriverStatus`` as JSON.
    :param containerd_config: what ``containerd config dump`` prints; empty where it could not be asked.
    """
    root, _newline, status = docker_info.strip().partition("\n")
    if ["driver-type", "io.containerd.snapshotter.v1"] not in (json.loads(status or "null") or []):
        return root
    found = re.search(r'^root = ["\'](.+)["\']$', containerd_config, re.MULTILINE)
    return found[1] if found else "/var/lib/containerd"


def room_needed(layers: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes below Docker's directory that layers take while they arrive: compressed and unpacked."""
    return sum(int(layer["bytes"]) + int(layer["file_bytes"]) for layer in layers)


def archive_bytes(layer_bytes: Iterable[int]) -> int:
    """Return the most bytes that an archive of layers takes.

    :param layer_bytes: sizes of the layers as a registry keeps them; some are compressed anew.
    """
    return sum(layer_bytes) * 5 // 4 + MIB


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def no_room(node: str, tag: str, disks: Iterable[tuple[str, int, int]], reserve: int) -> list[str]:
    """Return a sentence for each disk of a node that an image does not fit.

    :param disks: (directory, bytes needed, bytes free), one a file system.
    :param reserve: bytes that must stay free.
    """
    return [
        f"{node}: {tag} needs {gib(needed)} below {path} while it arrives, and {gib(reserve)} must stay free; "
        f"{gib(free)} are free: {gib(needed + reserve - free)} too few. No byte was sent to any node. "
        f"Make room on {node} (lower image_retain, or remove what is not needed there) and run again."
        for path, needed, free in disks
        if needed and free < needed + reserve
    ]
