# SPDX-License-Identifier: Apache-2.0
"""The fabric's filters, on captured machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.filter import fabric, node
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.findings import findings
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture, to_dict

FIXTURES = Path(__file__).parents[2] / "fixtures/fabric"
filters = {**fabric.FilterModule().filters(), **node.FilterModule().filters()}


def facts(name: str, **more: Any) -> dict[str, Any]:
    """Return what fabric_facts would return on a captured machine."""
    machine = parse_capture(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")))
    return {"machine": to_dict(machine), "findings": [asdict(each) for each in findings(machine)], **more}


def plan(client: str = "10.9.9.9", **settings: Any) -> Any:
    """Plan two boxed machines whose cables have been heard."""
    device = facts("boxed")["machine"]["ports"][0]["netdevs"][0]["name"]
    return filters["fabric_plan"](
        ["n1", "n2"],
        {"n1": facts("boxed", control={"client": client, "server": "10.0.0.1"}), "n2": facts("boxed")},
        {
            "n1": {"neighbours": {device: [["n2", device]]}, "down": []},
            "n2": {"neighbours": {device: [["n1", device]]}, "down": []},
        },
        {"n1": "192.168.100.1", "n2": "192.168.100.2"},
        {"n1": "10.0.0.1"},
        **{"backend": "networkd", **settings},
    )


def test_a_plan_from_registered_results() -> None:
    made = plan()
    assert made["problems"] == []
    assert made["topology"] == "back_to_back"
    assert made["live"] is False
    assert made["nodes"]["n1"]["links"][0]["addresses"] == ["192.168.100.1/24"]
    # The control node's own address stays off the fabric.
    assert "The fabric's 192.168.100.0/24 covers 192.168.100.77" in plan(client="192.168.100.77")["problems"][0]


def test_a_node_without_an_address_is_named() -> None:
    made = filters["fabric_plan"](
        ["n1", "n2"], {"n1": facts("boxed"), "n2": facts("boxed")}, {}, {"n1": "192.168.100.1"}, {}, backend="netplan"
    )
    assert "n2: gb10_fabric_address is ''" in made["problems"][0]


def test_failures_name_the_node() -> None:
    found = filters["fabric_failures"]({"n1": facts("back_to_back"), "n2": facts("no_rdma")})
    assert found
    assert all(each.startswith("n2: ") for each in found)


@pytest.mark.parametrize(
    ("given", "default", "expected"), [({}, 0, 200.0), ({"n1": 0}, 0.5, 0.5), ({"n1": "12.5"}, 0.5, 12.5)]
)
def test_rates(given: dict[str, Any], default: float, expected: float) -> None:
    told = facts("back_to_back")
    address = next(
        each["addresses"][0].split("/")[0]
        for port in told["machine"]["ports"]
        for each in port["netdevs"]
        if each["addresses"]
    )
    assert filters["fabric_rates"]({"n1": told}, {"n1": address}, given, default) == {"n1": expected}
    assert filters["fabric_rates"]({"n1": facts("boxed")}, {"n1": address}, {}) == {"n1": 0.0}


def test_by_host() -> None:
    hostvars = {"n1": {"x": 1}, "n2": {}, "n3": {"x": 3}}
    assert filters["by_host"](["n1", "n2", "n3"], hostvars, "x") == {"n1": 1, "n3": 3}


def ring_of(count: int) -> dict[str, dict[str, Any]]:
    """Facts of a ring whose nodes are n1, n2, ...: n1's second port to n2's first, and so on."""
    template = json.loads((FIXTURES / "ring.json").read_text(encoding="utf-8"))
    found = {}
    for index in range(count):
        before, after = (index - 1) % count, index
        ports = {"enp1s0f0np0": (2 * before, 2), "enP2p1s0f0np0": (2 * before + 1, 2)}
        ports |= {"enp1s0f1np1": (2 * after, 1), "enP2p1s0f1np1": (2 * after + 1, 1)}
        links = [
            {"ifname": name, "addr_info": [{"local": f"192.168.250.{4 * subnet + host}", "prefixlen": 30}]}
            for name, (subnet, host) in ports.items()
        ]
        own = [{"ifname": "gb10", "addr_info": [{"local": f"10.77.0.{index + 1}", "prefixlen": 32}]}]
        found[f"n{index + 1}"] = {"machine": to_dict(parse_capture({**template, "ip": json.dumps(links + own)}))}
    return found


def test_a_ring_has_a_floor() -> None:
    four = ring_of(4)
    addresses = {f"n{number}": f"10.77.0.{number}" for number in range(1, 5)}
    rates = filters["fabric_rates"](four, addresses, {})
    assert rates == dict.fromkeys(four, 200.0)
    # 50 Gb/s are too slow over a cable, and enough by way of another node.
    measured = {one: {other: {"gbps": 50.0, "error": ""} for other in four if other != one} for one in four}
    slow = filters["fabric_slow"](measured, rates, 0.4, four)
    assert len(slow) == 8
    assert not any(each.startswith(("n1 -> n3", "n3 -> n1", "n2 -> n4", "n4 -> n2")) for each in slow)
    three = ring_of(3)
    measured = {one: {other: {"gbps": 50.0, "error": ""} for other in three if other != one} for one in three}
    assert filters["fabric_slow"](measured, dict.fromkeys(three, 200.0), 0.4, three) != []


def test_records_of_ports_that_are_the_owners() -> None:
    every = ["enP2p1s0f0np0", "enP2p1s0f1np1", "enp1s0f0np0", "enp1s0f1np1"]
    assert filters["fabric_records"](ring_of(3)) == {
        name: {"topology": "ring", "nodes": 3, "netdevs": every} for name in ("n1", "n2", "n3")
    }
    # Two of three: the ports towards the third lead to nobody of this cluster.
    pair = dict(list(ring_of(3).items())[:2])
    records = filters["fabric_records"](pair)
    assert records["n1"] == {"topology": "back_to_back", "nodes": 2, "netdevs": ["enP2p1s0f1np1", "enp1s0f1np1"]}
    assert records["n2"]["netdevs"] == ["enP2p1s0f0np0", "enp1s0f0np0"]
    assert filters["fabric_records"]({"n1": facts("boxed"), "n2": facts("boxed")})["n1"] == {
        "topology": "", "nodes": 2, "netdevs": [],
    }  # fmt: skip


def test_records_of_a_plan() -> None:
    made = plan()
    device = made["nodes"]["n1"]["links"][0]["netdev"]
    records = filters["fabric_records"]({"n1": facts("boxed"), "n2": facts("boxed")}, made)
    assert records["n1"]["topology"] == "back_to_back"
    assert device in records["n1"]["netdevs"]
    # A plan with problems has no ports yet.
    empty = {"topology": "", "nodes": {}}
    assert filters["fabric_records"]({"n1": facts("boxed")}, empty)["n1"]["netdevs"] == []


@pytest.mark.parametrize(
    ("topology", "spec", "expected"),
    [
        ("ring", {"engine": "ray", "nodes": 3}, "Ray does not work on a ring"),
        ("ring", {"engine": "native", "nodes": 4, "env": {"NCCL_IB_MERGE_NICS": 1}}, "NCCL_IB_MERGE_NICS=1"),
        ("ring", {"engine": "native", "nodes": 3, "env": None}, ""),
        ("switch", {"engine": "ray", "nodes": 3}, ""),
    ],
)
def test_engines_and_rings(topology: str, spec: dict[str, Any], expected: str) -> None:
    faults = filters["fabric_engine_faults"]({"topology": topology, "nodes": spec["nodes"], "netdevs": []}, spec)
    assert len(faults) == (1 if expected else 0)
    assert all(expected in each for each in faults)
