# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_interface
from itertools import combinations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, Netdev, Port
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import (
    BACK_TO_BACK,
    RING,
    SINGLE,
    SWITCH,
    Node,
    Plan,
    Settings,
    detect,
    is_cycle,
    is_live,
    make_plan,
)

HALVES = (("enp1s0f0np0", "enP2p1s0f0np0"), ("enp1s0f1np1", "enP2p1s0f1np1"))


def netdev(name: str, *, carrier: bool = True, up: bool = True, addresses: tuple[str, ...] = ()) -> Netdev:
    return Netdev(name, "mlx5_core", "", f"mac-{name}", 9000, up, carrier, 200_000, 4, 4, addresses)


def machine(*linked: int, up: bool = True, management: str = "10.0.0.1/24") -> Machine:
    """A machine whose ports with these numbers have carrier."""
    return Machine(
        ports=tuple(
            Port(f"01:00.{number}", tuple(netdev(name, carrier=number in linked, up=up) for name in names))
            for number, names in enumerate(HALVES)
        ),
        other={management: "enP7s7"},
        backend="netplan",
    )


def cabled(pairs: Sequence[tuple[str, int, str, int]], count: int, switch: bool = False) -> list[Node]:
    """Nodes n1.. whose ports are cabled as given: (node, port, node, port); or all first ports on a switch."""
    names = [f"n{index}" for index in range(1, count + 1)]
    heard: dict[str, dict[str, list[tuple[str, str]]]] = {
        name: {half: [] for halves in HALVES for half in halves} for name in names
    }
    linked: dict[str, set[int]] = {name: set() for name in names}
    if switch:
        pairs = [(one, 0, other, 0) for one, other in combinations(names, 2)]
    for one, port, other, far in pairs:
        linked[one].add(port)
        linked[other].add(far)
        for half in HALVES[port]:
            heard[one][half] += [(other, name) for name in HALVES[far]]
        for half in HALVES[far]:
            heard[other][half] += [(one, name) for name in HALVES[port]]
    return [
        Node(
            name,
            f"192.168.100.{10 + index}",
            machine(*linked[name], management=f"10.0.0.{index}/24"),
            heard[name],
            (f"10.0.0.{index}",),
        )
        for index, name in enumerate(names, start=1)
    ]


def addresses(plan: Plan) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    return {node.name: {link.netdev: link.addresses for link in node.links} for node in plan.nodes}


RING_OF_3 = [("n1", 1, "n2", 0), ("n2", 1, "n3", 0), ("n3", 1, "n1", 0)]
RING_OF_4 = [("n1", 1, "n2", 0), ("n2", 1, "n3", 0), ("n3", 1, "n4", 0), ("n4", 1, "n1", 0)]


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_a_switch_gets_one_subnet_per_twin(count: int) -> None:
    plan = make_plan(cabled([], count, switch=True), Settings())
    assert plan.problems == ()
    assert plan.topology == (SWITCH if count > 2 else BACK_TO_BACK)
    assert addresses(plan)["n2"] == {
        "enp1s0f0np0": ("192.168.100.12/24",),
        "enP2p1s0f0np0": ("192.168.101.12/24",),
    }
    everything = [cidr for node in plan.nodes for link in node.links for cidr in link.addresses]
    assert len(set(everything)) == 2 * count
    assert all(link.mtu_bytes == 9000 for node in plan.nodes for link in node.links)


def test_a_node_more_moves_no_address() -> None:
    three, four = (addresses(make_plan(cabled([], count, switch=True), Settings())) for count in (3, 4))
    assert all(four[name] == three[name] for name in three)


def test_back_to_back_with_mixed_ports() -> None:
    plan = make_plan(cabled([("n1", 0, "n2", 1)], 2), Settings())
    assert plan.topology == BACK_TO_BACK
    assert addresses(plan) == {
        "n1": {"enp1s0f0np0": ("192.168.100.11/24",), "enP2p1s0f0np0": ("192.168.101.11/24",)},
        "n2": {"enp1s0f1np1": ("192.168.100.12/24",), "enP2p1s0f1np1": ("192.168.101.12/24",)},
    }


def test_two_crossed_cables_keep_both_ends_of_a_cable_on_one_rail() -> None:
    plan = make_plan(cabled([("n1", 0, "n2", 1), ("n1", 1, "n2", 0)], 2), Settings())
    found = addresses(plan)
    for rail in range(4):
        subnet = f"192.168.{100 + rail}."
        ends = {
            name: next(device for device, cidrs in links.items() if cidrs[0].startswith(subnet))
            for name, links in found.items()
        }
        assert ("f0" in ends["n1"]) == ("f1" in ends["n2"]), ends


@pytest.mark.parametrize(("pairs", "count"), [(RING_OF_3, 3), (RING_OF_4, 4)])
def test_a_ring_gets_one_subnet_per_half_of_a_cable(pairs: list[tuple[str, int, str, int]], count: int) -> None:
    plan = make_plan(cabled(pairs, count), Settings())
    assert plan.problems == ()
    assert plan.topology == RING
    members: dict[str, set[str]] = {}
    for node in plan.nodes:
        assert len(node.links) == 4
        assert node.own_address == f"192.168.100.{10 + int(node.name[1:])}/32"
        for link in node.links:
            members.setdefault(str(ip_interface(link.addresses[0]).network), set()).add(node.name)
    assert len(members) == 2 * count
    assert all(len(ends) == 2 for ends in members.values())


@pytest.mark.parametrize(("pairs", "count"), [(RING_OF_3, 3), (RING_OF_4, 4)])
def test_a_ring_routes_to_every_node_by_way_of_a_neighbour(pairs: list[tuple[str, int, str, int]], count: int) -> None:
    plan = make_plan(cabled(pairs, count), Settings())
    owner = {cidr.split("/")[0]: node.name for node in plan.nodes for link in node.links for cidr in link.addresses}
    own = {node.own_address: node.name for node in plan.nodes}
    via = {
        (node.name, own[route.to]): owner[route.via]
        for node in plan.nodes
        for link in node.links
        for route in link.routes
    }
    names = [node.name for node in plan.nodes]
    assert set(via) == {(one, other) for one in names for other in names if one != other}
    for (one, other), hop in via.items():
        # A second hop must reach its target directly, or packets would run around in circles.
        assert hop == other or via[hop, other] == other
        # The answer takes the same way back.
        assert via[other, one] == one if hop == other else via[other, one] == hop
    assert all(node.forward is (count > 3) for node in plan.nodes)


def test_moving_a_plug_in_a_ring_moves_no_address() -> None:
    moved = [("n1", 0, "n2", 0), ("n2", 1, "n3", 0), ("n3", 1, "n1", 1)]
    one, other = (make_plan(cabled(pairs, 3), Settings()) for pairs in (RING_OF_3, moved))

    def by_pair(plan: Plan) -> dict[tuple[str, str, int], tuple[str, ...]]:
        found: dict[tuple[str, str, int], tuple[str, ...]] = {}
        for node in plan.nodes:
            for link in node.links:
                found[node.name, link.peer, sum(key[:2] == (node.name, link.peer) for key in found)] = link.addresses
        return found

    assert by_pair(one) == by_pair(other)


def test_a_ring_that_nobody_asked_the_cables_of_is_assumed_and_said_so() -> None:
    nodes = [replace(node, neighbours=None) for node in cabled(RING_OF_3, 3)]
    plan = make_plan(nodes, Settings(topology=RING))
    assert plan.problems == ()
    assert plan.notes == ("Assumed: the second port of each node is cabled to the first port of the next one.",)
    assert addresses(plan) == addresses(make_plan(cabled(RING_OF_3, 3), Settings()))


def test_detect_names_the_node_that_nobody_hears() -> None:
    nodes = cabled([("n1", 0, "n2", 0)], 3)
    topology, problems = detect(nodes)
    assert topology == ""
    assert len(problems) == 1
    assert problems[0].startswith("n3: none of its fabric ports hears any other node")


def test_detect_refuses_a_chain_and_five_in_a_ring() -> None:
    assert detect(cabled(RING_OF_4[:-1], 4))[1][0].startswith("The cabling is neither one switch nor a ring")
    ring = [(f"n{i}", 1, f"n{i % 5 + 1}", 0) for i in range(1, 6)]
    assert "5 nodes are cabled in a ring" in detect(cabled(ring, 5))[1][0]


def test_detect_without_having_asked() -> None:
    one_cable = [Node(f"n{i}", f"192.168.100.{i}", machine(0)) for i in (1, 2, 3)]
    assert detect(one_cable) == (SWITCH, [])
    assert detect(one_cable[:2]) == (BACK_TO_BACK, [])
    assert detect(one_cable[:1]) == (SINGLE, [])
    both = [Node(f"n{i}", f"192.168.100.{i}", machine(0, 1)) for i in (1, 2, 3)]
    assert "fabric_topology" in detect(both)[1][0]
    dark = [*one_cable[:2], Node("n3", "192.168.100.3", machine())]
    assert detect(dark)[1] == ["n3: none of its fabric ports has carrier. Check its cable at both ends."]
    # In check mode nobody switches them on, and nobody can tell.
    off = [Node(f"n{i}", f"192.168.100.{i}", machine(up=False)) for i in (1, 2)]
    assert detect(off) == (BACK_TO_BACK, [])


def test_the_node_whose_cable_is_pulled_is_named_even_with_a_fixed_topology() -> None:
    plan = make_plan(cabled([("n1", 0, "n2", 0)], 3), Settings(topology=SWITCH))
    assert [problem.split(":")[0] for problem in plan.problems] == ["n3"]


def test_addresses_are_checked() -> None:
    nodes = cabled([], 3, switch=True)
    same = [nodes[0], replace(nodes[1], address=nodes[0].address), nodes[2]]
    assert make_plan(same, Settings()).problems == ("n1 and n2 have the same gb10_fabric_address 192.168.100.11.",)
    word = [nodes[0], replace(nodes[1], address="<fabric-ip>"), nodes[2]]
    assert "not an IPv4 address" in make_plan(word, Settings()).problems[0]
    outside = [nodes[0], replace(nodes[1], address="192.168.7.12"), nodes[2]]
    assert "is not in the first rail's subnet 192.168.100.0/24" in make_plan(outside, Settings()).problems[0]
    broadcast = [nodes[0], replace(nodes[1], address="192.168.100.255"), nodes[2]]
    assert "is no host's address" in make_plan(broadcast, Settings()).problems[0]
    management = [nodes[0], replace(nodes[1], address="10.0.0.2"), nodes[2]]
    assert "is its management address" in make_plan(management, Settings()).problems[0]


def test_given_subnets() -> None:
    nodes = cabled([], 3, switch=True)
    plan = make_plan(nodes, Settings(subnets=("192.168.100.0/24", "172.16.5.0/24")))
    assert addresses(plan)["n3"]["enP2p1s0f0np0"] == ("172.16.5.13/24",)
    assert "overlap" in make_plan(nodes, Settings(subnets=("192.168.100.0/24", "192.168.100.0/25"))).problems[0]
    assert "is no subnet" in make_plan(nodes, Settings(subnets=("192.168.100.0/33",))).problems[0]


def test_the_fabric_must_not_swallow_the_way_to_the_nodes() -> None:
    nodes = [replace(node, address=f"10.0.0.{200 + i}") for i, node in enumerate(cabled([], 3, switch=True), 1)]
    problems = make_plan(nodes, Settings(prefix=25)).problems
    assert any("overlaps 10.0.0.0/24 of enP7s7" in problem for problem in problems)
    assert make_plan(nodes, Settings(prefix=25, allow_overlap=True)).problems == ()
    distant = make_plan(cabled([], 3, switch=True), Settings(protected=("192.168.100.200",))).problems
    assert distant == (
        "The fabric's 192.168.100.0/24 covers 192.168.100.200, an address that must stay reachable: it would be sent "
        "over the fabric. Choose other addresses, or set fabric_allow_overlap: true if you are sure.",
    )


def test_the_management_port_is_never_planned_even_when_somebody_insists() -> None:
    nodes = cabled([], 2, switch=True)
    port = Port("enP7s7", (netdev("enP7s7", addresses=("10.0.0.1/24",)),))
    wrong = replace(nodes[0], machine=Machine((port,), backend="netplan"), neighbours=None)
    plan = make_plan([wrong, replace(nodes[1], neighbours=None)], Settings(allow_overlap=True))
    assert any("enP7s7 carries the management address 10.0.0.1" in problem for problem in plan.problems)


def test_a_ring_pool_that_is_too_small_or_in_the_way() -> None:
    nodes = cabled(RING_OF_4, 4)
    assert "are needed" in make_plan(nodes, Settings(ring_pool="192.168.250.0/28")).problems[0]
    assert "lies in fabric_ring_pool" in make_plan(nodes, Settings(ring_pool="192.168.100.0/24")).problems[0]


def test_a_second_port_on_one_node_alone_stays_unused() -> None:
    nodes = cabled([("n1", 0, "n2", 0), ("n1", 1, "n2", 0)], 2)
    plan = make_plan([replace(node, neighbours=None) for node in nodes], Settings())
    assert plan.notes == (
        "n1: enp1s0f1np1, enP2p1s0f1np1 stay unused, because not every node has that many ports cabled.",
    )


def test_the_plan_of_a_half_whose_link_is_down_stays_the_same() -> None:
    nodes = cabled([], 2, switch=True)
    halves = nodes[0].machine.ports[0].netdevs
    port = Port("01:00.0", (halves[0], replace(halves[1], carrier=False)))
    worse = replace(nodes[0], machine=replace(nodes[0].machine, ports=(port, nodes[0].machine.ports[1])))
    assert addresses(make_plan([worse, nodes[1]], Settings())) == addresses(make_plan(nodes, Settings()))


def test_is_live() -> None:
    nodes = cabled([], 2, switch=True)
    plan = make_plan(nodes, Settings())
    assert not is_live(plan.node("n1"), nodes[0])

    def with_addresses(*found: tuple[str, ...]) -> Node:
        halves = nodes[0].machine.ports[0].netdevs
        port = Port("01:00.0", tuple(replace(half, addresses=each) for half, each in zip(halves, found, strict=True)))
        return replace(nodes[0], machine=replace(nodes[0].machine, ports=(port, nodes[0].machine.ports[1])))

    assert is_live(plan.node("n1"), with_addresses(("192.168.100.11/24",), ("192.168.101.11/24", "fe80::1/64")))
    # What the link gives itself is no other address.
    assert is_live(plan.node("n1"), with_addresses(("192.168.100.11/24",), ("192.168.101.11/24", "169.254.7.9/16")))
    assert not is_live(
        plan.node("n1"), with_addresses(("192.168.100.11/24", "192.168.100.12/32"), ("192.168.101.11/24",))
    )


def test_is_cycle() -> None:
    assert is_cycle([("a", "b"), ("b", "c"), ("c", "a")], ["a", "b", "c"])
    assert not is_cycle([("a", "b"), ("b", "c")], ["a", "b", "c"])
    two_rings = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "e"), ("e", "f"), ("f", "d")]
    assert not is_cycle(two_rings, list("abcdef"))


def test_the_plan_as_dictionaries_has_no_tuples() -> None:
    data = make_plan(cabled(RING_OF_3, 3), Settings()).to_dict()
    assert isinstance(data["problems"], list)
    assert isinstance(data["nodes"]["n1"]["links"][0]["routes"], list)


def test_a_network_that_nothing_known_configures_is_refused() -> None:
    nodes = cabled((), 2, switch=True)
    nodes[1] = replace(nodes[1], machine=replace(nodes[1].machine, backend=""))
    [problem] = make_plan(nodes, Settings()).problems
    assert problem.startswith("n2: its network is configured by neither netplan nor NetworkManager nor")
    assert "fabric_manage: false" in problem
    # Named in the inventory, it need not run yet.
    assert make_plan(nodes, Settings(backend="networkd")).problems == ()
