# SPDX-License-Identifier: Apache-2.0
"""What the owner of a node has that its firewall concerns: Docker's networks, other firewalls, listeners; pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: Other firewalls, by the unit that runs them.
FIREWALLS = ("ufw.service", "firewalld.service")
#: UDP ports that the table always accepts replies or queries on: DHCP clients and, unless switched off, mDNS.
DHCP_CLIENT_PORTS = (68, 546)
MDNS_PORT = 5353


@dataclass(frozen=True)
class Listener:
    """A socket that waits for other machines: ``protocol`` tcp or udp, ``device`` empty unless it is bound to one."""

    protocol: str
    port: int
    process: str
    device: str = ""

    def phrase(self) -> str:
        """Return it as "445/tcp (smbd)"."""
        place = f" on {self.device}" if self.device else ""
        return f"{self.port}/{self.protocol} ({self.process or 'unknown process'}{place})"


def parse_listeners(ss_output: str) -> list[Listener]:
    """Return the listeners of ``ss -Hltunp`` that other machines could reach, in the order of their ports."""
    found = set()
    for line in ss_output.splitlines():
        words = line.split()
        if len(words) < 6 or words[0] not in ("tcp", "udp"):
            continue
        address, _colon, port = words[4].rpartition(":")
        address, _percent, device = address.strip("[]").partition("%")
        if not port.isdigit() or device == "lo" or _is_loopback(address):
            continue
        process = re.search(r'users:\(\("([^"]+)"', line)
        found.add(Listener(words[0], int(port), process.group(1) if process else "", device.rstrip("]")))
    return sorted(found, key=lambda each: (each.port, each.protocol, each.device))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # "*"
        return False


def closed(
    listeners: Sequence[Listener], ssh_ports: Collection[int], open_ports: Collection[int], mdns: bool
) -> list[Listener]:
    """Return the listeners that the table closes to everything but members of the cluster."""
    udp = {*DHCP_CLIENT_PORTS, *((MDNS_PORT,) if mdns else ())}
    tcp = {*ssh_ports, *open_ports}
    return [each for each in listeners if each.port not in (tcp if each.protocol == "tcp" else udp)]


def docker_bridges(inspect_json: str) -> list[str]:
    """Return the devices of Docker's bridge networks, from ``docker network inspect``.

    A bridge that is merely named like Docker's (``br-lan``) is none of them.
    """
    try:
        networks = json.loads(inspect_json or "[]")
    except ValueError:
        return []
    devices = set()
    for network in networks:
        if network.get("Driver") == "bridge" and network.get("Id"):
            named = (network.get("Options") or {}).get("com.docker.network.bridge.name")
            devices.add(str(named or f"br-{network['Id'][:12]}"))
    return sorted(devices)
