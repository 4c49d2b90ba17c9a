# SPDX-License-Identifier: Apache-2.0
"""The tests' own runner counts honestly and lets nothing hang."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.lint.collection import REPO
from tests.lint.sanity import pip_settings
from tests.lint.total import CLOSING_LINES, counts_of, main, outcome_of
from tests.unit.helper import until

JUNIT = '<testsuites><testsuite tests="9" failures="{failures}" errors="1" skipped="2"/></testsuites>'


def part(here: Path, name: str, script: str, **env: str) -> str:
    """Run a shell script as a part below a directory and return what the runner printed."""
    done = subprocess.run(
        [str(REPO / ".ci" / "part"), name, "sh", "-c", script],
        cwd=here,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def total(here: Path, *names: str) -> int:
    return main(names, here / ".ansible" / "reports")


def test_a_part_that_fails_fails_the_sum_and_shows_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "good " in part(tmp_path, "good", "echo quiet")
    assert "FAILED" in part(tmp_path, "bad", "seq 200; echo the reason; exit 3")
    assert total(tmp_path, "good", "bad") == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "1 passed, 1 failed"
    assert shown[CLOSING_LINES + 1] == "the reason"
    assert "quiet" not in shown
    assert total(tmp_path, "good") == 0


def test_what_a_failed_part_names_as_its_reason_stands_beside_the_sum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part(tmp_path, "bad", "echo 'ERROR: x.py:1: wrong'; seq 200; echo 'ERROR: x.py:1: wrong'; exit 1")
    part(tmp_path, "good", "echo 'ERROR: expected here'")
    assert total(tmp_path, "bad", "good") == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["bad: ERROR: x.py:1: wrong", "1 passed, 1 failed"]


def test_a_part_that_left_nothing_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(tmp_path, "good", "true")
    assert total(tmp_path, "good", "gone") == 1
    assert capsys.readouterr().out.endswith("1 passed, 1 failed\n")
    assert total(tmp_path) == 1


def test_an_old_result_does_not_survive_a_crash_of_the_runner(tmp_path: Path) -> None:
    part(tmp_path, "twice", "true")
    process = subprocess.Popen([str(REPO / ".ci" / "part"), "twice", "sleep", "60"], cwd=tmp_path)
    result = tmp_path / ".ansible" / "reports" / "twice.result"
    deadline = time.monotonic() + 300
    while result.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert total(tmp_path, "twice") == 1


def test_a_part_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    mark = f"sleeper-{os.getpid()}"  # of this run of the tests alone
    shutil.copy("/bin/sleep", tmp_path / mark)
    shown = part(
        tmp_path, "hang", f"echo 'TASK [Build it] ****'; ./{mark} 600 & ./{mark} 600", HEARTBEAT="1", STALL="4"
    )
    assert re.search(r"\.\.\. hang \(\d+ s\) TASK \[Build it\]\n", shown), shown
    assert "FAILED" in shown
    assert "hang printed nothing for" in (tmp_path / ".ansible" / "reports" / "hang.log").read_text()
    assert total(tmp_path, "hang") == 1
    until(lambda: subprocess.run(["pgrep", "-f", f"^./{mark}"], check=False, capture_output=True).returncode == 1)


def test_a_command_that_does_not_exist_is_a_failure(tmp_path: Path) -> None:
    subprocess.run([str(REPO / ".ci" / "part"), "none", "/nonexistent"], cwd=tmp_path, check=True, capture_output=True)
    assert total(tmp_path, "none") == 1


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        (JUNIT.format(failures=3), 1, (3, 4)),
        (JUNIT.format(failures=3), 139, (3, 4)),
        (JUNIT.format(failures=3)[:40], 139, (0, 1)),
        ('<testsuites><testsuite tests="7" failures="0" errors="0" skipped="0"/></testsuites>', 0, (7, 0)),
        ('<testsuites><testsuite tests="7" failures="0" errors="0" skipped="0"/></testsuites>', 1, (7, 1)),
        (None, 0, (1, 0)),
        (None, 5, (0, 1)),
    ],
)
def test_counts(tmp_path: Path, report: str | None, status: int, expected: tuple[int, int]) -> None:
    (tmp_path / "it.result").write_text(f"{status} 12\n")
    if report is not None:
        (tmp_path / "it.xml").write_text(report)
    outcome = outcome_of("it", tmp_path)
    assert (outcome.passed, outcome.failed, outcome.seconds) == (*expected, 12)


def test_pytest_writes_the_report_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert False\n"
        "@pytest.fixture\ndef broken(): raise OSError\ndef test_c(broken): pass\n"
        "@pytest.mark.skip\ndef test_d(): pass\n"
    )
    program = str(REPO / ".venv" / "bin" / "python")
    words = [program, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "--junitxml=it.xml", "test_it.py"]
    subprocess.run(words, cwd=tmp_path, check=False, capture_output=True)
    assert counts_of(tmp_path / "it.xml") == (1, 2)


def test_make_refuses_an_unknown_scenario() -> None:
    done = subprocess.run(["make", "molecule", "SCENARIO=nope"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no molecule scenario nope. Known: " in done.stderr
    assert "host" in done.stderr


def test_pip_settings_of_the_environment_win() -> None:
    listing = "global.timeout='5'\ninstall.timeout='6'\n:env:.cert='/a b'\nfreeze.timeout='9'\n"
    assert pip_settings(listing) == {"timeout": "6", "cert": "/a b"}
    assert pip_settings(listing + ":env:.timeout='7'")["timeout"] == "7"
