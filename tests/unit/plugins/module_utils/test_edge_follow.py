# SPDX-License-Identifier: Apache-2.0
"""The proxy follows the engine that the nodes commit or return to, whether or not a control node is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._edge.follow import UNIT, mark
from ansible_collections.gb10.cluster.plugins.module_utils._engine import swap
from ansible_collections.gb10.cluster.plugins.module_utils._engine.guard import READY, Guard
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from tests.unit.engine_node import A, B, Node

STALL_S = 60.0
DIRECT = {"model": "a", "unit": A, "members": ["n1"], "api_port": 8000}
PROXIED = {"model": "a", "unit": A, "members": ["n1"], "api_port": 29602, "proxy_port": 8000}
MOVED = {"model": "b", "unit": B, "members": ["n1"], "api_port": 29602, "proxy_port": 8000}
ELSEWHERE = {**MOVED, "proxy_port": 8100}
ALONE = {"model": "b", "unit": B, "members": ["n1"], "api_port": 8000, "proxy_port": 0}


class Head(Node):
    """A head in a swap, with the proxy as role edge prepares it."""

    def __init__(self, folder: Path) -> None:
        """Serve model a; its proxy does not run."""
        super().__init__(folder)
        for name in ("etc", "run", "edge"):
            (folder / name).mkdir()
        (folder / UNIT).write_text("[Unit]\n", encoding="utf-8")
        self.active[UNIT] = "inactive"
        self.now_s = 0.0

    def has(self, **configurations: Mapping[str, Any]) -> None:
        """Write configurations (nginx, next) for engines."""
        for name, record in configurations.items():
            text = f"# Written\n{mark(record)}\nlisten {record.get('proxy_port', 0)};\n"
            (self.folder / "edge" / f"{name}.conf").write_text(text, encoding="utf-8")

    def begin(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> Guard:
        """Arm a swap, stop the model before and start the new one as the role does; return the guard."""
        self.units.write_record(before)
        options = {
            "node": "n1", "head": "n1", "peers": [], "address": "", "head_address": "", "port": 0, "key": "",
            "before": dict(before), "after": dict(after), "stall_seconds": STALL_S, "restarts_allowed": 0,
        }  # fmt: skip
        described = swap.describe("s1", options, 0.0)
        self.swap.arm(described, "/usr/local/lib/gb10/gb10-swap-0.pyz")
        self.units.stop(before["unit"])
        self.units.start(after["unit"])
        return self.guard()

    def guard(self) -> Guard:
        """Return a guard that is started anew."""
        return Guard(self.swap, lambda _described: READY, lambda: self.now_s)

    def decide(self, state: str) -> None:
        """Decide as the control node does, which dies before anything follows from it."""
        with self.swap.locked():
            self.swap.decide(self.swap.read(), state, "verified", by_nodes=False)

    def wait(self, guard: Guard) -> None:
        """Let the time pass in which the control node should have committed."""
        guard.step()
        self.now_s += STALL_S + 1
        assert guard.step()

    @property
    def proxy(self) -> tuple[bool, bool, str]:
        """Whether the proxy runs and would at boot, and the engine that its configuration is for."""
        present = self.folder / "edge" / "nginx.conf"
        text = present.read_text(encoding="utf-8") if present.exists() else "\n"
        return self.active[UNIT] == "active", UNIT in self.enabled, text.splitlines()[1] if text.strip() else ""

    @property
    def waits(self) -> bool:
        """Whether a configuration waits for another engine."""
        return (self.folder / "edge" / "next.conf").exists()


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Head:
    """Give a head."""
    monkeypatch.setattr(files, "BEFORE", tmp_path / "kept")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    return Head(tmp_path)


@pytest.mark.parametrize("power", ["stays", "lost"])
def test_the_first_engine_behind_the_proxy_is_reached_without_the_control_node(head: Head, power: str) -> None:
    head.has(next=MOVED)
    guard = head.begin(DIRECT, MOVED)
    head.decide(swap.COMMITTED)
    if power == "lost":
        head.power_off()
        guard = head.guard()
    assert guard.step()
    assert head.serving() == ([B], [UNIT, B], "b")
    assert head.proxy == (True, True, mark(MOVED))
    assert not head.waits  # the next run finds what it would have left


def test_a_restart_that_is_rolled_back_behind_the_proxy_is_reached_there(head: Head) -> None:
    """Its unit listens on loopback already, and there is no former one."""
    head.has(next=PROXIED)
    head.wait(head.begin(DIRECT, PROXIED))
    assert head.proxy == (True, True, mark(PROXIED))


def test_another_model_that_is_rolled_back_keeps_its_port(head: Head) -> None:
    head.has(next=MOVED)
    head.wait(head.begin(DIRECT, MOVED))
    assert head.serving() == ([A], [A], "a")
    assert head.proxy == (False, False, "")


def test_a_proxy_that_was_stopped_for_an_engine_that_failed_runs_again(head: Head) -> None:
    head.has(nginx=PROXIED)
    guard = head.begin(PROXIED, ALONE)  # edge_proxy: false
    head.wait(guard)
    assert head.proxy == (True, True, mark(PROXIED))


def test_the_proxy_moves_to_another_port_with_the_model(head: Head) -> None:
    head.has(nginx=PROXIED, next=ELSEWHERE)
    head.run(["systemctl", "start", UNIT])
    guard = head.begin(PROXIED, ELSEWHERE)
    head.decide(swap.COMMITTED)
    head.asked.clear()
    assert guard.step()
    assert head.proxy == (True, True, mark(ELSEWHERE))
    assert f"systemctl restart {UNIT}" in head.asked


def test_a_move_that_was_cut_off_is_done_again(head: Head) -> None:
    head.has(nginx=MOVED, next=MOVED)  # between the file and the restart
    head.run(["systemctl", "start", UNIT])
    guard = head.begin(DIRECT, MOVED)
    head.decide(swap.COMMITTED)
    assert guard.step()
    assert f"systemctl restart {UNIT}" in head.asked
    assert not head.waits


def test_a_commit_that_is_taken_back_frees_the_port_before_the_engine_starts(head: Head) -> None:
    head.has(next=MOVED)
    head.begin(DIRECT, MOVED)
    for state in (swap.COMMITTED, swap.ROLLED_BACK):
        with head.swap.locked():
            head.swap.apply(head.swap.decide(head.swap.read(), state, "", by_nodes=False))
    assert head.proxy[:2] == (False, False)
    assert head.asked.index(f"systemctl disable --now {UNIT}") < head.asked.index(f"systemctl start --no-block {A}")


@pytest.mark.parametrize("text", ["", "# Written by an earlier release, TLS alone\n"])
def test_a_configuration_that_names_no_engine_is_left_alone(head: Head, text: str) -> None:
    (head.folder / "edge" / "nginx.conf").write_text(text, encoding="utf-8")
    head.run(["systemctl", "start", UNIT])
    head.wait(head.begin(DIRECT, MOVED))
    assert head.active[UNIT] == "active"


def test_a_node_without_a_proxy_is_asked_for_none(head: Head) -> None:
    (head.folder / UNIT).unlink()
    head.has(nginx=PROXIED, next=MOVED)
    guard = head.begin(DIRECT, MOVED)
    head.decide(swap.COMMITTED)
    assert guard.step()
    assert not [asked for asked in head.asked if UNIT in asked]


def test_a_proxy_that_does_not_start_fails_no_commit(head: Head) -> None:
    head.has(next=MOVED)
    guard = head.begin(DIRECT, MOVED)
    head.decide(swap.COMMITTED)
    head.refused = (f"systemctl restart {UNIT}", "Job failed")
    assert guard.step()
    assert head.serving()[2] == "b"
