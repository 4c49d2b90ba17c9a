# SPDX-License-Identifier: Apache-2.0
"""The two programs of the engine role: the one before a start, and the first process of a container."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILES = Path(__file__).resolve().parents[3] / "roles" / "engine" / "files"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


prestart = load("engine_prestart")
entry = load("engine_entry")

# `ip -json address` of a lab node, shortened.
LINKS: list[dict[str, Any]] = [
    {"ifname": "lo", "operstate": "UNKNOWN", "flags": ["LOOPBACK", "UP"], "addr_info": [{"local": "127.0.0.1"}]},
    {"ifname": "eth0", "operstate": "UP", "flags": ["UP"], "addr_info": [{"local": "10.210.0.11"}]},
    {"ifname": "eth1", "operstate": "UP", "flags": ["UP"], "addr_info": [{"local": "10.211.0.11"}]},
]


def test_the_interface_is_found_by_its_address() -> None:
    assert prestart.interface_of("10.211.0.11", LINKS) == "eth1"


def test_a_missing_fabric_address_names_those_that_are_there() -> None:
    with pytest.raises(
        prestart.RefusedError, match=r"no interface holds the fabric address 10\.9\.9\.9.*eth0 10\.210\.0\.11"
    ):
        prestart.interface_of("10.9.9.9", LINKS)


def test_a_link_without_carrier_is_refused() -> None:
    links = [{**LINKS[2], "flags": ["NO-CARRIER", "UP"], "operstate": "DOWN"}]
    with pytest.raises(prestart.RefusedError, match="has no carrier"):
        prestart.interface_of("10.211.0.11", links)


def test_only_hcas_with_an_active_port_count(tmp_path: Path) -> None:
    for name, state in (("rocep1s0f0", "4: ACTIVE"), ("rocep1s0f1", "1: DOWN"), ("roceP2p1s0f0", "4: ACTIVE")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
    assert prestart.active_hcas(tmp_path) == ["roceP2p1s0f0", "rocep1s0f0"]
    assert prestart.active_hcas(tmp_path / "none") == []


def test_the_network_is_named_per_node_and_the_gid_index_is_not() -> None:
    env = prestart.network_environment("10.1.0.1", "enp1s0f0np0", ["rocep1s0f0", "roceP2p1s0f0"])
    assert env["VLLM_HOST_IP"] == "10.1.0.1"
    assert env["NCCL_IB_HCA"] == "rocep1s0f0,roceP2p1s0f0"
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        assert env[name] == "enp1s0f0np0"
    assert not [name for name in env if "GID" in name]
    assert "NCCL_IB_HCA" not in prestart.network_environment("10.1.0.1", "eth1", [])


def test_holders_of_ports_are_named() -> None:
    text = 'LISTEN 0 4096 0.0.0.0:8000 0.0.0.0:* users:(("python3",pid=812,fd=7))\nLISTEN 0 128 [::]:22 [::]:*\n'
    assert prestart.listeners(text) == {8000: "python3 (pid 812)", 22: "a process"}


def test_meminfo_is_read_in_gib() -> None:
    text = "MemTotal:       125829120 kB\nMemAvailable:    1048576 kB\n"
    assert prestart.meminfo_gib(text, "MemTotal") == 120.0
    assert prestart.meminfo_gib(text, "MemAvailable") == 1.0
    assert prestart.meminfo_gib(text, "Nope") == 0.0


class Node:
    """What the commands of a node answer, and what was asked."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []

    def run(self, *command: str) -> Any:
        self.asked.append(command)
        code, out = self.answers.get(" ".join(command[:3]), (0, ""))

        class Done:
            returncode = code
            stdout = out

        return Done


@pytest.fixture
def launch(tmp_path: Path) -> dict[str, Any]:
    weights = tmp_path / "w"
    weights.mkdir()
    (weights / ".gb10-manifest.json").write_text("{}")
    return {
        "container": "vllm-m", "image": "gb10/i:1", "weights": str(weights), "ports": [8000], "address": "10.211.0.11",
        "require_rdma": False, "drop_caches": False, "memory_needed_gib": 0.0,
    }  # fmt: skip


def node(**more: tuple[int, str]) -> Node:
    answers = {"ip -json address": (0, json.dumps(LINKS)), "docker container inspect": (1, "")}
    return Node({**answers, **{key.replace("_", " "): value for key, value in more.items()}})


def test_a_stale_container_is_removed_by_its_exact_name(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = node(docker_container_inspect=(0, "{}"))
    monkeypatch.setattr(prestart, "run", fake.run)
    assert prestart.prepare(launch)["GLOO_SOCKET_IFNAME"] == "eth1"
    assert ("docker", "rm", "--force", "vllm-m") in fake.asked


@pytest.mark.parametrize(
    ("changes", "answers", "sentence"),
    [
        ({}, {"docker image inspect": (1, "")}, "image gb10/i:1 is not on this node"),
        ({"weights": "/nowhere"}, {}, "are not whole"),
        (
            {},
            {"ss -Hltnp": (0, 'LISTEN 0 1 *:8000 *:* users:(("nginx",pid=5,fd=1))')},
            r"port 8000 is held by nginx \(pid 5\)",
        ),
        ({"require_rdma": True}, {}, "no HCA is active"),
        ({"memory_needed_gib": 1e6}, {}, r"the engine needs 1000000\.0 GiB on this node"),
    ],
)
def test_a_node_that_cannot_carry_the_engine_says_why(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: Any, answers: Any, sentence: str
) -> None:
    fake = node()
    fake.answers.update(answers)
    monkeypatch.setattr(prestart, "run", fake.run)
    monkeypatch.setattr(prestart, "active_hcas", list)
    with pytest.raises(prestart.RefusedError, match=sentence):
        prestart.prepare({**launch, **changes})


def test_missing_environment_is_named() -> None:
    assert entry.missing_environment(["A", "B"], {"A": "1", "B": ""}) == ["B"]
    with pytest.raises(SystemExit, match="missing environment: GB10_NOT_SET must be set in every rank's container"):
        entry.main(["serve", "--require-env", "GB10_NOT_SET", "--", "true"])


def test_the_entry_becomes_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(entry.os, "execvp", lambda name, argv: became.append((name, argv)))
    entry.main(["serve", "--", "vllm", "serve", "/m", "--port", "8000"])
    assert became == [("vllm", ["vllm", "serve", "/m", "--port", "8000"])]


def test_a_worker_joins_when_the_head_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(entry.os, "execvp", lambda name, argv: became.append(argv))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        entry.main(
            [
                "ray-worker",
                "--address",
                "10.0.0.2",
                "--head",
                "127.0.0.1",
                "--port",
                str(port),
                "--ray-arg=--num-gpus=1",
            ]
        )
    assert became[0][:4] == ["ray", "start", "--block", f"--address=127.0.0.1:{port}"]
    assert "--num-gpus=1" in became[0]
