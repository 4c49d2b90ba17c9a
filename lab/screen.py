# SPDX-License-Identifier: Apache-2.0
"""Run a playbook through ansible-runner and show its event stream.

On a terminal: one live screen with a row for each node. Elsewhere (a pipe, a CI log): one line
for each task with its seconds, and a sign of life every ten seconds while a task lasts.
`run_playbook` returns a `RunResult`, which answers the questions that tests ask of a run.

    python -m lab.screen site.yml -i inventories/lab -e model=tiny-qwen3
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import ansible_runner
import yaml
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

REPO = Path(__file__).resolve().parents[1]
RUNS_DIR = REPO / ".lab" / "runs"
KEPT_RUNS = 30
HEARTBEAT_S = 10.0
#: Status of a run whose ansible-playbook was killed: on request, or at its time limit.
RC_KILLED = 254

Event = Mapping[str, Any]

_OUTCOMES = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
_OUTPUT_EVENTS = ("verbose", "debug", "error", "warning", "system_warning", "deprecated")
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
    ended: float | None = None

    def seconds(self, now: float) -> float:
        return (self.ended if self.ended is not None else now) - self.started


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
        elif kind in _OUTCOMES:
            return self._close_host(kind, data)
        elif kind == "playbook_on_stats":
            self._close_task()
            self.stats = stats_of(data)
            for name, stats in self.stats.items():
                row = self.hosts.setdefault(name, HostRow())
                row.ok, row.changed, row.skipped = stats.ok, stats.changed, stats.skipped
                row.failed = stats.failed + stats.unreachable
        elif kind in _OUTPUT_EVENTS:
            self._note(kind, clean(str(event.get("stdout", ""))))
        return None

    def _note(self, kind: str, text: str) -> None:
        words = " ".join(text.split())
        if kind in ("warning", "system_warning", "deprecated") or re.match(r"\[(DEPRECATION )?WARNING\]", words):
            if words not in self.warnings:
                self.warnings.append(words)
        elif kind == "error" or words.startswith(("[ERROR]", "ERROR!")):
            self.errors.append(text.strip())

    def _start_host(self, host: str) -> None:
        row = self.hosts.setdefault(host, HostRow())
        if self.task is not None:
            row.state, row.task, row.since = "running", self.task.title, self.clock()
            if host not in self.task.waiting:
                self.task.waiting.append(host)

    def _close_host(self, kind: str, data: Mapping[str, Any]) -> TaskEvent:
        result: Mapping[str, Any] = data.get("res") or {}
        outcome = _OUTCOMES[kind]
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


@dataclass(frozen=True)
class RunResult:
    """The outcome of a playbook run.

    `rc` is ansible-playbook's exit status (0 fine, 2 a task failed, 4 a host was unreachable) or
    RC_KILLED; `stats` its closing counts; `events` what each task did on each host, in order;
    `errors` what Ansible said outside of tasks, such as a syntax error; `log` its whole output.
    """

    rc: int
    seconds: float
    stats: Mapping[str, HostStats]
    events: Sequence[TaskEvent] = field(repr=False)
    warnings: Sequence[str] = ()
    errors: Sequence[str] = ()
    log: Path = Path()

    @property
    def hosts(self) -> list[str]:
        return sorted(self.stats)

    def _stats(self, host: str) -> HostStats:
        if host not in self.stats:
            raise KeyError(f"{host} took no part in this run; these did: {', '.join(self.hosts) or 'none'}")
        return self.stats[host]

    def ok(self, host: str) -> int:
        """Return the number of tasks that ended well on a host, changed ones included."""
        return self._stats(host).ok

    def changed(self, host: str) -> int:
        """Return the number of tasks that changed a host."""
        return self._stats(host).changed

    def failed(self, host: str) -> int:
        """Return the number of tasks that failed on a host and were neither rescued nor ignored."""
        return self._stats(host).failed

    def unreachable(self, host: str) -> int:
        """Return 1 if a host was lost during the run, else 0."""
        return self._stats(host).unreachable

    def task_events(self, host: str | None = None, task: str | None = None) -> list[TaskEvent]:
        """Return what a task did on a host; `task` is its name, with or without its role before ' : '."""
        return [
            event for event in self.events if host in (None, event.host) and task in (None, event.task, event.title)
        ]

    def changed_tasks(self, host: str | None = None) -> list[str]:
        """Return 'host: role : task' of everything that changed; empty for a converged cluster."""
        return [f"{event.host}: {event.title}" for event in self.task_events(host) if event.outcome == "changed"]

    def failures(self, host: str | None = None) -> list[TaskEvent]:
        """Return the failed and unreachable tasks, rescued ones included, those with ignore_errors left out."""
        return [event for event in self.task_events(host) if event.outcome in ("failed", "unreachable")]

    def failed_messages(self, host: str | None = None) -> list[str]:
        """Return the messages of the failed tasks and, without a host, of Ansible's own errors."""
        messages = [event.message for event in self.failures(host)]
        return messages if host else [*messages, *self.errors]

    def messages(self, task: str | None = None, host: str | None = None) -> list[str]:
        """Return what a task said on each host, such as a debug task's text."""
        return [event.message for event in self.task_events(host, task) if event.outcome in ("ok", "changed")]

    def diffs(self, host: str | None = None) -> list[Any]:
        """Return the before/after records of all tasks, of loops item by item."""
        found: list[Any] = []
        for event in self.task_events(host):
            for part in [event.result, *(event.result.get("results") or [])]:
                diff = part.get("diff") if isinstance(part, Mapping) else None
                if diff:
                    found.extend(diff if isinstance(diff, list) else [diff])
        return found

    def output(self) -> str:
        """Return ansible-playbook's whole output."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""

    def describe(self) -> str:
        """Return the run in a few lines: status, counts by host, each failure with its place."""
        lines = [f"exit status {self.rc} after {self.seconds:.0f} s, log {self.log}"]
        for host, stats in self.stats.items():
            counts = ", ".join(f"{name} {count}" for name, count in asdict(stats).items() if count)
            lines.append(f"  {host}: {counts or 'nothing done'}")
        for event in self.failures():
            lines.append(f"  {event.outcome} on {event.host}: {event.title} ({event.path})")
            lines += [f"    {line}" for line in event.message.splitlines()]
        for error in self.errors:
            lines += [f"  {line}" for line in error.splitlines()]
        return "\n".join(lines)


# --- What a run looks like ------------------------------------------------------------------


class View(Protocol):
    """Shows a run; called after each event has reached the state."""

    def start(self) -> None: ...

    def show(self, event: Event, closed: TaskEvent | None) -> None: ...

    def stop(self) -> None: ...


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


class PlainLines:
    """A line a task, for logs. Tasks that all hosts skipped are left out."""

    def __init__(self, state: RunState, console: Console, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._state = state
        self._console = console
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_line = state.clock()
        self._shown: TaskRow | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._tell_finished_task()

    def show(self, event: Event, closed: TaskEvent | None) -> None:
        self._tell_finished_task()
        if event.get("event") == "playbook_on_play_start":
            total = f"/{self._state.plays_total}" if self._state.plays_total else ""
            self._say(f"play {self._state.play_number}{total}  {self._state.play}")
        if closed is not None and closed.outcome in ("failed", "unreachable"):
            self._say(f"{closed.outcome.upper()} on {closed.host}: {closed.title}", closed.message)
        if self._state.warnings and event.get("event") in _OUTPUT_EVENTS:
            text = " ".join(clean(str(event.get("stdout", ""))).split())
            if text and text == self._state.warnings[-1]:
                self._say(text)

    def _tell_finished_task(self) -> None:
        with self._lock:
            task = self._state.finished_tasks[-1] if self._state.finished_tasks else None
            if task is None or task is self._shown:
                return
            self._shown = task
        if set(task.outcomes) - {"skipped"}:
            self._say(f"  {task.title:<58} {task.seconds(task.ended or 0):6.1f} s  {outcome_phrase(task)}")
        for message, hosts in task.messages.items():
            if not set(hosts) & set(task.outcomes.get("failed", []) + task.outcomes.get("unreachable", [])):
                self._say(f"    {names(hosts)}:" if "\n" in message else f"    {names(hosts)}: {message}", message)

    def _beat(self) -> None:
        while not self._stop.wait(min(1.0, self._heartbeat_s)):
            now = self._state.clock()
            task = self._state.task
            if now - self._last_line >= self._heartbeat_s:
                if task is None:
                    self._say("  ... starting" if not self._state.play else "  ... between tasks")
                else:
                    waiting = f", waiting for {names(task.waiting)}" if task.waiting else ""
                    self._say(f"  ... {task.title}: {task.seconds(now):.0f} s so far{waiting}")

    def _say(self, line: str, more: str = "") -> None:
        with self._lock:
            self._last_line = self._state.clock()
            text = f"[{self._state.elapsed:7.1f} s] {line}"
            if more not in line:
                text += "".join(f"\n{'':14}{part}" for part in more.splitlines())
            self._console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


_STYLES = {
    "running": "cyan",
    "ok": "green",
    "changed": "yellow",
    "failed": "bold red",
    "unreachable": "bold red",
    "ignored": "magenta",
    "skipped": "dim",
    "waiting": "dim",
}


class LiveScreen:
    """One screen that is redrawn four times a second; what a task says is printed above it."""

    def __init__(self, state: RunState, console: Console, title: str) -> None:
        self._state = state
        self._console = console
        self._title = title
        self._shown: TaskRow | None = None
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=4,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self) -> None:
        self._live.stop()
        for event in self._state.events:
            if event.outcome in ("failed", "unreachable"):
                self._print(f"{event.outcome} on {event.host}: {event.title}", event.message, "bold red")
        for error in self._state.errors:
            self._print("Ansible said", error, "bold red")

    def show(self, event: Event, closed: TaskEvent | None) -> None:
        task = self._state.finished_tasks[-1] if self._state.finished_tasks else None
        if task is None or task is self._shown:
            return
        self._shown = task
        for message, hosts in task.messages.items():
            if not set(hosts) & set(task.outcomes.get("failed", []) + task.outcomes.get("unreachable", [])):
                self._print(f"{names(hosts)}: {task.title}", message, "bold")

    def _print(self, heading: str, body: str, style: str) -> None:
        self._console.print(Text(heading, style=style), Text(body), sep="\n", soft_wrap=True)

    def render(self) -> RenderableType:
        """Return the screen: title, nodes, the last tasks and the last warnings."""
        state = self._state
        now = state.clock()
        rows_left = max(0, self._console.size.height - len(state.hosts) - 8)
        warnings = state.warnings[-min(3, rows_left) :] if rows_left else []
        recent = list(state.finished_tasks)[-min(8, rows_left - len(warnings)) :] if rows_left > len(warnings) else []

        nodes = Table(expand=True, box=None, pad_edge=False, header_style="bold")
        nodes.add_column("node", no_wrap=True)
        nodes.add_column("state", no_wrap=True, width=11)
        nodes.add_column("task", no_wrap=True, ratio=1, overflow="ellipsis")
        for heading in ("seconds", "ok", "changed", "failed"):
            nodes.add_column(heading, justify="right", no_wrap=True)
        for host, row in sorted(state.hosts.items()):
            style = _STYLES.get(row.state, "")
            nodes.add_row(
                host,
                Text(row.state, style=style),
                Text(row.task),
                f"{now - row.since:.0f}" if row.state == "running" else "",
                str(row.ok),
                Text(str(row.changed), style="yellow" if row.changed else "dim"),
                Text(str(row.failed), style="bold red" if row.failed else "dim"),
            )

        parts: list[RenderableType] = [nodes]
        if recent:
            tasks = Table(expand=True, box=None, pad_edge=False, show_header=False)
            tasks.add_column("task", no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
            tasks.add_column("outcome", no_wrap=True, overflow="ellipsis", style="dim")
            tasks.add_column("seconds", justify="right", no_wrap=True, style="dim")
            for task in recent:
                tasks.add_row(Text(task.title), Text(outcome_phrase(task)), f"{task.seconds(now):.1f} s")
            parts += [Text(""), tasks]
        parts += [Text(text, style="yellow", no_wrap=True, overflow="ellipsis") for text in warnings]

        total = f" of {state.plays_total}" if state.plays_total else ""
        heading = f"{self._title}   play {state.play_number}{total}: {state.play}"
        minutes, seconds = divmod(int(state.elapsed), 60)
        return Panel(
            Group(*parts), title=Text(heading), title_align="left", subtitle=f"{minutes}:{seconds:02d}", padding=(0, 1)
        )


class Silence:
    """Shows nothing."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def show(self, event: Event, closed: TaskEvent | None) -> None:
        """Do nothing."""


# --- Running --------------------------------------------------------------------------------


class _TolerantLoader(yaml.SafeLoader):
    """Reads playbooks without resolving Ansible's tags, such as !vault."""


_TolerantLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def count_plays(playbook: str | Path, repo: Path = REPO) -> int | None:
    """Return how many plays a playbook and its imports hold; None when that is not known before it runs.

    A playbook of the collection may be named gb10.cluster.<name>.
    """
    match = re.fullmatch(r"gb10\.cluster\.(\w+)", str(playbook))
    path = repo / "playbooks" / f"{match[1]}.yml" if match else Path(playbook)
    if not path.is_file():
        return None
    try:
        plays = yaml.load(path.read_text(encoding="utf-8"), Loader=_TolerantLoader)
    except yaml.YAMLError:
        return None
    total = 0
    for play in plays if isinstance(plays, list) else []:
        imported = play.get("ansible.builtin.import_playbook") or play.get("import_playbook")
        if imported is None:
            total += 1
            continue
        name = str(imported)
        inner = count_plays(name if name.startswith("gb10.cluster.") else path.parent / name, repo)
        if inner is None:
            return None
        total += inner
    return total


def _remove_old_runs(runs_dir: Path) -> None:
    old = sorted(path for path in runs_dir.iterdir() if path.is_dir())[:-KEPT_RUNS]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _new_run_dir(runs_dir: Path) -> Path:
    runs_dir.mkdir(parents=True, exist_ok=True)
    _remove_old_runs(runs_dir)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    path = runs_dir / stamp
    path.mkdir(mode=0o700)
    return path


class _Stopper:
    """Ends ansible-playbook early: on Ctrl-C or SIGTERM, on request, at the time limit.

    Ansible runs in a session of its own, so a signal to this process has to be passed on to it.
    The first one lets it end as it does by itself; a second one, or ending too slowly, kills it.
    """

    GRACE_S = 20.0

    def __init__(self, state: RunState, timeout_s: float | None, wanted: Callable[[], bool]) -> None:
        self._state = state
        self._timeout_s = timeout_s
        self._wanted = wanted
        self._passed_on = False
        self._first_at = 0.0
        self.received: list[int] = []

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self._first_at = self._state.clock()
        self.received.append(number)
        self.pass_on()

    def pass_on(self) -> None:
        """Send Ansible the signal that was received, once its process is known."""
        if self.received and not self._passed_on and self._state.pid is not None:
            self._passed_on = True
            _signal(self._state.pid, signal.SIGINT)

    def must_kill(self) -> bool:
        """Return whether ansible-runner shall kill Ansible now; its workers are killed here."""
        self.pass_on()
        too_slow = bool(self.received) and self._state.clock() - self._first_at > self.GRACE_S
        too_long = self._timeout_s is not None and self._state.elapsed > self._timeout_s
        if not (len(self.received) > 1 or too_slow or too_long or self._wanted()):
            return False
        if self._state.pid is not None:
            for worker in _children(self._state.pid):
                _signal(worker, signal.SIGKILL)
        return True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Receive signals meanwhile; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`: Ansible's workers, each in a session of its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The command's name, in parentheses, may hold spaces; state and parent follow it.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found


def run_playbook(
    playbook: str | Path,
    inventory: str | Path | Sequence[str | Path],
    extravars: Mapping[str, Any] | None = None,
    *,
    limit: str | None = None,
    tags: str | None = None,
    skip_tags: str | None = None,
    check: bool = False,
    diff: bool = False,
    verbosity: int = 0,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPO,
    timeout_s: float | None = None,
    quiet: bool = False,
    observer: Callable[[Event], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    runs_dir: Path = RUNS_DIR,
    console: Console | None = None,
) -> RunResult:
    """Run a playbook with the repository's ansible.cfg and show its progress.

    `playbook` and `inventory` are paths relative to `cwd`, or gb10.cluster.<name>. `observer` sees
    every raw event after the state took it in (to do something at a certain task); `cancel` is
    asked about once a second, and the run is killed like by a power cut when true, or after
    `timeout_s`. `quiet` shows nothing. The output is kept in <runs_dir>/<time>/ansible.log; extra
    variables and environment are not kept.

    Raises KeyboardInterrupt after Ctrl-C and SystemExit after SIGTERM, once Ansible has ended.
    """
    target = str(playbook)
    if not re.fullmatch(r"\w+\.\w+\.\w+", target):
        target = str((cwd / target).resolve())
    inventories = [inventory] if isinstance(inventory, (str, Path)) else list(inventory)
    shown_inventory = ", ".join(str(item) for item in inventories)
    run_dir = _new_run_dir(runs_dir)
    private = run_dir / "private"
    (private / "env").mkdir(parents=True, mode=0o700)
    # ansible-runner drops settings that are passed as an argument unless this file exists.
    (private / "env" / "settings").write_text(
        json.dumps({"pexpect_timeout": 1, "suppress_output_file": True}), encoding="utf-8"
    )
    vars_file = private / "extravars.json"
    vars_file.touch(mode=0o600)
    vars_file.write_text(json.dumps(dict(extravars or {})), encoding="utf-8")
    arguments = ["-e", f"@{vars_file}"] if extravars else []
    arguments += ["--check"] * check + ["--diff"] * diff

    state = RunState(plays_total=count_plays(target))
    console = console or Console(stderr=False)
    view: View
    if quiet:
        view = Silence()
    elif console.is_terminal:
        view = LiveScreen(state, console, f"{playbook} on {shown_inventory}")
    else:
        view = PlainLines(state, console)
    log_path = run_dir / "ansible.log"
    failures: list[Exception] = []

    stopper = _Stopper(state, timeout_s, lambda: bool(failures) or bool(cancel and cancel()))
    with log_path.open("w", encoding="utf-8") as log:
        log_path.chmod(0o600)

        def on_event(event: dict[str, Any]) -> bool:
            """Take in one event; False tells ansible-runner not to store it."""
            try:
                if event.get("event") == "playbook_on_start":
                    vars_file.unlink(missing_ok=True)
                if event.get("stdout"):
                    log.write(clean(str(event["stdout"])) + "\n")
                    log.flush()
                closed = state.feed(event)
                stopper.pass_on()
                view.show(event, closed)
                if observer is not None:
                    observer(event)
            except Exception as error:  # noqa: BLE001 - raised below: here it would leave Ansible running unattended
                failures.append(error)
            return False

        def on_status(status: Mapping[str, Any], runner_config: Any) -> None:
            """Remove the file that holds the environment, which may hold secrets, before Ansible starts."""
            if status.get("status") == "running":
                (Path(runner_config.artifact_dir) / "command").unlink(missing_ok=True)

        view.start()
        try:
            with stopper.installed():
                runner = ansible_runner.run(
                    private_data_dir=str(private),
                    project_dir=str(cwd),
                    ident="run",
                    playbook=target,
                    inventory=[str((cwd / item).resolve()) for item in inventories],
                    cmdline=shlex.join(arguments) or None,
                    limit=limit,
                    tags=tags,
                    skip_tags=skip_tags,
                    verbosity=verbosity or None,
                    envvars=_environment(env),
                    suppress_env_files=True,
                    fact_cache_type="memory",
                    quiet=True,
                    event_handler=on_event,
                    status_handler=on_status,
                    cancel_callback=stopper.must_kill,
                )
        finally:
            view.stop()
            shutil.rmtree(private, ignore_errors=True)
    if failures:
        raise failures[0]
    result = RunResult(
        rc=RC_KILLED if runner.rc is None else int(runner.rc),
        seconds=state.elapsed,
        stats=state.stats,
        events=tuple(state.events),
        warnings=tuple(state.warnings),
        errors=tuple(state.errors),
        log=log_path,
    )
    _write_summary(run_dir / "summary.json", target, shown_inventory, result)
    if not quiet:
        _say_end(console, str(playbook), result)
    if stopper.received:
        if stopper.received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + stopper.received[0])
    return result


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return what ansible-playbook gets on top of this process's environment."""
    return {
        # ansible-runner turns host key checking off unless it is set.
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        **(extra or {}),
    }


def _write_summary(path: Path, playbook: str, inventory: str, result: RunResult) -> None:
    """Keep the run's counts and its tasks' outcomes and seconds, without any result."""
    record = {
        "playbook": playbook,
        "inventory": inventory,
        "rc": result.rc,
        "seconds": round(result.seconds, 1),
        "stats": {host: asdict(stats) for host, stats in result.stats.items()},
        "tasks": [[e.host, e.title, e.outcome, round(e.seconds, 2)] for e in result.events],
    }
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _say_end(console: Console, playbook: str, result: RunResult) -> None:
    counts = "; ".join(
        f"{host} ok {stats.ok} changed {stats.changed}"
        + (f" failed {stats.failed}" if stats.failed else "")
        + (f" UNREACHABLE {stats.unreachable}" if stats.unreachable else "")
        for host, stats in result.stats.items()
    )
    word = "done" if result.rc == 0 else f"FAILED with exit status {result.rc}"
    lines = [f"{playbook}: {word} in {result.seconds:.0f} s. {counts}"]
    if result.rc != 0:
        lines += [f"  {line}" for error in result.errors for line in error.splitlines()]
        lines.append(f"  The whole output: {result.log}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True, emoji=False)


# --- Command line ---------------------------------------------------------------------------


def parse_extra_vars(words: Iterable[str]) -> dict[str, Any]:
    """Return the variables of `-e` options: key=value pairs, a JSON or YAML mapping, or @file."""
    variables: dict[str, Any] = {}
    for word in words:
        if word.startswith("@"):
            loaded = yaml.safe_load(Path(word[1:]).read_text(encoding="utf-8"))
        elif word.lstrip().startswith("{"):
            loaded = yaml.safe_load(word)
        else:
            loaded = dict(pair.split("=", 1) for pair in shlex.split(word))
        if not isinstance(loaded, dict):
            raise SystemExit(f"-e {word}: expected key=value, a mapping or @file with a mapping.")
        variables.update(loaded)
    return variables


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.screen", description="Run a playbook with a live screen.")
    parser.add_argument("playbook")
    parser.add_argument("-i", "--inventory", action="append", required=True)
    parser.add_argument("-e", "--extra-vars", action="append", default=[])
    parser.add_argument("-l", "--limit")
    parser.add_argument("-t", "--tags")
    parser.add_argument("--skip-tags")
    parser.add_argument("-C", "--check", action="store_true")
    parser.add_argument("-D", "--diff", action="store_true")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    args = parser.parse_args(argv)
    result = run_playbook(
        args.playbook,
        args.inventory,
        parse_extra_vars(args.extra_vars),
        limit=args.limit,
        tags=args.tags,
        skip_tags=args.skip_tags,
        check=args.check,
        diff=args.diff,
        verbosity=args.verbose,
        cwd=Path.cwd(),
    )
    return result.rc


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
