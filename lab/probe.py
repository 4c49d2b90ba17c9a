# SPDX-License-Identifier: Apache-2.0
"""What a running node says of itself, read over its console: one shell script and its parser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from lab.errors import LabError
from lab.plan import NETS, Net

_MARK = "=====gb10-lab====="

#: Runs in a node as root; prints five sections that :func:`parse` reads.
SCRIPT = f"""
ip -j addr show
echo '{_MARK}'
tc -j qdisc show
echo '{_MARK}'
systemctl is-system-running 2>/dev/null || true
echo '{_MARK}'
systemctl is-active ssh.service docker.service 2>/dev/null || true
echo '{_MARK}'
cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null || true
"""


@dataclass(frozen=True)
class LinkState:
    """One interface of a node as seen from inside."""

    device: str
    peer_ifindex: int
    carrier: bool
    mtu: int
    bits_per_s: int | None


@dataclass(frozen=True)
class NodeState:
    """A node as seen from inside; ``links`` has the networks whose address was found."""

    links: Mapping[Net, LinkState]
    systemd: str
    sshd: str
    docker: str
    host_keys: tuple[str, ...]


def _shaped_bits_per_s(qdiscs: list[dict[str, Any]], device: str) -> int | None:
    for qdisc in qdiscs:
        if qdisc.get("dev") == device and qdisc.get("kind") == "tbf" and qdisc.get("root"):
            return int(qdisc["options"]["rate"]) * 8
    return None


def parse(text: str, addresses: Mapping[Net, IPv4Address]) -> NodeState:
    """Return what the output of SCRIPT says.

    addresses: the node's planned address on each network; an interface is known by its address,
    never by its name. Raises LabError when a section is missing or is not what it should be.
    """
    sections = [section.strip() for section in text.split(_MARK)]
    if len(sections) != 5:
        raise LabError(f"A node's console answered in {len(sections)} sections instead of 5.")
    try:
        interfaces = json.loads(sections[0] or "[]")
        qdiscs = json.loads(sections[1] or "[]")
    except ValueError as error:
        raise LabError(f"A node's ip or tc did not answer in JSON: {error}") from error
    links: dict[Net, LinkState] = {}
    for net in NETS:
        wanted = str(addresses[net])
        for interface in interfaces:
            if any(info.get("local") == wanted for info in interface.get("addr_info", [])):
                flags = interface.get("flags", [])
                links[net] = LinkState(
                    device=interface["ifname"],
                    peer_ifindex=int(interface.get("link_index", 0)),
                    carrier="LOWER_UP" in flags and "NO-CARRIER" not in flags,
                    mtu=int(interface["mtu"]),
                    bits_per_s=_shaped_bits_per_s(qdiscs, interface["ifname"]),
                )
    units = [*sections[3].split(), "unknown", "unknown"]
    return NodeState(
        links=links,
        systemd=sections[2] or "unknown",
        sshd=units[0],
        docker=units[1],
        host_keys=tuple(sorted(line.strip() for line in sections[4].splitlines() if line.strip())),
    )
