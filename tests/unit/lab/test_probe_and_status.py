# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself, and how the lab reports it. The sample was captured on a Debian 12 node."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import plan, probe, status
from lab.errors import LabError
from lab.plan import Net
from lab.shaping import Rates

SAMPLE = (Path(__file__).parent / "data" / "probe-debian12-running.txt").read_text(encoding="utf-8")
NODE = plan.plan_nodes("lab", 1, plan.choose_subnets("lab", []))[0]
ADDRESSES: dict[Net, IPv4Address] = {"mgmt": NODE.mgmt, "fabric": NODE.fabric}
RATES = Rates(50_000_000, 10_000_000_000)


def _report(text: str = SAMPLE, cut: tuple[Net, ...] = (), rates: Rates = RATES) -> status.NodeReport:
    return status.NodeReport(NODE, "running", probe.parse(text, ADDRESSES), cut, rates)


def test_a_running_node() -> None:
    state = probe.parse(SAMPLE, ADDRESSES)
    assert state.links["mgmt"] == probe.LinkState("eth0", 239, True, 1500, 50_000_000)
    assert state.links["fabric"].device == "eth1"
    assert state.links["fabric"].mtu == 9000
    assert state.links["fabric"].bits_per_s == 10_000_000_000
    assert (state.systemd, state.sshd, state.docker) == ("running", "active", "active")
    assert [line.split()[0] for line in state.host_keys] == ["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"]
    assert _report().problems() == []


def test_an_interface_is_known_by_its_address_alone() -> None:
    swapped = SAMPLE.replace('"eth0"', '"x"').replace('"eth1"', '"eth0"').replace('"x"', '"eth1"')
    assert probe.parse(swapped, ADDRESSES).links["fabric"].device == "eth0"


def test_a_pulled_cable_leaves_the_address_and_takes_the_carrier() -> None:
    head, _unused, tail = SAMPLE.partition('"ifname":"eth1","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"]')
    assert tail, "the sample has changed its shape"
    text = f'{head}"ifname":"eth1","flags":["NO-CARRIER","BROADCAST","MULTICAST","UP"]{tail}'
    assert probe.parse(text, ADDRESSES).links["fabric"].carrier is False
    assert _report(text).problems() == ["fabric has no carrier"]
    assert _report(text, cut=("fabric",)).problems() == ["fabric is cut"]
    assert "10.211.0.11 CUT" in status.table("lab", [_report(text, cut=("fabric",))])


def test_a_lost_address_is_named() -> None:
    assert _report(SAMPLE.replace("10.211.0.11", "10.9.9.9")).problems() == ["has lost its address on fabric"]


def test_a_rate_other_than_the_labs_is_named() -> None:
    assert _report(rates=Rates(20_000_000, 10_000_000_000)).problems() == [
        "mgmt sends at 50 Mbit/s instead of 20 Mbit/s"
    ]
    assert _report(rates=Rates(None, 10_000_000_000)).problems() == ["mgmt sends at 50 Mbit/s instead of unshaped"]
    unshaped = SAMPLE.replace('"kind":"tbf"', '"kind":"noqueue"')
    assert len(_report(unshaped).problems()) == 2
    assert _report(unshaped, rates=Rates(None, None)).problems() == []


@pytest.mark.parametrize("systemd", ["starting", "stopping", "maintenance"])
def test_a_node_that_is_not_ready_says_so(systemd: str) -> None:
    text = SAMPLE.replace("\nrunning\n", f"\n{systemd}\n")
    assert _report(text).problems() == [f"systemd is {systemd}"]


def test_a_node_without_units_of_docker() -> None:
    state = probe.parse(SAMPLE.replace("\nactive\nactive\n", "\nactive\ninactive\n"), ADDRESSES)
    assert (state.sshd, state.docker) == ("active", "inactive")


@pytest.mark.parametrize("text", ["", SAMPLE.replace("[{", "Error: {", 1), SAMPLE.replace("gb10-lab", "x", 1)])
def test_an_answer_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(LabError):
        probe.parse(text, ADDRESSES)


def test_a_node_without_power() -> None:
    report = dataclasses.replace(_report(), power="exited", state=None)
    assert report.problems() == ["is exited"]
    document = status.document("lab", [report, _report()])
    assert document["healthy"] is False
    assert document["nodes"][0]["links"]["mgmt"]["address"] == "10.210.0.11"
    assert document["nodes"][1]["links"]["fabric"]["bits_per_s"] == 10_000_000_000
    json.dumps(document)
    assert status.table("lab", [report]).splitlines()[-1] == "gx10-1: is exited"


def test_a_node_with_power_that_says_nothing_says_why() -> None:
    report = dataclasses.replace(_report(), state=None, silence="Its console lost its answer.")
    assert report.problems() == ["does not answer: Its console lost its answer."]
    assert status.document("lab", [report])["healthy"] is False
