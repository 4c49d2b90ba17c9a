# SPDX-License-Identifier: Apache-2.0
"""Names, sizes and addresses of labs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from lab import plan
from lab.errors import LabError
from lab.networks import parse_routes


def test_the_default_lab_has_the_addresses_that_its_inventory_names() -> None:
    subnets = plan.choose_subnets("lab", [])
    nodes = plan.plan_nodes("lab", 4, subnets)
    assert [(n.host, str(n.mgmt), str(n.fabric)) for n in nodes] == [
        (f"gx10-{k}", f"10.210.0.{10 + k}", f"10.211.0.{10 + k}") for k in range(1, 5)
    ]
    assert [n.container for n in nodes] == [f"lab-gx10-{k}" for k in range(1, 5)]
    assert nodes[2].address("fabric") == IPv4Address("10.211.0.13")


@pytest.mark.parametrize("count", [1, 8])
def test_sizes_at_the_ends(count: int) -> None:
    nodes = plan.plan_nodes("x", count, plan.choose_subnets("x", []))
    assert len({n.mgmt for n in nodes} | {n.fabric for n in nodes}) == 2 * count


@pytest.mark.parametrize("count", [0, 9, -1])
def test_sizes_beyond_the_ends_are_refused(count: int) -> None:
    with pytest.raises(LabError, match=f"1 to 8 nodes, {count} were"):
        plan.check_nodes(count)


def test_labs_side_by_side_never_share_a_subnet() -> None:
    taken: list[IPv4Network] = []
    for name in ["lab", *(f"other-{i}" for i in range(22))]:
        pair = plan.choose_subnets(name, taken)
        for net in (pair.mgmt, pair.fabric):
            assert not any(net.overlaps(other) for other in taken)
        taken += [pair.mgmt, pair.fabric]
    with pytest.raises(LabError, match="needs a free pair"):
        plan.choose_subnets("one-too-many", taken)


def test_a_network_of_any_size_that_overlaps_is_avoided() -> None:
    pair = plan.choose_subnets("x", [IPv4Network("10.212.0.128/25"), IPv4Network("10.214.0.0/15")])
    assert pair.mgmt == IPv4Network("10.216.0.0/24")


def test_a_default_route_is_not_a_clash() -> None:
    assert plan.choose_subnets("lab", [IPv4Network("0.0.0.0/0")]).mgmt == IPv4Network("10.210.0.0/24")


def test_the_default_lab_names_what_is_in_its_way() -> None:
    with pytest.raises(LabError, match=r"already uses 10\.208\.0\.0/14"):
        plan.choose_subnets("lab", [IPv4Network("10.208.0.0/14"), IPv4Network("172.17.0.0/16")])


@pytest.mark.parametrize("name", ["", "Lab", "1lab", "a_b", "-a", "a" * 33, "shared", "cache", "demo", "wheels", "a/b"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot be called"):
        plan.check_name(name)


@pytest.mark.parametrize("name", ["lab", "molecule-host", "a" * 32])
def test_names_that_are_taken(name: str) -> None:
    assert plan.check_name(name) == name


@pytest.mark.parametrize("word", ["gx10-2", "2", "lab-gx10-2"])
def test_a_node_goes_by_three_names(word: str) -> None:
    nodes = plan.plan_nodes("lab", 3, plan.choose_subnets("lab", []))
    assert plan.find_node(nodes, word).index == 2


def test_an_unknown_node_is_answered_with_the_known_ones() -> None:
    nodes = plan.plan_nodes("lab", 2, plan.choose_subnets("lab", []))
    with pytest.raises(LabError, match=r"'gx10-3'.*gx10-1, gx10-2"):
        plan.find_node(nodes, "gx10-3")


def test_routes_are_read_from_the_kernels_table() -> None:
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "br-4a1cb52df64e\t0000D20A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )
    assert parse_routes(text) == [
        IPv4Network("0.0.0.0/0"),
        IPv4Network("10.210.0.0/24"),
        IPv4Network("172.17.0.0/16"),
    ]


@pytest.mark.parametrize(
    ("statuses", "clone_is_there", "used"),
    [
        (["running", "exited"], True, True),
        (["running"], False, True),
        (["created", "created"], True, True),
        ([], True, True),
        (["exited", "exited"], True, False),
        (["exited", "dead"], False, False),
        (["created", "exited"], False, False),
        ([], False, False),
    ],
)
def test_what_another_clone_left_is_told_from_a_lab_in_use(
    statuses: list[str], clone_is_there: bool, used: bool, tmp_path: Path
) -> None:
    owner = tmp_path / ".lab"
    if clone_is_there:
        owner.mkdir()
    assert plan.in_use(statuses, [str(owner)]) is used
