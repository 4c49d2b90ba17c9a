# SPDX-License-Identifier: Apache-2.0
"""Run the repository's test lanes and print one line for each part, and one sum at the end.

    python -m tests.lint.lanes fast|lint|sanity|molecule|all [scenario]

`fast` runs its parts side by side, one for each processor. A part's output goes to
``.ansible/reports/<part>.log`` and is shown when the part fails; what runs alone is shown all the
time on a terminal. The end of every failed part's log is shown once more at the end. The last line is
always ``N passed, N failed``, where a pytest part counts its tests and every other part counts one.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
REPORTS = REPO / ".ansible" / "reports"
VENV_BIN = REPO / ".venv" / "bin"
HEARTBEAT_S = 20.0
#: How many lines of a failed part's log stand above the closing lines.
CLOSING_LINES = 80
#: A part of the fast lane that prints nothing for so long hangs, and is stopped.
STALL_S = 420.0
#: The parts that run side by side, to be stopped when this process is.
RUNNING: list[subprocess.Popen[str]] = []
TYPED_TREES = ("plugins", "lab", "scripts", "benchmarks", "roles", "tests")


@dataclass(frozen=True)
class Part:
    """One command of a lane. `expected_s` orders the queue: the longest part starts first."""

    name: str
    argv: tuple[str, ...]
    expected_s: float
    is_pytest: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a finished part gave: its exit status, its duration and how many checks it counts."""

    part: Part
    returncode: int
    seconds: float
    passed: int
    failed: int

    @property
    def ok(self) -> bool:
        return self.returncode == 0


def count_pytest(output: str, returncode: int) -> tuple[int, int]:
    """Return (passed, failed) from the closing summary of a pytest run; errors count as failed.

    A run that failed without a summary, or whose summary names no failure, counts one failure,
    so that a crash of pytest itself is never a success.
    """
    counts = {"passed": 0, "failed": 0, "error": 0}
    for line in reversed(output.splitlines()):
        found = re.findall(r"(\d+) (passed|failed|error)", line)
        if found and " in " in line:
            for number, word in found:
                counts[word] += int(number)
            break
    failed = counts["failed"] + counts["error"]
    if returncode != 0 and failed == 0:
        failed = 1
    return counts["passed"], failed


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every part: the venv first on PATH, the repository's ansible.cfg."""
    env = dict(os.environ)
    env["PATH"] = f"{VENV_BIN}{os.pathsep}{env.get('PATH', '')}"
    env["ANSIBLE_CONFIG"] = str(REPO / "ansible.cfg")
    env["PYTHONUNBUFFERED"] = "1"
    env["NO_COLOR"] = "1"  # the logs are read as text, by people and by the count of tests
    env.update(extra)
    return env


def python(*argv: str) -> tuple[str, ...]:
    return (str(VENV_BIN / "python"), *argv)


def typed_trees() -> tuple[str, ...]:
    """Return the trees with Python files, in the order given to mypy."""
    return tuple(tree for tree in TYPED_TREES if any((REPO / tree).rglob("*.py")))


def lint_parts() -> list[Part]:
    return [
        Part("ansible-lint", python("-m", "ansiblelint", "--offline", "--nocolor"), 60),
        Part("mypy", python("-m", "mypy", *typed_trees()), 30),
        Part("yamllint", python("-m", "yamllint", "--strict", "."), 5),
        Part("ruff-check", ("ruff", "check", "."), 1),
        Part("ruff-format", ("ruff", "format", "--check", "--diff", "."), 1),
        Part("changelog", ("antsibull-changelog", "lint"), 1),
        Part(
            "repository",
            python("-m", "pytest", "tests/lint", "--color=no"),
            60,
            is_pytest=True,
        ),
    ]


def sanity_part() -> Part:
    return Part("sanity", python("-m", "tests.lint.sanity"), 120)


def unit_part() -> Part:
    return Part(
        "unit",
        python("-m", "pytest", "tests/unit", "-n", "2", "--color=no", "-o", "faulthandler_timeout=90"),
        90,
        is_pytest=True,
    )


def molecule_parts(only: str | None) -> list[Part]:
    """Return one part a scenario of molecule/ (the `cluster` scenario last).

    Raises SystemExit with the known names when `only` is not a scenario.
    """
    names = sorted(
        (path.parent.name for path in (REPO / "molecule").glob("*/molecule.yml")),
        key=lambda name: (name == "cluster", name),
    )
    if only is not None and only not in names:
        raise SystemExit(f"There is no molecule scenario {only!r}. Known: {', '.join(names)}.")
    return [
        Part(f"molecule-{name}", python("-m", "molecule", "test", "-s", name), 300)
        for name in names
        if only in (None, name)
    ]


def e2e_part() -> Part:
    return Part(
        "e2e",
        python("-m", "pytest", "tests/e2e", "-m", "not soak", "-v", "--color=no"),
        1800,
        is_pytest=True,
    )


def watch(process: subprocess.Popen[str], last_output: list[float], stalled: threading.Event, stall_s: float) -> None:
    """Stop a process, with all that it started, once it has printed nothing for `stall_s`."""
    while process.poll() is None:
        if time.monotonic() - last_output[0] > stall_s:
            stalled.set()
            stop_group(process)
            return
        time.sleep(1)


def stop_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a process group, and the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_part(part: Part, echo: bool, stall_s: float | None = None) -> Outcome:
    """Run one part to its end, with its output in REPORTS, and on the terminal when `echo`.

    Without `echo` the part has a process group of its own, so that it can be stopped as a whole; it is once it has
    printed nothing for `stall_s` seconds.
    """
    REPORTS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (REPORTS / f"{part.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part.argv,
            cwd=REPO,
            env=environment(part.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=not echo,
        )
        last_output, stalled = [start], threading.Event()
        if not echo:
            RUNNING.append(process)
            if stall_s is not None:
                threading.Thread(target=watch, args=(process, last_output, stalled, stall_s), daemon=True).start()
        assert process.stdout is not None
        for line in process.stdout:
            last_output[0] = time.monotonic()
            log.write(line)
            log.flush()
            if echo:
                sys.stdout.write(line)
                sys.stdout.flush()
        returncode = process.wait()
        if stalled.is_set():
            log.write(f"{part.name} printed nothing for {stall_s:.0f} s and was stopped.\n")
    seconds = time.monotonic() - start
    if part.is_pytest:
        text = (REPORTS / f"{part.name}.log").read_text(encoding="utf-8")
        passed, failed = count_pytest(text, returncode)
    else:
        passed, failed = (1, 0) if returncode == 0 else (0, 1)
    return Outcome(part, returncode, seconds, passed, failed)


def describe(outcome: Outcome) -> str:
    """Return a part's line: name, seconds, verdict and, for pytest, its number of tests."""
    verdict = "ok" if outcome.ok else "FAILED"
    tests = f"  {outcome.passed} passed, {outcome.failed} failed" if outcome.part.is_pytest else ""
    return f"{outcome.part.name:<24} {outcome.seconds:7.1f} s  {verdict}{tests}"


def report(outcome: Outcome, echoed: bool) -> None:
    """Print a part's line, above it its whole log when it failed and was not shown already."""
    if not outcome.ok and not echoed:
        log = (REPORTS / f"{outcome.part.name}.log").read_text(encoding="utf-8").rstrip()
        print(f"---- {outcome.part.name}: {' '.join(outcome.part.argv)}\n{log}\n----")
    print(describe(outcome), flush=True)


def run_quietly(parts: Sequence[Part], workers: int, stall_s: float | None) -> list[Outcome]:
    """Run the parts on `workers` threads, the longest first; return their outcomes."""
    todo: queue.SimpleQueue[Part] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    running: dict[str, float] = {}
    for part in sorted(parts, key=lambda part: -part.expected_s):
        todo.put(part)

    def work() -> None:
        while True:
            try:
                part = todo.get_nowait()
            except queue.Empty:
                return
            running[part.name] = time.monotonic()
            try:
                done.put(run_part(part, echo=False, stall_s=stall_s))
            except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
                done.put(error)
            finally:
                del running[part.name]

    for number in range(min(workers, len(parts))):
        threading.Thread(target=work, name=f"lane-{number}", daemon=True).start()

    try:
        return collect(done, running, len(parts))
    finally:
        for process in RUNNING:
            if process.poll() is None:
                stop_group(process)


def collect(
    done: queue.SimpleQueue[Outcome | BaseException], running: Mapping[str, float], expected: int
) -> list[Outcome]:
    """Return the outcomes as they come in, each reported, with a sign of life in between."""
    outcomes: list[Outcome] = []
    while len(outcomes) < expected:
        try:
            item = done.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            now = time.monotonic()
            names = ", ".join(f"{name} ({now - since:.0f} s)" for name, since in list(running.items()))
            print(f"... running: {names}{newest_line(running)}", flush=True)
            continue
        if isinstance(item, BaseException):
            raise item
        report(item, echoed=False)
        outcomes.append(item)
    return outcomes


def newest_line(running: Mapping[str, float]) -> str:
    """Return where the only running part is, as its log says; nothing where several run."""
    names = list(running)
    if len(names) != 1:
        return ""
    lines = (REPORTS / f"{names[0]}.log").read_text(encoding="utf-8").splitlines()
    newest = next((line for line in reversed(lines) if line.startswith(("TASK [", "tests/"))), "")
    return newest and f": {newest.rstrip(' *')[:120]}"


def run_in_turn(parts: Sequence[Part], echo: bool) -> list[Outcome]:
    """Run the parts one after the other, with their output on the terminal where there is one."""
    if not echo:
        return [outcome for part in parts for outcome in run_quietly([part], 1, None)]
    outcomes = []
    for part in parts:
        print(f"==== {part.name}", flush=True)
        outcome = run_part(part, echo=True)
        report(outcome, echoed=True)
        outcomes.append(outcome)
    return outcomes


def close(outcomes: Sequence[Outcome]) -> None:
    """Print the end of each failed part's log, so that the last lines of a long run say why it failed."""
    for outcome in outcomes:
        if not outcome.ok:
            log = (REPORTS / f"{outcome.part.name}.log").read_text(encoding="utf-8").splitlines()
            print(f"\n---- the end of {outcome.part.name}'s log")
            print("\n".join(log[-CLOSING_LINES:]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lanes", description=__doc__.splitlines()[0])
    parser.add_argument("lane", choices=["fast", "lint", "sanity", "molecule", "all"])
    parser.add_argument("scenario", nargs="?", help="one molecule scenario (lane molecule)")
    parser.add_argument("-j", "--jobs", type=int, default=max(2, min(4, os.cpu_count() or 2)))
    args = parser.parse_args(argv)

    shutil.rmtree(REPORTS, ignore_errors=True)
    start = time.monotonic()
    echo = sys.stdout.isatty()
    outcomes: list[Outcome] = []
    if args.lane in ("fast", "all"):
        outcomes += run_quietly([*lint_parts(), sanity_part(), unit_part()], args.jobs, STALL_S)
    if args.lane == "lint":
        outcomes += run_quietly(lint_parts(), args.jobs, STALL_S)
    if args.lane == "sanity":
        outcomes += run_in_turn([sanity_part()], echo)
    if args.lane in ("molecule", "all"):
        outcomes += run_in_turn(molecule_parts(args.scenario), echo)
    if args.lane == "all":
        outcomes += run_in_turn([e2e_part()], echo)

    if len(outcomes) > 1:
        close(outcomes)
        print(f"\n{args.lane}: {time.monotonic() - start:.0f} s")
        for outcome in outcomes:
            print("  " + describe(outcome))
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
