# SPDX-License-Identifier: Apache-2.0
"""How the converge benchmark divides the time of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import HostStats, TaskEvent
from benchmarks import converge
from benchmarks.swap import Site
from lab.runs import RunResult


def task(host: str, name: str, seconds: float, outcome: str = "ok") -> TaskEvent:
    return TaskEvent("P", "host", name, host, "x", outcome, seconds, {})


RESULT = RunResult(
    rc=0,
    seconds=12.0,
    stats={"a": HostStats(ok=2), "b": HostStats(ok=2)},
    events=[task("a", "One", 1.0), task("b", "One", 3.0), task("a", "Two", 0.5), task("b", "Two", 0.5)],
)
EVENTS: Sequence[tuple[float, dict[str, Any]]] = [
    (1.0, {"event": "playbook_on_play_start", "event_data": {"name": "P"}}),
    (2.0, {"event": "playbook_on_task_start", "event_data": {"task": "One", "role": "host"}}),
    (3.0, {"event": "runner_on_ok", "event_data": {}}),
    (6.0, {"event": "playbook_on_task_start", "event_data": {"task": "Two", "role": "host"}}),
    (8.0, {"event": "playbook_on_play_start", "event_data": {"name": "Q"}}),
    (8.5, {"event": "playbook_on_play_start", "event_data": {"name": "Q"}}),
    (9.0, {"event": "playbook_on_stats", "event_data": {}}),
]


def timeline() -> converge.Timeline:
    now = 0.0
    line = converge.Timeline(lambda: now)
    for now, event in EVENTS:  # noqa: B007 - the clock reads it
        line.feed(event)
    return line


def test_a_task_lasts_until_the_next_begins() -> None:
    assert timeline().spans() == [
        ("P", "", 1.0),
        ("P", "host : One", 4.0),
        ("P", "host : Two", 2.0),
        ("Q", "", 0.5),
        ("Q", "", 0.5),
    ]


def test_figures_by_play_task_and_host() -> None:
    found = converge.figures(RESULT, timeline(), ping_seconds=2.0)
    assert (found["seconds"], found["tasks"], found["ping_rounds"]) == (12.0, 2, 6.0)
    assert found["by_play"] == {"P": [2, 7.0], "Q": [0, 1.0]}
    assert found["by_host"] == {"a": 1.5, "b": 3.5}
    assert found["longest"][0] == {"task": "host : One", "seconds": 4.0, "on_hosts": 3.0}
    text = converge.render("site.yml", found)
    assert "12.0 s, 2 tasks, 6.0 ping rounds of 2.0 s." in text
    assert "| P | 2 | 7.0 | 3.5 |" in text


@pytest.mark.parametrize(
    ("rc", "outcome", "words", "said"),
    [
        (0, "ok", [], ""),
        (0, "changed", [], "site.yml changed a: host : One: this site was not converged"),
        (0, "changed", ["--may-change"], ""),
        (2, "failed", [], "site.yml failed: exit status 2"),
    ],
)
def test_a_run_that_fails_or_changes_something_is_no_figure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rc: int,
    outcome: str,
    words: list[str],
    said: str,
) -> None:
    def run(*_given: Any, observer: Callable[[Mapping[str, Any]], None], **_options: Any) -> RunResult:
        for _at, event in EVENTS:
            observer(event)
        return RunResult(rc=rc, seconds=2.0, stats={}, events=[task("a", "One", 1.0, outcome)])

    monkeypatch.setattr(converge, "run_playbook", run)
    monkeypatch.setattr(Site, "ping", lambda self: 1.0)
    into = tmp_path / "figures.json"
    assert converge.main([*words, "--json", str(into)]) == (1 if said else 0)
    assert said in capsys.readouterr().err
    assert into.exists() is not bool(said)
