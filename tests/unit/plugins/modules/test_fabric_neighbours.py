# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_neighbours: announcements, and who is heard on which device."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import fabric_neighbours
from ansible_collections.gb10.cluster.plugins.modules.fabric_neighbours import frame, heard, listen


def test_an_announcement_is_heard_by_the_others_of_its_cluster_alone() -> None:
    packet = frame("lo", "n1", "desk")
    assert len(packet) >= 60
    assert packet[:6] == b"\xff" * 6
    assert packet[12:14] == b"\x88\xb5"
    assert heard(packet, "n2", "desk") == ("n1", "lo")
    # Its own, and another cluster's on the same switch.
    assert heard(packet, "n1", "desk") is None
    assert heard(packet, "n2", "shelf") is None


@pytest.mark.parametrize(
    "data", [b"", b"x" * 46, b'["gb10.cluster"]', b'{"magic": "other"}', b"\xff\xfe", b"[" * 100_000]
)
def test_strange_frames_are_nobodys(data: bytes) -> None:
    assert heard(bytes(14) + data, "n2", "desk") is None


def test_two_nodes_hear_each_other_and_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("a packet socket needs root")
    monkeypatch.setattr(fabric_neighbours, "LINGER_S", 2.0)
    found: dict[str, Any] = {}

    def run(name: str, other: str) -> None:
        found[name] = listen(["lo"], name, "desk", {other}, 300.0)

    threads = [threading.Thread(target=run, args=pair) for pair in (("n1", "n2"), ("n2", "n1"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"n1": {"lo": {("n2", "lo")}}, "n2": {"lo": {("n1", "lo")}}}


@pytest.mark.parametrize(
    ("early", "heard_of"), [("n2", {"n2", "n3"}), ("n9", {"n9"})], ids=["a member", "nobody that is expected"]
)
def test_as_long_as_members_appear_the_next_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, early: str, heard_of: set[str]
) -> None:
    """On a busy control node the last member may begin later than the time that the first one listens."""
    clock = [0.0]
    arrivals = [(8.0, early), (15.0, "n3")]
    lo = frame("lo", "n1", "desk")

    class Link:
        def __init__(self, *_words: int) -> None:
            self.got = b""

        def bind(self, *_place: object) -> None:
            """Nothing to open."""

        def send(self, _packet: bytes) -> None:
            """Nobody hears it."""

        def recv(self, _most: int) -> bytes:
            return self.got

        close = bind

    def select(links: list[Link], _w: list[Link], _x: list[Link], seconds: float) -> tuple[list[Link], list[Any], Any]:
        clock[0] += max(seconds, 0.01)
        if arrivals and arrivals[0][0] <= clock[0]:
            _at, name = arrivals.pop(0)
            links[0].got = (
                lo[:14]
                + json.dumps({"magic": "gb10.cluster", "cluster": "desk", "node": name, "netdev": "lo"}).encode()
            )
            return links[:1], [], []
        return [], [], []

    monkeypatch.setattr("socket.socket", Link)
    monkeypatch.setattr("select.select", select)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(fabric_neighbours, "frame", lambda *_words: lo)
    assert listen(["lo"], "n1", "desk", {"n2", "n3", "n4"}, 10.0) == {"lo": {(name, "lo") for name in heard_of}}


def test_without_a_device_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in check mode on machines whose ports are off."""
    monkeypatch.setattr("select.select", lambda *_words: pytest.fail("it listens on nothing"))
    assert listen([], "n1", "desk", {"n2"}, 30.0) == {}


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    with (
        patch_module_args({"name": "n1", "cluster": "desk", "netdevs": ["lo"], **arguments}),
        pytest.raises(SystemExit),
    ):
        fabric_neighbours.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the network: lo is off, and n2 is heard on what is listened on."""
    commands: list[list[str]] = []
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: commands.append(command))
    monkeypatch.setattr(fabric_neighbours, "is_up", lambda _netdev: False)
    monkeypatch.setattr(fabric_neighbours, "listen", lambda netdevs, *_rest: {each: {("n2", "x")} for each in netdevs})
    return commands


def test_devices_that_are_off_are_switched_on(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys)["neighbours"] == {"lo": [["n2", "x"]]}
    assert asked == [["ip", "link", "set", "lo", "up"]]


@pytest.mark.parametrize("given", [{"raise_links": False}, {"_ansible_check_mode": True}])
def test_or_are_reported(asked: list[list[str]], capsys: pytest.CaptureFixture[str], given: dict[str, Any]) -> None:
    told = call(capsys, **given)
    assert (told["down"], told["neighbours"]) == (["lo"], {})
    assert asked == []


def test_a_device_that_is_not_there(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no network device absent0 on n1" in call(capsys, netdevs=["lo", "absent0"])["msg"]
    assert asked == []
