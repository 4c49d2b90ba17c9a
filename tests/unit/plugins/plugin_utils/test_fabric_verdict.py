# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.throughput import (
    MeasurementError,
    parse_ib_bandwidth,
    parse_iperf3,
    slow_links,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.verdict import (
    cut_off,
    duplicates,
    verdict,
    warnings,
)

NAMES = ("n1", "n2", "n3", "n4")


def sound(count: int = 3) -> dict[str, dict[str, Any]]:
    names = NAMES[:count]
    return {
        name: {
            "address": f"10.0.0.{index}",
            "interface": "eth1",
            "devices": {"eth1": {"mtu_bytes": 9000, "carrier": True}},
            "carrier": True,
            "macs": [f"02:00:00:00:00:0{index}"],
            "claims": {f"10.0.0.{other}": [f"02:00:00:00:00:0{other}"] for other in range(1, count + 1)},
            "peers": {other: {"ok": True, "reachable": True, "largest": 9000} for other in names if other != name},
        }
        for index, name in enumerate(names, start=1)
    }


def silence(findings: dict[str, dict[str, Any]], name: str) -> None:
    nothing = {"ok": False, "reachable": False, "largest": 0}
    for other in findings:
        if other != name:
            findings[name]["peers"][other] = dict(nothing)
            findings[other]["peers"][name] = dict(nothing)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_sound_fabric(count: int) -> None:
    assert verdict(sound(count), 9000) == []


def test_a_pulled_cable_names_the_node_and_nobody_else() -> None:
    findings = sound()
    silence(findings, "n3")
    findings["n3"]["carrier"] = False
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n3 is cut off from the fabric: eth1 with 10.0.0.3 is down or has no carrier.")


def test_a_missing_address_names_the_node() -> None:
    findings = sound()
    silence(findings, "n2")
    findings["n2"].update(interface="", devices={}, carrier=False, peers={})
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n2 is cut off from the fabric: none of its interfaces has the address 10.0.0.2.")


def test_of_two_nodes_the_one_without_carrier_is_named() -> None:
    findings = sound(2)
    silence(findings, "n2")
    assert cut_off(findings) == ["n1", "n2"]
    findings["n2"]["carrier"] = False
    assert cut_off(findings) == ["n2"]


def test_a_small_mtu_names_the_node_not_its_pairs() -> None:
    findings = sound()
    findings["n2"]["devices"]["eth1"]["mtu_bytes"] = 1500
    for other in ("n1", "n3"):
        findings["n2"]["peers"][other] = {"ok": False, "reachable": True, "largest": 1500}
        findings[other]["peers"]["n2"] = {"ok": False, "reachable": True, "largest": 1500}
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n2: eth1 has an MTU of 1500 bytes, 9000 are required.")


def test_a_small_mtu_that_all_have_only_costs_throughput() -> None:
    findings = sound()
    for finding in findings.values():
        for device in finding["devices"].values():
            device["mtu_bytes"] = 1500
        finding["peers"] = {name: {"ok": False, "reachable": True, "largest": 1500} for name in finding["peers"]}
    assert verdict(findings, 9000) == []
    [warning] = warnings(findings, 9000)
    assert warning.startswith(
        "Every node uses an MTU of 1500 bytes. An MTU of 1500 bytes instead of 9000 costs up to 5 %"
    )
    assert (warnings(findings, 1500), warnings(sound(), 9000)) == ([], [])


def test_a_small_mtu_between_nodes_names_the_pair() -> None:
    findings = sound()
    findings["n1"]["peers"]["n2"] = {"ok": False, "reachable": True, "largest": 1500}
    findings["n2"]["peers"]["n1"] = {"ok": False, "reachable": True, "largest": 1500}
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n1 <-> n2: packets of 9000 bytes do not pass, 1500 bytes do;")


def test_one_deaf_pair() -> None:
    findings = sound(4)
    findings["n1"]["peers"]["n4"] = {"ok": False, "reachable": False, "largest": 0}
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n1 -> n4: no reply over the fabric")


def test_a_duplicate_address_names_both() -> None:
    findings = sound()
    findings["n1"]["claims"]["10.0.0.2"].append("02:00:00:00:00:03")
    assert duplicates(findings) == [
        "10.0.0.2 of n2 is also used by n3: a duplicate address. Remove it there (`ip -br address` shows "
        "where it is), or give n2 another one."
    ]
    findings["n1"]["claims"]["10.0.0.2"][-1] = "02:ff:ff:ff:ff:ff"
    assert "an unknown device 02:ff:ff:ff:ff:ff" in duplicates(findings)[0]


def test_both_halves_of_a_twin_may_answer() -> None:
    findings = sound()
    findings["n2"]["macs"].append("02:00:00:00:00:12")
    findings["n1"]["claims"]["10.0.0.2"].append("02:00:00:00:00:12")
    assert duplicates(findings) == []


# The heads and tails of what iperf 3.12 and perftest 6.16 print.
IPERF3 = (
    '{"start": {}, "intervals": [], "end": {"sum_sent": {"bits_per_second": 9.9e9}, '
    '"sum_received": {"bits_per_second": 9.5e9}}}'
)
PERFTEST = """\
---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF		Device         : rocep1s0f0
 Number of qps   : 8		Transport type : IB
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      634112           0.00               110.81 		   0.211358
---------------------------------------------------------------------------------------
"""


def test_parse_iperf3() -> None:
    assert parse_iperf3(IPERF3) == 9.5
    with pytest.raises(MeasurementError, match="the server is busy"):
        parse_iperf3('{"start": {}, "error": "error - the server is busy running a test. try again later"}')
    with pytest.raises(MeasurementError, match="unable to connect"):
        parse_iperf3("iperf3: error - unable to connect to server\n")
    with pytest.raises(MeasurementError, match="no received total"):
        parse_iperf3('{"end": {}}')
    with pytest.raises(MeasurementError, match="printed nothing"):
        parse_iperf3("")


def test_parse_perftest() -> None:
    assert parse_ib_bandwidth(PERFTEST) == 110.81
    with pytest.raises(MeasurementError, match="Couldn't connect to"):
        parse_ib_bandwidth("Couldn't connect to 192.168.100.12:18515\n")


def rates(measured: dict[tuple[str, str], float], count: int = 4) -> dict[str, dict[str, dict[str, Any]]]:
    names = NAMES[:count]
    return {
        one: {other: {"gbps": measured.get((one, other), 100.0), "error": ""} for other in names if other != one}
        for one in names
    }


def test_slow_links() -> None:
    full = dict.fromkeys(NAMES, 200.0)
    assert slow_links(rates({}), full, 0.4) == []
    [one_pair] = slow_links(rates({("n1", "n2"): 20.0}), full, 0.4)
    assert one_pair.startswith("n1 -> n2: 20.00 Gb/s, where at least 80.00 Gb/s are expected (40% of the link).")
    sends = {("n3", other): 10.0 for other in NAMES if other != "n3"}
    [sender] = slow_links(rates(sends), full, 0.4)
    assert sender.startswith("n3 sends at 10.00 Gb/s at best")
    receives = {(other, "n3"): 10.0 for other in NAMES if other != "n3"}
    both = slow_links(rates({**sends, **receives}), full, 0.4)
    assert [each.split(" at ")[0] for each in both] == ["n3 sends", "n3 receives"]


def test_a_slow_end_sets_the_measure() -> None:
    assert slow_links(rates({("n1", "n2"): 45.0}), {**dict.fromkeys(NAMES, 200.0), "n2": 100.0}, 0.4) == []


def test_what_could_not_be_measured_is_a_problem() -> None:
    measured = rates({}, 2)
    measured["n1"]["n2"] = {"gbps": 0.0, "error": "unable to connect"}
    assert slow_links(measured, dict.fromkeys(NAMES, 200.0), 0.4) == [
        "n1 -> n2: the throughput could not be measured: unable to connect."
    ]


def test_a_ring_is_judged_by_the_devices_that_packets_leave_by() -> None:
    findings = sound()
    for name in findings:
        findings[name].update(interface="gb10", devices={"left": {"mtu_bytes": 9000, "carrier": True}})
    assert verdict(findings, 9000) == []
    findings["n2"]["devices"]["right"] = {"mtu_bytes": 1500, "carrier": True}
    [problem] = verdict(findings, 9000)
    assert problem.startswith("n2: right has an MTU of 1500 bytes, 9000 are required.")
    silence(findings, "n3")
    findings["n3"].update(devices={}, carrier=False)
    assert verdict(findings, 0)[0].startswith(
        "n3 is cut off from the fabric: it has no route from 10.0.0.3 on gb10 to any other node."
    )
