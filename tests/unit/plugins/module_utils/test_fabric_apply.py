# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.apply import (
    Device,
    apply_commands,
    defines,
    drift,
    kept,
    keyfile_defines,
    lost,
    parse_devices,
    rollback_commands,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.rollback import script_text

# As iproute2 6.1 prints them on a Debian 12 node.
ADDRESSES = json.dumps(
    [
        {
            "ifname": "lo",
            "flags": ["LOOPBACK", "UP", "LOWER_UP"],
            "mtu": 65536,
            "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host"}],
        },
        {
            "ifname": "eth0",
            "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
            "mtu": 1500,
            "addr_info": [
                {"family": "inet", "local": "10.212.0.11", "prefixlen": 24, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        },
        {
            "ifname": "eth1",
            "flags": ["NO-CARRIER", "BROADCAST", "MULTICAST", "UP"],
            "mtu": 9000,
            "addr_info": [{"family": "inet", "local": "10.213.0.11", "prefixlen": 24, "scope": "global"}],
        },
    ]
)
ROUTES = """\
default via 10.212.0.1 dev eth0 proto dhcp metric 100
10.212.0.0/24 dev eth0 proto kernel scope link src 10.212.0.11
10.213.0.0/24 dev eth1 proto kernel scope link src 10.213.0.11 linkdown
"""
PLAN = [{"netdev": "eth1", "addresses": ["10.213.0.11/24"], "mtu_bytes": 9000, "routes": []}]


def device(name: str = "eth1", **changes: object) -> Device:
    values: dict[str, object] = {
        "up": True,
        "carrier": True,
        "mtu_bytes": 9000,
        "addresses": ("10.213.0.11/24",),
        "routes": (),
        **changes,
    }
    return Device(name, **values)  # type: ignore[arg-type]


def test_parse_devices() -> None:
    found = parse_devices(ADDRESSES, ROUTES)
    assert found["eth0"].addresses == ("10.212.0.11/24",)
    assert found["eth0"].routes[0] == "default via 10.212.0.1 dev eth0 proto dhcp metric 100"
    assert found["lo"].addresses == ()
    assert (found["eth1"].up, found["eth1"].carrier, found["eth1"].mtu_bytes) == (True, False, 9000)
    # ip would refuse its own word for a state.
    assert found["eth1"].routes == ("10.213.0.0/24 dev eth1 proto kernel scope link src 10.213.0.11",)


def test_kept_is_what_is_not_ours_and_not_a_containers() -> None:
    found = parse_devices(ADDRESSES, ROUTES)
    found["docker0"] = device("docker0", addresses=("172.17.0.1/16",))
    assert list(kept(found, ["eth1"])) == ["eth0"]


def test_lost() -> None:
    before = kept(parse_devices(ADDRESSES, ROUTES), ["eth1"])
    assert lost(before, before) == []
    renewed = {"eth0": device("eth0", addresses=("10.212.0.11/24",), routes=("default via 10.212.0.1 dev eth0",))}
    assert lost(before, renewed) == []
    assert lost(before, {}) == ["10.212.0.11/24 of eth0", "the default route by way of eth0"]
    other_gateway = {"eth0": device("eth0", addresses=("10.212.0.11/24",), routes=("default via 10.9.9.9 dev eth0",))}
    assert lost(before, other_gateway) == ["the default route by way of eth0"]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (device(), []),
        (device(mtu_bytes=1500), ["eth1 has an MTU of 1500 instead of 9000"]),
        (device(addresses=()), ["eth1 is missing 10.213.0.11/24"]),
        (
            device(addresses=("10.213.0.11/24", "10.213.0.12/32", "fd00::1/64")),
            ["eth1 has 10.213.0.12/32, which is not planned"],
        ),
        (device(addresses=(), carrier=False), []),
    ],
)
def test_drift(now: Device, expected: list[str]) -> None:
    assert drift(PLAN, "", "gb10", {"eth1": now}) == expected


def test_drift_of_routes_own_address_and_missing_devices() -> None:
    route = {"to": "10.9.0.2/32", "via": "10.213.0.12"}
    plan = [{**PLAN[0], "routes": [route]}]
    assert drift(plan, "", "gb10", {"eth1": device()}) == ["eth1 is missing the route to 10.9.0.2/32"]
    with_route = device(routes=("10.9.0.2 via 10.213.0.12 dev eth1 proto static src 10.9.0.1",))
    assert drift(plan, "10.9.0.1/32", "gb10", {"eth1": with_route}) == ["gb10 is missing 10.9.0.1/32"]
    own = device("gb10", addresses=("10.9.0.1/32",))
    assert drift(plan, "10.9.0.1/32", "gb10", {"eth1": with_route, "gb10": own}) == []
    assert drift(PLAN, "", "gb10", {}) == ["there is no device eth1"]


def test_apply_commands() -> None:
    def commands(backend: str, fresh: bool = True, given_up: bool = False, own: str = "") -> list[str]:
        return [" ".join(each) for each in apply_commands(backend, PLAN, own, fresh, given_up)]

    assert commands("netplan") == ["netplan apply"]
    assert commands("NetworkManager", own="gb10")[-1].endswith("connection up gb10-node")
    enable, flush = "systemctl enable --now systemd-networkd.service", "ip address flush dev eth1 scope global"
    assert commands("networkd") == [flush, enable, "networkctl reload"]
    assert commands("networkd", fresh=False, given_up=True) == [enable, flush, "networkctl reconfigure eth1"]
    assert commands("networkd", fresh=False) == [
        enable,
        "ip link set dev eth1 mtu 9000 up",
        "ip address replace 10.213.0.11/24 dev eth1",
    ]


def roll_back(tmp_path: Path) -> list[str]:
    """Run the rollback's commands with stand-ins for the network's tools; return what they were called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ip", "networkctl", "sleep"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n', encoding="utf-8")
        program.chmod(0o755)
    # What is there when the script looks: the old address, and one too many.
    (programs / "ip").write_text(
        f'#!/bin/sh\necho ip "$@" >> {tmp_path}/calls\n'
        'case "$*" in "-oneline address show dev eth1"*)\n'
        'echo "2: eth1    inet 10.213.0.11/24 scope global eth1"\n'
        'echo "2: eth1    inet 192.168.77.5/24 scope global eth1"\n'
        "esac\n",
        encoding="utf-8",
    )
    commands = rollback_commands("networkd", parse_devices(ADDRESSES, ROUTES), ["eth1", "gb10"], "gb10")
    text = script_text("the fabric", tmp_path, commands)
    script = tmp_path / "rollback.sh"
    script.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", str(script)], check=False, env=environment, timeout=60)
    assert done.returncode == 0
    return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()


def test_the_rollback_has_the_last_word_on_addresses(tmp_path: Path) -> None:
    calls = roll_back(tmp_path)
    flushed = calls.index("ip address flush dev eth1 scope global")
    assert flushed < calls.index("networkctl reload") < calls.index("ip address replace 10.212.0.11/24 dev eth0")
    assert "ip address delete 192.168.77.5/24 dev eth1" in calls
    assert "ip address delete 10.213.0.11/24 dev eth1" not in calls
    assert "ip link set dev eth1 mtu 9000 up" in calls
    assert "ip link delete gb10" in calls
    direct = calls.index("ip route replace 10.212.0.0/24 dev eth0 proto kernel scope link src 10.212.0.11")
    assert direct < calls.index("ip route replace default via 10.212.0.1 dev eth0 proto dhcp metric 100")
    assert not any(" lo" in call or "dev docker" in call for call in calls)


def test_defines() -> None:
    text = "network:\n  ethernets:\n    enp1s0f0np0:\n      link-local: [ ipv4 ]\n    'enP2p1s0f0np0':\n      mtu: 1\n"
    assert defines(text, ["enp1s0f0np0", "enP2p1s0f0np0", "enp1s0f1np1"]) == ["enp1s0f0np0", "enP2p1s0f0np0"]
    assert defines("network: {version: 2}  # enp1s0f0np0: not here\n", ["enp1s0f0np0"]) == []


NM_FILE = """\
network:
  version: 2
  ethernets:
    NM-00000000-0000-4000-8000-00000000000a:
      renderer: NetworkManager
      match:
        {match}
      networkmanager:
        uuid: "00000000-0000-4000-8000-00000000000a"
        name: "desk"
"""


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ('name: "enp1s0f1np1"', ["enp1s0f1np1"]),
        ("name: enp1s0f?np*  # both ports", ["enp1s0f0np0", "enp1s0f1np1"]),
        ("macaddress: 4C:BB:47:2B:10:50", ["enp1s0f0np0"]),
        ("driver: mlx5_core", ["enp1s0f0np0", "enp1s0f1np1"]),
        ('driver: ["r8127", "mlx5*"]', ["enp1s0f0np0", "enp1s0f1np1"]),
        ("driver: r8127", []),
        ("name: enP7s7", []),
        ("macaddress: 00:11:22:33:44:55", []),
    ],
)
def test_definitions_by_match(match: str, expected: list[str]) -> None:
    macs = {"enp1s0f0np0": "4c:bb:47:2b:10:50", "enp1s0f1np1": ""}
    assert defines(NM_FILE.format(match=match), list(macs), macs) == expected
    inline = f"network: {{ethernets: {{port: {{match: {{{match.partition('  #')[0]}}}, mtu: 9000}}}}}}\n"
    assert defines(inline, list(macs), macs) == expected


def test_a_match_in_one_line_ends_with_its_brace() -> None:
    assert defines("  ethernets: {a: {match: {name: enp1*}, mtu: 9}}\n", ["enp1s0f0np0", "other"]) == ["enp1s0f0np0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "  ethernets:\n    cx7:\n      match:\n        driver:\n          - mlx5_core\n",
            ["enp1s0f0np0", "enp1s0f1np1"],
        ),
        ("{network: {ethernets: {enp1s0f1np1: {addresses: [10.0.0.1/24]}}}}\n", ["enp1s0f1np1"]),
        ("  bonds:\n    bond0:\n      interfaces: [enp1s0f0np0, 'enp1s0f1np1']\n", ["enp1s0f0np0", "enp1s0f1np1"]),
        ("  bridges:\n    br0:\n      interfaces:\n        - eth7\n        - enp1s0f0np0\n", ["enp1s0f0np0"]),
        (
            '      networkmanager:\n        passthrough:\n          connection.interface-name: "enp1s0f0np0"\n',
            ["enp1s0f0np0"],
        ),
        ("  vlans:\n    vlan50:\n      link: enp1s0f0np0\n      id: 50\n", []),
        ("  ethernets:\n    enP7s7:  # not {enp1s0f0np0: no}\n      dhcp4: true\n", []),
        ("  bonds:\n    bond0:\n      # interfaces: [enp1s0f0np0]\n      interfaces: [eth7]\n", []),
    ],
)
def test_definitions_in_other_shapes(text: str, expected: list[str]) -> None:
    assert defines("network:\n  version: 2\n" + text, ["enp1s0f0np0", "enp1s0f1np1"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[ethernet]\nmac-address=4C:BB:47:2B:10:50\n", ["enp1s0f0np0"]),
        ("[match]\ninterface-name=enp1s0f1*;eth7;\n", ["enp1s0f1np1"]),
        ("[connection]\ninterface-name=enp1s0f0\n", []),
        ("[ethernet]\nmac-address=4C:BB:47:2B:10:51\n", []),
    ],
)
def test_keyfiles_by_pattern_and_by_address(text: str, expected: list[str]) -> None:
    macs = {"enp1s0f0np0": "4c:bb:47:2b:10:50", "enp1s0f1np1": ""}
    assert keyfile_defines(text, list(macs), macs) == expected


def test_keyfiles() -> None:
    text = "[connection]\nid=cx7\ntype=ethernet\ninterface-name=enp1s0f1np1\n"
    assert keyfile_defines(text, ["enp1s0f0np0", "enp1s0f1np1"]) == ["enp1s0f1np1"]
    assert keyfile_defines("[connection]\nid=enp1s0f1np1\n", ["enp1s0f1np1"]) == []
