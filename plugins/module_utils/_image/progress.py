# SPDX-License-Identifier: Apache-2.0
"""How far the pull of an image is: the file that a node writes, and the line that the control node shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


@dataclass
class Progress:
    """State of a pull in bytes; ``done`` is written last, with ``error`` or the name of the image."""

    path: Path | None
    phase: str = "start"
    received: int = 0
    kept: int = 0
    total: int = 0
    unpacked: int = 0
    unpack_total: int = 0
    refetched: list[str] = field(default_factory=list)
    error: str = ""
    name: str = ""
    done: bool = False

    def write(self) -> None:
        """Write the state to its file, if there is one."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, {key: value for key, value in asdict(self).items() if key != "path"})


def progress_line(node: str, status: Mapping[str, Any], bytes_per_s: float) -> str:
    """Return one line that shows how far a node is."""
    received, total = int(status.get("received", 0)), int(status.get("total", 0))
    kept = int(status.get("kept", 0))
    line = f"{node}: {received / MIB:.0f}"
    line += f" of {max(total - kept, received) / MIB:.0f} MiB received" if total else " MiB received"
    line += f", {bytes_per_s / MIB:.0f} MiB/s"
    if kept:
        line += f", {kept / MIB:.0f} MiB kept from an earlier run"
    if status.get("unpack_total"):
        line += f"; {int(status['unpacked']) / MIB:.0f} of {int(status['unpack_total']) / MIB:.0f} MiB unpacked"
    if status.get("refetched"):
        line += f"; damaged and fetched again: {', '.join(layer[:19] for layer in status['refetched'])}"
    return line
