# SPDX-License-Identifier: Apache-2.0
"""The run state, the two views, and real runs of small playbooks on this host."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.screen import (
    RC_KILLED,
    REPO,
    Event,
    LiveScreen,
    PlainLines,
    RunResult,
    RunState,
    TaskEvent,
    count_plays,
    message_of,
    parse_extra_vars,
    run_playbook,
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
    view = PlainLines(state, Console(file=text, width=200), heartbeat_s=3600)
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
    view = PlainLines(state, Console(file=text, width=200), heartbeat_s=3600)
    feed(state, event("playbook_on_task_start", task="Check"))
    failed = closing("runner_on_failed", "gx10-2", "Check", {"msg": "disk full\nfree 3 GiB [of] 4"})
    view.show(failed, state.feed(failed))
    assert "FAILED on gx10-2: Check" in text.getvalue()
    assert "free 3 GiB [of] 4" in text.getvalue()


def test_plain_lines_give_signs_of_life() -> None:
    state = RunState()
    text = io.StringIO()
    view = PlainLines(state, Console(file=text, width=200), heartbeat_s=0.05)
    feed(state, event("playbook_on_task_start", task="Pull"), event("runner_on_start", host="gx10-3"))
    view.start()
    deadline = time.monotonic() + 10
    while "so far" not in text.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    view.stop()
    assert "... Pull: 0 s so far, waiting for gx10-3" in text.getvalue()


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


# --- Counting plays, reading variables ------------------------------------------------------


def test_count_plays_follows_imports(tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "site.yml").write_text("- hosts: all\n- hosts: b\n  vars: {x: !vault abc}\n")
    (tmp_path / "site.yml").write_text(
        "- ansible.builtin.import_playbook: playbooks/site.yml\n- import_playbook: gb10.cluster.site\n- hosts: c\n"
    )
    assert count_plays(tmp_path / "site.yml", tmp_path) == 5
    assert count_plays("gb10.cluster.site", tmp_path) == 2


def test_count_plays_admits_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("- import_playbook: '{{ which }}.yml'\n")
    assert count_plays(tmp_path / "a.yml", tmp_path) is None
    assert count_plays("other.collection.book", tmp_path) is None


def test_extra_vars_as_ansible_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "vars.yml"
    file.write_text("b: 2\n")
    assert parse_extra_vars(["model=x name='a b'", f"@{file}", '{"c": {"d": 4}}']) == {
        "model": "x",
        "name": "a b",
        "b": 2,
        "c": {"d": 4},
    }


# --- Real runs ------------------------------------------------------------------------------

PLAYBOOK = """\
- name: First play
  hosts: all
  gather_facts: false
  tasks:
    - name: Say what was given
      ansible.builtin.debug:
        msg: "{{ word }}"
    - name: Write a file
      ansible.builtin.copy:
        content: "{{ word }}"
        dest: "{{ target }}/{{ inventory_hostname }}"
        mode: "0644"
    - name: Hide the result
      ansible.builtin.command: "echo {{ secret | default('') }}"
      no_log: true
      changed_when: false
- name: Second play
  hosts: b
  gather_facts: false
  tasks:
    - name: Refuse
      ansible.builtin.fail:
        msg: "b has {{ 3 }} GiB, 5 are needed"
      when: refuse | default(false)
      tags: refuse
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a playbook and an inventory of two local hosts."""
    (tmp_path / "book.yml").write_text(PLAYBOOK)
    (tmp_path / "hosts.yml").write_text(
        "all:\n  hosts: {a: , b: }\n"
        "  vars: {ansible_connection: local, ansible_python_interpreter: '{{ ansible_playbook_python }}'}\n"
    )
    return tmp_path


def run(here: Path, extravars: Mapping[str, Any] | None = None, **options: Any) -> RunResult:
    given = {"word": "hello", "target": str(here), **(extravars or {})}
    return run_playbook(
        "book.yml", "hosts.yml", given, **{"cwd": here, "runs_dir": here / "runs", "quiet": True, **options}
    )


def test_a_run_answers_questions(here: Path) -> None:
    seen: list[str] = []
    first = run(here, {"secret": "hunter2"}, observer=lambda e: seen.append(str(e["event"])))
    assert first.rc == 0, first.describe()
    assert first.hosts == ["a", "b"]
    assert (first.changed("a"), first.changed("b")) == (1, 1)
    assert first.changed_tasks("a") == ["a: Write a file"]
    assert first.messages("Say what was given", "b") == ["hello"]
    assert "playbook_on_stats" in seen
    with pytest.raises(KeyError, match="gx10-9 took no part in this run; these did: a, b"):
        first.changed("gx10-9")

    second = run(here)
    assert second.changed_tasks() == []
    assert second.ok("b") == 3

    preview = run(here, {"word": "other"}, check=True, diff=True, limit="a", skip_tags="refuse")
    assert preview.changed_tasks() == ["a: Write a file"]
    assert [(d["before"], d["after"]) for d in preview.diffs("a")] == [("hello", "other")]
    assert (here / "a").read_text() == "hello"
    assert preview.hosts == ["a"]


def test_a_run_is_told_in_lines_and_keeps_nothing_secret(here: Path) -> None:
    text = io.StringIO()
    result = run(
        here, {"secret": "hunter2"}, env={"HF_TOKEN": "hunter3"}, quiet=False, console=Console(file=text, width=200)
    )
    assert result.rc == 0, result.describe()
    assert "play 1/2  First play" in text.getvalue()
    assert "changed 2" in text.getvalue()
    assert "a b: hello" in text.getvalue()
    assert "book.yml: done in" in text.getvalue()

    kept = [path for path in (here / "runs").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["ansible.log", "summary.json"]
    for path in kept:
        assert "hunter" not in path.read_text()
    assert "hunter" not in text.getvalue()
    assert stat.S_IMODE(result.log.stat().st_mode) == 0o600
    summary = json.loads((result.log.parent / "summary.json").read_text())
    assert summary["stats"]["a"]["changed"] == 1
    assert ["a", "Write a file", "changed"] in [task[:3] for task in summary["tasks"]]


def test_a_failure_names_host_and_reason(here: Path) -> None:
    result = run(here, {"refuse": True}, tags="refuse")
    assert result.rc == 2
    assert result.failed("b") == 1
    assert result.failed_messages("b") == ["b has 3 GiB, 5 are needed"]
    assert [(e.play, e.task, e.path.rsplit(":")[0]) for e in result.failures()] == [
        ("Second play", "Refuse", str(here / "book.yml"))
    ]
    assert "failed on b: Refuse" in result.describe()
    assert "FAILED!" in result.output()


def test_a_broken_playbook_is_reported_with_ansibles_words(here: Path) -> None:
    (here / "book.yml").write_text("- hosts: all\n  taskz: []\n")
    result = run(here)
    assert result.rc != 0
    assert result.stats == {}
    assert any("taskz" in message for message in result.failed_messages())


def test_host_keys_stay_verified(here: Path) -> None:
    (here / "book.yml").write_text(
        "- hosts: a\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.debug:\n"
        "        msg: \"{{ lookup('ansible.builtin.config', 'HOST_KEY_CHECKING') }}\"\n"
    )
    result = run(here)
    assert [event.result["msg"] for event in result.events] == [True]


def test_an_observer_that_fails_ends_the_run(here: Path) -> None:
    def observe(event: Event) -> None:
        raise ValueError(f"the observer is broken, at {event['event']}")

    with pytest.raises(ValueError, match="the observer is broken"):
        run(here, observer=observe)


def playbook_processes(here: Path) -> list[int]:
    """Return the ansible-playbook processes, workers included, of the playbook of a test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(here / "book.yml").encode() in words:
            found.append(int(path.parent.name))
    return found


def sleeper(here: Path) -> None:
    (here / "book.yml").write_text(
        "- hosts: a\n  gather_facts: false\n  tasks:\n"
        "    - name: Sleep\n      ansible.builtin.command: sleep 30\n      changed_when: false\n"
    )


def test_a_run_is_killed_on_request(here: Path) -> None:
    sleeper(here)
    reached: list[TaskEvent | str] = []

    def observe(event: Event) -> None:
        if event["event"] == "runner_on_start":
            reached.append("Sleep")

    start = time.monotonic()
    result = run(here, observer=observe, cancel=lambda: bool(reached))
    assert result.rc == RC_KILLED
    assert time.monotonic() - start < 60
    assert playbook_processes(here) == []


def test_a_run_is_killed_at_its_time_limit(here: Path) -> None:
    sleeper(here)
    result = run(here, timeout_s=0.5)
    assert result.rc == RC_KILLED
    assert result.stats == {}


@pytest.mark.parametrize(
    ("number", "status", "delay_s"), [(signal.SIGINT, 130, 0.0), (signal.SIGINT, 130, 3.0), (signal.SIGTERM, 143, 1.0)]
)
def test_an_interrupted_run_leaves_no_ansible_behind(here: Path, number: int, status: int, delay_s: float) -> None:
    sleeper(here)
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.screen", "book.yml", "-i", "hosts.yml"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    deadline = time.monotonic() + 60
    while not playbook_processes(here) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(delay_s)
    process.send_signal(number)
    output, _nothing = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert playbook_processes(here) == []
