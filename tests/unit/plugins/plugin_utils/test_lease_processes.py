# SPDX-License-Identifier: Apache-2.0
"""The process beside a run: it renews while the run lives, and ends the leases when the run has ended, also killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node.lease import RENEW_SECONDS
from ansible_collections.gb10.cluster.plugins.plugin_utils._lease import processes

#: A run that starts the process beside it, says its number, and waits.
RUN = """
import os, sys, time
from pathlib import Path
from ansible_collections.gb10.cluster.plugins.plugin_utils._lease import processes

run, note = os.getpid(), Path(sys.argv[1])
began = processes.started(run)

def body():
    processes.keep(
        lambda: processes.started(run) == began,
        lambda: "",
        lambda why: None,
        lambda: note.write_text("released"),
    )

print(processes.beside(body), flush=True)
time.sleep(3600)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process to look at."""
    with subprocess.Popen(["sleep", "3600"]) as process:
        yield process
        process.kill()


def test_a_process_is_known_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    described = processes.describe(sleeper.pid)
    assert not processes.has_ended(described)
    # Another one that got its number later:
    assert processes.has_ended({**described, "started": "1"})
    # One of another control node is never known to have ended.
    assert not processes.has_ended({**described, "started": "1", "node": "elsewhere"})
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert processes.has_ended(described), "a process that nobody has waited for has ended all the same"
    sleeper.wait()
    assert processes.has_ended(described)


@pytest.mark.parametrize("wrong", [{}, {"pid": "x"}, {"pid": None}, {"pid": 0}, {"pid": -1}])
def test_what_names_no_process_is_not_known_to_have_ended(wrong: dict[str, object]) -> None:
    assert not processes.has_ended({"node": processes.control_node(), **wrong})


def keep(looks: int, answers: list[str]) -> list[str]:
    """Let the loop run for some looks on a clock of its own, and return what it did."""
    did: list[str] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def renew() -> str:
        did.append(f"renew {clock[0]:.0f}")
        return answers.pop(0) if answers else ""

    processes.keep(
        lambda: clock[0] < looks, renew, did.append, lambda: did.append("release"), now_s=lambda: clock[0], sleep=sleep
    )
    return did


def test_it_renews_at_intervals_and_releases_at_the_end() -> None:
    every = int(RENEW_SECONDS)
    assert keep(2 * every + 5, []) == [f"renew {every}", f"renew {2 * every}", "release"]
    assert keep(3, []) == ["release"]


def test_it_does_not_release_what_another_run_has_taken() -> None:
    assert keep(100, ["", "bob has it"])[-1] == "bob has it"
    assert "release" not in keep(100, ["bob has it"])


def test_a_run_that_ended_while_its_lease_was_asked_for_is_not_signalled() -> None:
    """Its number may be that of another process by now."""
    did: list[str] = []
    alive = [True]

    def renew() -> str:
        alive[0] = False
        return "bob has it"

    clock = iter(range(0, 10**6, 60))
    processes.keep(
        lambda: alive[0], renew, did.append, lambda: did.append("release"),
        now_s=lambda: float(next(clock)), sleep=lambda _seconds: None,
    )  # fmt: skip
    assert did == ["release"]


def test_a_run_whose_lease_was_taken_is_waited_for_until_it_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 3:
            sleeper.kill()
            sleeper.wait()

    described = processes.describe(sleeper.pid)
    processes.await_end([described], 60, now_s=lambda: clock[0], sleep=sleep)
    assert clock == [3]
    # Of another control node's nothing is known.
    processes.await_end([{**described, "node": "another"}], 60, now_s=lambda: clock[0], sleep=sleep)
    assert clock == [63]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_releases(tmp_path: Path, end: signal.Signals) -> None:
    note = tmp_path / "note"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", RUN, str(note)], stdout=subprocess.PIPE, text=True, env=env) as run:
        assert run.stdout is not None
        beside = int(run.stdout.readline())
        assert processes.started(beside)
        assert not note.exists()
        run.send_signal(end)
        # The process beside it holds none of its files open: whoever reads the run's output comes to its end.
        run.stdout.read()
    while processes.started(beside) is not None:
        time.sleep(0.05)
    assert note.read_text() == "released"


def test_a_run_that_lost_its_lease_is_ended_with_a_reason(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("wb") as terminal, subprocess.Popen(["sleep", "3600"], stderr=terminal) as run:
        processes.stop(run.pid, "bob has it")
        assert run.wait() == -signal.SIGTERM
    assert said.read_text() == "\nbob has it\n"
    processes.stop(run.pid, "it has ended")
