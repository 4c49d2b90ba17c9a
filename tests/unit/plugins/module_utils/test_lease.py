# SPDX-License-Identifier: Apache-2.0
"""Who holds what on the head: decided by the running time, and by one process at a time."""

from __future__ import annotations

import json
import multiprocessing
import stat
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import lease

BOTH = lease.SCOPES


def holder(run: str) -> dict[str, Any]:
    """Return a run as the control node describes it."""
    return {"run": run, "who": f"user-{run}", "where": "desk", "what": "serve.yml", "process": {"pid": 7}}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The head's running time, which a test sets."""
    time_s = [1000.0]
    monkeypatch.setattr(lease, "now_seconds", lambda: time_s[0])
    return time_s


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({"run": "a", "renewed_s": 1000.0}, True),
        ({"run": "a", "renewed_s": 1000.5 - lease.LASTS_SECONDS}, True),
        ({"run": "a", "renewed_s": 1000.0 - lease.LASTS_SECONDS}, False),
        ({"run": "a", "renewed_s": 1001.0}, False),  # of a boot before: the running time began anew
        ({"run": "", "renewed_s": 1000.0}, False),
        ({"run": "a", "renewed_s": "x"}, False),
        ({"run": "a", "renewed_s": None}, False),
        ({}, False),
    ],
)
def test_a_lease_lasts_by_the_running_time(noted: dict[str, Any], expected: bool) -> None:
    assert lease.is_live(noted, 1000.0) is expected


def test_the_second_is_refused_until_the_first_ends(tmp_path: Path, now: list[float]) -> None:
    folder = tmp_path / "lease"
    assert lease.hold(folder, ["deployment"], holder("a")) == (True, [])
    now[0] += 30
    taken, holders = lease.hold(folder, BOTH, holder("b"))
    assert not taken
    assert [(each["run"], each["scope"], each["seconds"]) for each in holders] == [("a", "deployment", 30.0)]
    # All of them or none: the free one was not taken either.
    assert lease.hold(folder, ["cluster"], holder("c"))[0] is True
    assert lease.release(folder, "a") is True
    assert lease.release(folder, "a") is False
    assert lease.hold(folder, ["deployment"], holder("b"))[0] is True
    assert [each["run"] for each in lease.live(folder)] == ["b", "c"]
    assert [each["run"] for each in lease.live(folder, "b")] == ["c"]
    assert [each["run"] for each in lease.live(folder, "", ["deployment"])] == ["b"]


def test_a_renewal_changes_nothing_but_the_end(tmp_path: Path, now: list[float]) -> None:
    lease.hold(tmp_path, BOTH, holder("a"))
    for _each in range(3):
        now[0] += lease.LASTS_SECONDS - 1
        assert lease.hold(tmp_path, BOTH, holder("a")) == (False, [])
    found = lease.live(tmp_path)
    assert [each["seconds"] for each in found] == [3 * (lease.LASTS_SECONDS - 1)] * 2
    now[0] += lease.LASTS_SECONDS
    assert lease.live(tmp_path) == []
    assert lease.hold(tmp_path, BOTH, holder("b")) == (True, [])
    # The first one comes back after the head had heard nothing of it: it is not the holder any more.
    assert [each["run"] for each in lease.hold(tmp_path, BOTH, holder("a"))[1]] == ["b", "b"]


@pytest.mark.usefixtures("now")
def test_a_run_that_is_known_to_have_ended_does_not_count(tmp_path: Path) -> None:
    lease.hold(tmp_path, ["deployment"], holder("a"))
    assert lease.hold(tmp_path, BOTH, holder("b"), ended=["other"])[0] is False
    assert lease.hold(tmp_path, BOTH, holder("b"), ended=["a"]) == (True, [])


@pytest.mark.usefixtures("now")
def test_a_lease_can_be_taken_over(tmp_path: Path) -> None:
    lease.hold(tmp_path, ["deployment"], holder("a"))
    taken, holders = lease.hold(tmp_path, BOTH, holder("b"), take_over=True)
    assert (taken, [each["run"] for each in holders]) == (True, ["a"])
    assert [each["run"] for each in lease.hold(tmp_path, ["deployment"], holder("a"))[1]] == ["b"]
    assert lease.release(tmp_path, "a") is False


@pytest.mark.usefixtures("now")
def test_half_a_file_is_no_lease(tmp_path: Path) -> None:
    lease.hold(tmp_path, BOTH, holder("a"))
    (tmp_path / "deployment.json").write_text('{"run": "a", "rene', encoding="utf-8")
    (tmp_path / "cluster.json").write_text("[]", encoding="utf-8")
    assert lease.hold(tmp_path, BOTH, holder("b")) == (True, [])


def test_root_alone_reads_a_lease(tmp_path: Path) -> None:
    lease.hold(tmp_path / "lease", ["cluster"], holder("a"))
    assert stat.S_IMODE((tmp_path / "lease").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "lease").iterdir()} == {0o600}
    assert lease.release(tmp_path / "none", "a") is False
    assert not (tmp_path / "none").exists()


def test_a_holder_is_named_in_a_line(tmp_path: Path, now: list[float]) -> None:
    lease.hold(tmp_path, ["deployment"], holder("a"))
    now[0] += 59
    found = lease.live(tmp_path)[0]
    line = lease.sentence({**found, "since": "2026-11-28T20:00:00+00:00"})
    assert line == (
        "user-a on desk runs serve.yml since 2026-11-28T20:00:00+00:00 (59 s), with the lease of the deployment"
    )
    assert "(2 min)" in lease.sentence({**found, "seconds": 130.0})
    assert "renewed_s" not in found
    json.dumps(found)


def contend(folder: str, run: str, start: Barrier, answers: Any) -> None:
    """Take the leases at the same moment as others do."""
    start.wait()
    taken, holders = lease.hold(Path(folder), BOTH, holder(run))
    answers.put((run, taken, sorted({each["run"] for each in holders})))


def test_of_many_processes_one_gets_both(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [f"r{number}" for number in range(6)]
    start, answers = context.Barrier(len(runs)), context.Queue()
    started = [context.Process(target=contend, args=(str(tmp_path / "new"), run, start, answers)) for run in runs]
    for each in started:
        each.start()
    found = [answers.get() for _each in runs]
    for each in started:
        each.join()
    winners = [run for run, taken, _holders in found if taken]
    assert len(winners) == 1
    assert all(holders == winners for _run, taken, holders in found if not taken)
    assert {each["run"] for each in lease.live(tmp_path / "new")} == set(winners)
