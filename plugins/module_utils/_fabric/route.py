# SPDX-License-Identifier: Apache-2.0
"""Which device a node's fabric address is on, and by which device packets to a peer leave; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

HOST_PREFIX = 32


@dataclass(frozen=True)
class Held:
    """A device and the prefix length of the address on it; an empty device when none has the address."""

    device: str
    prefix: int = 0

    @property
    def routed(self) -> bool:
        """Whether packets from the address leave by other devices: in a ring it is a host address, off the cables."""
        return self.prefix == HOST_PREFIX


def held_by(addresses_json: str, address: str) -> Held:
    """Return where an IPv4 address is, from ``ip -json address show``."""
    for link in json.loads(addresses_json or "[]"):
        for entry in link.get("addr_info", []):
            if entry.get("local") == address:
                return Held(str(link["ifname"]), int(entry.get("prefixlen", 0)))
    return Held("")


def outgoing(route_json: str) -> tuple[str, str]:
    """Return (device, "") from ``ip -json route get``, or ("", why packets cannot leave).

    An address that is on this node itself is not a peer's: packets to it would never leave.
    """
    try:
        found = json.loads(route_json or "[]")
    except ValueError:
        found = []
    if not found or not found[0].get("dev"):
        return "", "there is no route to it"
    if found[0].get("type") == "local":
        return "", "the address is on this node itself"
    return str(found[0]["dev"]), ""
