# SPDX-License-Identifier: Apache-2.0
"""The fabric's ports of one machine, parsed from sysfs.

A GB10 machine has two QSFP ports. Behind each are two network devices, one on either of two
PCIe domains (``0000:01:00.0`` and ``0002:01:00.0`` for the first port): its *twin*. Each half
has four lanes of PCIe 5 and carries about 112 Gb/s, both together about 195 Gb/s. Names differ
between machines and kernels, so ports are identified by driver and PCI address only.

Everything here is pure. A machine comes in as a *capture*: a dictionary from paths of files
under ``/sys`` (and a few other sources) to their text, as ``gb10.cluster.fabric_facts`` collects it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.rdma import parse_state
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped

_PCI = re.compile(r"([0-9a-f]{4,}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$")
_ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"


@dataclass(frozen=True)
class Gid:
    """One entry of an HCA's GID table: ``kind`` is v1 or v2, ``ipv4`` empty unless it maps an IPv4 address."""

    index: int
    value: str
    kind: str
    netdev: str
    ipv4: str = ""


@dataclass(frozen=True)
class Hca:
    """An RDMA device: ``state`` such as ACTIVE, ``rate_gbps`` as the port reports it."""

    name: str
    state: str
    physical: str
    rate_gbps: float
    link_layer: str
    firmware: str
    gids: tuple[Gid, ...] = ()

    def gid_for(self, address: str) -> Gid | None:
        """Return the RoCE v2 entry for an IPv4 address, or None."""
        return next((gid for gid in self.gids if gid.kind == "v2" and gid.ipv4 == address), None)


@dataclass(frozen=True)
class Netdev:
    """A network device of the fabric. ``speed_mbps`` is None without carrier, lanes 0 off the PCI bus."""

    name: str
    driver: str
    pci: str
    mac: str
    mtu_bytes: int
    up: bool
    carrier: bool
    speed_mbps: int | None
    lanes: int
    lanes_max: int
    addresses: tuple[str, ...] = ()
    hca: Hca | None = None
    #: Who configures it: networkd, NetworkManager, or nobody.
    manager: str = ""

    def ipv4(self) -> list[str]:
        """Return its IPv4 addresses without prefix lengths."""
        return [cidr.split("/")[0] for cidr in self.addresses if ":" not in cidr]


@dataclass(frozen=True)
class Port:
    """A QSFP port and its network devices, ordered by PCI domain. ``key`` is unique on a machine."""

    key: str
    netdevs: tuple[Netdev, ...]

    @property
    def carrier(self) -> bool:
        """Whether a cable with something alive at its other end is in the port."""
        return any(netdev.carrier for netdev in self.netdevs)

    @property
    def up(self) -> bool:
        """Whether any of its devices is switched on; one that is off cannot detect a cable."""
        return any(netdev.up for netdev in self.netdevs)


@dataclass(frozen=True)
class Machine:
    """What one machine has of the fabric. ``other`` maps addresses (CIDR) off the fabric to their devices."""

    ports: tuple[Port, ...]
    other: Mapping[str, str] = field(default_factory=dict)
    backend: str = ""

    @property
    def netdevs(self) -> list[Netdev]:
        """All network devices of all ports."""
        return [netdev for port in self.ports for netdev in port.netdevs]


def parse_pci(address: str) -> tuple[int, int, int, int] | None:
    """Return domain, bus, device and function of a PCI address; None when it is something else."""
    found = _PCI.search(address)
    if not found:
        return None
    domain, bus, device, function = (int(part, 16) for part in found.groups())
    return domain, bus, device, function


def parse_rate(text: str) -> float:
    """Return Gb/s from an InfiniBand port's rate such as ``200 Gb/sec (4X HDR)``; 0 when it is not stated."""
    found = re.match(r"\s*([0-9.]+)\s*Gb/sec", text)
    return float(found.group(1)) if found else 0.0


def parse_gid(index: int, value: str, kind: str, netdev: str) -> Gid:
    """Return a GID; ``kind`` is the kernel's word (``IB/RoCE v1`` or ``RoCE v2``)."""
    address = ipaddress.IPv6Address(value).ipv4_mapped
    return Gid(index, value, "v2" if "v2" in kind else "v1", netdev, str(address) if address else "")


def parse_ip_addresses(text: str) -> dict[str, list[str]]:
    """Return the addresses in CIDR notation by device, from ``ip -json address``; without IPv6 ones of scope link.

    An IPv4 address of scope link (169.254.0.0/16) counts: NVIDIA's own netplan example gives the fabric such addresses.
    """
    result: dict[str, list[str]] = {}
    for link in json.loads(text or "[]"):
        result[link["ifname"]] = [
            f"{entry['local']}/{entry['prefixlen']}"
            for entry in link.get("addr_info", [])
            if "local" in entry and (entry.get("scope") != "link" or ":" not in entry["local"])
        ]
    return result


def parse_nmcli(text: str) -> dict[str, str]:
    """Return each device's state from ``nmcli --terse --fields DEVICE,STATE device``."""
    result: dict[str, str] = {}
    for line in text.splitlines():
        # A colon inside a name is escaped with a backslash.
        device, _unused, state = line.replace("\\:", "\0").partition(":")
        result[device.replace("\0", ":")] = state
    return result


def parse_networkctl(text: str) -> dict[str, str]:
    """Return each device's set-up state from ``networkctl --json=short list`` or, on old systems, its table."""
    if text.lstrip().startswith("{"):
        return {link["Name"]: link.get("AdministrativeState", "") for link in json.loads(text).get("Interfaces", [])}
    result = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 5 and words[0].isdigit():
            result[words[1]] = words[-1]
    return result


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _hca(tree: Mapping[str, str], netdev: str) -> Hca | None:
    prefix = f"class/net/{netdev}/device/infiniband/"
    names = {path[len(prefix) :].split("/")[0] for path in tree if path.startswith(prefix)}
    if not names:
        return None
    name = sorted(names)[0]
    port = f"class/infiniband/{name}/ports/1/"
    gids = []
    for path, value in tree.items():
        if path.startswith(port + "gids/") and value.strip() not in ("", _ZERO_GID):
            index = int(path.rsplit("/", 1)[1])
            gids.append(
                parse_gid(
                    index,
                    value.strip(),
                    tree.get(f"{port}gid_attrs/types/{index}", ""),
                    tree.get(f"{port}gid_attrs/ndevs/{index}", "").strip(),
                )
            )
    return Hca(
        name=name,
        state=parse_state(tree.get(port + "state", "")),
        physical=parse_state(tree.get(port + "phys_state", "")),
        rate_gbps=parse_rate(tree.get(port + "rate", "")),
        link_layer=tree.get(port + "link_layer", "").strip(),
        firmware=tree.get(f"class/infiniband/{name}/fw_ver", "").strip(),
        gids=tuple(sorted(gids, key=lambda gid: gid.index)),
    )


def _manager(name: str, tree: Mapping[str, str]) -> str:
    nm_state = parse_nmcli(tree.get("nmcli", "")).get(name, "")
    if nm_state and nm_state != "unmanaged":
        return "NetworkManager"
    networkd = parse_networkctl(tree.get("networkctl", "")).get(name, "")
    return "networkd" if networkd and networkd != "unmanaged" else ""


def _named(word: str, addresses: Mapping[str, Iterable[str]]) -> str:
    """Return the device that ``word`` stands for: the one with that address, or of that name."""
    for device, cidrs in addresses.items():
        if any(cidr.split("/")[0] == word for cidr in cidrs):
            return device
    return word


def backend_of(tree: Mapping[str, str]) -> str:
    """Return what configures this machine's network: netplan, NetworkManager, networkd, or nothing known.

    netplan stands above the other two and names one of them for each device.
    """
    if tree.get("netplan", "").strip():
        return "netplan"
    if tree.get("active/NetworkManager.service", "").strip() == "active":
        return "NetworkManager"
    if tree.get("active/systemd-networkd.service", "").strip() == "active":
        return "networkd"
    return ""


def parse_capture(
    tree: Mapping[str, str], drivers: Iterable[str] = ("mlx5_core",), interfaces: Iterable[str] = ()
) -> Machine:
    """Return the machine's fabric ports.

    Args:
        tree: the capture; keys are paths relative to ``/sys``, and ``ip``, ``nmcli``, ``networkctl``, ``netplan``,
            ``active/<unit>`` for the output of the tools of those names.
        drivers: kernel drivers whose devices are the fabric's.
        interfaces: names that are taken instead, each as a port of its own, in this order; for machines
            whose fabric is not on PCI. An address stands for the device that carries it.
    """
    kernel_drivers = set(drivers)
    addresses = parse_ip_addresses(tree.get("ip", ""))
    wanted = [_named(word, addresses) for word in interfaces]
    groups: dict[str, list[Netdev]] = {}
    names = sorted({path.split("/")[2] for path in tree if path.startswith("class/net/")})
    for name in names:
        base = f"class/net/{name}/"
        driver = tree.get(base + "device/driver", "").rsplit("/", 1)[-1].strip()
        location = tree.get(base + "device", "").rsplit("/", 1)[-1].strip()
        pci = parse_pci(location)
        if name not in wanted if wanted else driver not in kernel_drivers:
            continue
        speed = _number(tree.get(base + "speed"))
        carrier = tree.get(base + "carrier", "").strip() == "1"
        netdev = Netdev(
            name=name,
            driver=driver,
            pci=location if pci else "",
            mac=tree.get(base + "address", "").strip(),
            mtu_bytes=_number(tree.get(base + "mtu")) or 0,
            up=bool(int(tree.get(base + "flags", "0x0").strip() or "0", 16) & 1),
            carrier=carrier,
            speed_mbps=speed if carrier and speed and speed > 0 else None,
            lanes=_number(tree.get(base + "device/current_link_width")) or 0,
            lanes_max=_number(tree.get(base + "device/max_link_width")) or 0,
            addresses=tuple(addresses.get(name, [])),
            hca=_hca(tree, name),
            manager=_manager(name, tree),
        )
        key = name if wanted or pci is None else f"{pci[1]:02x}:{pci[2]:02x}.{pci[3]}"
        groups.setdefault(key, []).append(netdev)
    keys = sorted(groups, key=wanted.index) if wanted else sorted(groups)
    ports = tuple(Port(key, tuple(sorted(groups[key], key=lambda netdev: parse_pci(netdev.pci) or ()))) for key in keys)
    ours = {netdev.name for port in ports for netdev in port.netdevs}
    other = {
        cidr: device
        for device, cidrs in addresses.items()
        for cidr in cidrs
        if device not in ours and device != "lo" and not device.startswith(("docker", "br-", "veth"))
    }
    return Machine(ports=ports, other=other, backend=backend_of(tree))


def carries(machine: Machine, address: str) -> Netdev | None:
    """Return the fabric's device that has an IPv4 address, or None."""
    return next((netdev for netdev in machine.netdevs if address in netdev.ipv4()), None)


def to_dict(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain dictionaries and lists, for a module's result."""
    return asdict(machine)


#: What is read of a machine, which comes from a node; see `_node.shape.shaped`.
_GID = {"index": 0, "value": "", "kind": "", "netdev": "", "ipv4": ""}
_HCA = {"name": "", "state": "", "physical": "", "rate_gbps": 0.0, "link_layer": "", "firmware": "", "gids": [_GID]}
_NETDEV = {
    "name": "", "driver": "", "pci": "", "mac": "", "mtu_bytes": 0, "up": False, "carrier": False, "speed_mbps": int,
    "lanes": 0, "lanes_max": 0, "addresses": [""], "hca": (_HCA,), "manager": "",
}  # fmt: skip
MACHINE: dict[str, Any] = {"ports": [{"key": "", "netdevs": [_NETDEV]}], "other": ({},), "backend": ""}

_Record = TypeVar("_Record", Gid, Hca, Netdev)


def _made(kind: type[_Record], data: Mapping[str, Any], **parts: Any) -> _Record:
    """Return a record of the fields that it has; a node may report more."""
    return kind(**{each.name: parts.get(each.name, data[each.name]) for each in fields(kind)})


def _netdev(data: Mapping[str, Any]) -> Netdev:
    hca = data["hca"]
    gids = tuple(_made(Gid, gid) for gid in hca.get("gids", ()))
    return _made(Netdev, data, addresses=tuple(data["addresses"]), hca=_made(Hca, hca, gids=gids) if hca else None)


def from_dict(data: Any) -> Machine:
    """Return the machine that ``to_dict`` was given; what is not of its shape is missing."""
    found = shaped(data, MACHINE)
    return Machine(
        ports=tuple(Port(port["key"], tuple(_netdev(each) for each in port["netdevs"])) for port in found["ports"]),
        other={str(address): str(device) for address, device in found["other"].items()},
        backend=found["backend"],
    )
