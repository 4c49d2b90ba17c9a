# SPDX-License-Identifier: Apache-2.0
"""What a lab remembers between two commands: ``.lab/<name>/lab.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path

from lab import access
from lab.errors import LabError
from lab.plan import NETS, Net, SubnetPair
from lab.shaping import Rates

FILE = "lab.json"


@dataclass(frozen=True)
class Settings:
    """One lab: its size, networks, link rates, way out, and which cables are pulled."""

    name: str
    nodes: int
    subnets: SubnetPair
    rates: Rates
    uplink: bool
    base_image: str | None = None
    with_docker: bool = False
    cut: Mapping[str, tuple[Net, ...]] = field(default_factory=dict)

    def is_cut(self, host: str, net: Net) -> bool:
        """Return whether the link of ``host`` on ``net`` is cut."""
        return net in self.cut.get(host, ())

    def with_links(self, host: str, nets: tuple[Net, ...], cut: bool) -> Settings:
        """Return the settings with these links of ``host`` cut or healed."""
        before = set(self.cut.get(host, ()))
        after = before | set(nets) if cut else before - set(nets)
        rest = {name: links for name, links in self.cut.items() if name != host}
        if after:
            rest[host] = tuple(net for net in NETS if net in after)
        return replace(self, cut=rest)

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return (
            json.dumps(
                {
                    "name": self.name,
                    "nodes": self.nodes,
                    "mgmt_subnet": str(self.subnets.mgmt),
                    "fabric_subnet": str(self.subnets.fabric),
                    "mgmt_bits_per_s": self.rates.mgmt_bits_per_s,
                    "fabric_bits_per_s": self.rates.fabric_bits_per_s,
                    "uplink": self.uplink,
                    "base_image": self.base_image,
                    "with_docker": self.with_docker,
                    "cut": {host: list(nets) for host, nets in sorted(self.cut.items())},
                },
                indent=2,
            )
            + "\n"
        )


def from_json(text: str) -> Settings:
    """Return the settings that ``text`` holds; raise ValueError or KeyError when it is damaged."""
    data = json.loads(text)
    return Settings(
        name=data["name"],
        nodes=int(data["nodes"]),
        subnets=SubnetPair(IPv4Network(data["mgmt_subnet"]), IPv4Network(data["fabric_subnet"])),
        rates=Rates(data["mgmt_bits_per_s"], data["fabric_bits_per_s"]),
        uplink=bool(data["uplink"]),
        base_image=data.get("base_image"),
        with_docker=bool(data.get("with_docker")),
        cut={host: tuple(net for net in NETS if net in nets) for host, nets in data["cut"].items()},
    )


def load(state: Path) -> Settings | None:
    """Return the settings kept in ``state``, None without any; raise LabError when damaged."""
    path = state / FILE
    if not path.exists():
        return None
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is damaged ({error!r}): take the lab down with `python -m lab down` and up again."
        ) from error


def save(settings: Settings, state: Path) -> None:
    """Keep ``settings`` in ``state``."""
    access.write(state / FILE, settings.to_json())
