# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_move lays out for the unit, and what it tells of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.modules import weights_move

PIECES = hashlib.sha256(b"{}").digest()
FILES = [{"path": "config.json", "size": 2, "sha256": PIECES.hex()}]
MANIFEST = weights.make_manifest("org/model", "main", FILES, 2**20, PIECES)
TOKEN = "a-secret-token"


class EndedError(Exception):
    """Carries what a module would have printed."""


class Systemd:
    """Answers for systemctl, systemd-run and journalctl; `starts` runs what systemd-run is given."""

    def __init__(self, starts: bool = True) -> None:
        self.starts = starts
        self.calls: list[list[str]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def run_command(self, words: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        self.calls.append(words)
        if words[0] == "systemd-run" and self.starts:
            library = next(word for word in words if word.startswith("PYTHONPATH=")).partition("=")[2]
            command = words[words.index("-B") - 1 :]
            # Without this repository: what was laid out has to do.
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": library}
            self.process = subprocess.Popen(command, env=env, cwd="/")
        active = self.process is not None and self.process.poll() is None
        if words[:2] == ["systemctl", "is-active"]:
            return 0, "active\n" if active else "inactive\n", ""
        if words[:2] == ["systemctl", "stop"] and self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
        if words[0] == "journalctl":
            return 0, "its last words\n", ""
        return 0, "", ""


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    made = Systemd()
    monkeypatch.setattr(weights_move, "RUN_DIR", tmp_path / "run")
    return made


def run(monkeypatch: pytest.MonkeyPatch, systemd: Systemd, check: Any = False, **args: Any) -> dict[str, Any]:
    def end(_self: object, **result: Any) -> None:
        raise EndedError(result)

    def command(_self: object, words: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        return systemd.run_command(words, check_rc)

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", end)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", end)
    monkeypatch.setattr(basic.AnsibleModule, "run_command", command)
    with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(EndedError) as ended:
        weights_move.main()
    result: dict[str, Any] = ended.value.args[0]
    return result


def start(monkeypatch: pytest.MonkeyPatch, systemd: Systemd, root: Path, **changes: Any) -> dict[str, Any]:
    args = {
        "state": "started", "run": "one", "root": str(root), "manifest": MANIFEST, "lacking": ["config.json"],
        "chain": ["a", "b"], "name": "b", "addresses": {"a": "127.0.0.21", "b": "127.0.0.22"}, "port": 5391,
        "token": TOKEN, "patience_s": 1,
    }  # fmt: skip
    return run(monkeypatch, systemd, **{**args, **changes})


def test_what_is_laid_out_runs_by_itself_and_its_token_is_roots_alone(
    monkeypatch: pytest.MonkeyPatch, systemd: Systemd, tmp_path: Path
) -> None:
    result = start(monkeypatch, systemd, tmp_path / "weights")
    assert result["status"]["state"] == "moving"
    assert not result["changed"]
    job = tmp_path / "run" / "job.json"
    assert job.stat().st_mode & 0o777 == 0o600
    assert job.parent.stat().st_mode & 0o777 == 0o700
    assert not [words for words in systemd.calls if TOKEN in " ".join(words)]

    found = run(monkeypatch, systemd, state="read", wait_s=30)["status"]
    assert found["state"] == "failed"
    assert "Nobody sent the hashes of the pieces." in found["message"]

    run(monkeypatch, systemd, state="stopped")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lib"]


def test_a_node_that_is_whole_serves_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, systemd: Systemd, tmp_path: Path
) -> None:
    tree = tmp_path / "weights" / "org" / "model"
    tree.mkdir(parents=True)
    (tree / "config.json").write_bytes(b"{}")
    start(monkeypatch, systemd, tmp_path / "weights", complete=True, lacking=[])
    assert run(monkeypatch, systemd, state="read", wait_s=10)["status"]["state"] == "whole"
    assert systemd.process is not None
    assert systemd.process.poll() is None
    run(monkeypatch, systemd, state="stopped")
    assert systemd.process.poll() is not None


def test_a_unit_that_ended_by_itself_fails_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, systemd: Systemd, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "status.json").write_text(json.dumps({"state": "moving", "message": ""}), encoding="utf-8")
    found = run(monkeypatch, systemd, state="read", wait_s=5)["status"]
    assert found["state"] == "failed"
    assert found["message"] == "The unit gb10-weights ended by itself: its last words"


def test_check_mode_starts_nothing(monkeypatch: pytest.MonkeyPatch, systemd: Systemd, tmp_path: Path) -> None:
    start(monkeypatch, systemd, tmp_path / "weights", check=True)
    assert systemd.calls == []
    assert not (tmp_path / "run").exists()


def test_a_unit_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, systemd: Systemd, tmp_path: Path) -> None:
    systemd.starts = False
    clock = iter(range(0, 100, 9))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    result = start(monkeypatch, systemd, tmp_path / "weights")
    assert result["msg"] == "The unit gb10-weights did not start: its last words"
