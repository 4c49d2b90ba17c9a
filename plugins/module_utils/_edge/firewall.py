# SPDX-License-Identifier: Apache-2.0
"""Who may reach which port of a node, as one nftables table of our own; pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FAMILY = "inet"
TABLE = "gb10"
#: Removes the table whether or not there is one.
REMOVE = f"add table {FAMILY} {TABLE}; delete table {FAMILY} {TABLE}"

_SSHD = re.compile(r'"(?:sshd|dropbear)",pid=(\d+)')
_INTERFACE = re.compile(r"^[\w.@+:-]{1,15}\*?$")


class FirewallError(ValueError):
    """The settings cannot become a table; the message says why and what to do."""


@dataclass(frozen=True)
class Device:
    """A network device: its name, driver and addresses, without IPv6 ones of scope link."""

    name: str
    driver: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Fabric:
    """The devices of a node that are the fabric's, what is theirs alone, and the node's addresses on them."""

    devices: tuple[str, ...]
    closed: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Who may reach what.

    ``closed``: devices on which the open ports are open to members only; ``bridges``: devices of the node's containers,
    from which ``bridge_ports`` are open.
    """

    ssh_ports: Sequence[int]
    open_ports: Sequence[int] = ()
    fabric: Sequence[str] = ()
    closed: Sequence[str] = ()
    members: Sequence[str] = ()
    bridges: Sequence[str] = ()
    bridge_ports: Sequence[int] = ()
    mdns: bool = True
    rules: Sequence[str] = field(default=())


def parse_devices(addresses_json: str, drivers: Mapping[str, str]) -> list[Device]:
    """Return the devices of ``ip -json address show``; ``drivers`` is the driver by device."""
    return [
        Device(
            name=str(link["ifname"]),
            driver=drivers.get(str(link["ifname"]), ""),
            addresses=tuple(
                str(each["local"])
                for each in link.get("addr_info", [])
                if "local" in each
                # IPv4 of scope link (169.254.0.0/16) counts: the fabric may have such addresses.
                and (each.get("scope") not in ("link", "host") or str(each["local"]).startswith("169.254."))
            ),
        )
        for link in json.loads(addresses_json or "[]")
        if link.get("ifname")
    ]


def default_devices(routes_json: str) -> set[str]:
    """Return the devices of the default routes in ``ip -json route show default``."""
    return {str(route["dev"]) for route in json.loads(routes_json or "[]") if route.get("dev")}


def find_fabric(
    devices: Sequence[Device], named: Sequence[str], drivers: Sequence[str], fabric_address: str, management: set[str]
) -> Fabric:
    """Return which devices are the fabric's.

    Those that are named (an address stands for the device that carries it), or else those with one of the drivers;
    and always the one with the node's fabric address. A device that the node is managed over as well, because one
    of ``management`` (names or addresses) is or lies on it, is open to both sides.
    """
    found = [
        device
        for device in devices
        if fabric_address in device.addresses
        or ((device.name in named or set(named) & set(device.addresses)) if named else device.driver in drivers)
    ]
    shared = {device.name for device in found if device.name in management or management & set(device.addresses)}
    return Fabric(
        devices=tuple(sorted(device.name for device in found)),
        closed=tuple(sorted(device.name for device in found if device.name not in shared)),
        addresses=tuple(sorted({address for device in found for address in device.addresses})),
    )


def _of_a_session(title: str) -> bool:
    """Whether this is the command line of sshd for one connection, not for its port."""
    return title.startswith("sshd: ") and "[listener]" not in title


def listening_ssh_ports(ss_output: str, sockets: str, title: Callable[[int], str] = lambda _pid: "") -> set[int]:
    """Return the ports on which an SSH server waits.

    From ``ss -Hltnp``, where its process is named, and from ``systemctl show --property=Listen`` of ssh.socket, where
    systemd waits in its place.  What a session forwards (``ssh -R``, X11) has the same name and is none: it is on
    loopback, or its process has the title of a session.

    :param title: returns the command line of a process; empty when it has ended.
    """
    ports = set()
    for line in ss_output.splitlines():
        words = line.split()
        servers = [int(pid) for pid in _SSHD.findall(line) if not _of_a_session(title(int(pid)))]
        if len(words) < 4 or not servers:
            continue
        address, _colon, port = words[3].rpartition(":")
        try:
            forwarded = ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
        except ValueError:  # `*`
            forwarded = False
        if not forwarded:
            ports.add(int(port))
    for line in sockets.splitlines():
        found = re.match(r"Listen=.*?:?(\d+) \(Stream\)$", line.strip())
        if found:
            ports.add(int(found.group(1)))
    return ports


def connection_port(environ: bytes) -> int:
    """Return the port of this machine that an SSH session came in by, from a process's environment; 0 when none did."""
    for entry in environ.split(b"\0"):
        name, _sign, value = entry.partition(b"=")
        words = value.split()
        if name == b"SSH_CONNECTION" and len(words) == 4 and words[3].isdigit():
            return int(words[3])
    return 0


def _ports(ports: Sequence[int], what: str) -> str:
    wrong = [port for port in ports if not 0 < port < 65536]
    if wrong:
        raise FirewallError(f"{', '.join(map(str, wrong))} in {what} is not a TCP port; ports are 1 to 65535.")
    return ", ".join(str(port) for port in sorted(set(ports)))


def _names(names: Sequence[str]) -> str:
    for name in names:
        if not _INTERFACE.match(name):
            raise FirewallError(f"{name!r} cannot be the name of a network device.")
    return ", ".join(f'"{name}"' for name in sorted(set(names)))


def _by_family(members: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ip": [], "ip6": []}
    for member in members:
        try:
            address = ipaddress.ip_address(member)
        except ValueError:
            raise FirewallError(
                f"{member!r} is not an IP address of a cluster member; check gb10_fabric_address in the inventory."
            ) from None
        found["ip" if address.version == 4 else "ip6"].append(str(address))
    return {family: sorted(set(each), key=ipaddress.ip_address) for family, each in found.items()}


def table_text(wanted: Wanted) -> str:
    """Return the file for ``nft -f`` that puts the table in place of an earlier one in one transaction.

    Raises FirewallError when no port of SSH is known, or what is wanted cannot be written down.
    """
    if not wanted.ssh_ports:
        raise FirewallError(
            "No SSH server's port was found on this node, and closing the node would lock everybody out. "
            "Set edge_ssh_ports."
        )
    rules = [
        'iif "lo" accept',
        "ct state established,related accept",
        f"tcp dport {{ {_ports(wanted.ssh_ports, 'edge_ssh_ports')} }} accept",
        *wanted.rules,
        # ICMP, ICMPv6 and IGMP by number: nft looks names up in /etc/protocols, which a minimal installation lacks.
        "meta l4proto { 1, 58 } accept",
        "ip protocol 2 accept",
        "udp sport 67 udp dport 68 accept",
        "udp sport 547 udp dport 546 accept",
    ]
    if wanted.mdns:
        rules.append("udp dport 5353 accept")
    if wanted.bridge_ports:
        ports = _ports(wanted.bridge_ports, "the ports of containers")
        # One rule each: a set of names cannot hold a pattern.
        rules += [f"iifname {_names([name])} tcp dport {{ {ports} }} accept" for name in wanted.bridges]
    by_family = _by_family(wanted.members)
    if wanted.fabric:
        inside = f"iifname {{ {_names(wanted.fabric)} }}"
        rules += [
            f"{inside} {family} saddr {{ {', '.join(members)} }} accept"
            for family, members in by_family.items()
            if members
        ]
    if wanted.open_ports:
        outside = f"iifname != {{ {_names(wanted.closed)} }} " if wanted.closed else ""
        rules.append(f"{outside}tcp dport {{ {_ports(wanted.open_ports, 'the open ports')} }} accept")
    rules.append("counter reject")
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    return (
        "#!/usr/sbin/nft -f\n"
        "# Written by gb10.cluster: who may reach which port of this node. Loaded as one transaction.\n"
        f"table {FAMILY} {TABLE}\n"
        f"delete table {FAMILY} {TABLE}\n"
        f"table {FAMILY} {TABLE} {{\n"
        "\tchain input {\n"
        "\t\ttype filter hook input priority filter; policy drop;\n"
        f"{body}"
        "\t}\n"
        "}\n"
    )


def normal(listing: str) -> str:
    """Return what ``nft --stateless list table`` prints, with its sets in order: the kernel keeps them unordered."""

    def in_order(found: re.Match[str]) -> str:
        return "{ " + ", ".join(sorted(word.strip() for word in found.group(1).split(","))) + " }"

    return re.sub(r"\{ ([^{};]*?) \}", in_order, re.sub(r"\s+", " ", listing)).strip()


def rollback_commands(nft: str, before: str) -> list[str]:
    """Return the shell lines that restore the table; ``before`` is its file, empty when there was none."""
    return [f"{nft} -f {before} || failed=1" if before else f"{nft} '{REMOVE}' || failed=1"]


def unit_text(nft: str, kept: str) -> str:
    """Return the systemd unit that loads the table's file at boot."""
    return f"""\
# Written by gb10.cluster.
[Unit]
Description=Firewall of this node (nftables table {FAMILY} {TABLE})
DefaultDependencies=no
After=local-fs.target nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
# That service begins with `flush ruleset`, which removes every table.
PartOf=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {kept}
ExecReload={nft} -f {kept}
ExecStop={nft} "{REMOVE}"

[Install]
WantedBy=sysinit.target nftables.service
"""


def refusal(nft_output: str) -> str:
    """Return nft's first complaint without the path of the copy that it was shown."""
    lines = [line.strip() for line in nft_output.splitlines() if line.strip()]
    if not lines:
        return "no output"
    complaint = re.sub(r"^\S+?:(\d+):\S+ ", r"line \1: ", lines[0])
    return f"{complaint} {lines[1]}" if len(lines) > 1 and not lines[1].startswith("^") else complaint


def fabric_result(fabric: Fabric, ssh_ports: set[int]) -> dict[str, Any]:
    """Return the fabric's devices and the SSH ports of a node as plain data."""
    return {
        "devices": list(fabric.devices),
        "closed": list(fabric.closed),
        "addresses": list(fabric.addresses),
        "ssh_ports": sorted(ssh_ports),
    }
