# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._edge.firewall import (
    Device,
    Fabric,
    FirewallError,
    Wanted,
    connection_port,
    default_devices,
    fabric_result,
    find_fabric,
    listening_ssh_ports,
    normal,
    parse_devices,
    refusal,
    rollback_commands,
    table_text,
)

ADDRESSES = json.dumps(
    [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {
            "ifname": "enP7s7",
            "addr_info": [{"local": "10.0.0.5", "scope": "global"}, {"local": "fe80::5", "scope": "link"}],
        },
        {"ifname": "enp1s0f0np0", "addr_info": [{"local": "192.168.100.1", "scope": "global"}]},
        {"ifname": "enP2p1s0f0np0", "addr_info": [{"local": "192.168.101.1", "scope": "global"}]},
        {"ifname": "gb10", "addr_info": []},
        {},
    ]
)
DRIVERS = {"enP7s7": "r8127", "enp1s0f0np0": "mlx5_core", "enP2p1s0f0np0": "mlx5_core"}
devices = parse_devices(ADDRESSES, DRIVERS)
BOTH = ("enP2p1s0f0np0", "enp1s0f0np0")


def test_devices_have_their_drivers_and_no_link_local_address() -> None:
    assert devices == [
        Device("lo", "", ()),
        Device("enP7s7", "r8127", ("10.0.0.5",)),
        Device("enp1s0f0np0", "mlx5_core", ("192.168.100.1",)),
        Device("enP2p1s0f0np0", "mlx5_core", ("192.168.101.1",)),
        Device("gb10", "", ()),
    ]
    assert parse_devices("", {}) == []


def test_default_devices() -> None:
    routes = json.dumps([{"dst": "default", "dev": "enP7s7"}, {"dst": "default", "dev": "wlP9s9"}, {}])
    assert default_devices(routes) == {"enP7s7", "wlP9s9"}
    assert default_devices("") == set()


@pytest.mark.parametrize(
    ("named", "drivers", "address", "management", "expected"),
    [
        ([], ["mlx5_core"], "192.168.100.1", {"10.0.0.5"}, Fabric(BOTH, BOTH, ("192.168.100.1", "192.168.101.1"))),
        # What is named counts alone; an address stands for its device.
        (
            ["192.168.101.1"],
            ["mlx5_core"],
            "",
            set(),
            Fabric(("enP2p1s0f0np0",), ("enP2p1s0f0np0",), ("192.168.101.1",)),
        ),
        (["enp1s0f0np0"], [], "", set(), Fabric(("enp1s0f0np0",), ("enp1s0f0np0",), ("192.168.100.1",))),
        # The device with the node's fabric address belongs to it whatever its driver.
        ([], [], "10.0.0.5", set(), Fabric(("enP7s7",), ("enP7s7",), ("10.0.0.5",))),
        # One network for all: open to both sides, by address or by the device of the default route.
        ([], [], "10.0.0.5", {"10.0.0.5"}, Fabric(("enP7s7",), (), ("10.0.0.5",))),
        ([], [], "10.0.0.5", {"enP7s7"}, Fabric(("enP7s7",), (), ("10.0.0.5",))),
        ([], [], "", set(), Fabric((), (), ())),
    ],
)
def test_which_devices_are_the_fabric(
    named: list[str], drivers: list[str], address: str, management: set[str], expected: Fabric
) -> None:
    assert find_fabric(devices, named, drivers, address, management) == expected


def test_a_fabric_with_link_local_addresses() -> None:
    link = {"ifname": "enp1s0f1np1", "addr_info": [{"local": "169.254.28.198", "scope": "link"},
                                                   {"local": "fe80::1", "scope": "link"}]}  # fmt: skip
    assert find_fabric(parse_devices(json.dumps([link]), {}), [], [], "169.254.28.198", set()) == Fabric(
        ("enp1s0f1np1",), ("enp1s0f1np1",), ("169.254.28.198",)
    )


SS = """\
LISTEN 0      128          0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=71,fd=3))
LISTEN 0      128             [::]:2222          [::]:*    users:(("sshd",pid=71,fd=4))
LISTEN 0      511          0.0.0.0:8000       0.0.0.0:*    users:(("vllm",pid=99,fd=7))
LISTEN 0      4096      127.0.0.1%lo:53       0.0.0.0:*
"""


def test_ssh_ports_of_a_server_and_of_a_socket() -> None:
    assert listening_ssh_ports(SS, "") == {22, 2222}
    assert listening_ssh_ports("", "Listen=0.0.0.0:2200 (Stream)\nListen=[::]:2200 (Stream)\n\nListen=\n") == {2200}
    assert listening_ssh_ports("", "Listen=22 (Stream)\nListen=/run/x.sock (Stream)\n") == {22}
    assert listening_ssh_ports("", "") == set()


#: A server, and what two sessions of it forward: `ssh -R 127.0.0.1:9000:…`, `ssh -R 0.0.0.0:9001:…` and X11.
FORWARDED = """\
LISTEN 0      128        127.0.0.1:9000       0.0.0.0:*    users:(("sshd",pid=801,fd=9))
LISTEN 0      128            [::1]:6010          [::]:*    users:(("sshd",pid=801,fd=11))
LISTEN 0      128          0.0.0.0:9001       0.0.0.0:*    users:(("sshd",pid=802,fd=9))
LISTEN 0      128                *:2200             *:*    users:(("sshd",pid=71,fd=3))
"""
TITLES = {
    71: "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
    801: "sshd: ada",
    802: "sshd: ada@pts/0",
}


def test_what_a_session_forwards_is_no_port_of_the_server() -> None:
    assert listening_ssh_ports(FORWARDED, "", TITLES.__getitem__) == {2200}
    assert listening_ssh_ports(FORWARDED, "") == {9001, 2200}, "a process without a title may be the server"


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        (b"A=b\0SSH_CONNECTION=10.0.0.1 50112 10.0.0.5 2222\0", 2222),
        (b"SSH_CONNECTION=fe80::1 50112 fe80::5 22", 22),
        (b"SSH_CONNECTION=garbage\0", 0),
        (b"SSH_CLIENT=10.0.0.1 50112 22\0", 0),
        (b"", 0),
    ],
)
def test_port_of_the_connection(environ: bytes, port: int) -> None:
    assert connection_port(environ) == port


def rules(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("\t\t")]


def test_the_table_in_full() -> None:
    text = table_text(
        Wanted(
            ssh_ports=[2222, 22, 22],
            open_ports=[8000, 443],
            fabric=BOTH,
            closed=BOTH,
            members=["192.168.100.10", "192.168.100.9", "fd00::1", "192.168.100.9"],
            bridges=["docker0", "br-0123456789ab"],
            bridge_ports=[8000],
            rules=["ip saddr 10.0.0.9 tcp dport 9100 accept"],
        )
    )
    assert rules(text) == [
        "type filter hook input priority filter; policy drop;",
        'iif "lo" accept',
        "ct state established,related accept",
        "tcp dport { 22, 2222 } accept",
        "ip saddr 10.0.0.9 tcp dport 9100 accept",
        "meta l4proto { 1, 58 } accept",
        "ip protocol 2 accept",
        "udp sport 67 udp dport 68 accept",
        "udp sport 547 udp dport 546 accept",
        "udp dport 5353 accept",
        'iifname "docker0" tcp dport { 8000 } accept',
        'iifname "br-0123456789ab" tcp dport { 8000 } accept',
        'iifname { "enP2p1s0f0np0", "enp1s0f0np0" } ip saddr { 192.168.100.9, 192.168.100.10 } accept',
        'iifname { "enP2p1s0f0np0", "enp1s0f0np0" } ip6 saddr { fd00::1 } accept',
        'iifname != { "enP2p1s0f0np0", "enp1s0f0np0" } tcp dport { 443, 8000 } accept',
        "counter reject",
    ]
    # One transaction, which names our table and no other.
    assert [line for line in text.splitlines() if line.startswith(("table", "delete", "flush"))] == [
        "table inet gb10",
        "delete table inet gb10",
        "table inet gb10 {",
    ]


def test_a_node_by_itself_has_ssh_and_what_is_open() -> None:
    found = rules(table_text(Wanted(ssh_ports=[22], mdns=False)))
    assert not [rule for rule in found if "saddr" in rule or "5353" in rule or "iifname" in rule]
    assert "tcp dport { 8000 } accept" in rules(table_text(Wanted(ssh_ports=[22], open_ports=[8000])))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(ssh_ports=[]), "would lock everybody out. Set edge_ssh_ports"),
        (Wanted(ssh_ports=[22], open_ports=[0, 70000]), "0, 70000 in the open ports is not a TCP port; ports are 1 to"),
        (Wanted(ssh_ports=[-1]), "-1 in edge_ssh_ports is not a TCP port"),
        (
            Wanted(ssh_ports=[22], fabric=["eth1"], members=["CHANGE_ME"]),
            "'CHANGE_ME' is not an IP address of a cluster member",
        ),
        (Wanted(ssh_ports=[22], fabric=['e"; accept']), "cannot be the name of a network device"),
        (Wanted(ssh_ports=[22], bridges=["a b"], bridge_ports=[1]), "'a b' cannot be the name of a network device"),
    ],
)
def test_what_cannot_be_a_table_is_refused(wanted: Wanted, said: str) -> None:
    with pytest.raises(FirewallError) as refused:
        table_text(wanted)
    assert said in str(refused.value)


def test_tables_are_compared_without_the_order_of_their_sets() -> None:
    one = 'table inet gb10 {\n\tchain input {\n\t\ttcp dport { 22,\n\t\t\t 443 } accept\n\t\tiifname "a" drop\n\t}\n}\n'
    other = one.replace("22,\n\t\t\t 443", "443, 22")
    assert normal(one) == normal(other)
    assert normal(one) != normal(one.replace("443", "444"))
    # The order of rules is what they mean.
    swapped = 'table inet gb10 { chain input { iifname "a" drop tcp dport { 22, 443 } accept } }'
    assert normal(one) != normal(swapped)


@pytest.mark.parametrize(
    ("before", "asked"), [("/etc/x.nft", "-f /etc/x.nft"), ("", "add table inet gb10; delete table inet gb10")]
)
@pytest.mark.parametrize("code", [0, 3])
def test_the_rollback(tmp_path: Path, before: str, asked: str, code: int) -> None:
    nft = tmp_path / "nft"
    nft.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit {code}\n', encoding="ascii")
    nft.chmod(0o755)
    script = "\n".join(["failed=0", *rollback_commands(str(nft), before), "exit $failed"])
    # What nft refuses counts as failed, and the change as pending still.
    assert subprocess.run(["sh", "-c", script], check=False).returncode == (1 if code else 0)
    assert (tmp_path / "asked").read_text().splitlines() == [asked]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "/tmp/x.nft:9:3-10: Error: syntax error, unexpected string\n\t\tnonsense here\n\t\t^^^^^^^^\n",
            "line 9: Error: syntax error, unexpected string nonsense here",
        ),
        (
            "Error: Could not process rule: Operation not permitted\n",
            "Error: Could not process rule: Operation not permitted",
        ),
        ("\n", "no output"),
    ],
)
def test_refusals_name_the_line(said: str, shown: str) -> None:
    assert refusal(said) == shown


def test_fabric_result() -> None:
    assert fabric_result(Fabric(("a",), (), ("10.0.0.1",)), {2222, 22}) == {
        "devices": ["a"],
        "closed": [],
        "addresses": ["10.0.0.1"],
        "ssh_ports": [22, 2222],
    }
