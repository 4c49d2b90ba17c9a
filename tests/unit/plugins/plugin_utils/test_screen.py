# SPDX-License-Identifier: Apache-2.0
"""The state of a run, and how it is shown as lines and as a screen."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.lines import PlainLines
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.live import LiveScreen
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import (
    Event,
    HostStats,
    RunState,
    closing_line,
    message_of,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def event(kind: str, **data: Any) -> Event:
    return {"event": kind, "pid": 4711, "event_data": data}


def closing(kind: str, host: str, task: str, result: Mapping[str, Any] | None = None, **data: Any) -> Event:
    return event(kind, host=host, task=task, play="P", res=dict(result or {}), duration=1.5, **data)


def feed(state: RunState, *events: Event) -> None:
    for item in events:
        state.feed(item)


# --- The state -----------------------------------------------------------------------------


def test_outcomes_are_told_apart() -> None:
    state = RunState(clock=Clock())
    feed(
        state,
        event("playbook_on_play_start", name="P"),
        event("playbook_on_task_start", task="T", role="host"),
        closing("runner_on_ok", "a", "T", {"changed": False}, role="host"),
        closing("runner_on_ok", "b", "T", {"changed": True}, role="host"),
        closing("runner_on_failed", "c", "T", {"msg": "no"}, role="host"),
        closing("runner_on_failed", "d", "T", {"msg": "never mind"}, role="host", ignore_errors=True),
        closing("runner_on_skipped", "e", "T", role="host"),
        closing("runner_on_unreachable", "f", "T", {"msg": "gone"}, role="host"),
    )
    assert [(e.host, e.outcome) for e in state.events] == [
        ("a", "ok"),
        ("b", "changed"),
        ("c", "failed"),
        ("d", "ignored"),
        ("e", "skipped"),
        ("f", "unreachable"),
    ]
    assert {e.title for e in state.events} == {"host : T"}
    assert (state.hosts["b"].ok, state.hosts["b"].changed) == (1, 1)
    assert (state.hosts["f"].failed, state.hosts["d"].failed) == (1, 0)


def test_a_task_lasts_until_the_next_begins() -> None:
    clock = Clock()
    state = RunState(clock=clock)
    feed(state, event("playbook_on_task_start", task="Pull"), event("runner_on_start", host="a"))
    clock.now += 12
    assert state.task is not None
    assert state.task.waiting == ["a"]
    assert state.task.seconds(clock.now) == 12
    feed(state, closing("runner_on_ok", "a", "Pull"))
    assert state.task.waiting == []
    clock.now += 3
    feed(state, event("playbook_on_handler_task_start", task="Restart"))
    assert [(row.title, row.seconds(clock.now)) for row in state.finished_tasks] == [("Pull", 15.0)]


def test_ansibles_own_counts_replace_the_running_ones() -> None:
    state = RunState(clock=Clock())
    feed(
        state,
        closing("runner_on_failed", "a", "T", {"msg": "rescued later"}),
        event(
            "playbook_on_stats",
            ok={"a": 3},
            changed={"a": 1},
            failures={},
            dark={"b": 1},
            rescued={"a": 1},
            skipped={},
            ignored={},
            processed={"a": 1, "b": 1, "c": 1},
        ),
    )
    assert state.stats["a"].rescued == 1
    assert state.stats["a"].failed == 0
    assert state.stats["b"].unreachable == 1
    assert state.stats["c"].ok == 0
    assert state.hosts["a"].failed == 0


def test_warnings_are_kept_once_and_errors_whole() -> None:
    state = RunState(clock=Clock())
    warning = {"event": "warning", "stdout": "\x1b[1;35m[WARNING]: Something is\r\nodd\x1b[0m", "event_data": {}}
    feed(state, warning, warning)
    feed(state, {"event": "verbose", "stdout": "[ERROR]: A play is broken\r\nin line 3", "event_data": {}})
    assert state.warnings == ["[WARNING]: Something is odd"]
    assert state.errors == ["[ERROR]: A play is broken\nin line 3"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "plain"}, "plain"),
        ({"msg": ["two", "lines"]}, "two\nlines"),
        ({"msg": {"a": 1}}, '{\n  "a": 1\n}'),
        ({"msg": "exit code", "rc": 3, "stderr": "why\n", "stdout": "what\n"}, "exit code\nwhy\nwhat"),
        ({"msg": "", "rc": 0, "stdout": "said"}, "said"),
        ({"msg": "fine", "rc": 0, "stdout": "noise"}, "fine"),
        ({"msg": "All items", "results": [{"msg": "one"}, {"failed": True, "msg": "two"}]}, "two"),
        ({"censored": "hidden"}, "hidden"),
        ({}, ""),
    ],
)
def test_message_of(result: Mapping[str, Any], message: str) -> None:
    assert message_of(result) == message


# --- The views -----------------------------------------------------------------------------


def plain_output(events: list[Event], **state_options: Any) -> str:
    state = RunState(clock=Clock(), **state_options)
    text = io.StringIO()
    view = PlainLines(state, lambda line: print(line, file=text), heartbeat_seconds=3600)
    view.start()
    for item in events:
        view.show(item, state.feed(item))
    view.stop()
    return text.getvalue()


def test_plain_lines_name_hosts_only_where_they_differ() -> None:
    text = plain_output(
        [
            event("playbook_on_play_start", name="Provision"),
            event("playbook_on_task_start", task="Same"),
            closing("runner_on_ok", "a", "Same"),
            closing("runner_on_ok", "b", "Same"),
            event("playbook_on_task_start", task="Different"),
            closing("runner_on_ok", "a", "Different", {"changed": True}),
            closing("runner_on_ok", "b", "Different"),
            event("playbook_on_task_start", task="Nobody"),
            closing("runner_on_skipped", "a", "Nobody"),
            event("playbook_on_stats", processed={}),
        ],
        plays_total=3,
    )
    lines = text.splitlines()
    assert "play 1/3  Provision" in lines[0]
    assert lines[1].endswith("s  ok 2")
    assert lines[2].endswith("s  changed 1 (a), ok 1 (b)")
    assert len(lines) == 3


def test_plain_lines_show_failures_at_once_and_whole() -> None:
    state = RunState(clock=Clock())
    text = io.StringIO()
    view = PlainLines(state, lambda line: print(line, file=text), heartbeat_seconds=3600)
    feed(state, event("playbook_on_task_start", task="Check"))
    failed = closing("runner_on_failed", "gx10-2", "Check", {"msg": "disk full\nfree 3 GiB [of] 4"})
    view.show(failed, state.feed(failed))
    assert "FAILED on gx10-2: Check" in text.getvalue()
    assert "free 3 GiB [of] 4" in text.getvalue()


def progress(text: str) -> Event:
    return {"event": "verbose", "stdout": text, "event_data": {}}


def test_what_a_task_prints_while_it_runs_is_shown() -> None:
    text = plain_output(
        [
            progress("Using ansible.cfg"),
            event("playbook_on_task_start", task="Wait for the engine"),
            event("runner_on_start", host="gx10-1"),
            progress("\x1b[0m  gx10-1 loads weights, 3 of 12\r\n"),
            closing("runner_on_ok", "gx10-1", "Wait for the engine"),
        ]
    )
    assert "gx10-1 loads weights, 3 of 12" in text
    assert "ansible.cfg" not in text


def test_the_screen_shows_the_newest_progress_of_the_running_task_alone() -> None:
    state = RunState(clock=Clock())
    feed(state, event("playbook_on_task_start", task="Wait"), event("runner_on_start", host="a"))
    feed(state, *(progress(f"shard {number} of 40") for number in range(40)))
    text = io.StringIO()
    console = Console(file=text, width=100, height=24, force_terminal=True, color_system=None)
    screen = LiveScreen(state, console, "site.yml")
    console.print(screen.render())
    assert "shard 39 of 40" in text.getvalue()
    assert "shard 33 of 40" not in text.getvalue()
    assert len(text.getvalue().splitlines()) <= 24
    feed(state, closing("runner_on_ok", "a", "Wait"), event("playbook_on_task_start", task="Next"))
    text.truncate(0)
    console.print(screen.render())
    assert "shard" not in text.getvalue()


def test_plain_lines_give_signs_of_life() -> None:
    state = RunState()
    text = io.StringIO()
    view = PlainLines(state, lambda line: print(line, file=text), heartbeat_seconds=0.05)
    feed(state, event("playbook_on_task_start", task="Pull"), event("runner_on_start", host="gx10-3"))
    view.start()
    deadline = time.monotonic() + 120
    while "so far" not in text.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    view.stop()
    assert re.search(r"\.\.\. Pull: \d+ s so far, waiting for gx10-3", text.getvalue())


def test_live_screen_fits_its_terminal() -> None:
    clock = Clock()
    state = RunState(plays_total=9, clock=clock)
    feed(state, event("playbook_on_play_start", name="Serve"))
    for number in range(40):
        feed(state, event("playbook_on_task_start", task=f"Task {number}"))
        for host in ("gx10-1", "gx10-2", "gx10-3", "gx10-4"):
            feed(state, event("runner_on_start", host=host))
            if number < 39:
                feed(state, closing("runner_on_ok", host, f"Task {number}"))
    for number in range(9):
        feed(state, {"event": "warning", "stdout": f"[WARNING]: number {number}", "event_data": {}})
    clock.now += 75
    text = io.StringIO()
    console = Console(file=text, width=100, height=24, force_terminal=True, color_system=None)
    console.print(LiveScreen(state, console, "site.yml on inventories/lab").render())
    lines = text.getvalue().splitlines()
    assert len(lines) <= 24
    assert "play 1 of 9: Serve" in lines[0]
    assert sum("gx10-" in line and "running" in line and "Task 39" in line for line in lines) == 4
    assert any("[WARNING]: number 8" in line for line in lines)
    assert "1:15" in lines[-1]


def test_the_closing_line_names_what_failed() -> None:
    stats = {"a": HostStats(ok=3, changed=1), "b": HostStats(ok=1, failed=1), "c": HostStats(unreachable=1)}
    assert closing_line("site.yml", 4, 61.4, stats) == (
        "site.yml: FAILED with exit status 4 in 61 s. "
        "a ok 3 changed 1; b ok 1 changed 0 failed 1; c ok 0 changed 0 UNREACHABLE 1"
    )
    assert closing_line("site.yml", 0, 2.0, {}) == "site.yml: done in 2 s."
