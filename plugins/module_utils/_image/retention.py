# SPDX-License-Identifier: Apache-2.0
"""Which images a node may lose.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

#: The name under which the head's registry hands an image to a Docker Engine; an interrupted run may leave it.
HANDED_OVER = re.compile(r"\d+\.\d+\.\d+\.\d+:\d+/gb10/")


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
        if not tag.startswith("gb10/") and not HANDED_OVER.match(tag):
            stay[tag] = "somebody else gave it this name"
        elif image["containers"]:
            stay[tag] = "a container was made from it"
        elif tag == current:
            stay[tag] = "it is the current one"
        elif tag in needed:
            stay[tag] = "a unit names it"
        elif ":refused-" in tag or HANDED_OVER.match(tag):
            remove.append(tag)
        elif spare.get(name, 0) < retain:
            spare[name] = spare.get(name, 0) + 1
            stay[tag] = f"one of the {retain} newest of {name} besides the current one"
        else:
            remove.append(tag)
    return remove, stay


def units_images(texts: Iterable[str]) -> list[str]:
    """Return the images of this collection that systemd units name."""
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"(?<![\w./:-])gb10/[a-z0-9_.-]+:[A-Za-z0-9_.-]+", text))
    return sorted(found)
