# SPDX-License-Identifier: Apache-2.0
"""The programs of the engine role: before a start, and the first process of a container."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import entry, group, life, prestart, ray
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import available_gib
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "fabric"

# `ip -json address` of a lab node, shortened.
LINKS: list[dict[str, Any]] = [
    {
        "ifname": "lo",
        "operstate": "UNKNOWN",
        "flags": ["LOOPBACK", "UP"],
        "addr_info": [{"local": "127.0.0.1", "prefixlen": 24}],
    },
    {"ifname": "eth0", "operstate": "UP", "flags": ["UP"], "addr_info": [{"local": "10.210.0.11", "prefixlen": 24}]},
    {"ifname": "eth1", "operstate": "UP", "flags": ["UP"], "addr_info": [{"local": "10.211.0.11", "prefixlen": 24}]},
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


def test_holders_of_ports_are_named() -> None:
    text = 'LISTEN 0 4096 0.0.0.0:8000 0.0.0.0:* users:(("python3",pid=812,fd=7))\nLISTEN 0 128 [::]:22 [::]:*\n'
    assert prestart.listeners(text) == {8000: "python3 (pid 812)", 22: "a process"}


class Node:
    """What the commands of a node answer, and what was asked."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []

    def call(self, *command: str) -> tuple[int, str, str]:
        self.asked.append(command)
        code, out = self.answers.get(" ".join(command[:3]), (0, ""))
        return code, out, "Cannot connect to the Docker daemon"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return the program as it is on a node."""
    path = tmp_path / build("engine").name
    path.write_bytes(build("engine").data)
    return path


def node(**more: tuple[int, str]) -> Node:
    answers = {"ip -json address": (0, json.dumps(LINKS)), "docker container inspect": (1, "")}
    return Node({**answers, **{key.replace("_", " "): value for key, value in more.items()}})


def test_a_stale_container_is_removed_by_its_exact_name(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = node(docker_container_inspect=(0, "{}"))
    monkeypatch.setattr(prestart, "call", fake.call)
    assert prestart.prepare(launch)["GLOO_SOCKET_IFNAME"] == "eth1"
    assert ("docker", "rm", "--force", "vllm-m") in fake.asked


@pytest.mark.parametrize(
    ("changes", "answers", "sentence"),
    [
        ({}, {"docker version --format": (1, "")}, "the Docker Engine does not answer: Cannot connect"),
        ({}, {"docker image inspect": (1, "")}, "image gb10/i:1 is not on this node"),
        ({"weights": "/nowhere"}, {}, "are not complete"),
        ({"tether_key": "/nowhere"}, {}, "the tether key /nowhere is missing; run playbooks/serve.yml"),
        (
            {},
            {"ss -Hltnp": (0, 'LISTEN 0 1 *:8000 *:* users:(("nginx",pid=5,fd=1))')},
            r"port 8000 is held by nginx \(pid 5\)",
        ),
        ({"require_rdma": True}, {}, "no HCA can be used: none of a linked port is active"),
        ({"memory_needed_gib": 1e6}, {}, r"the engine needs 1000000\.0 GiB on this node"),
        ({"memory_floor_gib": 2e6}, {}, r"the engine needs 2000000\.0 GiB on this node"),
    ],
)
def test_a_node_that_cannot_carry_the_engine_says_why(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: Any, answers: Any, sentence: str
) -> None:
    fake = node()
    fake.answers.update(answers)
    monkeypatch.setattr(prestart, "call", fake.call)
    monkeypatch.setattr(prestart, "sysfs", dict)
    with pytest.raises(prestart.RefusedError, match=sentence):
        prestart.prepare({**launch, **changes})


def machine_of(name: str) -> tuple[dict[str, str], str]:
    """Return the sysfs of a captured machine, and the output of ip there."""
    tree = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return {key: text for key, text in tree.items() if key.startswith("class/")}, tree["ip"]


def test_the_fabric_of_a_start(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, listing = machine_of("ring")
    record = tmp_path / "fabric.json"
    monkeypatch.setattr(prestart, "sysfs", lambda: tree)
    monkeypatch.setattr(prestart, "RECORD_PATH", record)
    launch = {**launch, "require_rdma": True, "nccl_env": {"NCCL_DEBUG": "INFO"}}

    def env(**changes: Any) -> dict[str, str]:
        return prestart.fabric_of("10.77.0.1", "gb10", {**launch, **changes}, listing)

    # Without a record every port that works; with one the cluster's alone.
    assert env()["NCCL_IB_HCA"] == "=rocep1s0f0,rocep1s0f1,roceP2p1s0f0,roceP2p1s0f1"
    record.write_text('{"topology": "switch", "nodes": 2, "netdevs": ["enp1s0f0np0", "enP2p1s0f0np0"]}')
    assert env()["NCCL_IB_HCA"] == "=rocep1s0f0,roceP2p1s0f0"
    assert "not used by NCCL: rocep1s0f1 (enp1s0f1np1) is not a port of the cluster" in capsys.readouterr().out
    record.write_text('{"topology": "ring", "nodes": 3, "netdevs": []}')
    assert env()["NCCL_IB_SUBNET_AWARE_ROUTING"] == "1"
    with pytest.raises(prestart.RefusedError, match="Ray does not work on a ring"):
        env(engine="ray")
    with pytest.raises(prestart.RefusedError, match="NCCL_NET_PLUGIN=aws"):
        env(nccl_env={"NCCL_NET_PLUGIN": "aws"})


def test_a_start_without_a_usable_hca_says_why(launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tree, listing = machine_of("switch")
    monkeypatch.setattr(prestart, "sysfs", lambda: tree)
    links = [{**link, "addr_info": []} for link in json.loads(listing)]
    with pytest.raises(
        prestart.RefusedError, match=r"no HCA can be used: rocep1s0f0 \(enp1s0f0np0\) has no IPv4 address"
    ):
        prestart.fabric_of("10.0.0.1", "enp1s0f0np0", {**launch, "require_rdma": True}, json.dumps(links))


def test_missing_environment_is_named() -> None:
    assert entry.missing_environment(["A", "B"], {"A": "1", "B": ""}) == ["B"]
    with pytest.raises(SystemExit, match="missing environment: GB10_NOT_SET must be set in every rank's container"):
        entry.main(["serve", "--require-env", "GB10_NOT_SET", "--", "true"])


def test_a_foreign_ray_is_refused_by_its_exact_name(
    launch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for pid, name in (("41", "raylet2"), ("812", "raylet"), ("self", "raylet")):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "comm").write_text(name + "\n")
    assert prestart.processes_named(prestart.RAY_PROCESSES, tmp_path / "proc") == [(812, "raylet")]
    monkeypatch.setattr(prestart, "call", node().call)
    monkeypatch.setattr(prestart, "processes_named", lambda _names: [(812, "raylet")])
    monkeypatch.setattr(prestart, "place_of", lambda _pid: " in the container other")
    with pytest.raises(prestart.RefusedError, match=r"raylet \(pid 812\) in the container other; stop it"):
        prestart.prepare({**launch, "engine": "ray"})
    assert prestart.prepare(launch)


def test_the_container_of_a_process_is_named() -> None:
    identity = "8f" * 32
    listing = f"{'00' * 32} other\n{identity} vllm-old\n"
    assert prestart.container_of(f"1:name=systemd:/docker/{identity}\n", listing) == "vllm-old"
    assert prestart.container_of("0::/init.scope\n", listing) == ""


def test_a_unit_gives_up_after_too_many_starts_and_begins_anew_by_hand(launch: dict[str, Any]) -> None:
    for second in range(3):
        prestart.count_start(launch, restarts=second, now_s=100.0 + second)
    with pytest.raises(prestart.GaveUpError, match="3 starts in 0 min, and at most 3 in 10 min are allowed; see "):
        prestart.count_start(launch, restarts=3, now_s=110.0)
    prestart.count_start(launch, restarts=3, now_s=701.5)  # the first two are too long ago
    prestart.count_start(launch, restarts=0, now_s=702.0)
    assert json.loads(Path(launch["starts"]).read_text()) == [702.0]
    assert sorted(path.name for path in Path(launch["starts"]).parent.iterdir()) == ["m.starts"]


def test_a_damaged_record_of_starts_holds_none() -> None:
    assert prestart.recent_starts("[1, ", 10, 100) == []
    assert prestart.recent_starts('{"a": 1}', 10, 100) == []
    # After a reboot the clock begins anew: what lies in its future counts no more.
    assert prestart.recent_starts("[1, 5, 99]", 10, 8) == [5.0]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        ("RefusedError", 78, "gb10: start refused: no luck"),
        ("GaveUpError", 75, "gb10: gave up: no luck"),
        ("OSError", 78, "gb10: start refused: no luck; is a disk full? See df -h"),
    ],
)
def test_a_start_that_does_not_happen_ends_with_its_own_status(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: str, status: int, sentence: str,
) -> None:  # fmt: skip
    kinds = {"RefusedError": prestart.RefusedError, "GaveUpError": prestart.GaveUpError, "OSError": OSError}

    def prepare(_launch: Any) -> Any:
        raise kinds[error]("no luck")

    (tmp_path / "m.json").write_text(json.dumps(launch))
    monkeypatch.setattr(prestart, "prepare", prepare)
    assert prestart.main([str(tmp_path / "m.json"), "exec", "docker", "--x"]) == status
    assert capsys.readouterr().out == sentence + "\n"


def test_a_start_becomes_the_command(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    became: list[Any] = []
    (tmp_path / "m.json").write_text(json.dumps(launch))
    monkeypatch.setattr(prestart, "call", node().call)
    monkeypatch.setattr(os, "execvp", lambda name, argv: became.append((name, argv)))
    command = ["/bin/true", "--x", "--", "--help", "-h"]
    prestart.main([str(tmp_path / "m.json"), "exec", *command])
    assert became == [("/bin/true", command)]
    assert "VLLM_HOST_IP=10.211.0.11\n" in Path(launch["network_env"]).read_text()
    assert Path(launch["network_env"]).with_suffix(".started").is_file()
    for path in (Path(launch["cache"]), *Path(launch["cache"]).parents[:2], Path(launch["progress"])):
        assert path.stat().st_mode & 0o777 == 0o700, path
    assert "gb10: vllm-m starts as rank 1 on eth1" in capsys.readouterr().out


def test_the_devices_of_the_gpu_are_named_once(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["/usr/bin/docker", "run", "--rm", "--device=/dev/nvidiactl", "image", "run"]
    devices = ["/dev/nvidia0", "/dev/nvidiactl"]
    with_them = ["/usr/bin/docker", "run", "--device=/dev/nvidia0", "--rm", "--device=/dev/nvidiactl", "image", "run"]
    assert prestart.with_devices(command, devices) == with_them
    assert prestart.with_devices(command, []) == command

    became: list[Any] = []
    monkeypatch.setattr(prestart, "call", node().call)
    monkeypatch.setattr(prestart, "gpu_devices", lambda: devices)
    monkeypatch.setattr(os, "execvp", lambda _name, argv: became.append(argv))
    for wanted in (True, False):
        (tmp_path / "m.json").write_text(json.dumps({**launch, "gpu_devices": wanted}))
        prestart.main([str(tmp_path / "m.json"), "exec", *command])
    assert became == [with_them, command]


def test_only_device_nodes_of_the_driver_count(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia-caps", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert prestart.gpu_devices(tmp_path) == []  # plain files
    assert prestart.GPU_DEVICE.fullmatch("nvidia-uvm")
    assert not prestart.GPU_DEVICE.fullmatch("nvidia-caps")


def test_a_worker_joins_ray_when_the_head_answers(archive: Path, tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "ray $*"\n')
    ray.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable, str(archive), "entry", "ray-worker", "--rank", "1", "--port", str(port),
                "--members", "a=127.0.0.1,b=10.0.0.2", "--ray-arg=--num-gpus=1",
            ],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    told = f"ray start --block --address=127.0.0.1:{port} --node-ip-address=10.0.0.2 --disable-usage-stats --num-gpus=1"
    assert told in done.stdout
    assert "include-dashboard" not in done.stdout
    assert done.returncode == 1  # ray start --block ended, which it must not


def test_the_head_alone_leaves_the_dashboard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"on 10\.0\.0\.1:6379 exited 1"):
        ray.start_head(life.Life(), 6379, "10.0.0.1", 2, 1.0, [])
    assert "--include-dashboard=false" in asked[0]


def test_a_ray_head_that_is_asked_to_stop_has_not_failed(archive: Path, tmp_path: Path) -> None:
    """`ray.init` replaces the handler of SIGTERM by one that exits with 15; the engine runs after it."""
    (tmp_path / "ray.py").write_text(
        "import signal, sys\n"
        "def init(**_options): signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))\n"
        "def nodes(): return [{'Alive': True, 'NodeManagerAddress': '10.0.0.1'}]\n"
        "def shutdown(): pass\n"
    )
    for name, body in (("ray", "exit 0"), ("engine", "echo runs; exec sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = [sys.executable, str(archive), "entry", "ray-head", "--members", "a=10.0.0.1", "--", "engine"]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "runs\n":
                break
        process.terminate()
        said = process.stdout.read()
    assert "stopped on request, the engine's status was -15" in said
    assert process.returncode == 0


def test_a_stop_while_the_engine_is_being_started_ends_the_engine_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class EndedError(Exception):
        pass

    def exit_now(status: int) -> None:
        raise EndedError(str(status))

    real = subprocess.Popen

    def asked_meanwhile(command: list[str]) -> subprocess.Popen[bytes]:
        child = real(command)
        this.request_stop(15, None)  # the engine runs, and nobody has its handle yet
        return child

    this = life.Life()
    monkeypatch.setattr(subprocess, "Popen", asked_meanwhile)
    monkeypatch.setattr(os, "_exit", exit_now)
    with pytest.raises(EndedError, match=r"^0$"):
        this.run(["sleep", "60"])
    assert "stopped on request, the engine's status was -15" in capsys.readouterr().out


def test_no_value_of_a_variable_travels() -> None:
    digests = group.environment_digests(["TOKEN", "GONE"], {"TOKEN": "secret"})
    assert digests["GONE"] == "unset"
    assert "secret" not in str(digests)
    assert group.environment_difference(digests, {**digests, "TOKEN": "x", "NEW": "y"}) == ["NEW", "TOKEN"]


def test_the_floor_is_watched_until_the_engine_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[str] = []

    class Life(life.Life):
        def end(self, status: int, sentence: str, **_why: Any) -> None:
            ends.append(sentence)
            serving.set()

    serving = threading.Event()
    monkeypatch.setattr(entry, "MEMINFO", tmp_path / "meminfo")
    entry.MEMINFO.write_text("MemAvailable: 1048576 kB\n")
    serving.set()
    entry.watch_memory(2.0, serving, Life())
    assert ends == []
    serving.clear()
    entry.watch_memory(2.0, serving, Life())
    assert ends == ["stopped: MemAvailable 1.00 GiB is below the start floor of 2.00 GiB"]
    assert available_gib("nothing") == float("inf")


def test_the_serving_file_is_there_once_the_engine_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving = threading.Event()
    serving.set()
    entry.mark(tmp_path / "serving", serving)
    assert (tmp_path / "serving").is_file()
    entry.mark(tmp_path / "missing" / "serving", serving)
    assert "serving cannot be created: " in capsys.readouterr().out


def test_a_start_begins_without_the_serving_file_of_the_one_before(launch: dict[str, Any]) -> None:
    Path(launch["progress"]).mkdir(parents=True)
    (Path(launch["progress"]) / "serving").touch()
    assert not prestart.make_directories(launch).exists()


def test_a_wrong_description_is_named_and_counted(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    description = tmp_path / "m.json"
    description.write_text(json.dumps({**launch, "memory_floor_gib": "1.5"}))
    fake = node()
    fake.answers["systemctl show vllm-m.service"] = (0, "2\n")
    monkeypatch.setattr(prestart, "call", fake.call)
    statuses = [prestart.main([str(description), "exec", "docker"]) for _start in range(4)]
    assert statuses == [78, 78, 78, 75]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("gb10: start refused: TypeError: ")
    assert said[0].endswith(f", in {description}; run playbooks/serve.yml")
    assert said[-1].startswith("gb10: gave up: 3 starts in ")
    description.write_text('{"unit": ')
    assert prestart.main([str(description), "exec", "docker"]) == 78
    assert "start refused: JSONDecodeError: " in capsys.readouterr().out
