# SPDX-License-Identifier: Apache-2.0
"""A load on an idle GPU: it runs while the clock is read, is gone afterwards, and says why there was none."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu_load import (
    CONTAINER,
    PROGRAM,
    load_command,
    loaded,
)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that notes how it is called."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "called"


def python(text: str) -> list[str]:
    return [sys.executable, "-u", "-c", text]


def test_the_load_runs_during_the_block_and_its_container_is_removed(docker: Path, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    note = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid()))"
    text = f"{note}; print('a warning\\nbusy'); time.sleep(600)"
    with loaded(python(text)) as reason:
        assert reason == ""
        process = Path("/proc", noted.read_text(encoding="utf-8"))
        assert process.exists()
    assert not process.exists()
    assert docker.read_text(encoding="utf-8") == f"rm --force {CONTAINER}\n"


@pytest.mark.parametrize(
    ("command", "silence_s", "reason"),
    [
        (python("print('Unable to find image'); raise SystemExit(125)"), 60.0, "printed: Unable to find image"),
        (python("import time; time.sleep(60)"), 0.3, "printed: nothing for 0 s"),
        (["/no/such/docker"], 60.0, "/no/such/docker: No such file or directory"),
    ],
)
@pytest.mark.usefixtures("docker")
def test_why_there_is_no_load(command: list[str], silence_s: float, reason: str) -> None:
    with loaded(command, silence_s) as found:
        assert found.endswith(reason)


def test_without_a_command_nothing_runs(docker: Path) -> None:
    with loaded([]) as reason:
        assert reason == ""
    assert not docker.exists()


def test_the_load_fetches_nothing_and_reaches_nothing() -> None:
    command = load_command("gb10/vllm-node:0123456789ab", ["--runtime", "nvidia"])
    assert command[:2] == ["docker", "run"]
    for words in (("--pull", "never"), ("--network", "none"), ("--runtime", "nvidia"), ("--name", CONTAINER)):
        assert words in pairwise(command)
    assert command[-3:] == ["gb10/vllm-node:0123456789ab", "-c", PROGRAM]
    compile(PROGRAM, "load", "exec")
