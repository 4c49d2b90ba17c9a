# SPDX-License-Identifier: Apache-2.0
"""What moving an image needs, what is in its way, and how far it is.  Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

GIB = 2**30
MIB = 2**20
#: The transient unit in which the head offers an image.
OFFER_UNIT = "gb10-image-offer"

#: The name under which a node's own agent hands an image to the Docker Engine.
_HANDED_OVER = re.compile(r"^127\.0\.0\.1:\d+/")


def tag_file(tag: str) -> str:
    """Return the file name of an image's record, manifest or backup."""
    return f"{tag.replace('/', '_').replace(':', '@')}.json"


def layer_file(diff_id: str) -> str:
    """Return the file name of a layer in a store."""
    return f"{diff_id.partition(':')[2]}.tar.zst"


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the name of each layer together with all below it, as Docker's layer store keeps it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        link = f"{chains[-1]} {diff_id}".encode() if chains else b""
        chains.append(f"sha256:{hashlib.sha256(link).hexdigest()}" if link else diff_id)
    return chains


def lacking(layers: Sequence[Mapping[str, Any]], held: Collection[str]) -> list[Mapping[str, Any]]:
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


def room_needed(layers: Sequence[Mapping[str, Any]], transport: str, whole_bytes: int) -> tuple[int, int]:
    """Return (bytes below Docker's directory, bytes below ours) that an image takes while it arrives.

    The Docker Engine writes each layer's tar to a temporary file and unpacks it from there, so a layer counts
    twice; ``docker load`` does the same with the whole image. The containerd image store keeps both for good.
    """
    if transport == "tarball":
        return 2 * whole_bytes, 0
    return 2 * sum(layer["bytes"] for layer in layers), sum(layer["file_bytes"] for layer in layers)


def gib(count: float) -> str:
    """Return a number of bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def no_room(node: str, tag: str, disks: Iterable[tuple[str, int, int]], reserve: int) -> list[str]:
    """Return a sentence for each disk of a node that an image does not fit.

    :param disks: (directory, bytes needed, bytes free), one a file system.
    :param reserve: bytes that must stay free.
    """
    return [
        f"{node}: {tag} needs {gib(needed)} below {path} while it arrives, and {gib(reserve)} must stay free; "
        f"{gib(free)} are free: {gib(needed + reserve - free)} too few. Nothing was moved to any node. "
        f"Make room on {node} (lower image_retain, or remove what is not needed there) and run again."
        for path, needed, free in disks
        if needed and free < needed + reserve
    ]


def progress_line(node: str, status: Mapping[str, Any], bytes_per_s: float) -> str:
    """Return one line that says how far a node is."""
    received, total = int(status.get("received", 0)), int(status.get("total", 0))
    kept = int(status.get("kept", 0))
    line = f"{node}: {received / MIB:.0f}"
    line += f" of {max(total - kept, received) / MIB:.0f} MiB received" if total else " MiB received"
    line += f", {bytes_per_s / MIB:.0f} MiB/s"
    if kept:
        line += f", {kept / MIB:.0f} MiB were there from an earlier run"
    if status.get("unpack_total"):
        line += f"; {int(status['unpacked']) / MIB:.0f} of {int(status['unpack_total']) / MIB:.0f} MiB unpacked"
    if status.get("refetched"):
        line += f"; damaged and fetched again: {', '.join(layer[:19] for layer in status['refetched'])}"
    return line


def to_remove(
    images: Sequence[Mapping[str, Any]], current: str, needed: Collection[str], retain: int
) -> tuple[list[str], dict[str, str]]:
    """Return (exact names to remove, why each other one stays).

    :param images: ``tag``, ``name`` (its gb10.image label), ``created`` (as Docker writes it) and ``containers``
        (how many were made from it, stopped ones too) of each image that this collection built.
    :param current: the image that was just proven on every member.
    :param needed: images that a unit on any node names, whether it runs or not.
    :param retain: how many others of each name stay for a way back, the newest.
    """
    remove: list[str] = []
    stay: dict[str, str] = {}
    spare: dict[str, int] = {}
    for image in sorted(images, key=lambda each: str(each["created"]), reverse=True):
        tag, name = str(image["tag"]), str(image["name"])
        if not tag.startswith("gb10/") and not _HANDED_OVER.match(tag):
            stay[tag] = "somebody else gave it this name"
        elif image["containers"]:
            stay[tag] = "a container was made from it"
        elif tag == current:
            stay[tag] = "it is the current one"
        elif tag in needed:
            stay[tag] = "a unit names it"
        elif ":refused-" in tag or _HANDED_OVER.match(tag):
            remove.append(tag)
        elif spare.get(name, 0) < retain:
            spare[name] = spare.get(name, 0) + 1
            stay[tag] = f"one of the {retain} newest of {name} besides the current one"
        else:
            remove.append(tag)
    return remove, stay


def unreferenced(files: Iterable[str], manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the files of a store's layers that no manifest names; what is being written counts as named."""
    named = {
        diff_id.partition(":")[2]
        for manifest in manifests
        for diff_id in (str(layer["diff_id"]) for layer in manifest["layers"])
    }
    return sorted(file for file in files if file.partition(".")[0] not in named and not file.endswith(".writing"))


def units_images(texts: Iterable[str]) -> list[str]:
    """Return the images of this collection that systemd units name."""
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"(?<![\w./:-])gb10/[a-z0-9_.-]+:[A-Za-z0-9_.-]+", text))
    return sorted(found)
