# SPDX-License-Identifier: Apache-2.0
"""From what each node saw of each other one to the sentence that names the culprit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.findings import mtu_remedy
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import carries, from_dict

Finding = Mapping[str, Any]


def _peer(findings: Mapping[str, Finding], source: str, target: str) -> Finding:
    found = findings[source].get("peers", {}).get(target, {})
    return found if isinstance(found, Mapping) else {}


def cut_off(findings: Mapping[str, Finding]) -> list[str]:
    """Return the nodes that reach none of the others and are reached by none of them.

    With two nodes both satisfy that; the one without address or carrier is named then, and
    both are when neither shows a fault of its own.
    """
    names = list(findings)
    silent = [
        name
        for name in names
        if len(names) > 1
        and not any(
            _peer(findings, name, other).get("reachable") or _peer(findings, other, name).get("reachable")
            for other in names
            if other != name
        )
    ]
    faulty = [name for name in silent if not findings[name].get("carrier")]
    return faulty or silent


def duplicates(findings: Mapping[str, Finding]) -> list[str]:
    """Return a sentence for each address that more than its own node answers for.

    A node may answer for an address of its own on several of its devices; that is no duplicate.
    """
    owner_of_mac = {mac: name for name, finding in findings.items() for mac in finding.get("macs", [])}
    owner_of_address = {str(finding.get("address")): name for name, finding in findings.items()}
    seen: dict[str, set[str]] = {}
    for finding in findings.values():
        for address, macs in (finding.get("claims") or {}).items():
            seen.setdefault(address, set()).update(macs)
    problems = []
    for address, macs in sorted(seen.items()):
        rightful = owner_of_address.get(address, "nobody")
        others = sorted({owner_of_mac.get(mac, f"an unknown device {mac}") for mac in macs} - {rightful})
        if others:
            problems.append(
                f"{address} of {rightful} is also used by {' and '.join(others)}: a duplicate address. "
                f"Remove it there (`ip -br address` shows where it is), or give {rightful} another one."
            )
    return problems


def common_mtu(findings: Mapping[str, Finding], mtu_bytes: int) -> int:
    """Return the MTU that every device has, when it is one and below ``mtu_bytes``, else 0.

    It only costs throughput: what one node sends, every other one takes.
    """
    sizes = {
        int(each["mtu_bytes"]) for finding in findings.values() for each in (finding.get("devices") or {}).values()
    }
    return min(sizes) if len(sizes) == 1 and 0 < min(sizes) < mtu_bytes else 0


def warnings(findings: Mapping[str, Finding], mtu_bytes: int) -> list[str]:
    """Return what the fabric works with and what costs throughput, one sentence each."""
    size = common_mtu(findings, mtu_bytes)
    return [f"Every node uses an MTU of {size} bytes. {mtu_remedy(size, mtu_bytes)}"] if size else []


def verdict(findings: Mapping[str, Finding], mtu_bytes: int) -> list[str]:
    """Return what is wrong with the fabric, one sentence a fault, the most telling first.

    Args:
        findings: by node, what ``gb10.cluster.fabric_ping`` returned with ``fail: false``:
            ``address``, ``interface``, ``devices``, ``carrier``, ``peers``, ``macs``, ``claims``.
        mtu_bytes: packet size that must pass; 0 where any size will do. A smaller one that all nodes have is no fault.
    """
    problems: list[str] = duplicates(findings)
    gone = cut_off(findings)
    for name in gone:
        address, interface = findings[name].get("address"), findings[name].get("interface")
        devices = ", ".join(findings[name].get("devices") or ())
        if not interface:
            why = f"none of its interfaces has the address {address}"
        elif not devices:
            why = f"it has no route from {address} on {interface} to any other node"
        elif not findings[name].get("carrier"):
            why = f"{devices} with {address} is down or has no carrier"
        else:
            why = f"{devices} with {address} is up, but no node replies to it and it replies to none"
        problems.append(
            f"{name} is cut off from the fabric: {why}. "
            "Check its cable, the switch's port, and gb10_fabric_address in the inventory."
        )
    small: dict[str, dict[str, int]] = {}
    for name, finding in findings.items():
        mtus = {device: int(each["mtu_bytes"]) for device, each in (finding.get("devices") or {}).items()}
        if below := {device: mtu for device, mtu in mtus.items() if 0 < mtu < mtu_bytes}:
            small[name] = below
    if not common_mtu(findings, mtu_bytes):
        problems.extend(
            f"{name}: {device} has an MTU of {mtu} bytes, {mtu_bytes} are required. "
            "Run playbooks/fabric.yml, or set fabric_mtu to what all links carry."
            for name, below in small.items()
            for device, mtu in below.items()
        )
    names = [name for name in findings if name not in gone]
    for position, one in enumerate(names):
        if not findings[one].get("interface"):
            problems.append(f"{one}: none of its interfaces has the address {findings[one].get('address')}.")
        for other in names[position + 1 :]:
            there, back = _peer(findings, one, other), _peer(findings, other, one)
            if there.get("ok") and back.get("ok"):
                continue
            if there.get("reachable") and back.get("reachable"):
                if one in small or other in small:
                    continue
                most = min(int(there.get("largest") or 0), int(back.get("largest") or 0))
                problems.append(
                    f"{one} <-> {other}: packets of {mtu_bytes} bytes do not pass, {most} bytes do; both ends "
                    "are set right, so a switch port between them has a smaller MTU."
                )
            else:
                ways: Sequence[str] = [
                    text
                    for finding, text in ((there, f"{one} -> {other}"), (back, f"{other} -> {one}"))
                    if not finding.get("reachable")
                ]
                problems.append(
                    f"{' and '.join(ways)}: no reply over the fabric "
                    f"({findings[one].get('address')}, {findings[other].get('address')}). "
                    "Check the cables and for a duplicate address."
                )
    return problems


def failures(facts: Mapping[str, Finding]) -> list[str]:
    """Return a sentence for each finding of level FAIL.

    :param facts: by node, a result of gb10.cluster.fabric_facts.
    """
    return [
        f"{name}: {each['what']} {each['remedy']}"
        for name, result in facts.items()
        for each in result.get("findings", ())
        if each["level"] == "FAIL"
    ]


def rates(
    facts: Mapping[str, Finding], addresses: Mapping[str, str], given: Mapping[str, Any], default: float = 0
) -> dict[str, float]:
    """Return the rate in Gb/s that each node's fabric link should carry; 0 where nothing is known.

    :param facts: by node, a result of gb10.cluster.fabric_facts.
    :param addresses: by node, its address on the fabric.
    :param given: by node, the rate that the inventory states; 0 or missing takes `default`.
    :param default: the rate for all; 0 takes what the device with the address, or in a ring the slowest cable, has
        negotiated.
    """
    found = {}
    for name, result in facts.items():
        machine = from_dict(result["machine"])
        netdev = carries(machine, addresses.get(name, ""))
        # In a ring none of the ports has it; the slowest cable counts.
        linked = [netdev] if netdev else [each for each in machine.netdevs if each.carrier and each.ipv4()]
        speeds = [each.speed_mbps or 0 for each in linked]
        found[name] = float(given.get(name) or default or min(speeds, default=0) / 1000)
    return found
