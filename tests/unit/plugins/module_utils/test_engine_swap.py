# SPDX-License-Identifier: Apache-2.0
"""A swap whose control node dies: which model the nodes serve in the end, after every step and every loss of power."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import guard, swap, units
from ansible_collections.gb10.cluster.plugins.module_utils._engine.guard import READY, RESTARTED, Guard, progress_of
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import RankReader
from ansible_collections.gb10.cluster.plugins.modules.engine_swap import decide
from lab.ports import free_port
from tests.unit.engine_node import A, B, Node

NODES = ("n1", "n2", "n3")
BEFORE = {"model": "a", "unit": A, "members": ["n1", "n2", "n3"]}
AFTER = {"model": "b", "unit": B, "members": ["n1", "n2"]}
STALL_S = 60.0
SERVES_A = ([A], [A], "a")


class Cluster:
    """Three nodes of which a is served on all and b shall be on two; a clock, and what the ranks of b show."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.now_s = 0.0
        self.progress: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        self.guards: dict[str, Guard] = {}
        self.key = folder / "tether.key"
        self.key.write_text("5" * 64 + "\n")
        for name in NODES:
            (folder / name / "etc").mkdir(parents=True)
            (folder / name / "run").mkdir()
            self.nodes[name] = Node(folder / name)
            self.nodes[name].units.write_record(BEFORE)

    def look(self, described: Mapping[str, Any]) -> str:
        """Return what the rank of a node shows of its progress."""
        return self.progress.get(described["node"], "")

    def arm(self, *names: str) -> None:
        """Arm nodes as the role does."""
        for name in names:
            options = {
                "node": name, "head": "n1", "before": BEFORE, "after": AFTER, "peers": ["n2", "n3"],
                "address": "127.0.0.1", "head_address": "127.0.0.1", "port": self.port, "key": str(self.key),
                "stall_seconds": STALL_S, "restarts_allowed": 2,
            }  # fmt: skip
            described = swap.describe("s1", options, 1000.0)
            self.nodes[name].swap.arm(described, "/usr/local/lib/gb10/gb10-swap-0.pyz")
            self.begin(name)

    def begin(self, name: str) -> None:
        """Start the guard of a node anew."""
        before = self.guards.get(name)
        if before is not None and before.server is not None:
            before.server.shutdown(socket.SHUT_RDWR)
            before.server.close()
        self.guards[name] = Guard(self.nodes[name].swap, self.look, lambda: self.now_s)

    def step(self, *names: str) -> dict[str, bool]:
        """Let guards look once, the head's first; return which are done."""
        return {name: self.guards[name].step() for name in names or NODES}

    def swap_engines(self) -> None:
        """Stop a everywhere and start b where it has a rank, without enabling it."""
        for node in self.nodes.values():
            node.units.stop(A)
        for name in AFTER["members"]:
            self.nodes[name].units.start(B)

    def settle(self) -> None:
        """Let guards look until all are done with the swap."""
        for _round in range(6):
            if all(self.step().values()):
                return
        raise AssertionError({name: node.swap.read() for name, node in self.nodes.items()})

    def power_off(self, name: str) -> None:
        """Let a node lose its power, and boot it."""
        self.nodes[name].power_off()
        self.begin(name)

    def serving(self) -> list[tuple[list[str], list[str], Any]]:
        """Return what each node serves."""
        return [self.nodes[name].serving() for name in NODES]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Give three armed nodes."""
    monkeypatch.setattr(files, "BEFORE", tmp_path / "kept")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    made = Cluster(tmp_path, free_port())
    made.arm(*NODES)
    return made


def test_a_start_that_makes_progress_is_waited_for_and_one_that_makes_none_is_rolled_back(cluster: Cluster) -> None:
    cluster.swap_engines()
    for minute in range(10):
        cluster.now_s += STALL_S - 1
        cluster.progress["n2"] = f"shard {minute}"  # a worker's counts as well as the head's
        assert not any(cluster.step("n2", "n1").values())
    cluster.now_s += STALL_S - 1
    cluster.step("n2", "n1")
    cluster.now_s += STALL_S + 1
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3
    note = cluster.nodes["n2"].swap.read_note()
    assert (note["before"], note["after"]) == ("a", "b")
    assert note["why"] == "the control node did not commit it within 60 s after the last progress of its start"
    assert swap.rolled_back_sentence(note).startswith("The swap from a to b was rolled back by the nodes at 20")
    assert not list(cluster.nodes["n1"].folder.glob("gb10-swap*"))


def test_an_engine_that_is_ready_and_not_committed_makes_no_progress(cluster: Cluster) -> None:
    cluster.swap_engines()
    cluster.progress["n1"] = READY
    cluster.step()
    cluster.now_s += STALL_S + 1
    cluster.progress["n2"] = "a line of its log"
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3
    assert cluster.nodes["n3"].swap.read_note()["why"].endswith("within 60 s after its engine was ready")


def test_a_start_that_is_refused_again_and_again_makes_no_progress(cluster: Cluster) -> None:
    cluster.swap_engines()
    cluster.progress["n2"] = RESTARTED
    for name in ("n1", "n2", "n1"):
        cluster.step(name)
    cluster.now_s += STALL_S + 1
    cluster.progress["n1"] = "one more line"
    assert cluster.step("n1") == {"n1": False}  # rolled back, and waits for the others
    assert cluster.nodes["n1"].serving() == SERVES_A


@pytest.mark.parametrize("name", NODES)
def test_a_node_that_loses_its_power_before_the_commit_ends_the_swap_on_all(cluster: Cluster, name: str) -> None:
    cluster.swap_engines()
    cluster.power_off(name)
    # Nothing that is not verified starts at boot.
    assert cluster.nodes[name].serving()[:2] == ([], [])
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3
    assert f"{name} was restarted" in cluster.nodes["n1"].swap.read_note()["why"]


def test_a_control_node_that_dies_before_anything_was_stopped_changes_nothing(cluster: Cluster) -> None:
    cluster.step("n1")
    cluster.now_s += STALL_S + 1
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3
    assert not [asked for node in cluster.nodes.values() for asked in node.asked if " vllm-" in asked]


def commit(cluster: Cluster, name: str) -> None:
    """Commit a node as the module does."""
    made = cluster.nodes[name].swap
    with made.locked():
        made.apply(made.decide(made.read(), swap.COMMITTED, "verified", by_nodes=False))


@pytest.mark.parametrize("lost", ["", *NODES])
def test_once_the_head_has_committed_all_nodes_follow(cluster: Cluster, lost: str) -> None:
    cluster.swap_engines()
    commit(cluster, "n1")
    if lost:
        cluster.power_off(lost)
    cluster.now_s += 10 * STALL_S
    cluster.settle()
    assert cluster.serving() == [([B], [B], "b"), ([B], [B], "b"), ([], [], None)]
    assert not cluster.nodes["n2"].swap.read_note()


def test_a_swap_that_every_node_has_committed_is_ended_by_the_nodes(cluster: Cluster) -> None:
    """The control node died before it could; a later run has nothing to end."""
    cluster.swap_engines()
    for name in NODES:
        node = cluster.nodes[name]
        given = {"state": swap.COMMITTED, "swap": "s1", "node": name, "after": AFTER}
        with node.swap.locked():
            decide(node.swap, given)
    cluster.settle()
    assert not [node for node in cluster.nodes.values() if node.swap.read()]
    assert cluster.serving() == [([B], [B], "b"), ([B], [B], "b"), ([], [], None)]


def test_a_head_that_loses_its_power_between_decision_and_deed_does_it_at_boot(cluster: Cluster) -> None:
    cluster.swap_engines()
    head = cluster.nodes["n1"]
    head.swap.decide(head.swap.read(), swap.COMMITTED, "verified", by_nodes=False)
    cluster.power_off("n1")
    assert head.serving() == ([], [], "a")
    cluster.settle()
    assert cluster.serving() == [([B], [B], "b"), ([B], [B], "b"), ([], [], None)]


def test_a_rollback_by_the_control_node_is_followed_and_not_noted(cluster: Cluster) -> None:
    """A guard may hear of it from the head before the control node comes to its node."""
    cluster.swap_engines()
    head = cluster.nodes["n1"].swap
    with head.locked():
        head.apply(head.decide(head.read(), swap.ROLLED_BACK, "the control node decided", by_nodes=False))
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3
    assert not [node for node in cluster.nodes.values() if node.swap.read_note()]


def test_a_node_waits_as_long_as_the_head_does_not_answer(cluster: Cluster) -> None:
    cluster.swap_engines()
    cluster.power_off("n2")
    cluster.now_s += 100 * STALL_S
    assert cluster.step("n2", "n3") == {"n2": False, "n3": False}
    assert cluster.nodes["n3"].swap.read()["state"] == swap.PENDING
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3


def test_a_head_that_is_restarted_after_a_report_still_knows_it(cluster: Cluster) -> None:
    cluster.swap_engines()
    cluster.step("n1")
    cluster.now_s += STALL_S + 1
    cluster.step("n1")
    assert cluster.step("n2") == {"n2": True}
    cluster.step("n1")
    assert cluster.nodes["n1"].swap.read()["done"] == ["n2"]
    cluster.begin("n1")
    cluster.step("n1")
    assert cluster.step("n3") == {"n3": True}
    assert cluster.step("n1") == {"n1": True}


def test_who_has_not_the_key_or_asks_about_another_swap_learns_and_changes_nothing(cluster: Cluster) -> None:
    cluster.step("n1")
    other = cluster.guards["n2"]
    described = cluster.nodes["n2"].swap.read()
    assert other.ask(described, {}) == {"state": "pending"}
    wrong = cluster.key.with_name("wrong.key")
    wrong.write_text("6" * 64)
    assert other.ask({**described, "key": str(wrong)}, {"restarted": True}) == {}
    assert other.ask({**described, "id": "s2"}, {"restarted": True}) == {}
    assert other.ask({**described, "node": "stranger"}, {"restarted": True}) == {}
    assert cluster.guards["n1"].restarts == set()


def test_what_systemd_refuses_is_tried_again(cluster: Cluster) -> None:
    cluster.swap_engines()
    cluster.step("n1")
    cluster.now_s += STALL_S + 1
    cluster.nodes["n1"].refused = (f"systemctl enable {A}", "busy")
    with pytest.raises(units.UnitError, match="busy"):
        cluster.step("n1")
    cluster.nodes["n1"].refused = ("", "")
    cluster.settle()
    assert cluster.serving() == [SERVES_A] * 3


def test_an_ended_swap_leaves_nothing_and_changes_nothing(cluster: Cluster) -> None:
    cluster.swap_engines()
    serving = cluster.serving()
    for node in cluster.nodes.values():
        assert node.swap.disarm() is True
        assert node.swap.disarm() is False
        assert not [path.name for path in node.folder.rglob("*swap*")]
    assert cluster.step() == dict.fromkeys(NODES, True)
    assert cluster.serving() == serving


def test_nothing_is_armed_where_systemd_refuses(cluster: Cluster) -> None:
    node = cluster.nodes["n1"]
    described = node.swap.read()
    node.refused = (f"systemctl start {swap.UNIT}", "no such unit\n")
    with pytest.raises(swap.SwapError, match="nothing was stopped: no such unit"):
        node.swap.arm(described, "/p")
    assert node.swap.read() == {}


@pytest.mark.parametrize("cut_after", range(6))
def test_a_node_that_loses_its_power_while_it_is_armed_has_no_swap_or_a_guard(cluster: Cluster, cut_after: int) -> None:
    node = cluster.nodes["n2"]
    described = node.swap.read()
    node.swap.disarm()
    node.enabled.discard(swap.UNIT)
    left = iter(range(cut_after))

    def run(command: list[str]) -> tuple[int, str, str]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return node.run(command)

    cut = swap.Swap(
        units.EngineUnits(run, node.units.units_dir, node.units.record_path, node.units.run_dir),
        run, node.swap.state_dir, node.swap.armed, node.swap.lock,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        cut.arm(described, "/p")
    assert swap.UNIT in node.enabled or node.swap.read() == {}
    assert cut_after < 5 or node.swap.read() == described


def test_the_unit_outlives_a_boot_and_names_the_program() -> None:
    text = swap.unit_text("/usr/local/lib/gb10/gb10-swap-0.pyz", Path("/var/lib/gb10/engine/swap.json"))
    assert "WantedBy=multi-user.target" in text
    assert "ConditionPathExists=/var/lib/gb10/engine/swap.json\n" in text
    assert "/gb10-swap-0.pyz guard /var/lib/gb10/engine/swap.json\n" in text


REPORT = {
    "node": "n1",
    "state": "running",
    "unit": {"restarts": 0, "invocation": "1"},
    "log": {"phase": "load", "done": 1},
}


def test_progress_is_what_the_probe_sees() -> None:
    assert progress_of(REPORT, 2) == progress_of(json.loads(json.dumps(REPORT)), 2)
    assert progress_of(REPORT, 2) != progress_of({**REPORT, "log": {"phase": "load", "done": 2}}, 2)
    assert progress_of({**REPORT, "log": {"phase": "ready"}}, 2) == READY
    assert progress_of({**REPORT, "unit": {"restarts": 2}}, 2) != RESTARTED
    assert progress_of({**REPORT, "unit": {"restarts": 3}}, 2) == RESTARTED


def test_a_rank_that_cannot_be_read_makes_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> None:
    def fail(_self: object) -> dict[str, Any]:
        raise ValueError("no journal")

    monkeypatch.setattr(RankReader, "report", fail)
    assert guard.look(cluster.nodes["n1"].swap.read()) == ""
    assert "the state of vllm-b.service cannot be read: ValueError: no journal" in capsys.readouterr().out
    assert guard.look(cluster.nodes["n3"].swap.read()) == ""  # has no rank of it


def test_the_guard_ends_when_the_swap_does(cluster: Cluster) -> None:
    cluster.nodes["n1"].swap.disarm()
    cluster.guards["n1"].run()
    assert guard.main([str(cluster.nodes["n1"].folder / "state" / "swap.json")]) == 0


@pytest.mark.parametrize("state", ["rolled_back", "committed"])
def test_a_model_that_was_restarted_on_another_port_is_recorded_where_its_unit_listens(state: str) -> None:
    """Its unit has been written anew: there is no former one to return to."""
    direct = {**BEFORE, "api_port": 8000, "proxy_port": 0, "image": "old"}
    behind = {**BEFORE, "api_port": 29602, "proxy_port": 8000, "image": "new"}
    unit, record = swap.outcome({"state": state, "node": "n1", "before": direct, "after": behind})
    assert unit == A
    assert record == {**behind, "image": "new" if state == "committed" else "old"}


def test_another_model_returns_to_the_port_of_its_record() -> None:
    before = {**BEFORE, "api_port": 8000, "proxy_port": 0}
    after = {**AFTER, "api_port": 29602, "proxy_port": 8000}
    assert swap.outcome({"state": "rolled_back", "node": "n3", "before": before, "after": after}) == (A, before)
