# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_ping: where its packets leave, and what it reports of the replies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.icmp import IP_HEADER_BYTES, Probe, sentence
from ansible_collections.gb10.cluster.plugins.modules import fabric_ping
from tests.lint.collection import REPO

PEERS = {"n2": "10.77.0.2", "n3": "10.77.0.3"}


class Node:
    """A node with one address, routes by peer, and peers that reply up to a size."""

    def __init__(self) -> None:
        self.held = ("gb10", 32)
        self.routes = {"10.77.0.2": "left", "10.77.0.3": "right"}
        self.mtu = {"left": 9000, "right": 9000, "eth1": 9000, "gb10": 1500}
        self.carrier = {"left", "right", "eth1"}
        self.largest = {"10.77.0.2": 9000, "10.77.0.3": 9000}
        self.bound: list[tuple[str, str]] = []

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer ip."""
        if "address" in command:
            device, prefix = self.held
            return 0, json.dumps([{"ifname": device, "addr_info": [{"local": "10.77.0.1", "prefixlen": prefix}]}]), ""
        device = self.routes.get(command[4], "")
        return (0, json.dumps([{"dev": device}]), "") if device else (2, "", "RTNETLINK answers: unreachable\n")

    def probe(
        self, device: str, own: str, peer: str, address: str, sizes: list[int], attempts: int, timeout_s: float
    ) -> tuple[Probe, float | None]:
        """Reply to what is small enough."""
        assert (own, attempts, timeout_s) == ("10.77.0.1", 3, 1.0)
        self.bound.append((address, device))
        tried = []
        for size in sizes:
            tried.append((size, size <= self.largest[address]))
            if tried[-1][1]:
                return Probe(peer, address, tuple(tried)), 0.0005
        return Probe(peer, address, tuple(tried)), None


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    """Replace this machine by a member of a ring."""
    made = Node()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(fabric_ping, "probe", made.probe)
    monkeypatch.setattr(fabric_ping, "mtu_of", made.mtu.__getitem__)
    monkeypatch.setattr(fabric_ping, "has_carrier", made.carrier.__contains__)
    monkeypatch.setattr(fabric_ping, "claims", lambda _device, addresses, _s: {each: ["02:00"] for each in addresses})
    return made


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    arguments = {"name": "n1", "address": "10.77.0.1", "peers": PEERS, "mtu": 9000, **arguments}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_ping.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_in_a_ring_each_peer_is_asked_by_the_device_of_its_route(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(capsys)
    assert node.bound == [("10.77.0.2", "left"), ("10.77.0.3", "right")]
    assert told["problems"] == []
    assert told["interface"] == "gb10"
    # Not the MTU of the device that only holds the address.
    assert told["devices"] == {
        "left": {"mtu_bytes": 9000, "carrier": True},
        "right": {"mtu_bytes": 9000, "carrier": True},
    }
    assert told["peers"]["n3"] == {
        "address": "10.77.0.3", "device": "right", "ok": True, "reachable": True, "largest": 9000, "rtt_ms": 0.5,
    }  # fmt: skip
    assert set(told["claims"]) == {"10.77.0.1", "10.77.0.2", "10.77.0.3"}


def test_in_a_subnet_packets_are_bound_to_the_interface_whatever_the_route(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.held = ("eth1", 24)
    assert call(capsys)["carrier"]
    assert {device for _address, device in node.bound} == {"eth1"}


def test_a_peer_without_a_route(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    del node.routes["10.77.0.3"]
    told = call(capsys)
    assert told["failed"]
    assert "n1 (10.77.0.1) -> n3 (10.77.0.3): no reply (there is no route to it)" in told["msg"]
    assert set(told["devices"]) == {"left"}
    assert call(capsys, fail=False)["peers"]["n3"]["reachable"] is False


def test_small_packets_only(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.largest["10.77.0.2"] = 1500
    told = call(capsys, fail=False)
    [problem] = told["problems"]
    assert "packets of 9000 bytes do not pass, 1500 bytes do" in problem
    assert (told["peers"]["n2"]["ok"], told["peers"]["n2"]["largest"]) == (False, 1500)
    # Without a wanted size the outgoing device's own MTU counts.
    node.mtu["left"] = 1500
    assert call(capsys, mtu=0)["problems"] == []


def test_no_address(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    told = call(capsys, address="10.77.0.77", fail=False)
    assert told["interface"] == ""
    assert "n1 has no interface with its fabric address 10.77.0.77" in told["problems"][0]
    assert node.bound == []
    assert "The fabric address of n2 is 'x'" in call(capsys, peers={"n2": "x"})["msg"]


def test_it_needs_root(node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(fabric_ping, "probe", refuse)
    assert "needs root" in call(capsys)["msg"]
    assert node.bound == []


class Link:
    """A raw socket: its peer replies to some sizes, and the kernel refuses what is larger than the device's MTU."""

    def __init__(self, replies: set[int], mtu: int) -> None:
        self.replies, self.mtu = replies, mtu
        self.sent: list[int] = []
        self.waits = 0
        self.queue: list[bytes] = []

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to close."""

    def bind(self, *_words: object) -> None:
        """Nothing to open."""

    setsockopt = settimeout = bind

    def sendto(self, packet: bytes, _to: tuple[str, int]) -> None:
        """Take a packet, and reply to it as ICMP does."""
        size = len(packet) + IP_HEADER_BYTES
        if size > self.mtu:
            raise OSError(errno.EMSGSIZE, "Message too long")
        self.sent.append(size)
        if size in self.replies:
            self.queue.append(b"\x45" + bytes(19) + b"\0" + packet[1:])

    def recvfrom(self, _most: int) -> tuple[bytes, tuple[str, int]]:
        """Give the next reply, or nothing until the time is over."""
        if self.queue:
            return self.queue.pop(), ("10.77.0.2", 0)
        self.waits += 1
        raise TimeoutError


@pytest.mark.parametrize(
    ("replies", "mtu", "waits", "largest", "words"),
    [
        ({9000, 1500, 84}, 9000, 0, 9000, ""),
        ({1500, 84}, 9000, 3, 1500, "packets of 9000 bytes do not pass, 1500 bytes do"),
        ({1500, 84}, 1500, 0, 1500, "packets of 9000 bytes do not pass, 1500 bytes do"),
        (set(), 9000, 3, 0, "no reply. Check"),
        (set(), 1500, 3, 0, "no reply (this node's own interface eth1 does not accept 9000 bytes)"),
        (set(), 60, 0, 0, "no reply (this node's own interface eth1 does not accept 84 bytes)"),
    ],
)
def test_a_silent_peer_is_waited_for_once_an_attempt_and_not_for_each_size(
    monkeypatch: pytest.MonkeyPatch, replies: set[int], mtu: int, waits: int, largest: int, words: str
) -> None:
    link = Link(replies, mtu)
    monkeypatch.setattr(socket, "socket", lambda *_words: link)
    found, rtt_s = fabric_ping.probe("eth1", "10.77.0.1", "n2", "10.77.0.2", [9000, 1500, 84], 3, 1.0)
    assert (link.waits, max((size for size, passed in found.sizes if passed), default=0)) == (waits, largest)
    assert (rtt_s is None) is (largest == 0)
    assert words in sentence("n1", "10.77.0.1", found)
    assert found.ok is (words == "")
    assert sorted(set(link.sent), reverse=True) == [size for size in (9000, 1500, 84) if size <= mtu]


def ip(*words: str) -> None:
    """Run ip; fails with what it prints."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces as two nodes of a ring: a cable, and the nodes' own addresses off it."""
    names = (f"gb10a{os.getpid()}", f"gb10b{os.getpid()}")
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as refused:
        ip_error = refused.stderr
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        pytest.skip(f"no network namespaces here: {ip_error}")
    try:
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            inside = ("-n", name)
            ip(*inside, "link", "set", "lo", "up")
            # A bridge without ports, as a kernel without the dummy driver has none.
            ip(*inside, "link", "add", "gb10", "type", "bridge")
            ip(*inside, "link", "set", "gb10", "up")
            ip(*inside, "link", "set", f"cable{number}", "mtu", "9000", "up")
            ip(*inside, "address", "add", f"192.168.250.{number + 1}/30", "dev", f"cable{number}")
            ip(*inside, "address", "add", f"10.77.0.{number + 1}/32", "dev", "gb10")
            ip(*inside, "route", "add", f"10.77.0.{2 - number}/32", "via", f"192.168.250.{2 - number}",
               "src", f"10.77.0.{number + 1}")  # fmt: skip
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_a_ring_in_namespaces(cable: tuple[str, str], tmp_path: Path) -> None:
    given = tmp_path / "arguments.json"
    arguments = {"name": "n1", "address": "10.77.0.1", "peers": {"n2": "10.77.0.2"}, "mtu": 9000, "fail": False}
    given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), encoding="utf-8")
    done = subprocess.run(
        ["ip", "netns", "exec", cable[0], sys.executable, "-m",
         "ansible_collections.gb10.cluster.plugins.modules.fabric_ping", str(given)],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPO / ".collections")},
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["problems"] == []
    assert (told["peers"]["n2"]["largest"], told["peers"]["n2"]["device"]) == (9000, "cable0")
    assert told["devices"] == {"cable0": {"mtu_bytes": 9000, "carrier": True}}
    assert len(told["claims"]["10.77.0.2"]) == 1


def test_a_device_that_goes_while_they_are_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's end takes its virtual device away."""
    (tmp_path / "eth0").write_text("02:00:00:00:00:01\n", encoding="ascii")
    monkeypatch.setattr(Path, "glob", lambda _path, _pattern: iter([tmp_path / "veth0", tmp_path / "eth0"]))
    assert fabric_ping.own_macs() == ["02:00:00:00:00:01"]


def test_a_reply_that_came_while_this_node_was_busy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over before the node reads what has arrived meanwhile."""
    link = Link({9000, 1500, 84}, 9000)
    times = iter([0.0])
    monkeypatch.setattr(socket, "socket", lambda *_words: link)
    monkeypatch.setattr("time.monotonic", lambda: next(times, 100.0))
    found, _rtt_s = fabric_ping.probe("eth1", "10.77.0.1", "n2", "10.77.0.2", [9000, 1500, 84], 1, 1.0)
    assert found.ok
