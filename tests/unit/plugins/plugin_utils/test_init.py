# SPDX-License-Identifier: Apache-2.0
"""The inventory that is proposed for boxes: names, fabric addresses, cabling, models, and what an owner wrote stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._init.propose import (
    addresses_from,
    as_dict,
    document,
    filled_in,
    hosts_of,
    login,
    propose,
)

REPO = Path(__file__).resolve().parents[4]


def netdev(name: str, *addresses: str, carrier: bool = True) -> dict[str, Any]:
    return {
        "name": name, "driver": "mlx5_core", "pci": "0000:01:00.0", "mac": "02:00:00:00:00:01", "mtu_bytes": 9000,
        "up": True, "carrier": carrier, "speed_mbps": 200000 if carrier else None, "lanes": 4, "lanes_max": 4,
        "addresses": list(addresses), "hca": None, "manager": "",
    }  # fmt: skip


def box(
    address: str, *fabric: str, name: str = "", other: str = "192.168.1.10/24", heard: Any = None
) -> dict[str, Any]:
    """A box with one port of two halves, and what it has off the fabric."""
    return {
        "address": address,
        "name": name,
        "hostname": f"spark-{address[-2:]}",
        "memory_gib": 119.7,
        "heard": heard or {},
        "facts": {
            "machine": {
                "ports": [{"key": "0", "netdevs": [netdev("a", *fabric), netdev("b")]}],
                "other": {other: "enP7s7"},
                "backend": "netplan",
            },
            "control": {"client": "192.168.1.5", "server": address},
        },
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b, c\nd", ["a", "b", "c", "d"]),
        (["a", "b", "a"], ["a", "b"]),
        ("", []),
        (" , ", []),
    ],
)
def test_addresses_are_split_and_each_counts_once(text: Any, expected: list[str]) -> None:
    assert addresses_from(text) == expected


def test_new_boxes_get_names_and_a_free_network() -> None:
    found = propose([box("192.168.1.11"), box("192.168.1.12")], {})
    assert [(each.name, each.ansible_host, each.fabric_address) for each in found.nodes] == [
        ("gx10-1", "192.168.1.11", "192.168.100.1"),
        ("gx10-2", "192.168.1.12", "192.168.100.2"),
    ]
    assert (found.topology, found.subnet, found.manage, found.problems) == (
        "back_to_back", "192.168.100.0/24", True, []
    )  # fmt: skip


def test_a_network_that_a_box_uses_is_not_taken() -> None:
    assert propose([box("h", other="192.168.100.7/23")], {}).subnet == "192.168.102.0/24"


def test_addresses_that_the_boxes_have_already_are_kept_and_left_to_the_owner() -> None:
    found = propose([box("h1", "10.0.0.4/24"), box("h2", "10.0.0.9/24")], {})
    assert [each.fabric_address for each in found.nodes] == ["10.0.0.4", "10.0.0.9"]
    assert (found.subnet, found.manage) == ("10.0.0.0/24", False)
    assert "kept and only checked" in found.notes[0]


@pytest.mark.parametrize("addresses", [("10.0.0.4/24", "10.0.1.9/24"), ("169.254.1.1/16", "169.254.1.2/16"), ("", "")])
def test_addresses_that_are_no_common_network_are_not_kept(addresses: tuple[str, str]) -> None:
    boxes = [box(f"h{number}", *([each] if each else [])) for number, each in enumerate(addresses)]
    assert propose(boxes, {}).manage


@pytest.mark.parametrize(
    ("subnet", "problem"),
    [
        ("192.168.1.0/24", "init_fabric_subnet 192.168.1.0/24 overlaps 192.168.1.0/24, which a box uses already."),
        ("10.0.0.0/33", "init_fabric_subnet is '10.0.0.0/33', which is no network:"),
    ],
)
def test_a_network_that_cannot_be_is_refused(subnet: str, problem: str) -> None:
    assert propose([box("h")], {}, subnet).problems[0].startswith(problem)


def test_boxes_without_a_cable_are_named() -> None:
    boxes = [box("h1", heard={"neighbours": {"a": [], "b": []}}), box("h2", heard={"neighbours": {"a": [], "b": []}})]
    assert propose(boxes, {}).problems == [
        "gx10-1: none of its fabric ports hears any other node. Check its cable at both ends and the switch's port.",
        "gx10-2: none of its fabric ports hears any other node. Check its cable at both ends and the switch's port.",
    ]


def test_boxes_that_hear_one_another_are_back_to_back_or_on_a_switch() -> None:
    def heard(*others: str) -> dict[str, Any]:
        return {"neighbours": {"a": [[other, "a"] for other in others], "b": [[other, "b"] for other in others]}}

    two = [box("h1", heard=heard("h2")), box("h2", heard=heard("h1"))]
    assert (propose(two, {}).topology, propose(two, {}).problems) == ("back_to_back", [])
    names = ("h1", "h2", "h3")
    three = [box(name, heard=heard(*(each for each in names if each != name))) for name in names]
    assert (propose(three, {}).topology, propose(three, {}).problems) == ("switch", [])


def test_a_rerun_leaves_the_owners_addresses_to_the_owner() -> None:
    boxes = [box("h1", "10.0.0.4/24"), box("h2", "10.0.0.9/24")]
    first = propose(boxes, {})
    again = propose(boxes, document(as_dict(first), {}, {"ansible_user": "me"}, "m"))
    assert (again.manage, again.nodes, again.problems) == (False, first.nodes, [])


def test_two_boxes_of_one_name_are_refused() -> None:
    found = propose([box("h1", name="desk"), box("h2", name="desk")], {})
    assert found.problems == ["Two boxes would be called desk: give them names with init_names."]


EARLIER = yaml.safe_load("""
all:
  vars: {model: old, ansible_user: me, edge_tls: true}
  children:
    monitor: {hosts: {desk: {}}}
    gx10:
      children:
        head: {hosts: {desk: {ansible_host: h1, gb10_fabric_address: 10.9.0.7, host_hostname: ""}}}
""")


def test_a_rerun_keeps_names_addresses_and_what_the_owner_added() -> None:
    found = propose([box("h1"), box("h2")], EARLIER)
    assert [(each.name, each.fabric_address) for each in found.nodes] == [("desk", "10.9.0.7"), ("gx10-1", "10.9.0.1")]
    written = document(as_dict(found), EARLIER, {"ansible_user": "me"}, "new")
    assert written["all"]["vars"] == {"model": "new", "ansible_user": "me", "edge_tls": True}
    assert written["all"]["children"]["monitor"] == {"hosts": {"desk": {}}}
    assert hosts_of(written) == {
        "desk": {"ansible_host": "h1", "gb10_fabric_address": "10.9.0.7", "host_hostname": ""},
        "gx10-1": {"ansible_host": "h2", "gb10_fabric_address": "10.9.0.1"},
    }


@pytest.mark.parametrize("boxes", [1, 2, 4])
def test_the_inventory_of_the_repository_is_no_earlier_run(boxes: int) -> None:
    template = yaml.safe_load((REPO / f"inventories/spark{boxes}/hosts.yml").read_text(encoding="utf-8"))
    found = filled_in(template)
    assert hosts_of(found) == {}
    assert login(found, NOBODY_ASKED)["variables"] == {"ansible_user": "me"}, "the template's account is nobody's"
    assert "model" not in found["all"]["vars"], "so that the model is asked for"
    named = [each.name for each in propose([box(f"h{number}") for number in range(boxes)], found).nodes]
    assert named == [f"gx10-{number}" for number in range(1, boxes + 1)]


def test_what_the_owner_filled_in_of_a_template_is_kept() -> None:
    template = yaml.safe_load((REPO / "inventories/spark2/hosts.yml").read_text(encoding="utf-8"))
    template["all"]["vars"]["edge_tls"] = True
    assert filled_in(template)["all"]["vars"] == {"edge_tls": True}
    head = template["all"]["children"]["gx10"]["children"]["head"]["hosts"]
    head["gx10-1"]["ansible_host"] = "h1"
    found = filled_in(template)
    assert list(hosts_of(found)) == ["gx10-1"]
    assert found["all"]["vars"] == template["all"]["vars"]
    assert filled_in(EARLIER) == EARLIER
    assert filled_in({}) == {}


def test_one_box_has_no_workers() -> None:
    written = document(as_dict(propose([box("h1")], {})), {}, {"ansible_user": "me"}, "m")
    assert list(written["all"]["children"]["gx10"]["children"]) == ["head"]


NOBODY_ASKED = {"user": "", "private_key": "", "ssh_common_args": "", "known_hosts": "", "default_user": "me"}


@pytest.mark.parametrize(
    ("asked", "before", "variables", "known_hosts"),
    [
        ({}, {}, {"ansible_user": "me"}, ""),
        ({}, {"ansible_user": "gb10", "model": "m"}, {"ansible_user": "gb10"}, ""),
        ({"user": "other"}, {"ansible_user": "gb10"}, {"ansible_user": "other"}, ""),
        (
            {"private_key": "/k", "known_hosts": "/h", "ssh_common_args": "-J jump"},
            {},
            {
                "ansible_user": "me",
                "ansible_ssh_private_key_file": "/k",
                "ansible_ssh_common_args": "-o UserKnownHostsFile=/h -J jump",
            },
            "/h",
        ),
        (
            {},
            {"ansible_ssh_private_key_file": "/k", "ansible_ssh_common_args": "-J jump -o UserKnownHostsFile=/h -p 23"},
            {
                "ansible_user": "me",
                "ansible_ssh_private_key_file": "/k",
                "ansible_ssh_common_args": "-o UserKnownHostsFile=/h -J jump -p 23",
            },
            "/h",
        ),
        (
            {"ssh_common_args": "-J other"},
            {"ansible_ssh_common_args": "-o UserKnownHostsFile=/h -J jump"},
            {"ansible_user": "me", "ansible_ssh_common_args": "-o UserKnownHostsFile=/h -J other"},
            "/h",
        ),
    ],
)
def test_boxes_are_reached_as_asked_or_as_before(
    asked: dict[str, str], before: dict[str, str], variables: dict[str, str], known_hosts: str
) -> None:
    found = login({"all": {"vars": before}}, {**NOBODY_ASKED, **asked})
    assert found == {"variables": variables, "known_hosts": known_hosts}
    again = document(as_dict(propose([box("h1")], {})), {}, found["variables"], "m")
    assert login(again, NOBODY_ASKED) == found, "a later run changes nothing of it"
