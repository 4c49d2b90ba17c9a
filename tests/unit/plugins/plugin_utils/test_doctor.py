# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture, to_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.diagnose import (
    FAIL,
    OK,
    WARN,
    Check,
    Limits,
    Report,
    diagnose,
    node_checks,
    tables,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._probe.skew import Sample, best

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "fabric"
NAMES = ("n1", "n2", "n3")


def node() -> dict[str, Any]:
    return {
        "os": {"id": "ubuntu", "version_id": "24.04", "name": "Ubuntu 24.04.3 LTS", "dgx": "7.4.0",
               "kernel": "6.17.0-1008-nvidia", "arch": "aarch64", "python": "3.12.3"},
        "hostname": "n1",
        "container": "",
        "memory_gib": {"total": 119.7, "available": 113.5, "swap_total": 16.0, "swap_free": 16.0, "cma_total": 0.1,
                       "cma_free": 0.1},
        "kho_fault": False,
        "disks": {
            "/": {"free_gib": 500.0, "size_gib": 916.0, "mount": "/"},
            "/var/lib/docker": {"free_gib": 500.0, "size_gib": 916.0, "mount": "/"},
        },
        "gpu": {"present": True, "driver": "580.95.05", "container_toolkit": True},
        "docker": {"installed": True, "active": True, "path": "/usr/bin/dockerd", "data_root": "/var/lib/docker",
                   "runtimes": ["nvidia"], "cdi": False},
        "systemd": {"default_target": "multi-user.target", "state": "running", "failed": []},
        "desktop": {"unit": "", "rss_gib": 0.0},
        "time": {"service": "chrony.service", "synchronized": True, "epoch_s": 0.0},
        "bios": "5.36_0ACUM018 09/18/2025",
        "protection": {"earlyoom": True, "sshd_oom_score_adjust": -1000, "swappiness": 1, "dirty_bytes": 268435456},
        "listeners": [{"address": "0.0.0.0", "port": 22, "process": "sshd"},
                      {"address": "192.168.100.11", "port": 5000, "process": "registry"}],
        "images": {"vllm-node:latest": "a" * 64},
        "docker_version": "28.3.3",
        "engines": [],
    }  # fmt: skip


def reports(count: int = 3) -> dict[str, dict[str, Any]]:
    machine = to_dict(parse_capture(json.loads((FIXTURES / "switch.json").read_text(encoding="utf-8"))))
    names = NAMES[:count]
    return {
        name: {
            "node": node(),
            "fabric": {"machine": copy.deepcopy(machine), "findings": []},
            "skew": {"skew_s": 0.001, "error_s": 0.004},
            "ping": {
                "address": "192.168.100.11",
                "interface": "enp1s0f0np0",
                "devices": {"enp1s0f0np0": {"mtu_bytes": 9000, "carrier": True}},
                "carrier": True,
                "macs": [],
                "claims": {},
                "peers": {other: {"ok": True, "reachable": True, "largest": 9000} for other in names if other != name},
            },
        }
        for name in names
    }


def report(data: dict[str, dict[str, Any]], **limits: Any) -> Report:
    return diagnose(data, dict.fromkeys(data, Limits(**limits)))


def bad(found: Report, name: str = "") -> list[tuple[str, str]]:
    return [(check.name, check.level) for where, check in found.checks() if check.level != OK and where == name]


def test_a_sound_cluster() -> None:
    found = report(reports())
    assert found.level == OK, [check for _name, check in found.checks() if check.level != OK]
    assert all(len(checks) > 10 for checks in found.nodes.values())
    assert found.to_dict()["counts"][FAIL] == 0


@pytest.mark.parametrize(
    ("path", "value", "name", "level"),
    [
        (("kho_fault",), True, "kernel", FAIL),
        (("gpu", "present"), False, "GPU driver", FAIL),
        (("gpu", "container_toolkit"), False, "GPU driver", FAIL),
        (("memory_gib", "available"), 9.9, "memory", FAIL),
        (("desktop", "unit"), "gdm.service", "desktop", WARN),
        (("protection", "earlyoom"), False, "earlyoom", FAIL),
        (("protection", "sshd_oom_score_adjust"), 0, "sshd under memory pressure", WARN),
        (("protection", "swappiness"), 60, "vm.swappiness", WARN),
        (("docker", "active"), False, "Docker", FAIL),
        (("systemd", "default_target"), "graphical.target", "boots into", WARN),
        (("systemd", "failed"), ["nvidia-persistenced.service"], "failed units", WARN),
        (("time", "synchronized"), False, "time service", WARN),
        (("time", "service"), "", "time service", WARN),
    ],
)
def test_each_fault_of_a_node(path: tuple[str, ...], value: object, name: str, level: str) -> None:
    data = reports()
    place = data["n2"]["node"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = report(data)
    assert (name, level) in bad(found, "n2")
    assert bad(found, "n1") == []
    [check] = [check for check in found.nodes["n2"] if (check.name, check.level) == (name, level)]
    assert check.remedy, "a fault without a remedy helps nobody"


def test_what_was_waived_is_not_held_against_a_node() -> None:
    data = reports()
    for each in data.values():
        each["node"]["protection"].update(earlyoom=False, swappiness=60)
        each["node"]["gpu"] = {"present": False, "driver": "", "container_toolkit": False}
        each["node"]["time"].update(service="", synchronized=False)
    assert report(data, earlyoom=False, sysctl=False, gpu=False, time_sync=False).level == OK


@pytest.mark.parametrize(("free", "level"), [(51.0, OK), (49.0, WARN), (9.9, FAIL)])
def test_disk(free: float, level: str) -> None:
    data = reports(1)
    for disk in data["n1"]["node"]["disks"].values():
        disk["free_gib"] = free
    checks = [check for check in report(data).nodes["n1"] if check.name.startswith("disk")]
    assert [check.level for check in checks] == [level], "two paths on one mount are one disk"


def test_memory_of_a_node_that_serves_is_a_warning() -> None:
    data = reports(1)
    data["n1"]["node"]["memory_gib"]["available"] = 5.0
    data["n1"]["node"]["engines"] = ["vllm-mellum.service"]
    assert bad(report(data), "n1") == [("memory", WARN)]


@pytest.mark.parametrize(
    ("skew", "error", "level"), [(0.4, 0.0, OK), (0.6, 0.05, FAIL), (-2.0, 0.1, FAIL), (0.6, 0.2, OK)]
)
def test_clock(skew: float, error: float, level: str) -> None:
    data = reports(1)
    data["n1"]["skew"] = {"skew_s": skew, "error_s": error}
    [check] = [check for check in report(data).nodes["n1"] if check.name == "clock"]
    assert check.level == level


@pytest.mark.parametrize(
    ("machine", "name", "level"),
    [
        ("one_twin_down", "port enP2p1s0f0np0", WARN),
        ("negotiated_100g", "port enp1s0f0np0", WARN),
        ("no_rdma", "port enp1s0f0np0", FAIL),
        ("gid_missing", "port enp1s0f0np0", FAIL),
        ("dark", "fabric", FAIL),
        ("boxed", "fabric", WARN),
        ("two_lanes", "port enP2p1s0f0np0", WARN),
    ],
)
def test_each_fault_of_a_port(machine: str, name: str, level: str) -> None:
    data = reports(1)
    tree = json.loads((FIXTURES / f"{machine}.json").read_text(encoding="utf-8"))
    data["n1"]["fabric"] = {"machine": to_dict(parse_capture(tree))}
    assert (name, level) in bad(report(data), "n1")


def test_a_port_that_is_open_beyond_the_fabric() -> None:
    data = reports(1)
    data["n1"]["node"]["listeners"].append({"address": "0.0.0.0", "port": 6379, "process": "gcs_server"})
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "open beyond the fabric"]
    assert (check.level, check.value) == (WARN, "0.0.0.0:6379 (gcs_server)")


def test_a_node_that_does_not_answer() -> None:
    data = reports()
    data["n3"] = {"node": {}, "error": "Connection timed out"}
    found = report(data)
    assert [(check.name, check.value, check.level) for check in found.nodes["n3"]] == [
        ("reachable", "Connection timed out", FAIL)
    ]
    assert ("nodes", FAIL) in bad(found)


def test_a_node_that_is_cut_off_the_fabric_is_named() -> None:
    data = reports()
    nothing = {"ok": False, "reachable": False, "largest": 0}
    data["n3"]["ping"].update(carrier=False, peers={"n1": nothing, "n2": nothing})
    for name in ("n1", "n2"):
        data[name]["ping"]["peers"]["n3"] = nothing
    [check] = [check for check in report(data).cluster if check.level == FAIL]
    assert check.value.startswith("n3 is cut off from the fabric")


def test_a_slow_link_is_reported_once() -> None:
    data = reports()
    for each in data.values():
        each["slow"] = ["n2 sends at 10.00 Gb/s at best"]
    assert [check.value for check in report(data).cluster if check.name == "throughput"] == [
        "n2 sends at 10.00 Gb/s at best"
    ]


@pytest.mark.parametrize(
    ("path", "value", "name", "level"),
    [
        (("os", "kernel"), "6.14.0-1015-nvidia", "same kernel", FAIL),
        (("gpu", "driver"), "570.1", "same GPU driver", FAIL),
        (("os", "dgx"), "7.2.3", "same DGX OS", WARN),
        (("bios",), "older", "same firmware", WARN),
        (("docker_version",), "27.0.0", "same Docker", WARN),
        (("images", "vllm-node:latest"), "b" * 64, "image vllm-node:latest", FAIL),
    ],
)
def test_parity(path: tuple[str, ...], value: str, name: str, level: str) -> None:
    data = reports()
    place = data["n2"]["node"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = report(data)
    assert bad(found) == [(name, level)]
    [check] = [check for check in found.cluster if check.name == name]
    assert ": n2" in check.value
    assert "n1, n3" in check.value


def test_an_image_that_only_the_head_has_is_no_difference() -> None:
    data = reports()
    data["n1"]["node"]["images"]["builder:1"] = "c" * 64
    assert report(data).level == OK


def test_tables_fit_and_show_remedies() -> None:
    data = reports()
    data["n2"]["node"]["protection"]["earlyoom"] = False
    data["n2"]["node"]["listeners"] += [{"address": "0.0.0.0", "port": 7000 + n, "process": "x"} for n in range(30)]
    lines = tables(report(data), width=100)
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith("== n1 ==")
    assert any(line.startswith("== cluster ==") for line in lines)
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL") and "earlyoom" in line)
    assert "-> Run playbooks/provision.yml." in lines[at + 1]
    assert lines[-1] == "FAIL: " + lines[-1].partition(": ")[2]


def test_an_empty_report_is_ok() -> None:
    assert Report().level == OK
    assert Report(cluster=[Check("a", "b", WARN)]).level == WARN


def test_best_takes_the_fastest_answer() -> None:
    slow = Sample(sent_s=0.0, received_s=2.0, said_s=9.0)
    fast = Sample(sent_s=10.0, received_s=10.02, said_s=11.01)
    skew_s, error_s = best([slow, fast])
    assert skew_s == pytest.approx(1.0)
    assert error_s == pytest.approx(0.01)
