# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_move starts on a node, how it waits for it, and what it reports of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.modules import weights_move
from ansible_collections.gb10.cluster.plugins.plugin_utils import _program
from lab.ports import free_port
from tests.unit.helper import run_module

PIECES = hashlib.sha256(b"{}").digest()
FILES = [{"path": "config.json", "size": 2, "sha256": PIECES.hex()}]
MANIFEST = weights.make_manifest("org/model", "main", FILES, 2**20, PIECES)
TOKEN = "a-secret-token"


class Systemd:
    """Stands in for systemctl, systemd-run and journalctl; systemd-run starts what it is given, without a unit."""

    def __init__(self) -> None:
        """Start with no unit."""
        self.calls: list[list[str]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = True
        #: Takes the place of what `systemctl show` finds.
        self.show: Callable[[], dict[str, str]] | None = None

    def found(self) -> dict[str, str]:
        alive = self.process is not None and self.process.poll() is None
        pid = str(self.process.pid) if self.process is not None and alive else "0"
        return {"ActiveState": "active" if alive else "inactive", "MainPID": pid, "NRestarts": "0"}

    def __call__(self, words: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        self.calls.append(words)
        if words[0] == "systemd-run" and self.starts:
            # Without this repository: the archive has to do.
            command = words[words.index("-I") - 1 :]
            self.process = subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, cwd="/")
        if words[:2] == ["systemctl", "show"]:
            found = (self.show or self.found)()
            return 0, "".join(f"{name}={value}\n" for name, value in found.items()), ""
        if words[:2] == ["systemctl", "stop"] and self.process is not None:
            self.process.terminate()
            self.process.wait()
        if words[0] == "journalctl":
            return 0, "its last words\n", ""
        return 0, "", ""


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd()
    monkeypatch.setattr(weights_move, "RUN_DIR", tmp_path / "run")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Install the archive as gb10.cluster.program does."""
    archive = _program.build("weights")
    path = tmp_path / "lib" / archive.name
    path.parent.mkdir()
    path.write_bytes(archive.data)
    return str(path)


def run(systemd: Systemd, check: bool = False, **args: Any) -> dict[str, Any]:
    return run_module(weights_move, args, check=check, run_command=systemd)


def start(systemd: Systemd, program: str, root: Path, check: bool = False, **changes: Any) -> dict[str, Any]:
    args = {
        "state": "started", "run": "one", "program": program, "root": str(root), "manifest": MANIFEST,
        "missing": ["config.json"], "chain": ["a", "b"], "name": "b",
        "addresses": {"a": "127.0.0.21", "b": "127.0.0.22"}, "port": free_port(), "token": TOKEN, "stall_s": 5,
        **changes,
    }  # fmt: skip
    return run(systemd, check, **args)


def report(tmp_path: Path, **status: Any) -> None:
    """Write the unit's status, as the unit does."""
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "status.json").write_text(json.dumps({"message": "", **status}), encoding="utf-8")


def test_the_program_runs_without_the_collection_and_its_token_is_roots_alone(
    systemd: Systemd, program: str, tmp_path: Path
) -> None:
    result = start(systemd, program, tmp_path / "weights")
    assert result["status"]["state"] in ("moving", "failed")
    assert not result["changed"]
    job = tmp_path / "run" / "job.json"
    assert job.stat().st_mode & 0o777 == 0o600
    assert job.parent.stat().st_mode & 0o777 == 0o700
    assert not [words for words in systemd.calls if TOKEN in " ".join(words)]

    found = run(systemd, state="read", wait_s=600)["status"]
    assert found["state"] == "failed"
    assert "Nobody sent the hashes of the pieces." in found["message"]

    run(systemd, state="stopped")
    assert not (tmp_path / "run").exists()


def test_a_complete_node_serves_until_it_is_stopped(systemd: Systemd, program: str, tmp_path: Path) -> None:
    tree = tmp_path / "weights" / "org" / "model"
    tree.mkdir(parents=True)
    (tree / "config.json").write_bytes(b"{}")
    start(systemd, program, tmp_path / "weights", complete=True, missing=[])
    assert run(systemd, state="read", wait_s=600)["status"]["state"] == "complete"
    assert systemd.process is not None
    assert systemd.process.poll() is None
    run(systemd, state="stopped")
    assert systemd.process.poll() is not None


def test_a_unit_that_ended_unexpectedly_fails_with_its_last_lines(systemd: Systemd, tmp_path: Path) -> None:
    report(tmp_path, state="moving")
    found = run(systemd, state="read", wait_s=5)["status"]
    assert found["state"] == "failed"
    assert found["message"] == "The unit gb10-weights ended unexpectedly: its last words"


@pytest.mark.parametrize("active", ["active", "inactive"])
def test_a_unit_that_ends_between_the_two_looks_is_complete(systemd: Systemd, tmp_path: Path, active: str) -> None:
    """The end falls between the question whether the unit runs and the reading of its status."""
    report(tmp_path, state="moving")

    def end_meanwhile() -> dict[str, str]:
        report(tmp_path, state="complete")
        return {"ActiveState": active, "MainPID": "0", "NRestarts": "0"}

    systemd.show = end_meanwhile
    assert run(systemd, state="read", wait_s=0)["status"]["state"] == "complete"
    assert not [words for words in systemd.calls if words[0] == "journalctl"]


def test_a_systemd_that_does_not_answer_says_nothing_of_the_unit(
    systemd: Systemd, program: str, tmp_path: Path
) -> None:
    report(tmp_path, state="moving", have_bytes=7)
    systemd.show = dict
    assert run(systemd, state="read", wait_s=0)["status"]["state"] == "moving"
    looks = iter(range(10))

    def late() -> dict[str, str]:
        if next(looks) == 3:
            report(tmp_path, state="moving")
        return {}

    systemd.starts, systemd.show = False, late
    assert start(systemd, program, tmp_path / "weights", stall_s=600)["status"]["state"] == "moving"


def test_a_unit_that_still_moves_is_reported_as_such_after_the_wait(systemd: Systemd, tmp_path: Path) -> None:
    report(tmp_path, state="moving", have_bytes=7)
    systemd.show = lambda: {"ActiveState": "active", "MainPID": "0", "NRestarts": "0"}
    status = run(systemd, state="read", wait_s=0)["status"]
    assert (status["state"], status["have_bytes"]) == ("moving", 7)


def test_check_mode_starts_nothing(systemd: Systemd, program: str, tmp_path: Path) -> None:
    start(systemd, program, tmp_path / "weights", check=True)
    assert systemd.calls == []
    assert not (tmp_path / "run").exists()


def test_a_unit_that_does_not_start_is_named(systemd: Systemd, program: str, tmp_path: Path) -> None:
    systemd.starts = False
    result = start(systemd, program, tmp_path / "weights")
    assert result["msg"] == "The unit gb10-weights did not start: its last words"


def test_a_unit_that_dies_again_and_again_before_its_first_status_is_named(
    systemd: Systemd, program: str, tmp_path: Path
) -> None:
    systemd.starts = False
    restarts = iter("0123456789")
    systemd.show = lambda: {"ActiveState": "activating", "MainPID": "0", "NRestarts": next(restarts)}
    result = start(systemd, program, tmp_path / "weights", stall_s=600)
    assert result["msg"] == "The unit gb10-weights did not start: its last words"


def test_a_slow_start_is_waited_for_and_one_that_does_nothing_is_not(
    monkeypatch: pytest.MonkeyPatch, systemd: Systemd, program: str, tmp_path: Path
) -> None:
    """An hour passes with each look. As long as the processor time grows it is waited for."""
    systemd.starts = False
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    ticks = iter([*range(8), *([7] * 1000)])
    monkeypatch.setattr(weights_move, "cpu_ticks", lambda _unit: ("4711", next(ticks)))
    looks = []

    def look() -> dict[str, str]:
        looks.append(1)
        return {"ActiveState": "active", "MainPID": "4711", "NRestarts": "0"}

    systemd.show = look
    result = start(systemd, program, tmp_path / "weights", stall_s=2 * 3600)
    assert "The unit gb10-weights started and did nothing for 7200 s" in result["msg"]
    assert len(looks) > 8


def test_the_processor_time_is_that_of_the_units_main_process() -> None:
    pid, ticks = weights_move.cpu_ticks({"MainPID": str(os.getpid())})
    assert pid == str(os.getpid())
    assert ticks > 0
    assert weights_move.cpu_ticks({"MainPID": "0"}) == ("0", 0)
