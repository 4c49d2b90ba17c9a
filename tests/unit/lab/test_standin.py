# SPDX-License-Identifier: Apache-2.0
"""The stand-in engine as its wheel: command line, the log that the probe reads, ranks that meet, ways to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import log as engine_log
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import Reply, Wanted, probe_api
from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine
from lab.ports import free_port
from lab.standin.wheel import NAME, make_wheel

NOBODY = "127.0.0.1"
DEADLINE_S = 300.0


class Lab:
    """A directory with the unpacked wheel and a model, and the processes that a test started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with zipfile.ZipFile(make_wheel(folder / "wheels")) as wheel:
            wheel.extractall(folder / "site")
        self.model = folder / "model"
        self.model.mkdir()
        config = {"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 4096}
        (self.model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for number in (1, 2):
            (self.model / f"part-{number}.safetensors").write_bytes(b"")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: dict[int, Path] = {}

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command of the wheel with its output in a file."""
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder / "site"),
            "VLLM_CACHE_ROOT": str(self.folder),
            "GB10_STANDIN_PAUSE": "0.01",
            **environment,
        }
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=env,
                cwd=self.folder,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        self.logs[process.pid] = log
        return process

    def serve(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start ``vllm serve``."""
        return self.start("vllm.cli", "serve", str(self.model), *arguments, **environment)

    def text(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process has printed."""
        return self.logs[process.pid].read_text(encoding="utf-8")

    def await_text(self, process: subprocess.Popen[bytes], part: str) -> str:
        """Wait until a process has printed something."""
        end = time.monotonic() + DEADLINE_S
        while part not in self.text(process):
            ended = process.poll() is not None and part not in self.text(process)
            assert not ended, f"ended without {part!r}: {self.text(process)}"
            assert time.monotonic() < end, f"no {part!r} in: {self.text(process)}"
            time.sleep(0.05)
        return self.text(process)

    def await_end(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Wait until a process ends; returns its status and what it printed."""
        return process.wait(DEADLINE_S), self.text(process)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Give a lab whose processes end with the test."""
    made = Lab(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


class Client:
    """The probe's HTTP over urllib."""

    def __init__(self, port: int, key: str = "") -> None:
        self.url, self.key = f"http://{NOBODY}:{port}", key

    def _ask(self, path: str, payload: Any = None) -> Any:
        data = None if payload is None else json.dumps(payload).encode()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(self.url + path, data, headers)
        return urllib.request.urlopen(request, timeout=DEADLINE_S)

    def get(self, path: str, *, patient: bool = False) -> Reply:
        """GET."""
        try:
            with self._ask(path) as answer:
                return Reply(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read().decode())

    def post(self, path: str, payload: Any) -> Reply:
        """POST."""
        try:
            with self._ask(path, payload) as answer:
                return Reply(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read().decode())

    def stream(self, path: str, payload: Any) -> Iterator[str]:
        """POST and read lines."""
        with self._ask(path, payload) as answer:
            for line in answer:
                yield line.decode().rstrip()


def lines(text: str) -> list[LogLine]:
    """Return a log as the probe reads it."""
    return [LogLine(line) for line in text.splitlines()]


def test_the_wheel_is_the_same_from_the_same_sources(tmp_path: Path) -> None:
    first, second = make_wheel(tmp_path / "a"), make_wheel(tmp_path / "b")
    assert first.name == NAME
    assert first.read_bytes() == second.read_bytes()


def test_the_probe_reads_every_phase_and_finds_it_ready(lab: Lab) -> None:
    port = free_port()
    process = lab.serve("--port", str(port), "--served-model-name", "a/b", "--max_model_len", "1k", VLLM_API_KEY="k")
    text = lab.await_text(process, "Application startup complete")
    read = engine_log.read_engine_log(lines(text))
    assert (read.phase, read.facts["architecture"], read.facts["max_model_len"]) == ("ready", "Qwen3ForCausalLM", 1000)
    assert "gb10-lab-stand-in" in text
    report = probe_api(Client(port, "k"), "here", Wanted("a/b", reasoning=False))
    assert report["models"] == ["a/b"]
    assert report["canaries"][0]["ok"], report
    assert Client(port).get("/v1/models").status == 401
    assert '"owned_by": "gb10-lab-stand-in"' in Client(port, "k").get("/v1/models").body
    assert probe_api(Client(port, "k"), "here", Wanted("a/b"))["metrics"]["generation_tokens_total"] == 8.0
    assert json.loads(Client(port).post("/tokenize", {"prompt": "one two"}).body)["count"] == 2


@pytest.mark.parametrize(
    "wrong",
    [["--gpu-memory-utilization-gb", "108"], ["--max-num-seqs", "many"], ["--dtype", "int3"]],
)
def test_what_vllm_does_not_accept_is_refused(lab: Lab, wrong: list[str]) -> None:
    status, text = lab.await_end(lab.serve(*wrong))
    assert status == 2
    assert "error:" in text
    assert diagnose(lines(text))[0].name == "unknown_option" or "argument" in text


def test_ranks_meet_and_a_lost_one_shows_at_the_next_completion(lab: Lab) -> None:
    master, port = str(free_port()), free_port()
    common = ["--nnodes", "2", "--master-addr", NOBODY, "--master-port", master, "--tensor-parallel-size", "2"]
    head = lab.serve(*common, "--node-rank", "0", "--port", str(port), "--served-model-name", "a/b")
    time.sleep(0.5)
    assert "Starting to load" not in lab.text(head)
    worker = lab.serve(*common, "--node-rank", "1", "--headless")
    lab.await_text(head, "Application startup complete")
    worker.kill()
    worker.wait()
    time.sleep(0.5)
    assert Client(port).get("/health").status == 200
    assert Client(port).post("/v1/completions", {"model": "a/b", "prompt": "x"}).status == 500
    status, text = lab.await_end(head)
    assert status == 1
    assert {"peer_closed", "engine_dead"} <= {finding.name for finding in diagnose(lines(text))}


def test_a_worker_ends_when_the_head_goes(lab: Lab) -> None:
    master = str(free_port())
    common = ["--nnodes", "2", "--master-addr", NOBODY, "--master-port", master, "--tensor-parallel-size", "2"]
    worker = lab.serve(*common, "--node-rank", "1", "--headless")
    head = lab.serve(*common, "--node-rank", "0", "--port", str(free_port()))
    lab.await_text(head, "Application startup complete")
    head.kill()
    status, text = lab.await_end(worker)
    assert status == 1
    assert diagnose(lines(text))[0].name == "peer_closed"


def test_ray_counts_its_nodes_and_a_lost_one_is_a_dead_engine(lab: Lab) -> None:
    ray_port, port = free_port(), free_port()
    gcs = lab.start("ray.scripts", "head-process", "--node-ip-address", NOBODY, "--port", str(ray_port))
    lab.await_text(gcs, "ready")
    worker = lab.start(
        "ray.scripts", "start", "--block", f"--address={NOBODY}:{ray_port}", "--node-ip-address=127.0.0.2"
    )
    lab.await_text(worker, "Ray runtime started")
    ray_options = ["--distributed-executor-backend", "ray", "--tensor-parallel-size", "2", "--port", str(port)]
    engine = lab.serve(*ray_options, RAY_ADDRESS=f"{NOBODY}:{ray_port}")
    lab.await_text(engine, "Application startup complete")
    worker.kill()
    status, text = lab.await_end(engine)
    assert status == 1
    assert "worker_died" in {finding.name for finding in diagnose(lines(text))}


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("die-at-load", "was told to die"),
        ("no-cache", "No available memory"),
        ("starve-memory:0.1", "took 0.1 GiB and nobody stopped it"),
        ("no-such-mode", "die-at-load"),
    ],
)
def test_a_start_that_was_told_to_fail_ends_with_its_reason(lab: Lab, mode: str, said: str) -> None:
    status, text = lab.await_end(lab.serve("--port", str(free_port()), GB10_STANDIN_FAIL=mode))
    assert status == 1
    found = diagnose(lines(text))[0]
    assert found.kind == "cause"
    assert said in found.line


def test_the_file_of_a_rank_concerns_that_rank_alone(lab: Lab) -> None:
    (lab.folder / "gb10-standin-fail").write_text("die-at-load@1\n", encoding="ascii")
    process = lab.serve("--port", str(free_port()))
    lab.await_text(process, "Application startup complete")


def test_another_model_and_a_death_while_serving(lab: Lab) -> None:
    port = free_port()
    process = lab.serve("--port", str(port), "--served-model-name", "a/b", GB10_STANDIN_FAIL="wrong-model")
    lab.await_text(process, "Application startup complete")
    assert probe_api(Client(port), "here", Wanted("a/b"))["models"] == ["gb10-lab-stand-in/another-model"]
    dying = lab.serve("--port", str(free_port()), GB10_STANDIN_FAIL="die-after:0.2")
    status, text = lab.await_end(dying)
    assert status == 1
    assert "Application startup complete" in text
