# SPDX-License-Identifier: Apache-2.0
"""The runner of the test lanes counts honestly and lets nothing hang."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lint import lanes
from tests.lint.lanes import Part, close, count_pytest, main, molecule_parts, run_in_turn, run_quietly
from tests.lint.sanity import pip_settings


@pytest.mark.parametrize(
    ("output", "returncode", "expected"),
    [
        ("== 5 passed in 1.20s ==", 0, (5, 0)),
        ("== 2 failed, 3 passed, 1 skipped, 1 error in 3.2s ==", 1, (3, 3)),
        ("== 4 passed, 2 errors in 61.00s (0:01:01) ==", 1, (4, 2)),
        ("1 failed, 1 passed in a test's own words\n== 7 passed in 0.1s ==", 0, (7, 0)),
        ("Segmentation fault", 139, (0, 1)),
        ("== 7 passed in 0.1s ==", 1, (7, 1)),
        ("no tests ran in 0.01s", 5, (0, 1)),
    ],
)
def test_count_pytest(output: str, returncode: int, expected: tuple[int, int]) -> None:
    assert count_pytest(output, returncode) == expected


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lanes, "REPORTS", tmp_path)
    return tmp_path


def test_a_failing_part_fails_the_lane_and_shows_its_log(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = Part("good", (sys.executable, "-c", "print('quiet')"), 1)
    bad = Part("bad", (sys.executable, "-c", "print('the reason'); raise SystemExit(3)"), 2)
    outcomes = {outcome.part.name: outcome for outcome in run_quietly([good, bad], 2, None)}
    shown = capsys.readouterr().out
    assert (outcomes["good"].ok, outcomes["bad"].ok, outcomes["bad"].returncode) == (True, False, 3)
    assert "the reason" in shown
    assert "quiet" not in shown
    assert (reports / "good.log").read_text() == "quiet\n"


@pytest.mark.usefixtures("reports")
def test_a_part_that_hangs_is_stopped_with_what_it_started(capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = run_quietly([Part("hang", ("sh", "-c", "sleep 60 & sleep 60"), 1)], 1, 0.5)
    assert not outcome.ok
    assert outcome.seconds < 30
    assert "hang printed nothing for" in capsys.readouterr().out


@pytest.mark.usefixtures("reports")
def test_a_command_that_does_not_exist_is_no_success() -> None:
    with pytest.raises(FileNotFoundError):
        run_quietly([Part("gone", ("/nonexistent/command",), 1)], 1, None)


@pytest.mark.usefixtures("reports")
def test_what_runs_alone_without_a_terminal_says_where_it_is_and_ends_with_why_it_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lanes, "HEARTBEAT_S", 0.4)
    script = "echo 'TASK [Build it] ****'; sleep 1; seq 200; echo the reason; exit 2"
    outcomes = run_in_turn([Part("alone", ("sh", "-c", script), 1), Part("next", ("true",), 1)], echo=False)
    assert [outcome.ok for outcome in outcomes] == [False, True]
    assert "s): TASK [Build it]\n" in capsys.readouterr().out
    close(outcomes)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "---- the end of alone's log"
    assert shown[-1] == "the reason"
    assert len(shown) == 2 + lanes.CLOSING_LINES


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"no molecule scenario 'nope'. Known: .*host"):
        molecule_parts("nope")


def test_an_unknown_lane_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["sometimes"])


def test_pip_settings_of_the_environment_win() -> None:
    listing = "global.timeout='5'\ninstall.timeout='6'\n:env:.cert='/a b'\nfreeze.timeout='9'\n"
    assert pip_settings(listing) == {"timeout": "6", "cert": "/a b"}
    assert pip_settings(listing + ":env:.timeout='7'")["timeout"] == "7"
