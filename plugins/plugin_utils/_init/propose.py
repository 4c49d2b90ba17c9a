# SPDX-License-Identifier: Apache-2.0
"""Propose an inventory for boxes that were read over SSH.  Pure: facts in, hosts and sentences out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, from_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import Node, make_plan
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import Settings as FabricSettings

_KNOWN_HOSTS = re.compile(r"-o UserKnownHostsFile=(\S+)")
#: Stands for an address in the inventories that are written by hand.
PLACEHOLDER = "CHANGE_ME"
#: Networks for the fabric, in the order in which they are tried.
CANDIDATES = (*(f"192.168.{number}.0/24" for number in range(100, 200)), "10.100.0.0/24")


@dataclass(frozen=True)
class Proposed:
    """One node of the inventory."""

    name: str
    ansible_host: str
    fabric_address: str
    #: What the box calls itself, and its memory, for the comment beside it.
    hostname: str = ""
    memory_gib: float = 0.0


@dataclass
class Proposal:
    """An inventory: its nodes with the head first, and what a person should read before using it.

    :ivar manage: whether this project configures the fabric's ports; false where the owner's addresses are kept.
    """

    nodes: list[Proposed] = field(default_factory=list)
    topology: str = ""
    subnet: str = ""
    manage: bool = True
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def addresses_from(text: str | Sequence[str]) -> list[str]:
    """Return the addresses or names of ``-e nodes=``: separated by commas, spaces or lines, each once."""
    words = text.replace(",", " ").split() if isinstance(text, str) else [str(each) for each in text]
    return list(dict.fromkeys(word for word in words if word))


def hosts_of(inventory: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of an earlier hosts.yml by name, head first."""
    children = (((inventory.get("all") or {}).get("children") or {}).get("gx10") or {}).get("children") or {}
    found: dict[str, dict[str, Any]] = {}
    for group in ("head", "workers"):
        for name, values in ((children.get(group) or {}).get("hosts") or {}).items():
            found[str(name)] = dict(values or {})
    return found


def filled_in(inventory: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier hosts.yml without what a template only stands for: boxes whose address is CHANGE_ME.

    While no box is filled in, the model and the account are the template's too.  What was added besides stays.
    """
    found = deepcopy(dict(inventory))
    everything = found.get("all") or {}
    hosts = hosts_of(found)
    named = {name for name, values in hosts.items() if values.get("ansible_host", name) != PLACEHOLDER}
    if len(named) == len(hosts):
        return found
    for group in everything["children"]["gx10"]["children"].values():
        group["hosts"] = {name: values for name, values in (group.get("hosts") or {}).items() if name in named}
    if not named:
        own = everything.get("vars") or {}
        everything["vars"] = {key: value for key, value in own.items() if key not in ("model", "ansible_user")}
    return found


def propose(boxes: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any], subnet: str = "") -> Proposal:
    """Return the inventory for boxes in the order given; the first one becomes the head.

    :param boxes: ``address`` (as typed), ``name`` (or empty), ``hostname``, ``memory_gib``, ``facts`` (a result of
        gb10.cluster.fabric_facts), ``heard`` (a result of gb10.cluster.fabric_neighbours, or empty).
    :param earlier: the parsed hosts.yml of an earlier run, or empty; its names and fabric addresses are kept.
    :param subnet: network of the fabric in CIDR notation; empty for one that is free.
    """
    proposal = Proposal()
    machines = [from_dict(box["facts"]["machine"]) for box in boxes]
    kept = {str(values.get("ansible_host", name)): (name, values) for name, values in hosts_of(earlier).items()}
    names = _names(boxes, kept)
    addresses = _fabric_addresses(boxes, machines, kept, subnet, proposal)
    for box, name, address in zip(boxes, names, addresses, strict=True):
        proposal.nodes.append(
            Proposed(
                name=name,
                ansible_host=str(box["address"]),
                fabric_address=address,
                hostname=str(box.get("hostname") or ""),
                memory_gib=float(box.get("memory_gib") or 0.0),
            )
        )
    same = [each for each in set(names) if names.count(each) > 1]
    proposal.problems += [f"Two boxes would be called {each}: give them names with init_names." for each in same]
    if len(boxes) > 1 and not proposal.problems:
        _cabling(boxes, machines, proposal)
    return proposal


def _names(boxes: Sequence[Mapping[str, Any]], kept: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a name for each box: the one given or kept, else the next free gx10-<number>."""
    taken = {name for name, _rest in kept.values()} | {str(box["name"]) for box in boxes if box.get("name")}
    names, number = [], 0
    for box in boxes:
        name = str(box.get("name") or "") or kept.get(str(box["address"]), ("", {}))[0]
        while not name:
            number += 1
            if f"gx10-{number}" not in taken:
                name = f"gx10-{number}"
        names.append(name)
    return names


def _fabric_addresses(
    boxes: Sequence[Mapping[str, Any]],
    machines: Sequence[Machine],
    kept: Mapping[str, tuple[str, Mapping[str, Any]]],
    subnet: str,
    proposal: Proposal,
) -> list[str]:
    """Return an address for each box: the kept ones, those that the boxes have already, or new ones."""
    earlier = [str(kept.get(str(box["address"]), ("", {}))[1].get("gb10_fabric_address") or "") for box in boxes]
    owners = None if subnet else _common_subnet(machines, earlier)
    if owners is not None:
        network, found = owners
        proposal.manage, proposal.subnet = False, str(network)
        proposal.notes.append(
            f"The boxes have addresses of {network} on the fabric already. They are kept and only checked "
            "(fabric_manage: false); set fabric_manage to true to have them configured."
        )
        return found
    used = _used_networks(boxes, machines)
    if subnet:
        try:
            network = ipaddress.IPv4Network(subnet)
        except ValueError as error:
            proposal.problems.append(f"init_fabric_subnet is {subnet!r}, which is no network: {error}.")
            return ["" for _rest in boxes]
        clash = next((each for each in used if each.overlaps(network)), None)
        if clash is not None:
            proposal.problems.append(f"init_fabric_subnet {network} overlaps {clash}, which a box uses already.")
    elif any(earlier):
        first = next(each for each in earlier if each)
        network = ipaddress.IPv4Network(f"{first}/24", strict=False)
    else:
        free = (ipaddress.IPv4Network(each) for each in CANDIDATES)
        network = next(each for each in free if not any(each.overlaps(other) for other in used))
    proposal.subnet = str(network)
    taken = {each for each in earlier if each}
    hosts = (str(each) for each in network.hosts())
    return [each or next(host for host in hosts if host not in taken) for each in earlier]


def _common_subnet(
    machines: Sequence[Machine], earlier: Sequence[str]
) -> tuple[ipaddress.IPv4Network, list[str]] | None:
    """Return the network in which every machine has one fabric address already, and those addresses.

    :param earlier: addresses of an earlier inventory, or empty texts; a network that contradicts one is not taken.
    """
    by_network: dict[ipaddress.IPv4Network, dict[int, str]] = {}
    for index, machine in enumerate(machines):
        for netdev in machine.netdevs:
            for cidr in netdev.addresses:
                if ":" in cidr or cidr.startswith("169.254."):
                    continue
                network = ipaddress.IPv4Interface(cidr).network
                by_network.setdefault(network, {}).setdefault(index, cidr.split("/")[0])
    complete = [
        (network, [found[index] for index in range(len(machines))])
        for network, found in by_network.items()
        if len(found) == len(machines)
    ]
    fitting = [
        (network, found)
        for network, found in complete
        if all(before in ("", now) for before, now in zip(earlier, found, strict=True))
    ]
    return min(fitting, key=lambda each: int(each[0].network_address)) if fitting else None


def _used_networks(boxes: Sequence[Mapping[str, Any]], machines: Sequence[Machine]) -> list[ipaddress.IPv4Network]:
    """Return the IPv4 networks that the boxes use off the fabric, and that of the control node's connection."""
    used = [ipaddress.IPv4Interface(cidr).network for each in machines for cidr in each.other if ":" not in cidr]
    for box in boxes:
        client = str((box["facts"].get("control") or {}).get("client") or "")
        if client and ":" not in client:
            used.append(ipaddress.IPv4Network(f"{client}/32"))
    return used


def _cabling(boxes: Sequence[Mapping[str, Any]], machines: Sequence[Machine], proposal: Proposal) -> None:
    """Find the topology of the cables, or what is wrong with them."""
    # While they were read the boxes went by their addresses.
    called = {str(box["address"]): each.name for box, each in zip(boxes, proposal.nodes, strict=True)}
    nodes = []
    for box, machine, each in zip(boxes, machines, proposal.nodes, strict=True):
        heard = (box.get("heard") or {}).get("neighbours")
        neighbours = (
            {name: [(called[peer[0]], peer[1]) for peer in peers if peer[0] in called] for name, peers in heard.items()}
            if heard
            else None
        )
        nodes.append(Node(each.name, each.fabric_address, machine, neighbours))
    plan = make_plan(nodes, FabricSettings(allow_overlap=True))
    proposal.topology = plan.topology
    proposal.notes += plan.notes
    if proposal.manage:
        proposal.problems += plan.problems


def as_dict(proposal: Proposal) -> dict[str, Any]:
    """Return a proposal as plain data."""
    return asdict(proposal)


def login(earlier: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
    """Return how the boxes are reached: what was asked for, else what an earlier hosts.yml says.

    :param asked: ``user``, ``private_key``, ``ssh_common_args`` and ``known_hosts``, each empty where nobody asked, and
        ``default_user``.
    :returns: ``variables`` of hosts.yml, and the file ``known_hosts`` that they name, empty for that of ssh.
    """
    before = (earlier.get("all") or {}).get("vars") or {}
    words = str(before.get("ansible_ssh_common_args") or "")
    file = _KNOWN_HOSTS.search(words)
    known_hosts = asked["known_hosts"] or (file[1] if file else "")
    args = asked["ssh_common_args"] or _KNOWN_HOSTS.sub("", words)
    found = {
        "ansible_user": asked["user"] or str(before.get("ansible_user") or "") or asked["default_user"],
        "ansible_ssh_private_key_file": asked["private_key"] or str(before.get("ansible_ssh_private_key_file") or ""),
        "ansible_ssh_common_args": " ".join(
            [*([f"-o UserKnownHostsFile={known_hosts}"] if known_hosts else []), *args.split()]
        ),
    }
    return {"variables": {key: value for key, value in found.items() if value}, "known_hosts": known_hosts}


def document(
    proposal: Mapping[str, Any], earlier: Mapping[str, Any], variables: Mapping[str, str], model: str
) -> dict[str, Any]:
    """Return the content of hosts.yml: the proposal within what an earlier one held besides.

    Variables that the owner added, groups other than gx10 and further settings of a node stay as they are.

    :param variables: how the boxes are reached, from :func:`login`.
    """
    merged: dict[str, Any] = {"all": dict(earlier.get("all") or {})}
    top = merged["all"]
    top["vars"] = {**(top.get("vars") or {}), "model": model, **variables}
    if not proposal["manage"]:
        top["vars"]["fabric_manage"] = False
    before = hosts_of(earlier)
    hosts = {
        each["name"]: {
            **before.get(each["name"], {}),
            "ansible_host": each["ansible_host"],
            "gb10_fabric_address": each["fabric_address"],
        }
        for each in proposal["nodes"]
    }
    head = next(iter(hosts))
    children = dict(top.get("children") or {})
    groups: dict[str, Any] = {"head": {"hosts": {head: hosts.pop(head)}}}
    if hosts:
        groups["workers"] = {"hosts": hosts}
    children["gx10"] = {"children": groups}
    top["children"] = children
    return merged
