# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.findings import findings
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import (
    Machine,
    carries,
    from_dict,
    parse_capture,
    parse_gid,
    parse_networkctl,
    parse_nmcli,
    parse_pci,
    parse_rate,
    to_dict,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "fabric"


def load(name: str) -> Machine:
    return parse_capture(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8")))


def said(machine: Machine, **options: object) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in findings(machine, **options)]  # type: ignore[arg-type]


def test_twins_are_found_by_pci_address_and_ordered_by_domain() -> None:
    machine = load("switch")
    assert [port.key for port in machine.ports] == ["01:00.0", "01:00.1"]
    assert [[netdev.name for netdev in port.netdevs] for port in machine.ports] == [
        ["enp1s0f0np0", "enP2p1s0f0np0"],
        ["enp1s0f1np1", "enP2p1s0f1np1"],
    ]
    assert [port.carrier for port in machine.ports] == [True, False]


def test_renamed_devices_and_the_other_port_make_no_difference() -> None:
    machine = load("swapped_port")
    assert [[netdev.name for netdev in port.netdevs] for port in machine.ports] == [["cx7a", "cx7c"], ["cx7b", "cx7d"]]
    assert [port.carrier for port in machine.ports] == [False, True]
    assert findings(machine) == []


def test_a_netdev_tells_its_link() -> None:
    netdev = load("switch").ports[0].netdevs[1]
    assert netdev.pci == "0002:01:00.0"
    assert netdev.driver == "mlx5_core"
    assert netdev.mac == "4c:bb:47:2b:10:54"
    assert (netdev.mtu_bytes, netdev.speed_mbps, netdev.lanes) == (9000, 200_000, 4)
    assert netdev.addresses == ("192.168.101.11/24",)
    assert netdev.manager == "networkd"
    assert netdev.hca is not None
    assert (netdev.hca.name, netdev.hca.state, netdev.hca.rate_gbps) == ("roceP2p1s0f0", "ACTIVE", 200.0)
    gid = netdev.hca.gid_for("192.168.101.11")
    assert gid is not None
    assert (gid.index, gid.kind, gid.netdev) == (3, "v2", "enP2p1s0f0np0")


def test_the_management_port_is_no_port_of_the_fabric() -> None:
    machine = load("switch")
    assert "enP7s7" not in {netdev.name for netdev in machine.netdevs}
    assert machine.other == {"192.168.0.1/24": "enP7s7"}
    assert machine.backend == "netplan"


def test_network_manager_rules_the_link_where_it_says_so() -> None:
    assert {netdev.manager for netdev in load("back_to_back").ports[1].netdevs} == {"NetworkManager"}


@pytest.mark.parametrize("name", ["switch", "back_to_back", "ring", "swapped_port"])
def test_sound_machines_have_no_findings(name: str) -> None:
    assert findings(load(name)) == []


def test_one_half_down() -> None:
    [(level, what)] = said(load("one_twin_down"))
    assert level == "WARN"
    assert what.startswith("enP2p1s0f0np0 is without carrier while its twin enp1s0f0np0 is linked")


def test_100g() -> None:
    assert said(load("negotiated_100g")) == [
        ("WARN", "enp1s0f0np0 negotiated 100000 Mb/s instead of 200000 Mb/s."),
        ("WARN", "enP2p1s0f0np0 negotiated 100000 Mb/s instead of 200000 Mb/s."),
    ]
    assert said(load("negotiated_100g"), speed_mbps=100_000) == []
    assert said(load("negotiated_100g"), speed_mbps=0) == []


def test_no_cable() -> None:
    [(level, what)] = said(load("dark"))
    assert level == "FAIL"
    assert "No port of the fabric has carrier (enp1s0f0np0, " in what


def test_ports_that_are_switched_off_are_no_failure_yet() -> None:
    [(level, what)] = said(load("boxed"))
    assert level == "WARN"
    assert "switched off" in what


def test_no_ports_at_all() -> None:
    [finding] = findings(parse_capture({"ip": "[]"}))
    assert finding.level == "FAIL"
    # Without a cable the NIC is not on the bus: that comes first, then its driver.
    order = [finding.remedy.index(word) for word in ("cable", "hotplug", "lspci", "lsmod", "fabric_interfaces")]
    assert order == sorted(order)


def test_lanes_are_held_against_what_the_board_connects() -> None:
    assert said(load("two_lanes")) == [("WARN", "enP2p1s0f0np0 (0002:01:00.0) runs on 2 of 4 PCIe lanes.")]
    [finding] = findings(load("two_lanes"))
    assert finding.remedy.index("fwupdmgr") < finding.remedy.index("suspect the port")


def test_no_rdma() -> None:
    levels = said(load("no_rdma"))
    assert [level for level, _what in levels] == ["FAIL", "FAIL"]
    assert "has no RDMA device" in levels[0][1]
    assert said(load("no_rdma"), rdma=False) == []


def test_a_missing_gid() -> None:
    assert said(load("gid_missing")) == [("FAIL", "rocep1s0f0 has no RoCE v2 GID for 192.168.100.11 of enp1s0f0np0.")]


def test_twins_in_one_subnet() -> None:
    [(level, what)] = said(load("twins_in_one_subnet"))
    assert level == "FAIL"
    assert what.startswith("enp1s0f0np0 and enP2p1s0f0np0 are both in 192.168.100.0/24")


def test_mtu() -> None:
    assert said(load("switch"), mtu_bytes=4200) == [
        ("WARN", "enp1s0f0np0 has an MTU of 9000 bytes."),
        ("WARN", "enP2p1s0f0np0 has an MTU of 9000 bytes."),
    ]
    assert said(load("switch"), mtu_bytes=0) == []


def changed(name: str, **files: str) -> Machine:
    """A captured machine with other text in some files; two underscores stand for a slash."""
    tree = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    for path, text in files.items():
        tree[path.replace("__", "/")] = text
    return parse_capture(tree)


def without_address(name: str, device: str) -> str:
    """The output of ip on a captured machine one of whose devices has lost its addresses."""
    links = json.loads(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))["ip"])
    for link in links:
        if link["ifname"] == device:
            link["addr_info"] = []
    return json.dumps(links)


def test_a_linked_half_that_lost_its_address_is_warned_about() -> None:
    lost = {"ip": without_address("switch", "enP2p1s0f0np0")}
    [(level, what)] = said(changed("switch", **lost))
    assert level == "WARN"
    assert what == (
        "enP2p1s0f0np0 is linked and roceP2p1s0f0 is ACTIVE, but it has no IPv4 address, so NCCL does not use it."
    )
    [(_level, what)] = said(changed("switch", **lost, class__net__enP2p1s0f0np0__mtu="1500"))
    assert what.endswith("Its MTU is 1500.")
    # Before anything is configured there is nothing to lose.
    assert said(changed("switch", ip="[]")) == []


def test_a_half_that_is_not_on_the_bus_is_warned_about() -> None:
    tree = json.loads((FIXTURES / "switch.json").read_text(encoding="utf-8"))
    half = {path: text for path, text in tree.items() if "P2p1s0" not in path}
    [(level, what)] = said(parse_capture(half))
    assert (level, what.partition(":")[0]) == ("WARN", "enp1s0f0np0 (0000")
    assert "has no twin" in what
    # Its owner named it alone, or it is a NIC of another kind of machine.
    assert said(parse_capture(half, interfaces=["enp1s0f0np0"])) == []
    wide = {path: "16" if path.endswith("current_link_width") else text for path, text in half.items()}
    assert said(parse_capture(wide)) == []


def test_link_local_addresses_count() -> None:
    local = json.loads(without_address("switch", "enp1s0f0np0"))
    for link in local:
        if link["ifname"] == "enp1s0f0np0":
            link["addr_info"] = [
                {"family": "inet", "local": "169.254.28.198", "prefixlen": 16, "scope": "link"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ]
    machine = changed("switch", ip=json.dumps(local), class__net__enp1s0f0np0__mtu="1500")
    netdev = carries(machine, "169.254.28.198")
    assert netdev is not None
    assert netdev.addresses == ("169.254.28.198/16",)
    levels = said(machine, rdma=False)
    assert ("WARN", "enp1s0f0np0 has an MTU of 1500 bytes.") in levels
    assert any("may be another one after the next boot" in what for _level, what in levels)


def test_kho() -> None:
    [finding] = findings(load("switch"), kho_fault=True)
    assert finding.level == "FAIL"
    assert "kho=off" in finding.sentence()


def test_named_interfaces_are_taken_in_their_order() -> None:
    tree = json.loads((FIXTURES / "switch.json").read_text(encoding="utf-8"))
    machine = parse_capture(tree, interfaces=["enP2p1s0f0np0", "enp1s0f0np0"])
    assert [port.key for port in machine.ports] == ["enP2p1s0f0np0", "enp1s0f0np0"]
    by_address = parse_capture(tree, interfaces=["192.168.0.1"])
    assert [netdev.name for netdev in by_address.netdevs] == ["enP7s7"]


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.json")))
def test_a_machine_survives_the_way_through_json(name: str) -> None:
    machine = load(name)
    assert from_dict(json.loads(json.dumps(to_dict(machine)))) == machine


def test_carries() -> None:
    found = carries(load("ring"), "192.168.250.25")
    assert found is not None
    assert found.name == "enp1s0f1np1"
    assert carries(load("ring"), "192.168.0.2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0000:01:00.0", (0, 1, 0, 0)),
        ("0002:01:00.1", (2, 1, 0, 1)),
        ("000f:01:00.0", (15, 1, 0, 0)),
        ("/sys/devices/pci0002:00/0002:00:00.0/0002:01:00.1", (2, 1, 0, 1)),
        ("virtio0", None),
        ("", None),
    ],
)
def test_parse_pci(text: str, expected: tuple[int, int, int, int] | None) -> None:
    assert parse_pci(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200 Gb/sec (4X HDR)", 200.0), ("2.5 Gb/sec (1X SDR)", 2.5), ("", 0.0), ("unknown", 0.0)],
)
def test_parse_rate(text: str, expected: float) -> None:
    assert parse_rate(text) == expected


def test_parse_gid() -> None:
    assert parse_gid(3, "0000:0000:0000:0000:0000:ffff:c0a8:640b", "RoCE v2", "e").ipv4 == "192.168.100.11"
    assert parse_gid(0, "fe80:0000:0000:0000:4ebb:47ff:fe2b:1050", "IB/RoCE v1", "e").ipv4 == ""
    assert parse_gid(0, "fe80:0000:0000:0000:4ebb:47ff:fe2b:1050", "IB/RoCE v1", "e").kind == "v1"


def test_parse_networkctl_reads_both_forms() -> None:
    # systemd 252's table, as a Debian 12 node prints it.
    table = "  1 lo   loopback carrier  unmanaged\n568 eth0 ether    routable unmanaged\n"
    table += "574 eth1 ether    carrier  failed\n"
    assert parse_networkctl(table) == {"lo": "unmanaged", "eth0": "unmanaged", "eth1": "failed"}
    assert parse_networkctl('{"Interfaces": [{"Name": "eth1", "AdministrativeState": "configured"}]}') == {
        "eth1": "configured"
    }
    assert parse_networkctl("") == {}


def test_parse_nmcli_unescapes_colons() -> None:
    assert parse_nmcli("enp1s0f0np0:connected\nlo:connected (externally)\n12\\:34:disconnected") == {
        "enp1s0f0np0": "connected",
        "lo": "connected (externally)",
        "12:34": "disconnected",
    }
