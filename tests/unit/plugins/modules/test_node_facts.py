# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.node_facts on a node whose files and commands are these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu import (
    SMI_QUERY,
    busiest,
    container_id,
    library_version,
    parse_smi,
)
from ansible_collections.gb10.cluster.plugins.modules import node_facts

FILES = {
    "/etc/os-release": 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "/etc/dgx-release": 'DGX_SWBUILD_VERSION="7.2.3"\nDGX_OTA_VERSION="7.4.0"\n',
    "/proc/meminfo": "MemTotal: 125829120 kB\nMemAvailable: 104857600 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    "CmaTotal: 65536 kB\nCmaFree: 131072 kB\n",
    "/sys/module/nvidia/version": "580.95.05\n",
    "/etc/docker/daemon.json": '{"data-root": "/", "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}',
    "/run/systemd/container": "",
    "/proc/1/environ": "HOME=/\0",
    "/sys/class/dmi/id/bios_version": "5.36_0ACUM018\n",
    "/sys/class/dmi/id/bios_date": "09/18/2025\n",
    "/proc/sys/vm/swappiness": "1\n",
    "/proc/sys/vm/dirty_bytes": "268435456\n",
}
COMMANDS = {
    "systemctl get-default": "multi-user.target\n",
    "systemctl is-system-running": "degraded\n",
    "systemctl list-units --plain --no-legend --state=failed": "broken.service loaded failed failed Broken\n",
    "systemctl list-units --plain --no-legend --state=active chrony.service": "chrony.service loaded active running\n",
    "systemctl list-units --plain --no-legend --state=active docker.service": "docker.service loaded active running\n",
    "systemctl list-units --plain --no-legend --state=active vllm-*.service": "vllm-a.service loaded active running\n",
    "systemctl list-units --plain --no-legend --state=active earlyoom.service": "",
    "systemctl show --property=Id,ActiveState display-manager.service": "Id=gdm.service\nActiveState=active\n",
    "systemctl show --property=OOMScoreAdjust ssh.service": "OOMScoreAdjust=-1000\n",
    "timedatectl show --property=NTPSynchronized --value": "yes\n",
    "docker info --format {{json .}}": '{"ServerVersion": "28.3.3", "Runtimes": {"runc": {}, "nvidia": {}}}',
    "systemctl list-unit-files --plain --no-legend --state=enabled vllm-*.service": "vllm-a.service enabled enabled\n",
    "nvidia-smi --query-gpu=" + SMI_QUERY + " --format=csv,noheader,nounits": "2405, 3003, 96, 48.20, [N/A], 0x80\n",
    "docker image ls --filter dangling=false --format {{.Repository}}:{{.Tag}}": "a:1\n",
    "docker image inspect a:1": "this is no JSON",
}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], dict[str, str]]:
    """The node's files and what its commands print; a test may change them."""
    files, commands = dict(FILES), dict(COMMANDS)
    monkeypatch.setattr(node_facts, "read", lambda path: files.get(path, ""))
    monkeypatch.setattr(node_facts, "SMI_INTERVAL_S", 0.0)
    monkeypatch.setattr(node_facts, "run", lambda *argv: commands.get(" ".join(argv), ""))
    return files, commands


def facts(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """Run the module and return its one fact."""
    with patch_module_args(options), pytest.raises(SystemExit):
        node_facts.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["changed"] is False
    node: dict[str, Any] = found["node"]
    return node


@pytest.mark.usefixtures("node")
def test_what_is_always_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = facts(capsys, disk_paths=[str(tmp_path / "not" / "yet")])
    assert (found["os"]["id"], found["os"]["dgx"]) == ("ubuntu", "7.4.0")
    assert found["memory_gib"] == {
        "total": 120.0, "available": 100.0, "swap_total": 0.0, "swap_free": 0.0, "cma_total": 0.06, "cma_free": 0.12,
    }  # fmt: skip
    assert found["kho_fault"] is True
    assert found["gpu"]["driver"] == "580.95.05"
    assert (found["docker"]["active"], found["docker"]["runtimes"]) == (True, ["nvidia"])
    assert set(found["disks"]) == {str(tmp_path / "not" / "yet"), "/"}
    assert all(disk["size_gib"] >= disk["free_gib"] > 0 for disk in found["disks"].values())
    assert found["systemd"] == {
        "default_target": "multi-user.target", "state": "degraded", "failed": ["broken.service"],
    }  # fmt: skip
    assert found["desktop"]["unit"] == "gdm.service"
    assert (found["time"]["service"], found["time"]["synchronized"]) == ("chrony.service", True)
    assert found["engines"] == ["vllm-a.service"]
    assert "bios" not in found


@pytest.mark.usefixtures("node")
def test_the_detail_of_a_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, detail=True)
    assert found["bios"] == "5.36_0ACUM018 09/18/2025"
    assert found["protection"] == {
        "earlyoom": False, "systemd_oomd": False, "sshd_oom_score_adjust": -1000, "swappiness": 1,
        "dirty_bytes": 268435456,
    }  # fmt: skip
    assert (found["docker_version"], found["docker_runtimes"]) == ("28.3.3", ["nvidia", "runc"])
    assert found["engines_enabled"] == ["vllm-a.service"]
    assert found["gpu_sample"] == {
        "sm_mhz": 2405.0, "sm_max_mhz": 3003.0, "busy_percent": 96.0, "power_w": 48.2, "power_limit_w": None,
        "brakes": ["power brake"],
    }  # fmt: skip
    assert found["gpu_error"] == ""
    # Docker printed something else than JSON.
    assert found["images"] == {}


def test_an_image_that_goes_while_they_are_read_lends_its_name_to_no_other(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]]
) -> None:
    left = {"RepoTags": ["b:1", "elsewhere:1"], "RootFS": {"Layers": ["sha256:b"]}}
    node[1]["docker image ls --filter dangling=false --format {{.Repository}}:{{.Tag}}"] = "a:1\nb:1\n"
    node[1]["docker image inspect a:1 b:1"] = json.dumps([left])
    assert facts(capsys, detail=True)["images"] == {"b:1": identity(left)}


@pytest.mark.parametrize(("serving", "asked"), [("vllm-a.service loaded active running\n", []), ("", ["some/image:1"])])
def test_the_load_is_for_an_idle_node(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch,
    serving: str, asked: list[str],
) -> None:  # fmt: skip
    node[1]["systemctl list-units --plain --no-legend --state=active vllm-*.service"] = serving
    commands: list[list[str]] = []

    @contextmanager
    def loaded(command: list[str]) -> Iterator[str]:
        commands.append(command)
        yield "no GPU here"

    monkeypatch.setattr(node_facts, "loaded", loaded)
    found = facts(capsys, detail=True, gpu_load_image="some/image:1", gpu_load_args=["--gpus", "all"])
    assert found["gpu_load_error"] == "no GPU here"
    assert [word for word in commands[0] if word == "some/image:1"] == asked


def test_a_node_with_nothing(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, commands = node
    files.clear()
    commands.clear()
    monkeypatch.setattr(shutil, "which", lambda *_words, **_options: None)
    found = facts(capsys, detail=True)
    assert (found["os"]["id"], found["os"]["dgx"], found["kho_fault"]) == ("unknown", "", False)
    assert (found["docker"]["installed"], found["docker"]["active"]) == (False, False)
    assert found["docker"]["data_root"] == "/var/lib/docker"
    assert (found["time"]["service"], found["engines"], found["images"]) == ("", [], {})
    assert found["protection"]["swappiness"] == -1
    assert (found["gpu_sample"], found["gpu_error"], found["docker_runtimes"]) == ({}, "", [])


def test_what_nvidia_smi_says_instead_is_kept(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]]
) -> None:
    command = "nvidia-smi --query-gpu=" + SMI_QUERY + " --format=csv,noheader,nounits"
    node[1][command] = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n"
    found = facts(capsys, detail=True)
    assert found["gpu_sample"] == {}
    assert found["gpu_error"].startswith("Failed to initialize NVML: Driver/library version mismatch")


def test_only_the_busiest_look_counts() -> None:
    samples = [parse_smi(f"{clock}, 3003, {busy}, 4.1, [N/A], 0x1") for clock, busy in ((210, 0), (890, 96), (700, 96))]
    assert busiest([{}, *samples])["sm_mhz"] == 890.0
    assert busiest([{}]) == {}


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (["libnvidia-ml.so.1", "libnvidia-ml.so.580.95.05", "libnvidia-ml.so.580.159.03"], "580.159.03"),
        (["libnvidia-ml.so.1"], ""),
    ],
)
def test_the_version_of_the_installed_libraries(names: list[str], version: str) -> None:
    assert library_version(names) == version


@pytest.mark.parametrize(
    ("cgroup", "found"),
    [
        (f"0::/system.slice/docker-{'ab' * 32}.scope\n", "ab" * 32),
        (f"0::/docker/{'01' * 32}\n", "01" * 32),
        ("0::/user.slice/session-1.scope\n", ""),
    ],
)
def test_the_container_of_a_process(cgroup: str, found: str) -> None:
    assert container_id(cgroup) == found


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_daemon_json_is_as_none(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]], text: str
) -> None:
    node[0]["/etc/docker/daemon.json"] = text
    found = facts(capsys)
    assert (found["docker"]["data_root"], found["docker"]["runtimes"]) == ("/var/lib/docker", [])


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [("/run/systemd/container", "docker\n", "docker"), ("/proc/1/environ", "A=b\0container=lxc\0", "lxc")],
)
def test_the_kind_of_container(
    capsys: pytest.CaptureFixture[str], node: tuple[dict[str, str], dict[str, str]], path: str, text: str, kind: str
) -> None:
    node[0][path] = text
    assert facts(capsys)["container"] == kind


def test_a_clock_cap_counts_while_its_unit_is_active(
    node: tuple[dict[str, str], dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    files, commands = node
    assert facts(capsys)["gpu"]["clock_cap_mhz"] == 0
    files["/etc/systemd/system/gb10-clock-cap.service"] = "ExecStart=/usr/bin/nvidia-smi --lock-gpu-clocks=0,2000\n"
    assert facts(capsys)["gpu"]["clock_cap_mhz"] == 0
    unit = "gb10-clock-cap.service"
    commands[f"systemctl list-units --plain --no-legend --state=active {unit}"] = f"{unit} loaded active exited\n"
    assert facts(capsys)["gpu"]["clock_cap_mhz"] == 2000


def test_what_the_container_of_an_engine_may_do(
    node: tuple[dict[str, str], dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    files, commands = node
    assert facts(capsys, detail=True)["engine_containers"] == {}  # Docker knows of none
    commands["docker container inspect --format {{.State.Pid}} vllm-a"] = "999999999\n"
    files["/proc/999999999/status"] = "CapEff:\t0000000000004000\nNoNewPrivs:\t1\n"
    files["/proc/999999999/limits"] = "Max locked memory         unlimited            unlimited            bytes     \n"
    assert facts(capsys, detail=True)["engine_containers"] == {
        "vllm-a": {
            "capabilities": ["IPC_LOCK"], "no_new_privileges": True, "memlock_bytes": -1, "rdma_devices": [],
        },
    }  # fmt: skip


def test_a_swap_that_is_not_decided_is_read(
    node: tuple[dict[str, str], dict[str, str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del node
    monkeypatch.setattr(node_facts, "STATE_DIR", tmp_path)
    assert (facts(capsys, detail=True)["swap"], facts(capsys, detail=True)["swap_rolled_back"]) == ({}, {})
    described = {"state": "pending", "before": {"model": "a"}, "after": {"model": "b"}, "head": "n1", "armed_s": 5.0,
                 "stall_seconds": 900.0, "key": "/etc/gb10/engine/tether.key"}  # fmt: skip
    (tmp_path / "swap.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "swap_rolled_back.json").write_text('{"why": "w"}', encoding="utf-8")
    found = facts(capsys, detail=True)
    assert found["swap"] == {
        "state": "pending", "before": "a", "after": "b", "head": "n1", "armed_s": 5.0, "stall_seconds": 900.0,
    }  # fmt: skip
    assert found["swap_rolled_back"] == {"why": "w"}
