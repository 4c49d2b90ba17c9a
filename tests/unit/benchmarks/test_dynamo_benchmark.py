# SPDX-License-Identifier: Apache-2.0
"""What the benchmark against Dynamo's frontend reads of both clients, and when it fails; nothing is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.trace import parse_trace, shared_share
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.bench import PUBLISHED_AIPERF
from benchmarks import dynamo as benchmark
from lab.kube import frontend
from lab.kube.server import KubeError

OURS = {
    "output_tokens_per_s": 50.0,
    "duration_s": {"mean": 6.0},
    "tpot_s": {"mean": 0.07},
    "ttft_s": {"mean": 0.3},
}
THEIRS = {
    "output_tokens_per_s": {"avg": 49.0},
    "latency": {"avg": 6100.0},
    "inter_token_latency": {"avg": 71.0},
    "ttft": {"avg": 310.0},
}


def test_both_are_read_in_the_same_units() -> None:
    assert benchmark.ours(OURS) == pytest.approx([50.0, 6.0, 70.0, 300.0])
    assert benchmark.theirs(THEIRS) == pytest.approx([49.0, 6.1, 71.0, 310.0])


def test_the_medians_are_compared_and_each_figure_has_its_bound() -> None:
    mine = [[50.0, 6.0, 70.0, 300.0], [10.0, 60.0, 700.0, 3000.0], [50.0, 6.0, 70.0, 300.0]]
    other = [[50.0, 6.0, 70.0, 300.0]] * 3
    assert [row[2:] for row in benchmark.verdicts(mine, other)] == [(0.0, True)] * 4
    for at, figure in enumerate(benchmark.FIGURES):
        beyond = [list(other[0]) for _each in range(3)]
        for each in beyond:
            each[at] *= 1 + figure.bound + 0.01
        assert [row[3] for row in benchmark.verdicts(beyond, other)] == [number != at for number in range(4)]


def test_the_bounds_are_those_that_were_asked_for() -> None:
    assert [figure.bound for figure in benchmark.FIGURES] == [0.05, 0.05, 0.08, 0.15]


def test_the_trace_has_conversations_that_share_their_beginning() -> None:
    rows = parse_trace(benchmark.trace().splitlines())
    assert len(rows) == benchmark.REQUESTS
    assert shared_share(rows) > 0.3
    assert benchmark.trace() == benchmark.trace()


def test_the_script_of_the_job_runs_in_a_directory_of_its_own(tmp_path: Path) -> None:
    script = benchmark.job_script(benchmark.target(), benchmark.trace(), "http://127.0.0.1:1", tmp_path, tmp_path / "m")
    assert "/opt/models" not in script
    assert "-frontend:8000" not in script
    assert f"cat {tmp_path}/trace/*/part-*" in script
    assert (tmp_path / "trace" / "000" / "part-000").is_file()
    assert "aiperf==0.8.0" in script


def test_the_pinned_aiperf_is_the_one_of_the_published_rows() -> None:
    assert frontend.version("aiperf", "aiperf") == PUBLISHED_AIPERF
    assert frontend.version("frontend", "ai-dynamo") == frontend.version("frontend", "ai-dynamo-runtime")


def test_an_environment_belongs_to_its_lock_and_its_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(frontend, "CACHE", tmp_path)
    first = frontend.environment("frontend")
    assert frontend.find("frontend") is None
    first.mkdir()
    assert frontend.find("frontend") is None
    (first / ".complete").touch()
    assert frontend.find("frontend") == first
    monkeypatch.setattr(sys, "version", "3.99")
    assert frontend.environment("frontend") != first
    with pytest.raises(KubeError, match="`make bench-dynamo` installs it"), frontend.serving(tmp_path / "x", "m"):
        pass


def test_an_installation_that_fails_says_why_and_leaves_nothing_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(frontend, "CACHE", tmp_path)
    lock = tmp_path / "lock.txt"
    lock.write_text("no such package\n", encoding="utf-8")
    monkeypatch.setitem(frontend.LOCKS, "frontend", lock)
    said: list[str] = []
    with pytest.raises(KubeError, match="ended with"):
        frontend.install("frontend", said.append)
    assert frontend.find("frontend") is None
    assert "lock.txt" in said[0]


def test_the_mockers_tokens_are_in_the_vocabulary(tmp_path: Path) -> None:
    at = frontend.model_directory(tmp_path)
    found: dict[str, Any] = json.loads((at / "tokenizer.json").read_text(encoding="utf-8"))
    numbers = set(found["model"]["vocab"].values())
    assert numbers == set(range(frontend.VOCABULARY))
    assert not list(at.glob("*.safetensors*"))
