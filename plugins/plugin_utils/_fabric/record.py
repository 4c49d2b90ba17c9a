# SPDX-License-Identifier: Apache-2.0
"""How each node takes part in the fabric, for the record that its engine reads at every start; pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import BACK_TO_BACK, RING, SWITCH


def networks(machine: Machine) -> dict[str, set[str]]:
    """Return the IPv4 subnets of a machine's fabric devices by device; host addresses have none."""
    found: dict[str, set[str]] = {}
    for netdev in machine.netdevs:
        for cidr in netdev.addresses:
            network = ipaddress.ip_interface(cidr).network
            if network.version == 4 and network.num_addresses > 1:
                found.setdefault(netdev.name, set()).add(str(network))
    return found


def topology_of(machines: Mapping[str, Machine]) -> str:
    """Return the topology that the addresses show: a switch's subnets are on all nodes, a ring's on two each."""
    subnets = [set().union(*networks(machine).values(), set()) for machine in machines.values()]
    if not subnets or not all(subnets):
        return ""
    if set.intersection(*subnets):
        return BACK_TO_BACK if len(subnets) == 2 else SWITCH
    shared = all(any(mine & other for other in subnets if other is not mine) for mine in subnets)
    return RING if shared and len(subnets) > 2 else ""


def forwarded(machines: Mapping[str, Machine]) -> set[tuple[str, str]]:
    """Return the pairs (sender, receiver) in a ring that share no cable: what they send passes another node."""
    if topology_of(machines) != RING:
        return set()
    subnets = {name: set().union(*networks(machine).values(), set()) for name, machine in machines.items()}
    return {(one, other) for one in subnets for other in subnets if one != other and not subnets[one] & subnets[other]}


def records(machines: Mapping[str, Machine], plan: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return by node the record that `module_utils/_fabric/environment.py` reads.

    :param machines: the ports of every member.
    :param plan: the plan that the role has applied; None where the ports are the owner's.  Then the cluster's ports are
        those whose subnet another member is in as well, so that a port that leads elsewhere, as to a NAS, is none.
    """
    topology = str(plan["topology"]) if plan else topology_of(machines)
    subnets = {name: set().union(*networks(machine).values(), set()) for name, machine in machines.items()}
    found = {}
    for name, machine in machines.items():
        if plan:
            netdevs = [str(link["netdev"]) for link in plan["nodes"].get(name, {}).get("links", ())]
        else:
            others = set().union(*(each for other, each in subnets.items() if other != name), set())
            netdevs = [device for device, mine in networks(machine).items() if mine & others]
        found[name] = {"topology": topology, "nodes": len(machines), "netdevs": sorted(netdevs)}
    return found
