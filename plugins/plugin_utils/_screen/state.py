# SPDX-License-Identifier: Apache-2.0
"""Everything known of a playbook run so far, built from its events. No I/O.

An event is a mapping as ansible-runner emits it: ``event`` (playbook_on_task_start, runner_on_ok, ...), ``event_data``,
and for Ansible's own output ``stdout``. The callback gb10.cluster.screen makes the same mappings from Ansible's calls.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]

#: Events that close a task on a host, and the outcome that each stands for.
OUTCOMES = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
#: How many lines of a running task's own progress are kept.
PROGRESS_LINES = 6
OUTPUT_EVENTS = ("verbose", "debug", "error", "warning", "system_warning", "deprecated")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class HostStats:
    """Ansible's own closing counts of one host. As there, `ok` includes `changed`."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0


@dataclass(frozen=True)
class TaskEvent:
    """What one task did on one host.

    `outcome` is ok, changed, skipped, failed, ignored (failed with ignore_errors) or unreachable;
    `result` is the module's result, empty when the task has no_log.
    """

    play: str
    role: str
    task: str
    host: str
    action: str
    outcome: str
    seconds: float
    result: Mapping[str, Any] = field(repr=False)
    path: str = ""

    @property
    def title(self) -> str:
        """The task's name with its role, as Ansible prints it."""
        return f"{self.role} : {self.task}" if self.role else self.task

    @property
    def message(self) -> str:
        """The reason of a failure, or what the task said, in one text."""
        return message_of(self.result)


def message_of(result: Mapping[str, Any]) -> str:
    """Return the human part of a module's result: of the failed items of a loop, else its own."""
    items = result.get("results")
    if isinstance(items, list):
        failed = [item for item in items if isinstance(item, dict) and item.get("failed")]
        if failed:
            return "\n".join(message_of(item) for item in failed)
    parts: list[str] = []
    for key in ("msg", "stderr", "module_stderr", "stdout", "module_stdout"):
        value = result.get(key)
        if key.endswith("stdout") and parts and result.get("rc", 0) == 0:
            break
        if value not in (None, "", [], {}):
            if isinstance(value, list) and all(isinstance(line, str) for line in value):
                value = "\n".join(value)
            text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
            parts.append(text.strip("\n"))
    if not parts and "censored" in result:
        parts.append(str(result["censored"]))
    return "\n".join(part for part in parts if part)


def clean(text: str) -> str:
    """Return terminal output without escape sequences and carriage returns."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


@dataclass
class HostRow:
    """The state of one node while a playbook runs."""

    state: str = "waiting"
    task: str = ""
    since: float = 0.0
    ok: int = 0
    changed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass
class TaskRow:
    """The current task: its hosts by outcome, in the order of their reports."""

    title: str
    started: float
    outcomes: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    messages: dict[str, list[str]] = field(default_factory=dict)
    #: What the task prints while it runs: phases of an engine's start, bytes of a transfer.
    progress: deque[str] = field(default_factory=lambda: deque(maxlen=PROGRESS_LINES))
    ended: float | None = None

    def seconds(self, now: float) -> float:
        """Return how long the task lasted, or has lasted at `now`."""
        return (self.ended if self.ended is not None else now) - self.started

    def messages_of_success(self) -> list[tuple[str, list[str]]]:
        """Return (message, hosts) of what the task said without failing; failures are shown when they happen."""
        lost = {*self.outcomes.get("failed", []), *self.outcomes.get("unreachable", [])}
        return [(message, hosts) for message, hosts in self.messages.items() if not lost & set(hosts)]


class RunState:
    """Everything known of a run so far, built from ansible-runner's events by `feed`.

    `clock` gives seconds; tests pass their own.
    """

    def __init__(self, plays_total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.plays_total = plays_total
        self.play_number = 0
        self.play = ""
        self.task: TaskRow | None = None
        self.finished_tasks: deque[TaskRow] = deque(maxlen=200)
        self.hosts: dict[str, HostRow] = {}
        self.events: list[TaskEvent] = []
        self.stats: dict[str, HostStats] = {}
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.pid: int | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started

    def feed(self, event: Event) -> TaskEvent | None:
        """Take in one event; return the TaskEvent when it closes a task on a host."""
        kind = str(event.get("event", ""))
        data: Mapping[str, Any] = event.get("event_data") or {}
        if isinstance(event.get("pid"), int):
            self.pid = event["pid"]
        if kind == "playbook_on_play_start":
            self._close_task()
            self.play_number += 1
            self.play = str(data.get("name") or data.get("pattern") or "")
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._close_task()
            self.task = TaskRow(title_of(data), self.clock())
        elif kind == "runner_on_start":
            self._start_host(str(data["host"]))
        elif kind in OUTCOMES:
            return self._close_host(kind, data)
        elif kind == "playbook_on_stats":
            self._close_task()
            self.stats = stats_of(data)
            for name, stats in self.stats.items():
                row = self.hosts.setdefault(name, HostRow())
                row.ok, row.changed, row.skipped = stats.ok, stats.changed, stats.skipped
                row.failed = stats.failed + stats.unreachable
        elif kind in OUTPUT_EVENTS:
            self._note(kind, clean(str(event.get("stdout", ""))))
        return None

    def _note(self, kind: str, text: str) -> None:
        words = " ".join(text.split())
        if kind in ("warning", "system_warning", "deprecated") or re.match(r"\[(DEPRECATION )?WARNING\]", words):
            if words not in self.warnings:
                self.warnings.append(words)
        elif kind == "error" or words.startswith(("[ERROR]", "ERROR!")):
            self.errors.append(text.strip())
        elif kind == "verbose" and self.task is not None:
            self.task.progress.extend(line.strip() for line in text.splitlines() if line.strip())

    def _start_host(self, host: str) -> None:
        row = self.hosts.setdefault(host, HostRow())
        if self.task is not None:
            row.state, row.task, row.since = "running", self.task.title, self.clock()
            if host not in self.task.waiting:
                self.task.waiting.append(host)

    def _close_host(self, kind: str, data: Mapping[str, Any]) -> TaskEvent:
        result: Mapping[str, Any] = data.get("res") or {}
        outcome = OUTCOMES[kind]
        if outcome == "ok" and result.get("changed"):
            outcome = "changed"
        if outcome == "failed" and data.get("ignore_errors"):
            outcome = "ignored"
        closed = TaskEvent(
            play=str(data.get("play", "")),
            role=str(data.get("role") or ""),
            task=str(data.get("task", "")),
            host=str(data["host"]),
            action=str(data.get("resolved_action") or data.get("task_action", "")),
            outcome=outcome,
            seconds=float(data.get("duration") or 0.0),
            result=result,
            path=str(data.get("task_path") or ""),
        )
        self.events.append(closed)
        row = self.hosts.setdefault(closed.host, HostRow())
        row.state = outcome
        row.task = closed.title
        row.ok += outcome in ("ok", "changed", "ignored")
        row.changed += outcome == "changed"
        row.skipped += outcome == "skipped"
        row.failed += outcome in ("failed", "unreachable")
        if self.task is not None:
            self.task.outcomes.setdefault(outcome, []).append(closed.host)
            if closed.host in self.task.waiting:
                self.task.waiting.remove(closed.host)
            if outcome in ("failed", "unreachable") or result.get("_ansible_verbose_always"):
                self.task.messages.setdefault(closed.message, []).append(closed.host)
        return closed

    def _close_task(self) -> None:
        if self.task is not None:
            self.task.ended = self.clock()
            self.finished_tasks.append(self.task)
            self.task = None


def title_of(data: Mapping[str, Any]) -> str:
    """Return a task's name with its role, from an event's data."""
    task = str(data.get("task") or data.get("name") or "")
    return f"{data['role']} : {task}" if data.get("role") else task


def stats_of(data: Mapping[str, Any]) -> dict[str, HostStats]:
    """Return the closing counts by host from a playbook_on_stats event's data."""
    names = {
        "ok": "ok",
        "changed": "changed",
        "failures": "failed",
        "dark": "unreachable",
        "skipped": "skipped",
        "rescued": "rescued",
        "ignored": "ignored",
    }
    hosts: dict[str, dict[str, int]] = {host: {} for host in data.get("processed", {})}
    for key, name in names.items():
        for host, count in (data.get(key) or {}).items():
            hosts.setdefault(host, {})[name] = int(count)
    return {host: HostStats(**counts) for host, counts in sorted(hosts.items())}


def names(hosts: Sequence[str], limit: int = 8) -> str:
    """Return host names in one short phrase."""
    shown = " ".join(sorted(hosts)[:limit])
    return shown if len(hosts) <= limit else f"{shown} and {len(hosts) - limit} more"


def outcome_phrase(task: TaskRow) -> str:
    """Return e.g. 'ok 4', or 'changed 1 (gx10-1), ok 3': hosts are named when they differ."""
    mixed = len(task.outcomes) > 1
    order = ("unreachable", "failed", "ignored", "changed", "ok", "skipped")
    parts = []
    for outcome in order:
        hosts = task.outcomes.get(outcome, [])
        if hosts:
            who = f" ({names(hosts)})" if outcome in order[:3] or (mixed and outcome != "skipped") else ""
            parts.append(f"{outcome} {len(hosts)}{who}")
    return ", ".join(parts)


def closing_line(playbook: str, rc: int, seconds: float, stats: Mapping[str, HostStats]) -> str:
    """Return one line on a run that has ended: how, after how long, and the counts of each host."""
    counts = "; ".join(
        f"{host} ok {each.ok} changed {each.changed}"
        + (f" failed {each.failed}" if each.failed else "")
        + (f" UNREACHABLE {each.unreachable}" if each.unreachable else "")
        for host, each in stats.items()
    )
    word = "done" if rc == 0 else f"FAILED with exit status {rc}"
    return f"{playbook}: {word} in {seconds:.0f} s. {counts}".rstrip()
