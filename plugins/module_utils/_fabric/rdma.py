# SPDX-License-Identifier: Apache-2.0
"""The RDMA devices (HCAs) of a node as sysfs shows them now.  Standard library only: programs and modules share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/class/infiniband")


def parse_state(text: str) -> str:
    """Return the word of an InfiniBand state such as ``4: ACTIVE``."""
    return text.partition(":")[2].strip() or text.strip()


@dataclass(frozen=True)
class RdmaPort:
    """One port of a device; ``folder`` holds its counters."""

    number: str
    active: bool
    folder: Path


@dataclass(frozen=True)
class RdmaDevice:
    """One HCA with the network devices of the same function, names sorted."""

    name: str
    netdevs: list[str]
    ports: list[RdmaPort]


def _state(port: Path) -> str:
    try:
        return parse_state((port / "state").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return ""


def devices(root: Path = SYSFS) -> list[RdmaDevice]:
    """Return the HCAs in the order of their names; none when the kernel has no RDMA."""
    return [
        RdmaDevice(
            device.name,
            sorted(path.name for path in device.glob("device/net/*")),
            [RdmaPort(port.name, _state(port) == "ACTIVE", port) for port in sorted((device / "ports").glob("[0-9]*"))],
        )
        for device in (sorted(root.iterdir()) if root.is_dir() else [])
    ]
