# SPDX-License-Identifier: Apache-2.0
"""Locks of image layers: which wheel of which hash each layer installs.

A lock is a requirements file for ``pip install --require-hashes``, one for each step of an image with ``lock: true``,
named ``<image>.<step>.txt`` after the image in which the step is written.  Above each requirement stands a comment with
the wheel's address and its size in bytes, from which wheels can be fetched without asking an index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

_ADDRESS = re.compile(r"^# (https://\S+\.whl) (\d+)$")
_PIN = re.compile(r"^([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$")


class LockError(Exception):
    """A lock cannot be used; the message names the line."""


@dataclass(frozen=True)
class Wheel:
    """A wheel that a layer installs: distribution (normalised), version, sha256 (hex), address and size in bytes."""

    name: str
    version: str
    sha256: str
    url: str
    size: int

    @property
    def file(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


def lock_name(step: Mapping[str, Any]) -> str:
    """Return the file name of a step's lock; the step is one of a resolved recipe."""
    return f"{step['image']}.{step['name']}.txt"


def parse(text: str) -> list[Wheel]:
    """Return the wheels of a lock.

    :raises LockError: a line is neither a comment nor a pinned requirement with its address above.
    """
    found: list[Wheel] = []
    address: tuple[str, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if match := _ADDRESS.match(line):
            address = match[1], int(match[2])
        elif match := _PIN.match(line):
            if address is None:
                raise LockError(f"line {number}: {match[1]} has no address above it; write the lock anew.")
            found.append(Wheel(match[1], match[2], match[3], *address))
            address = None
        elif line and not line.startswith("#"):
            raise LockError(f"line {number}: '{line[:60]}' is not a pinned requirement; write the lock anew.")
    return found


def text_of(title: str, wheels: Sequence[Wheel]) -> str:
    """Return a lock."""
    total = sum(wheel.size for wheel in wheels)
    lines = [f"# {title}", f"# {len(wheels)} wheels, {total / 2**20:.0f} MiB. Written by `make lock-images`."]
    for wheel in wheels:
        lines += [f"# {wheel.url} {wheel.size}", f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}"]
    return "\n".join(lines) + "\n"


def added(before: Iterable[Wheel], after: Iterable[Wheel]) -> list[Wheel]:
    """Return the wheels that a layer has to install: those that are new or other ones than in the layers below."""
    below = {wheel.name: wheel for wheel in before}
    return sorted((wheel for wheel in after if below.get(wheel.name) != wheel), key=lambda wheel: wheel.name)
