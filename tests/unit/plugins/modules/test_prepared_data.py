# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.prepared_data: data is complete or not there, with a stand-in for docker that runs the command here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import prepared
from ansible_collections.gb10.cluster.plugins.modules import prepared_data, weights_manifest
from tests.unit.helper import run_module

REPO = "gb10-prepared/m.rows"
#: Notes each call; `run` executes what stands in for the image's program, in the directory that is mounted for output.
DOCKER = """#!/usr/bin/env python3
import json, os, subprocess, sys
with open({calls!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["image", "inspect"]:
    sys.exit(0 if sys.argv[3] == "gb10/i:1" else 1)
if sys.argv[1] == "run":
    output = next(word for word in sys.argv if word.endswith(":/gb10-output")).rsplit(":", 1)[0]
    at = sys.argv.index("--entrypoint")
    sys.exit(subprocess.call([sys.argv[at + 1], *sys.argv[at + 3:]], cwd=output))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for docker first on the path; return the file with its calls."""
    log = tmp_path / "calls"
    log.touch()
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin/docker"
    docker.write_text(DOCKER.format(calls=str(log)), encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return log


def make(tmp_path: Path, script: str, *, check: bool = False, **more: Any) -> dict[str, Any]:
    model = tmp_path / "weights/org/model"
    model.mkdir(parents=True, exist_ok=True)
    asked = {
        "repo": REPO,
        "root": str(tmp_path / "weights"),
        "key": "k1",
        "image": "gb10/i:1",
        "command": ["sh", "-c", script],
        "env": {"THREADS": "2"},
        "mounts": {str(model): "/root/.cache/huggingface/org/model"},
        "docker_args": ["--memory", "8g"],
        "size_gib": 0.001,
        "reserve_gib": 0.0,
    }
    return run_module(prepared_data, {**asked, **more}, check=check)


def made(tmp_path: Path) -> Path:
    return tmp_path / "weights/.incoming" / REPO


def test_data_is_made_once(tmp_path: Path, calls: Path) -> None:
    result = make(tmp_path, "mkdir a; echo rows > a/rows.bin; echo done")
    assert (result["changed"], result["path"]) == (True, str(made(tmp_path)))
    assert (made(tmp_path) / "a/rows.bin").read_text(encoding="utf-8") == "rows\n"
    (run,) = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines() if '"run"' in line]
    assert run[:6] == ["run", "--rm", "--name", "gb10-prepare-m.rows", "--network", "none"]
    assert run[6:8] == ["--memory", "8g"]
    assert f"{tmp_path}/weights/org/model:/root/.cache/huggingface/org/model:ro" in run
    assert run[run.index("--env") + 1] == "THREADS=2"
    assert make(tmp_path, "false")["changed"] is False


def test_what_is_listed_of_it_is_all_but_our_own_file(tmp_path: Path, calls: Path) -> None:
    del calls
    make(tmp_path, "mkdir a; echo rows > a/rows.bin; echo x > config.json")
    asked = {"path": str(made(tmp_path)), "repo": REPO, "revision": "k1", "cache": str(tmp_path / "cache")}
    manifest = run_module(weights_manifest, {**asked, "all_files": True})["manifest"]
    assert [file["path"] for file in manifest["files"]] == ["a/rows.bin", "config.json"]
    assert weights.manifest_error(manifest) is None


def test_data_of_another_key_is_made_anew(tmp_path: Path, calls: Path) -> None:
    del calls
    make(tmp_path, "echo old > old")
    result = make(tmp_path, "echo new > new", key="k2")
    assert result["changed"]
    assert sorted(path.name for path in made(tmp_path).iterdir()) == [weights.MADE, "new"]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo half > rows; echo no memory >&2; exit 3", "it ended with exit code 3: no memory"),
        ("exit 1", "it ended with exit code 1: without output"),
        ("echo fine", "it ended well and has written nothing below /gb10-output: fine"),
    ],
)
def test_half_made_data_is_never_there(tmp_path: Path, calls: Path, script: str, sentence: str) -> None:
    del calls
    result = make(tmp_path, script)
    assert result["failed"]
    assert sentence in result["msg"]
    assert not made(tmp_path).exists()
    assert not made(tmp_path).with_name("m.rows.half").exists()


def test_what_an_interrupted_run_left_is_made_anew(tmp_path: Path, calls: Path) -> None:
    del calls
    for folder in (made(tmp_path), made(tmp_path).with_name("m.rows.half")):
        folder.mkdir(parents=True)
        (folder / "partial").write_text("x", encoding="utf-8")
    assert make(tmp_path, "echo rows > rows")["changed"]
    assert sorted(path.name for path in made(tmp_path).iterdir()) == [weights.MADE, "rows"]


def test_a_command_without_progress_is_ended(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LOOK_SECONDS", 0.05)
    result = make(tmp_path, "sleep 60", stall_seconds=0)
    assert result["failed"]
    assert "it wrote neither data nor output for 0 s and was ended" in result["msg"]
    # Before the command and at its end; what the command notes may come after that.
    assert calls.read_text(encoding="utf-8").count('["rm", "--force", "gb10-prepare-m.rows"]') == 2


def test_room_is_checked_before_anything_is_removed(tmp_path: Path, calls: Path) -> None:
    make(tmp_path, "echo old > old")
    result = make(tmp_path, "echo new > new", key="k2", size_gib=10**9)
    assert "short of room for gb10-prepared/m.rows, 1e+09 GiB, with 0 GiB to remain" in result["msg"]
    assert (made(tmp_path) / "old").is_file()
    assert calls.read_text(encoding="utf-8").count('"run"') == 1


def test_what_it_needs_is_named(tmp_path: Path, calls: Path) -> None:
    del calls
    absent = make(tmp_path, "true", image="gb10/other:1")
    assert (
        absent["msg"] == "gb10/other:1, which makes gb10-prepared/m.rows, is not on this node: run playbooks/image.yml."
    )
    weightless = make(tmp_path, "true", mounts={"/nowhere": "/m"})
    assert weightless["msg"] == "gb10-prepared/m.rows is made from /nowhere, which is not on this node."
    assert make(tmp_path, "true", repo="../x")["failed"]


def test_check_mode_makes_nothing(tmp_path: Path, calls: Path) -> None:
    for more in ({}, {"image": "gb10/other:1"}, {"mounts": {"/nowhere": "/m"}}):
        assert make(tmp_path, "echo rows > rows", check=True, **more)["changed"]
    assert not made(tmp_path).exists()
    assert '"run"' not in calls.read_text(encoding="utf-8")
