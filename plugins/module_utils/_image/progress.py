# SPDX-License-Identifier: Apache-2.0
"""How far the pull of an image is: the file that a node writes, and the line that the control node shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: So much must be written to the disk to count as progress: other programs write as well.
DISK_STEP = 16 * MIB


@dataclass
class Progress:
    """State of a pull in bytes; ``done`` is written last, with ``error`` or the name of the image."""

    path: Path | None
    received: int = 0
    total: int = 0
    unpacked: int = 0
    unpack_total: int = 0
    #: The most that was ever used of the disk which is unpacked to: the containerd image store tells nothing else.
    disk: int = 0
    error: str = ""
    name: str = ""
    done: bool = False

    def take_disk(self, used: int) -> None:
        """Take in how much of the disk is used, in bytes."""
        self.disk = max(self.disk, used - used % DISK_STEP)

    def write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, {key: value for key, value in asdict(self).items() if key != "path"})


def progress_line(node: str, status: Mapping[str, Any], bytes_per_s: float) -> str:
    """Return one line that shows how far a node is."""
    received, total = int(status.get("received", 0)), int(status.get("total", 0))
    line = f"{node}: {received / MIB:.0f}"
    line += f" of {total / MIB:.0f} MiB received" if total else " MiB received"
    line += f", {bytes_per_s / MIB:.0f} MiB/s"
    if status.get("unpack_total"):
        line += f"; {int(status['unpacked']) / MIB:.0f} of {int(status['unpack_total']) / MIB:.0f} MiB unpacked"
    return line
