# SPDX-License-Identifier: Apache-2.0
"""Run a playbook through ansible-runner and show its events.

On a terminal: one live screen with a row for each node. Elsewhere (a pipe, a CI log): one line for each task with its
seconds, and a line every ten seconds while a task lasts. `run_playbook` returns a `RunResult`, which answers the
questions that tests ask of a run. Outside the lab, the callback gb10.cluster.screen shows the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import ansible_runner
import yaml
from rich.console import Console

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.lines import PlainLines
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.live import LiveScreen
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import (
    Event,
    HostStats,
    RunState,
    TaskEvent,
    clean,
    closing_line,
)

REPO = Path(__file__).resolve().parents[1]
RUNS_DIR = REPO / ".lab" / "runs"
KEPT_RUNS = 30
#: Status of a run whose ansible-playbook was killed: on request, or at its time limit.
RC_KILLED = 254
#: What starts nothing any more, as proc(5) has it: a process that is stopped, traced, or has ended.
HALTED = frozenset("TtZX")
#: A process that waits for a disk as long as that is killed all the same.
HALT_S = 10.0


@dataclass(frozen=True)
class RunResult:
    """The outcome of a playbook run.

    `rc` is ansible-playbook's exit status (0 fine, 2 a task failed, 4 a host was unreachable) or
    RC_KILLED; `stats` its closing counts; `events` what each task did on each host, in order;
    `errors` what Ansible said outside of tasks, such as a syntax error; `log` its complete output.
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
        """Return ansible-playbook's complete output."""
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


def _new_run_dir(runs_dir: Path) -> Path:
    runs_dir.mkdir(parents=True, exist_ok=True)
    for old in sorted(path for path in runs_dir.iterdir() if path.is_dir())[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    path = runs_dir / stamp
    path.mkdir(mode=0o700)
    return path


class _Stopper:
    """Ends ansible-playbook early: on Ctrl-C or SIGTERM, on request, at the time limit.

    Ansible runs in a session of its own, so a signal to this process has to be passed on to it.
    The first one lets it end in its own way; a second one, or ending too slowly, kills it.
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
        """Return whether ansible-runner shall end the run now; Ansible and its workers are killed here."""
        self.pass_on()
        too_slow = bool(self.received) and self._state.clock() - self._first_at > self.GRACE_S
        too_long = self._timeout_s is not None and self._state.elapsed > self._timeout_s
        if not (len(self.received) > 1 or too_slow or too_long or self._wanted()):
            return False
        if self._state.pid is not None:
            kill_with_all(self._state.pid)
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


def kill_with_all(pid: int) -> None:
    """Kill a process and all that it has started, as a control node without power would.

    Ansible's workers have sessions of their own, so that a signal to the process group would not reach them. Each
    process is stopped before its children are listed: one that runs on could start another meanwhile.
    """
    found = [pid]
    for each in found:
        _halt(each)
        found.extend(_children(each))
    for each in found:
        _signal(each, signal.SIGKILL)


def _halt(pid: int) -> None:
    """Stop a process, and wait until it has stopped: a fork that it is in the middle of is finished first."""
    _signal(pid, signal.SIGSTOP)
    asked = time.monotonic()
    while set(_states(pid)) - HALTED and time.monotonic() - asked < HALT_S:
        time.sleep(0.001)


def _states(pid: int) -> list[str]:
    """Return the states of a process's threads, as proc(5) has them; none of one that is gone."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.append(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0])
    return states


def _children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`."""
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
    console = Console() if console is None else console

    def say(text: str) -> None:
        if not quiet:
            console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)

    view: LiveScreen | PlainLines = PlainLines(state, say)
    if console.is_terminal and not quiet:
        view = LiveScreen(state, console, f"{playbook} on {shown_inventory}")
    log_path = run_dir / "ansible.log"
    failures: list[Exception] = []

    stopper = _Stopper(state, timeout_s, lambda: bool(failures) or bool(cancel and cancel()))
    with log_path.open("w", encoding="utf-8") as log:
        log_path.chmod(0o600)

        def on_event(event: dict[str, Any]) -> bool:
            """Take in one event; False makes ansible-runner not store it."""
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
    _say_end(say, str(playbook), result)
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


def _say_end(say: Callable[[str], None], playbook: str, result: RunResult) -> None:
    lines = [closing_line(playbook, result.rc, result.seconds, result.stats)]
    if result.rc != 0:
        lines += [f"  {line}" for error in result.errors for line in error.splitlines()]
        lines.append(f"  The complete output: {result.log}")
    say("\n".join(lines))
