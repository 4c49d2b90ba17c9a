# SPDX-License-Identifier: Apache-2.0
"""Commit-confirmed: arming, confirming and rolling back, with a systemd that runs the script for real."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import rollback
from ansible_collections.gb10.cluster.plugins.module_utils._node.renamed import renamed
from ansible_collections.gb10.cluster.plugins.module_utils._node.rollback import (
    Rollback,
    RollbackError,
    last_line,
    script_text,
    unit_text,
)


class Systemd:
    """Runs the unit's script when it is started; may refuse a command or be in the middle of a rollback."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses = ""
        self.state = "inactive"

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command of systemd's."""
        self.asked.append(" ".join(command))
        if self.refuses and self.refuses in self.asked[-1]:
            return 1, "", "noise\nFailed: no bus\n\n"
        if "is-active" in command:
            return 3, self.state + "\n", ""
        if command[:2] == ["systemctl", "start"]:
            unit = (rollback.UNITS / command[2]).read_text(encoding="utf-8")
            [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
            done = subprocess.run(line.partition("=")[2].split(), check=False, timeout=300)
            return done.returncode, "", "" if done.returncode == 0 else "Job failed.\n"
        return 0, "", ""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Replace systemd."""
    (tmp_path / "units").mkdir()
    monkeypatch.setattr(rollback, "UNITS", tmp_path / "units")
    return Systemd()


@pytest.fixture
def guard(tmp_path: Path, systemd: Systemd) -> Rollback:
    """Return the rollback of a change of two files, one of them new."""
    (tmp_path / "old").write_text("before\n", encoding="utf-8")
    (tmp_path / "old").chmod(0o600)
    return Rollback("the test's files", tmp_path / "state", "gb10-test-rollback", systemd.run)


def change(guard: Rollback, place: Path, *commands: str) -> None:
    """Arm, then change both files."""
    guard.arm(60, commands, [place / "old", place / "new"])
    for name in ("old", "new"):
        (place / name).write_text("after\n", encoding="utf-8")


def test_a_change_is_armed_before_it_is_made(guard: Rollback, systemd: Systemd, tmp_path: Path) -> None:
    assert not guard.is_pending()
    change(guard, tmp_path)
    assert guard.is_pending()
    assert (tmp_path / "state/rollback.sh").stat().st_mode & 0o777 == 0o700
    # The next boot rolls back as well as the timer.
    assert "systemctl enable --quiet gb10-test-rollback.service" in systemd.asked
    [timer] = [said for said in systemd.asked if said.startswith("systemd-run")]
    assert "--on-active=60" in timer
    assert timer.endswith("systemctl start gb10-test-rollback.service")


def test_a_confirmed_change_stays(guard: Rollback, systemd: Systemd, tmp_path: Path) -> None:
    change(guard, tmp_path)
    assert guard.confirm() is True
    assert (tmp_path / "old").read_text(encoding="utf-8") == "after\n"
    assert not guard.is_pending()
    assert list((tmp_path / "units").iterdir()) == []
    assert not (tmp_path / "state/saved").exists()
    assert "systemctl stop gb10-test-rollback-timer.timer" in systemd.asked
    assert guard.confirm() is False
    assert guard.roll_back() is False


def test_rolling_back_restores_the_files_and_runs_the_commands(guard: Rollback, tmp_path: Path) -> None:
    change(guard, tmp_path, f"cp {tmp_path}/old {tmp_path}/seen || failed=1")
    assert guard.roll_back() is True
    assert (tmp_path / "old").read_text(encoding="utf-8") == "before\n"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "new").exists()
    # The files come first.
    assert (tmp_path / "seen").read_text(encoding="utf-8") == "before\n"
    assert not guard.is_pending()
    assert list((tmp_path / "units").iterdir()) == []
    with pytest.raises(RollbackError, match=r"was rolled back at 20.*before it could be confirmed"):
        guard.confirm()
    # Another change begins anew.
    change(guard, tmp_path)
    assert guard.confirm() is True


def test_one_failure_does_not_stop_the_rest_and_leaves_the_change_pending(
    guard: Rollback, systemd: Systemd, tmp_path: Path
) -> None:
    change(guard, tmp_path, "false || failed=1", f"touch {tmp_path}/later")
    with pytest.raises(RollbackError, match=r"the test's files was not rolled back on this node \(Job failed.\)"):
        guard.roll_back()
    assert (tmp_path / "later").exists()
    assert guard.is_pending()
    assert "the rollback is incomplete" in guard.log.read_text(encoding="utf-8")
    assert not any("disable" in said for said in systemd.asked)


@pytest.mark.parametrize("refused", ["daemon-reload", "enable", "systemd-run"])
def test_what_cannot_be_armed_is_not_changed(guard: Rollback, systemd: Systemd, tmp_path: Path, refused: str) -> None:
    systemd.refuses = refused
    with pytest.raises(RollbackError, match="could not be prepared, nothing was changed: Failed: no bus"):
        change(guard, tmp_path)
    assert (tmp_path / "old").read_text(encoding="utf-8") == "before\n"
    assert not guard.is_pending()
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.parametrize("state", ["activating", "failed"])
def test_a_confirmation_during_or_after_a_rollback_is_refused(
    guard: Rollback, systemd: Systemd, tmp_path: Path, state: str
) -> None:
    change(guard, tmp_path)
    systemd.state = state
    with pytest.raises(RollbackError, match="is being rolled back"):
        guard.confirm()
    assert guard.is_pending()


def test_a_rollback_that_begins_during_the_confirmation_is_not_called_confirmed(
    guard: Rollback, systemd: Systemd, tmp_path: Path
) -> None:
    """The timer's own start of the unit reaches systemd after the question whether the unit runs."""
    change(guard, tmp_path)
    answer = systemd.run

    def late(command: list[str]) -> tuple[int, str, str]:
        found = answer(command)
        # As systemd does with ConditionPathExists=.
        if "is-active" in command and (tmp_path / "state/pending").exists():
            answer(["systemctl", "start", "gb10-test-rollback.service"])
        return found

    late_guard = Rollback("the test's files", tmp_path / "state", "gb10-test-rollback", late)
    assert late_guard.confirm()
    assert (tmp_path / "old").read_text(encoding="utf-8") == "after\n"


def test_a_rollback_that_ends_during_the_confirmation_is_reported(
    guard: Rollback, systemd: Systemd, tmp_path: Path
) -> None:
    change(guard, tmp_path)
    answer = systemd.run

    def late(command: list[str]) -> tuple[int, str, str]:
        if command[:2] == ["systemctl", "stop"]:
            answer(["systemctl", "start", "gb10-test-rollback.service"])
        return answer(command)

    with pytest.raises(RollbackError, match="confirmation came too late"):
        Rollback("the test's files", tmp_path / "state", "gb10-test-rollback", late).confirm()


def test_a_unit_that_the_timer_left_behind_is_removed(guard: Rollback, systemd: Systemd, tmp_path: Path) -> None:
    change(guard, tmp_path)
    systemd.run(["systemctl", "start", "gb10-test-rollback.service"])
    assert (tmp_path / "units/gb10-test-rollback.service").exists()
    assert guard.roll_back() is False
    assert list((tmp_path / "units").iterdir()) == []


def test_texts() -> None:
    place = Path("/var/lib/a b")
    assert "exec >> '/var/lib/a b'/rollback.log" in script_text("it", place, [])
    unit = unit_text("it", Path("/var/lib/x"))
    assert "ConditionPathExists=/var/lib/x/pending" in unit
    assert "WantedBy=multi-user.target" in unit
    assert last_line("a\n b \n\n") == "b"
    assert last_line(" \n") == "no output"
    assert renamed("x_s")["deprecated_aliases"] == [
        {"name": "x_s", "version": "0.3.0", "collection_name": "gb10.cluster"}
    ]
