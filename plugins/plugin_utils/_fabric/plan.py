# SPDX-License-Identifier: Apache-2.0
"""Which address goes onto which port of which node; pure.

Three cablings are known. On a *switch*, and *back to back* between two nodes, each half of a twin is a
*rail*: one subnet that all nodes are in, the host part the same on every rail and taken from the node's
``gb10_fabric_address``. In a *ring* of three or four, each half of each cable is a subnet of two addresses,
numbered by the pair of nodes and not by the port, so that moving a plug moves no address; the node's
``gb10_fabric_address`` then sits on a device of its own and is routed, by way of a neighbour where two
nodes share no cable.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, Netdev, Port

SWITCH = "switch"
BACK_TO_BACK = "back_to_back"
RING = "ring"
SINGLE = "single"
TOPOLOGIES = (SWITCH, BACK_TO_BACK, RING)
#: The device that carries a node's own address in a ring.
NODE_DEVICE = "gb10"
RING_SIZES = (3, 4)


@dataclass(frozen=True)
class Node:
    """One member: ``neighbours`` maps own devices to the (node, device) pairs heard there; None when unknown."""

    name: str
    address: str
    machine: Machine
    neighbours: Mapping[str, Sequence[tuple[str, str]]] | None = None
    #: Addresses by which the control node reaches it.
    management: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to plan. ``subnets`` are the rails' in order; what is missing follows the first one.

    ``protected`` are addresses that no subnet of the fabric may cover, such as the control node's.
    """

    topology: str = "auto"
    prefix: int = 24
    subnets: tuple[str, ...] = ()
    ring_pool: str = "192.168.250.0/24"
    mtu_bytes: int = 9000
    allow_overlap: bool = False
    protected: tuple[str, ...] = ()
    #: What configures the network of every node; auto takes what each machine has.
    backend: str = "auto"


@dataclass(frozen=True)
class Route:
    """``to`` is reached by way of ``via``, with ``source`` as the sender's address."""

    to: str
    via: str
    source: str


@dataclass(frozen=True)
class LinkPlan:
    """Settings of one device. ``peer`` describes what is at the other end, for the reader."""

    netdev: str
    mac: str
    addresses: tuple[str, ...]
    mtu_bytes: int
    routes: tuple[Route, ...] = ()
    peer: str = ""
    manager: str = ""


@dataclass(frozen=True)
class NodePlan:
    """What one node shall be set to. ``own_address`` is on a device of its own, or empty; ``forward`` is routing."""

    name: str
    links: tuple[LinkPlan, ...] = ()
    own_address: str = ""
    forward: bool = False


@dataclass(frozen=True)
class Plan:
    """The plan of a cluster. With ``problems`` it must not be applied."""

    topology: str
    nodes: tuple[NodePlan, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def node(self, name: str) -> NodePlan:
        """Return one node's part; an empty one when the node is not in the plan."""
        return next((each for each in self.nodes if each.name == name), NodePlan(name))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain dictionaries and lists, nodes by name."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        data["nodes"] = {each["name"]: each for each in data["nodes"]}
        return data


@dataclass
class _Draft:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def heard_by_port(node: Node) -> dict[str, set[str]]:
    """Return the names of the nodes heard on each port, by the port's key."""
    heard = node.neighbours or {}
    return {
        port.key: {name for netdev in port.netdevs for name, _device in heard.get(netdev.name, ())}
        for port in node.machine.ports
    }


def is_cycle(edges: Iterable[tuple[str, str]], names: Sequence[str]) -> bool:
    """Return whether the edges form one ring through all names."""
    around: dict[str, set[str]] = {name: set() for name in names}
    for one, other in edges:
        around[one].add(other)
        around[other].add(one)
    if any(len(each) != 2 for each in around.values()):
        return False
    seen, last = [names[0]], ""
    while True:
        ahead = sorted(around[seen[-1]] - {last})
        last = seen[-1]
        if ahead[0] == names[0] or len(seen) > len(names):
            break
        seen.append(ahead[0])
    return len(seen) == len(names)


def cables(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Return the pairs of nodes that hear each other, each pair in the order of ``nodes``."""
    hears = {node.name: set().union(*heard_by_port(node).values(), set()) for node in nodes}
    return [
        (one.name, other.name)
        for one, other in combinations(nodes, 2)
        if other.name in hears[one.name] or one.name in hears[other.name]
    ]


def detect(nodes: Sequence[Node]) -> tuple[str, list[str]]:
    """Return the topology and the problems that stand in its way; the topology is empty with problems."""
    if len(nodes) == 1:
        return SINGLE, []
    if any(node.neighbours is None for node in nodes):
        return _guess(nodes)
    names = [node.name for node in nodes]
    pairs = cables(nodes)
    deaf = [name for name in names if not any(name in pair for pair in pairs)]
    if deaf:
        return "", [
            f"{name}: none of its fabric ports hears any other node. "
            "Check its cable at both ends and the switch's port."
            for name in (deaf if len(deaf) < len(names) else names)
        ]
    crowded = any(len(peers) > 1 for node in nodes for peers in heard_by_port(node).values())
    missing = [pair for pair in combinations(names, 2) if pair not in pairs]
    if len(nodes) == 2:
        return BACK_TO_BACK, []
    if crowded and not missing:
        return SWITCH, []
    if not crowded and is_cycle(pairs, names):
        if len(nodes) in RING_SIZES:
            return RING, []
        return "", [f"{len(nodes)} nodes are cabled in a ring; that works with 3 or 4 nodes, more need a switch."]
    unheard = ", ".join(f"{one} and {other}" for one, other in missing)
    return "", [
        f"The cabling is neither one switch nor a ring: {unheard} do not hear each other. Put all nodes on the same "
        "switch (and VLAN), or close the ring."
    ]


def _guess(nodes: Sequence[Node]) -> tuple[str, list[str]]:
    # A device that is switched off cannot detect a cable.
    cabled = {node.name: sum(port.carrier or not port.up for port in node.machine.ports) for node in nodes}
    dark = [name for name, count in cabled.items() if not count]
    if dark:
        return "", [f"{name}: none of its fabric ports has carrier. Check its cable at both ends." for name in dark]
    if len(nodes) == 2:
        return BACK_TO_BACK, []
    if all(count == 1 for count in cabled.values()):
        return SWITCH, []
    return "", [
        "Several nodes have two fabric ports cabled, which is a ring or two cables to a switch. "
        "Set fabric_topology to ring or switch, or let fabric_discover find out."
    ]


def make_plan(nodes: Sequence[Node], settings: Settings) -> Plan:
    """Return the plan for a cluster.

    Args:
        nodes: all members, in the order of their index; never only those of the run.
        settings: how to plan.

    Returns:
        The plan; what is wrong with it stands in ``problems``, and then it is not to be applied.
    """
    draft = _Draft()
    _check_addresses(nodes, draft)
    if settings.backend == "auto":
        draft.problems += [
            f"{node.name}: its network is configured by neither netplan nor NetworkManager nor systemd-networkd. "
            "Start one of them, select one with fabric_backend, or configure the ports yourself and set "
            "fabric_manage: false."
            for node in nodes
            if not node.machine.backend
        ]
    topology, obstacles = detect(nodes)
    if settings.topology != "auto":
        alike = {topology, settings.topology} == {SWITCH, BACK_TO_BACK}
        if topology and topology not in (settings.topology, SINGLE) and not alike:
            draft.notes.append(f"The cabling looks like {topology}, but fabric_topology is {settings.topology}.")
        dark = [problem for problem in obstacles if "carrier" in problem or "hears any" in problem]
        topology, obstacles = settings.topology, dark
    draft.problems += obstacles
    if topology == RING and len(nodes) not in RING_SIZES:
        draft.problems.append(f"A ring has 3 or 4 nodes, this cluster has {len(nodes)}.")
    if draft.problems or not topology:
        return Plan(topology, (), tuple(draft.problems), tuple(draft.notes))
    planned = _ring(nodes, settings, draft) if topology == RING else _rails(nodes, settings, draft)
    _check_management(nodes, planned, settings, draft)
    return Plan(topology, tuple(planned), tuple(draft.problems), tuple(draft.notes))


def _check_addresses(nodes: Sequence[Node], draft: _Draft) -> None:
    seen: dict[str, str] = {}
    for node in nodes:
        try:
            ipaddress.IPv4Address(node.address)
        except ValueError:
            draft.problems.append(f"{node.name}: gb10_fabric_address is {node.address!r}, not an IPv4 address.")
            continue
        mate = seen.setdefault(node.address, node.name)
        if mate != node.name:
            draft.problems.append(f"{mate} and {node.name} have the same gb10_fabric_address {node.address}.")
        if node.address in node.management:
            draft.problems.append(
                f"{node.name}: gb10_fabric_address {node.address} is its management address; the fabric needs its own."
            )


def usable_ports(node: Node, others: set[str]) -> list[Port]:
    """Return the ports that the plan uses: those that hear all others, else those with carrier, else all."""
    if node.neighbours is not None:
        heard = heard_by_port(node)
        complete = [port for port in node.machine.ports if others <= heard[port.key]]
        if complete:
            return complete
    return [port for port in node.machine.ports if port.carrier or not port.up] or list(node.machine.ports)


def rail_subnets(nodes: Sequence[Node], count: int, settings: Settings, draft: _Draft) -> list[ipaddress.IPv4Network]:
    """Return a subnet for each rail: the given ones, then those that follow the first."""
    given: list[ipaddress.IPv4Network] = []
    for text in settings.subnets:
        try:
            given.append(ipaddress.IPv4Network(text))
        except ValueError as error:
            draft.problems.append(f"fabric_subnets: {text} is no subnet ({error}).")
            return []
    if not given:
        given = [ipaddress.IPv4Network(f"{nodes[0].address}/{settings.prefix}", strict=False)]
    first = given[0]
    while len(given) < count:
        start = int(first.network_address) + len(given) * first.num_addresses
        given.append(ipaddress.IPv4Network((start, first.prefixlen)))
    rails = given[:count]
    for one, other in combinations(rails, 2):
        if one.overlaps(other):
            draft.problems.append(f"fabric_subnets: {one} and {other} overlap; twins need subnets of their own.")
    for node in nodes:
        address = ipaddress.IPv4Address(node.address)
        if address not in first:
            draft.problems.append(
                f"{node.name}: gb10_fabric_address {node.address} is not in the first rail's subnet {first}."
            )
        elif address in (first.network_address, first.broadcast_address):
            draft.problems.append(f"{node.name}: gb10_fabric_address {node.address} is no host's address in {first}.")
    return rails


def _rails(nodes: Sequence[Node], settings: Settings, draft: _Draft) -> list[NodePlan]:
    names = {node.name for node in nodes}
    ports = {node.name: usable_ports(node, names - {node.name}) for node in nodes}
    empty = [name for name, each in ports.items() if not each]
    if empty:
        draft.problems += [f"{name}: no port of the fabric was found." for name in empty]
        return []
    if len(nodes) == 2:
        _match_ports(nodes, ports)
    width = min(len(each) for each in ports.values())
    halves = min(len(port.netdevs) for each in ports.values() for port in each[:width])
    for name, each in ports.items():
        if len(each) > width:
            spare = ", ".join(netdev.name for port in each[width:] for netdev in port.netdevs)
            draft.notes.append(f"{name}: {spare} stay unused, because not every node has that many ports cabled.")
        if any(len(port.netdevs) > halves for port in each[:width]):
            draft.notes.append(f"{name}: the second half of its twin stays unused, because another node has none.")
    subnets = rail_subnets(nodes, width * halves, settings, draft)
    if draft.problems:
        return []
    planned = []
    for node in nodes:
        host = int(ipaddress.IPv4Address(node.address)) - int(subnets[0].network_address)
        links = []
        for rail, subnet in enumerate(subnets):
            netdev = ports[node.name][rail // halves].netdevs[rail % halves]
            cidr = f"{ipaddress.IPv4Address(int(subnet.network_address) + host)}/{subnet.prefixlen}"
            links.append(_link(netdev, (cidr,), settings, peer=f"rail {rail} of all nodes"))
        planned.append(NodePlan(node.name, tuple(links)))
    return planned


def _match_ports(nodes: Sequence[Node], ports: dict[str, list[Port]]) -> None:
    """Order the second node's ports so that each stands where the port at the other end of its cable does."""
    one, other = nodes
    heard = one.neighbours or {}
    left = list(ports[other.name])
    ordered = []
    for port in ports[one.name]:
        devices = {device for netdev in port.netdevs for _name, device in heard.get(netdev.name, ())}
        ends = [each for each in left if devices & {netdev.name for netdev in each.netdevs}] or left
        if ends:
            ordered.append(ends[0])
            left.remove(ends[0])
    ports[other.name] = ordered + left


def _link(netdev: Netdev, addresses: tuple[str, ...], settings: Settings, **more: Any) -> LinkPlan:
    return LinkPlan(netdev.name, netdev.mac, addresses, settings.mtu_bytes, manager=netdev.manager, **more)


def _ring_port(node: Node, peer: str, position: int, draft: _Draft) -> Port | None:
    ports = list(node.machine.ports)
    if node.neighbours is not None:
        heard = heard_by_port(node)
        found = [port for port in ports if peer in heard[port.key]]
        if found:
            return found[0]
    if position < len(ports):
        return ports[position]
    draft.problems.append(f"{node.name}: a ring needs two fabric ports, {len(ports)} were found.")
    return None


def _ring(nodes: Sequence[Node], settings: Settings, draft: _Draft) -> list[NodePlan]:
    names = [node.name for node in nodes]
    by_name = {node.name: node for node in nodes}
    known = all(node.neighbours is not None for node in nodes)
    edges = cables(nodes) if known else []
    if not is_cycle(edges, names) if edges else True:
        edges = [(names[i], names[(i + 1) % len(names)]) for i in range(len(names))]
        draft.notes.append("Assumed: the second port of each node is cabled to the first port of the next one.")
    pool = ipaddress.IPv4Network(settings.ring_pool)
    small = list(pool.subnets(new_prefix=30)) if pool.prefixlen <= 30 else []
    pairs = list(combinations(names, 2))
    if len(small) < 2 * len(pairs):
        draft.problems.append(
            f"fabric_ring_pool {pool} holds {len(small)} subnets of four addresses, {2 * len(pairs)} are needed."
        )
        return []
    for node in nodes:
        if ipaddress.IPv4Address(node.address) in pool:
            draft.problems.append(
                f"{node.name}: gb10_fabric_address {node.address} lies in fabric_ring_pool {pool}, "
                "which is for the cables."
            )
    links: dict[str, list[tuple[str, Netdev, str, str]]] = {name: [] for name in names}
    for one, other in edges:
        first, second = sorted((one, other), key=names.index)
        number = pairs.index((first, second))
        # In the assumed cabling an edge leaves its first node by the second port.
        ends = [(_ring_port(by_name[one], other, 1, draft), one), (_ring_port(by_name[other], one, 0, draft), other)]
        if draft.problems or any(port is None for port, _name in ends):
            return []
        halves = min(len(port.netdevs) for port, _name in ends if port)
        for half in range(halves):
            subnet = small[2 * number + half]
            host = {first: subnet[1], second: subnet[2]}
            for (port, name), peer in zip(ends, (other, one), strict=True):
                if port:
                    links[name].append((peer, port.netdevs[half], f"{host[name]}/30", str(host[peer])))
    return [_ring_node(node, names, links, by_name, settings) for node in nodes]


def _ring_node(
    node: Node,
    names: Sequence[str],
    links: Mapping[str, Sequence[tuple[str, Netdev, str, str]]],
    by_name: Mapping[str, Node],
    settings: Settings,
) -> NodePlan:
    own = links[node.name]
    peers = {peer for peer, _netdev, _cidr, _via in own}
    routes: dict[str, list[Route]] = {}
    for target in names:
        if target == node.name:
            continue
        hop = target
        if target not in peers:
            # Both ways of a pair go through the same neighbour: the first one in the inventory.
            hop = next(
                name for name in names if name in peers and any(peer == target for peer, *_unused in links[name])
            )
        _peer, netdev, _cidr, via = next(each for each in own if each[0] == hop)
        routes.setdefault(netdev.name, []).append(Route(f"{by_name[target].address}/32", via, node.address))
    return NodePlan(
        node.name,
        tuple(
            _link(netdev, (cidr,), settings, peer=peer, routes=tuple(routes.get(netdev.name, ())))
            for peer, netdev, cidr, _via in own
        ),
        own_address=f"{node.address}/32",
        forward=len(names) > 3,
    )


def is_live(planned: NodePlan, node: Node) -> bool:
    """Return whether a node's linked devices already have what is planned for them, and no other fixed address."""
    devices = {netdev.name: netdev for netdev in node.machine.netdevs}
    for link in planned.links:
        netdev = devices.get(link.netdev)
        if netdev is None or not netdev.up:
            return False
        have = {
            cidr
            for cidr in netdev.addresses
            if ":" not in cidr and (cidr in link.addresses or not ipaddress.ip_interface(cidr).is_link_local)
        }
        if netdev.carrier and (netdev.mtu_bytes != link.mtu_bytes or have != set(link.addresses)):
            return False
    return not planned.own_address or planned.own_address in node.machine.other


def _check_management(nodes: Sequence[Node], planned: Sequence[NodePlan], settings: Settings, draft: _Draft) -> None:
    by_name = {node.name: node for node in nodes}
    protected = {address: f"{node.name}'s management address" for node in nodes for address in node.management}
    protected.update(dict.fromkeys(settings.protected, "an address that must stay reachable"))
    subnets = {
        ipaddress.ip_interface(cidr).network for plan in planned for link in plan.links for cidr in link.addresses
    }
    for plan in planned:
        node = by_name[plan.name]
        for link in plan.links:
            netdev = next(each for each in node.machine.netdevs if each.name == link.netdev)
            held = [address for address in netdev.ipv4() if address in node.management]
            if held:
                draft.problems.append(
                    f"{plan.name}: {link.netdev} carries the management address {held[0]}; the fabric must not "
                    "have it. Take it out of fabric_interfaces."
                )
        if settings.allow_overlap:
            continue
        for cidr, device in node.machine.other.items():
            network = ipaddress.ip_interface(cidr).network
            for subnet in sorted(subnets, key=str):
                if subnet.version == network.version and subnet.overlaps(network) and network.num_addresses > 1:
                    draft.problems.append(
                        f"{plan.name}: the fabric's {subnet} overlaps {network} of {device}, so that one of them would "
                        "not be reached. Choose other addresses, or set fabric_allow_overlap: true if you are sure."
                    )
    if not settings.allow_overlap:
        for address, owner in sorted(protected.items()):
            for subnet in sorted(subnets, key=str):
                if _covers(subnet, address):
                    draft.problems.append(
                        f"The fabric's {subnet} covers {address}, {owner}: it would be sent over the fabric. Choose "
                        "other addresses, or set fabric_allow_overlap: true if you are sure."
                    )


def _covers(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in subnet
    except ValueError:  # a host name: it cannot be checked here
        return False
