# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.render import render, table

LINK: dict[str, Any] = {
    "netdev": "enp1s0f0np0",
    "mac": "4c:bb:47:2b:10:50",
    "addresses": ["192.168.100.11/24"],
    "mtu_bytes": 9000,
    "routes": [],
    "peer": "rail 0 of all nodes",
    "manager": "networkd",
}
NODE: dict[str, Any] = {"name": "n1", "links": [LINK], "own_address": "", "forward": False}
RING: dict[str, Any] = {
    "name": "n1",
    "links": [
        {
            **LINK,
            "addresses": ["192.168.250.1/30"],
            "routes": [{"to": "192.168.100.12/32", "via": "192.168.250.2", "source": "192.168.100.11"}],
        }
    ],
    "own_address": "192.168.100.11/32",
    "forward": True,
}


def test_netplan_is_yaml_that_says_the_plan() -> None:
    [file] = render(NODE, "netplan")
    assert (file["path"], file["mode"]) == ("/etc/netplan/90-gb10-fabric.yaml", "0600")
    device = yaml.safe_load(file["content"])["network"]["ethernets"]["enp1s0f0np0"]
    assert device == {
        "renderer": "networkd",
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "link-local": [],
        "optional": True,
        "ignore-carrier": True,
        "mtu": 9000,
        "addresses": ["192.168.100.11/24"],
    }


def test_netplan_leaves_a_link_to_who_rules_it() -> None:
    node = {**NODE, "links": [{**LINK, "manager": "NetworkManager"}]}
    device = yaml.safe_load(render(node, "netplan")[0]["content"])["network"]["ethernets"]["enp1s0f0np0"]
    assert device["renderer"] == "NetworkManager"
    assert "ignore-carrier" not in device


def test_netplan_of_a_ring() -> None:
    file, sysctl = render(RING, "netplan")
    network = yaml.safe_load(file["content"])["network"]
    assert network["ethernets"]["enp1s0f0np0"]["routes"] == [
        {"to": "192.168.100.12/32", "via": "192.168.250.2", "from": "192.168.100.11"}
    ]
    assert network["dummy-devices"] == {"gb10": {"addresses": ["192.168.100.11/32"]}}
    assert sysctl["content"].endswith("net.ipv4.ip_forward = 1\n")


def test_networkd() -> None:
    [file] = render(NODE, "networkd")
    assert (file["path"], file["mode"]) == ("/etc/systemd/network/10-gb10-enp1s0f0np0.network", "0644")
    lines = file["content"].splitlines()
    for line in ("Name=enp1s0f0np0", "MTUBytes=9000", "Address=192.168.100.11/24", "ConfigureWithoutCarrier=yes"):
        assert line in lines
    assert "[Route]" not in lines


def test_networkd_of_a_ring() -> None:
    files = {file["path"].rsplit("/", 1)[1]: file["content"] for file in render(RING, "networkd")}
    assert sorted(files) == ["10-gb10-enp1s0f0np0.network", "10-gb10-node.netdev", "10-gb10-node.network",
                             "91-gb10-fabric.conf"]  # fmt: skip
    assert (
        "[Route]\nDestination=192.168.100.12/32\nGateway=192.168.250.2\nPreferredSource=192.168.100.11"
        in (files["10-gb10-enp1s0f0np0.network"])
    )
    assert "Kind=dummy" in files["10-gb10-node.netdev"]
    assert "Address=192.168.100.11/32" in files["10-gb10-node.network"]


def test_network_manager() -> None:
    [file] = render(NODE, "NetworkManager")
    assert file["path"] == "/etc/NetworkManager/system-connections/gb10-enp1s0f0np0.nmconnection"
    # NetworkManager ignores a key file that others can read.
    assert file["mode"] == "0600"
    lines = file["content"].splitlines()
    for line in ("id=gb10-enp1s0f0np0", "mtu=9000", "address1=192.168.100.11/24", "never-default=true"):
        assert line in lines
    assert file == render(NODE, "NetworkManager")[0]


def test_network_manager_of_a_ring() -> None:
    files = render(RING, "NetworkManager")
    assert "route1=192.168.100.12/32,192.168.250.2" in files[0]["content"].splitlines()
    assert "route1_options=src=192.168.100.11" in files[0]["content"].splitlines()
    assert "type=dummy" in files[1]["content"].splitlines()


@pytest.mark.parametrize("backend", ["", "ifupdown"])
def test_an_unknown_backend_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="fabric_backend"):
        render(NODE, backend)


def test_table() -> None:
    assert table({"n1": NODE, "n22": RING}) == [
        "NODE  DEVICE       ADDRESS            MTU   TO",
        "n1    enp1s0f0np0  192.168.100.11/24  9000  rail 0 of all nodes",
        "n22   gb10         192.168.100.11/32        the node itself",
        "n22   enp1s0f0np0  192.168.250.1/30   9000  rail 0 of all nodes",
    ]
