# SPDX-License-Identifier: Apache-2.0
"""Faults of one machine's own side of the fabric, each with its remedy; pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, Netdev, Port

#: What one port negotiates when cable, switch and settings are right, in Mb/s.
EXPECTED_SPEED_MBPS = 200_000
#: PCIe lanes of each half of a twin; the device itself could use more than the board connects.
EXPECTED_LANES = 4


@dataclass(frozen=True)
class Finding:
    """A fault of a machine's fabric: ``level`` is WARN or FAIL; ``remedy`` is what to do."""

    level: str
    what: str
    remedy: str

    def sentence(self) -> str:
        """Return finding and remedy as one text."""
        return f"{self.what} {self.remedy}"


def findings(
    machine: Machine,
    *,
    mtu_bytes: int = 9000,
    speed_mbps: int = EXPECTED_SPEED_MBPS,
    rdma: bool = True,
    kho_fault: bool = False,
) -> list[Finding]:
    """Return what is wrong with a machine's own side of the fabric, most telling first.

    Args:
        machine: the ports.
        mtu_bytes: what each device in use must be set to; 0 for anything.
        speed_mbps: what a link must have negotiated; 0 for anything.
        rdma: whether RDMA must work; false where there is none.
        kho_fault: whether the kernel shows the kexec-handover fault.
    """
    found: list[Finding] = []
    if not machine.ports:
        return [
            Finding(
                "FAIL",
                "No port of the fabric was found: no network device has one of the fabric's drivers.",
                "Plug the cable in at both ends first: without a cable the machine's ConnectX-7 is not on the bus. "
                "With a cable, check the NIC's hotplug service, `lspci -d 15b3:` and `lsmod | grep mlx5_core`. Devices "
                "of another driver are named with fabric_interfaces.",
            )
        ]
    if not any(port.carrier for port in machine.ports):
        names = ", ".join(netdev.name for netdev in machine.netdevs)
        if any(port.up for port in machine.ports):
            found.append(
                Finding(
                    "FAIL",
                    f"No port of the fabric has carrier ({names}).",
                    "Plug the cable in until it clicks, and check the other end's power and port.",
                )
            )
        else:
            found.append(
                Finding(
                    "WARN",
                    f"All ports of the fabric are switched off ({names}), so the cabling is unknown.",
                    "playbooks/fabric.yml switches them on.",
                )
            )
    for port in machine.ports:
        if not port.carrier:
            continue
        found.extend(_twin_findings(port))
        for netdev in port.netdevs:
            found.extend(_netdev_findings(port, netdev, mtu_bytes, speed_mbps, rdma))
    found.extend(_unused_findings(machine, mtu_bytes))
    found.extend(_subnet_findings(machine))
    if kho_fault:
        found.append(
            Finding(
                "FAIL",
                "The kernel counts more CMA memory free than there is (kexec handover); registering memory for "
                "RDMA fails with ENOMEM.",
                "Boot with kho=off: add it to GRUB_CMDLINE_LINUX, run update-grub, reboot.",
            )
        )
    return found


def mtu_remedy(mtu_bytes: int, wanted_bytes: int) -> str:
    """Return what another MTU than the wanted one costs, and what to do."""
    return (
        f"An MTU of {mtu_bytes} bytes instead of {wanted_bytes} costs up to 5 % of the throughput (4200 bytes suffice "
        "for most of it). Run playbooks/fabric.yml, or set fabric_mtu to what all links carry."
    )


def _twin_findings(port: Port) -> list[Finding]:
    """Return a warning for a ConnectX-7 port of which only one half is on the bus.

    A device that its owner named (its port is called like it) may be all that is wanted, and a NIC that has more
    lanes than a GB10 gives it is another machine's.
    """
    netdev = port.netdevs[0]
    halved = netdev.driver == "mlx5_core" and 0 < netdev.lanes <= EXPECTED_LANES < netdev.lanes_max
    if len(port.netdevs) > 1 or port.key == netdev.name or not halved:
        return []
    return [
        Finding(
            "WARN",
            f"{netdev.name} ({netdev.pci}) has no twin: the other half of this port is not on the bus, and half of "
            "its bandwidth is lost.",
            "See `lspci -d 15b3:`, where a port has a device in each of two PCIe domains. Update the firmware "
            "(fwupdmgr), then shut the node down and pull its power cable for a minute.",
        )
    ]


def _netdev_findings(port: Port, netdev: Netdev, mtu_bytes: int, speed_mbps: int, rdma: bool) -> Iterator[Finding]:
    if not netdev.carrier:
        mates = ", ".join(mate.name for mate in port.netdevs if mate.carrier)
        yield Finding(
            "WARN",
            f"{netdev.name} is {'without carrier' if netdev.up else 'switched off'} while its twin {mates} "
            "is linked: half of the port's bandwidth is lost.",
            f"`ip link set {netdev.name} up`; if it stays without carrier, the cable is not one for 200 Gb/s.",
        )
        return
    if speed_mbps and netdev.speed_mbps is not None and netdev.speed_mbps < speed_mbps:
        yield Finding(
            "WARN",
            f"{netdev.name} negotiated {netdev.speed_mbps} Mb/s instead of {speed_mbps} Mb/s.",
            "Set the switch's port to 200G without auto-negotiation, or replace the cable.",
        )
    lanes = min(EXPECTED_LANES, netdev.lanes_max)
    if netdev.lanes and netdev.lanes < lanes:
        yield Finding(
            "WARN",
            f"{netdev.name} ({netdev.pci}) runs on {netdev.lanes} of {lanes} PCIe lanes.",
            "Update the firmware (`fwupdmgr refresh && fwupdmgr update`): BIOS versions before 2026-04 leave "
            "the NIC at two lanes. If it stays, power the machine off for a minute; only then suspect the port.",
        )
    if mtu_bytes and netdev.addresses and netdev.mtu_bytes != mtu_bytes:
        yield Finding(
            "WARN",
            f"{netdev.name} has an MTU of {netdev.mtu_bytes} bytes.",
            mtu_remedy(netdev.mtu_bytes, mtu_bytes),
        )
    for address in netdev.ipv4():
        if ipaddress.ip_address(address).is_link_local:
            yield Finding(
                "WARN",
                f"{netdev.name} has the link-local address {address}, which may be another one after the next boot.",
                "Give it a fixed address: run playbooks/fabric.yml with fabric_manage: true, or set one in netplan.",
            )
    if rdma:
        yield from _rdma_findings(netdev)


def _unused_findings(machine: Machine, mtu_bytes: int) -> Iterator[Finding]:
    """Yield a warning for each linked device without an address while others have one."""
    if not any(netdev.ipv4() for netdev in machine.netdevs):
        return  # nothing is configured yet
    for netdev in machine.netdevs:
        if not netdev.carrier or netdev.ipv4():
            continue
        active = f" and {netdev.hca.name} is ACTIVE" if netdev.hca and netdev.hca.state == "ACTIVE" else ""
        small = f" Its MTU is {netdev.mtu_bytes}." if mtu_bytes and netdev.mtu_bytes != mtu_bytes else ""
        yield Finding(
            "WARN",
            f"{netdev.name} is linked{active}, but it has no IPv4 address, so NCCL does not use it.{small}",
            "A firmware update or a warm reboot can remove the address of a half: run playbooks/fabric.yml, or "
            "unplug the cable if the port is not part of the fabric.",
        )


def _rdma_findings(netdev: Netdev) -> list[Finding]:
    if netdev.hca is None:
        return [
            Finding(
                "FAIL",
                f"{netdev.name} has no RDMA device; NCCL would fall back to TCP without an error.",
                "Load mlx5_ib (`modprobe mlx5_ib`) and install rdma-core.",
            )
        ]
    hca = netdev.hca
    if hca.state != "ACTIVE":
        return [
            Finding(
                "FAIL",
                f"The RDMA device {hca.name} of {netdev.name} is {hca.state or 'in no state'}, not ACTIVE.",
                f"`ip link set {netdev.name} up` and check `rdma link`.",
            )
        ]
    return [
        Finding(
            "FAIL",
            f"{hca.name} has no RoCE v2 GID for {address} of {netdev.name}.",
            f"Remove the address and add it again (`netplan apply`), or check `show_gids {hca.name}`.",
        )
        for address in netdev.ipv4()
        if hca.gid_for(address) is None
    ]


def _subnet_findings(machine: Machine) -> Iterator[Finding]:
    seen: dict[ipaddress.IPv4Network | ipaddress.IPv6Network, str] = {}
    for netdev in machine.netdevs:
        for cidr in netdev.addresses:
            network = ipaddress.ip_interface(cidr).network
            if network.prefixlen == network.max_prefixlen:
                continue
            mate = seen.setdefault(network, netdev.name)
            if mate != netdev.name:
                yield Finding(
                    "FAIL",
                    f"{mate} and {netdev.name} are both in {network}: the kernel sends everything through one.",
                    "Give each half of a twin a subnet of its own (playbooks/fabric.yml plans that).",
                )
