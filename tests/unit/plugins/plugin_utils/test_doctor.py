# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture, to_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.diagnose import diagnose, node_checks, tables
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.hardware import nic_level
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import FAIL, OK, WARN, Check, Limits, Report
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
        "bios": "5.36_0ACUM022 05/12/2026",
        "protection": {"earlyoom": True, "sshd_oom_score_adjust": -1000, "swappiness": 1, "dirty_bytes": 268435456,
                       "systemd_oomd": False},
        "listeners": [{"address": "0.0.0.0", "port": 22, "process": "sshd"},
                      {"address": "192.168.100.11", "port": 5000, "process": "registry"}],
        "images": {"vllm-node:latest": "a" * 64},
        "docker_version": "28.3.3",
        "docker_runtimes": ["nvidia", "runc"],
        "gpu_library": "580.95.05",
        "gpu_sample": {"sm_mhz": 210.0, "sm_max_mhz": 3003.0, "busy_percent": 0.0, "power_w": 4.1,
                       "power_limit_w": None, "brakes": []},
        "gpu_error": "",
        "kernel_next": {"version": "6.17.0-1008-nvidia", "nvidia": True},
        "reboot_required": [],
        "engines_enabled": [],
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


def test_a_kernel_without_the_drivers_modules_differs_from_a_node_without_a_driver() -> None:
    data = reports()
    data["n1"]["node"]["gpu"].update(present=False, driver="")
    data["n2"]["node"]["gpu"].update(present=False, driver="")
    data["n2"]["node"]["gpu_library"] = ""
    checks = {name: check for name, check in report(data, gpu=True).checks() if check.name == "GPU driver"}
    assert [checks[name].level for name in ("n1", "n2")] == [FAIL, FAIL]
    assert "no module is loaded in kernel 6.17.0-1008-nvidia" in checks["n1"].value
    assert "linux-modules-nvidia-…-6.17.0-1008-nvidia" in checks["n1"].remedy
    assert checks["n2"].remedy.startswith("Install it")


def test_a_sound_cluster() -> None:
    found = report(reports())
    assert found.level == OK, [check for _name, check in found.checks() if check.level != OK]
    assert all(len(checks) > 10 for checks in found.nodes.values())
    assert found.to_dict()["counts"][FAIL] == 0


SWAP = {"state": "pending", "before": "a", "after": "b", "head": "n1", "armed_s": 1000.0, "stall_seconds": 900.0}
NOTE = {"time": "2026-11-28T03:00:00Z", "epoch_s": 1.0, "before": "a", "after": "b", "why": "n2 was restarted"}


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"swap": SWAP, "engines": ["vllm-b.service"]}, "swap", "the nodes return to a after 900 s without progress"),
        ({"swap": {**SWAP, "state": "rolled_back"}}, "swap", "was rolled back, and not every node has reported"),
        ({"engines": ["vllm-b.service"]}, "engine at boot", "vllm-b.service runs, and does not start at boot"),
        ({"swap_rolled_back": NOTE}, "last swap", "by the nodes at 2026-11-28T03:00:00Z: n2 was restarted."),
    ],
)
def test_a_swap_that_was_not_committed_is_reported(changes: dict[str, Any], name: str, words: str) -> None:
    data = reports()
    data["n2"]["node"].update(changes)
    found = [check for where, check in report(data).checks() if where == "n2" and check.level != OK]
    assert [(check.name, check.level) for check in found] == [(name, WARN)]
    assert words in found[0].value
    assert found[0].remedy


CONTAINER = {"capabilities": ["IPC_LOCK"], "no_new_privileges": True, "memlock_bytes": -1,
             "rdma_devices": ["uverbs0", "uverbs1"]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, ""),
        ({"capabilities": []}, "give it the capability IPC_LOCK (engine_capabilities), then"),
        ({"memlock_bytes": 8388608}, "give it unlimited locked memory"),
        ({"rdma_devices": []}, "give it /dev/infiniband/uverbs* (engine_devices)"),
    ],
)
def test_a_container_in_which_rdma_cannot_work_fails(changes: dict[str, Any], missing: str) -> None:
    data = reports()
    data["n2"]["node"]["engine_containers"] = {"vllm-a": {**CONTAINER, **changes}}
    found = [check for where, check in report(data).checks() if where == "n2" and check.name == "container vllm-a"]
    assert [(check.level, missing in check.remedy) for check in found] == [(FAIL if missing else OK, True)]
    found = [check for _where, check in report(data, rdma=False).checks() if check.name == "container vllm-a"]
    assert found[0].level == OK
    if not missing:
        assert found[0].value == (
            "capabilities IPC_LOCK; locked memory unlimited; RDMA devices uverbs0, uverbs1; no new privileges"
        )


@pytest.mark.parametrize(
    ("path", "value", "name", "level"),
    [
        (("kho_fault",), True, "kernel", FAIL),
        (("gpu", "present"), False, "GPU driver", FAIL),
        (("gpu", "container_toolkit"), False, "GPU in containers", FAIL),
        (("docker_runtimes",), ["runc"], "GPU in containers", FAIL),
        (("gpu_library",), "580.159.03", "GPU driver", FAIL),
        (("gpu_error",), "Failed to initialize NVML: Driver/library version mismatch", "GPU driver", FAIL),
        (("reboot_required",), ["linux-image-6.17.0-1032-nvidia"], "pending reboot", WARN),
        (("kernel_next",), {"version": "6.17.0-1032-nvidia", "nvidia": False}, "next kernel", WARN),
        (("gpu_sample", "brakes"), ["power brake"], "GPU clock", WARN),
        (("bios",), "5.36_0ACUM018 09/18/2025", "firmware", WARN),
        (("engines",), ["vllm-a.service", "vllm-b.service"], "engine", FAIL),
        (("engines_enabled",), ["vllm-a.service", "vllm-b.service"], "engines at boot", FAIL),
        (("protection", "systemd_oomd"), True, "systemd-oomd", WARN),
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
    data["n1"]["node"].update(engines=["vllm-mellum.service"], engines_enabled=["vllm-mellum.service"])
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


def test_the_engines_own_ports_are_no_finding_and_those_of_another_container_are() -> None:
    data = reports(1)
    node = data["n1"]["node"]
    node["engines"] = ["vllm-mellum.service"]
    node["listeners"] += [
        {"address": "0.0.0.0", "port": 6379, "process": "gcs_server", "container": "vllm-mellum"},
        {"address": "0.0.0.0", "port": 41233, "process": "raylet", "container": "vllm-mellum"},
    ]
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "open beyond the fabric"]
    assert (check.level, check.value) == (OK, "only 22, 8000, and 2 port(s) of the engine itself")
    node["listeners"].append({"address": "0.0.0.0", "port": 7000, "process": "x", "container": "vllm-older"})
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "open beyond the fabric"]
    assert (check.level, check.value) == (WARN, "0.0.0.0:7000 (x), and 2 port(s) of the engine itself")


@pytest.mark.parametrize(
    ("clock", "busy", "level", "words"),
    [
        (690.0, 96.0, WARN, "690 MHz of 3003, 96 % busy, 12 W"),
        (2405.0, 96.0, OK, "2405 MHz of 3003"),
        (690.0, 3.0, OK, "idle, so not judged"),
        (690.0, None, OK, "idle, so not judged"),
    ],
)
def test_a_clock_that_is_stuck_low_under_load(clock: float, busy: float | None, level: str, words: str) -> None:
    data = reports(1)
    data["n1"]["node"]["gpu_sample"].update(sm_mhz=clock, busy_percent=busy, power_w=12.0)
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "GPU clock"]
    assert (check.level, words in check.value) == (level, True)
    assert ("pull its power cable" in check.remedy) is (level == WARN)


def test_a_load_that_did_not_come_about_is_named() -> None:
    data = reports(1)
    data["n1"]["node"]["gpu_load_error"] = "the load in gb10-gpu-load printed: no such image"
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "GPU clock"]
    assert (check.level, check.remedy[-14:]) == (WARN, " no such image")


def test_a_runtime_that_docker_was_not_restarted_for() -> None:
    data = reports(1)
    data["n1"]["node"].update(docker_runtimes=["runc"])
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "GPU in containers"]
    assert "Docker runs without it" in check.value
    data["n1"]["node"]["docker"]["cdi"] = True
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "GPU in containers"]
    assert (check.level, check.value) == (WARN, "CDI, without the runtime nvidia")


def test_updates_are_named_as_long_as_they_are_held() -> None:
    data = reports(1)
    assert not [check for check in node_checks(data["n1"], Limits()) if check.name == "updates"]
    data["n1"]["node"]["updates_held"] = ["linux-", "nvidia-"]
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "updates"]
    assert (check.level, "linux-, nvidia-" in check.value) == (OK, True)


@pytest.mark.parametrize(("driver", "level"), [("580.159.03", OK), ("590.44.01", WARN)])
def test_a_driver_with_known_faults(driver: str, level: str) -> None:
    data = reports(1)
    data["n1"]["node"]["gpu"]["driver"] = data["n1"]["node"]["gpu_library"] = driver
    [check] = [check for check in node_checks(data["n1"], Limits()) if check.name == "GPU driver"]
    assert check.level == level


def test_a_bios_of_another_kind_of_machine_is_not_judged() -> None:
    data = reports(1)
    data["n1"]["node"].update(bios="1.16.3 04/01/2014")
    data["n1"]["node"]["os"]["arch"] = "x86_64"
    assert bad(report(data), "n1") == []


def test_firmware_of_the_network_controller_that_is_older_than_the_known_good() -> None:
    assert nic_level("28.45.4028") == nic_level("28.46.1000") == nic_level("") == nic_level("16.35.2000") == []
    [(level, sentence)] = nic_level("28.42.1000")
    assert (level, "fwupdmgr" in sentence) == (WARN, True)


@pytest.mark.parametrize(("rate", "found"), [(12.86, True), (8.0, True), (25.1, False), (96.0, False), (0.0, False)])
def test_the_low_power_state_of_the_network_controller_is_named(rate: float, found: bool) -> None:
    data = reports()
    data["n1"]["sent"] = {"n2": {"gbps": rate}, "n3": {"gbps": 96.0}}
    checks = [check for check in report(data).cluster if check.name == "throughput"]
    assert [check.level for check in checks] == [FAIL] * found
    assert all("n1 -> n2: " in check.value and "pull its power cable" in check.remedy for check in checks)


def test_a_slow_link_that_negotiated_little_is_not_in_that_state() -> None:
    data = reports()
    tree = json.loads((FIXTURES / "negotiated_100g.json").read_text(encoding="utf-8"))
    data["n2"]["fabric"] = {"machine": to_dict(parse_capture(tree))}
    data["n1"]["sent"] = {"n2": {"gbps": 12.0}}
    assert [check for check in report(data).cluster if check.name == "throughput"] == []


def test_the_same_small_mtu_everywhere_costs_throughput_and_is_a_warning() -> None:
    data = reports()
    for each in data.values():
        for device in each["ping"]["devices"].values():
            device["mtu_bytes"] = 1500
        for netdev in each["fabric"]["machine"]["ports"][0]["netdevs"]:
            netdev["mtu_bytes"] = 1500
        for peer in each["ping"]["peers"].values():
            peer.update(ok=False, largest=1500)
    found = report(data)
    assert ("fabric", WARN) in bad(found)
    assert FAIL not in [level for _name, level in bad(found)]
    assert all(level == WARN for _name, level in bad(found, "n1"))
    assert any("costs up to 5 %" in check.remedy for check in found.nodes["n1"])


def test_an_mtu_that_differs_between_nodes_is_a_failure() -> None:
    data = reports()
    for device in data["n2"]["ping"]["devices"].values():
        device["mtu_bytes"] = 1500
    [check] = [check for check in report(data).cluster if check.level == FAIL]
    assert check.value.startswith("n2: ")


def test_throughput_that_could_not_be_measured_is_a_warning() -> None:
    data = reports()
    data["n1"]["slow"] = ["n1 -> n2: the throughput could not be measured: iperf3 is not installed."]
    assert bad(report(data)) == [("throughput", WARN)]


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


@pytest.mark.parametrize(("cap", "level"), [(0, WARN), (900, OK)])
def test_a_clock_that_is_capped_is_reported_and_judged_by_its_cap(cap: int, level: str) -> None:
    data = reports()
    place = data["n2"]["node"]
    place["gpu"]["clock_cap_mhz"] = cap
    place["gpu_sample"].update(sm_mhz=850.0, busy_percent=98.0)
    found = {check.name: check for where, check in report(data).checks() if where == "n2"}["GPU clock"]
    assert found.level == level
    assert ("capped at 900 MHz (host_gpu_max_clock_mhz)" in found.value) is bool(cap)
