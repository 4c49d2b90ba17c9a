# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.engine_swap: arm, commit, roll back and end, on a node that answers as systemctl does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import swap as swaps
from ansible_collections.gb10.cluster.plugins.modules import engine_swap, engine_units
from tests.unit.engine_node import A, B, Node
from tests.unit.helper import run_module

BEFORE = {"model": "a", "unit": A, "members": ["n1", "n2"]}
AFTER = {"model": "b", "unit": B, "members": ["n1", "n2"]}
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Give a node that serves model a."""
    (tmp_path / "etc").mkdir()
    made = Node(tmp_path)
    made.units.write_record(BEFORE)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr(
        swaps.Swap.__init__, "__defaults__",
        (None, tmp_path / "run" / "armed", tmp_path / "run" / "lock", tmp_path / "edge"),
    )  # fmt: skip
    return made


@pytest.fixture
def call(node: Node) -> Call:
    """Return a function that runs the module on the node."""

    def run(state: str, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"state": state, **node.places, **options}
        return run_module(engine_swap, given, check=check, run_command=lambda words, **_options: node.run(words))

    return run


def arm(call: Call, name: str = "n1", **options: Any) -> str:
    """Arm the node as the head or as the other one; return the identity of the swap."""
    given = {"node": name, "head": "n1", "peers": ["n2"], "before": BEFORE, "after": AFTER, "program": "/p", **options}
    result = call("armed", **given)
    assert result["changed"] is True
    return str(result["swap"])


def test_the_head_is_armed_committed_and_done(node: Node, call: Call) -> None:
    identity = arm(call)
    assert len(identity) == 16
    assert node.swap.read()["state"] == "pending"
    node.units.stop(A)
    node.units.start(B)
    assert call("committed", swap=identity, node="n1", after=AFTER)["changed"] is True
    assert node.serving() == ([B], [B], "b")
    # Its guard answers the others until the control node ends the swap.
    assert node.swap.read()["state"] == "committed"
    assert call("absent")["changed"] is True
    assert call("absent")["changed"] is False
    assert node.swap.read() == {}


def test_another_node_reports_to_the_head_what_it_has_committed(node: Node, call: Call) -> None:
    identity = arm(call, "n2", swap="s1")
    node.units.start(B)
    call("committed", swap=identity, node="n2", after=AFTER)
    assert node.serving() == ([B], [B], "b")
    # Its guard does it, should the control node not end the swap.
    assert (node.swap.read()["state"], node.swap.read()["applied"]) == ("committed", True)
    node.swap.disarm()
    # Its guard may have been first.
    assert call("committed", swap=identity, node="n2", after=AFTER)["changed"] is False


@pytest.mark.parametrize("state", ["alone", "started"])
def test_a_control_node_that_is_slower_than_the_nodes_stops_and_starts_nothing(
    node: Node, call: Call, state: str
) -> None:
    """Else the model that nobody verified would serve on, without a guard, when the control node dies next."""
    identity = arm(call)

    def step(swap: str) -> dict[str, Any]:
        given = {"state": state, "unit": B, "swap": swap, **node.places}
        return run_module(engine_units, given, run_command=lambda words, **_options: node.run(words))

    assert not step(identity).get("failed"), "as long as the swap is pending"
    swap = node.swap
    swap.apply(swap.decide(swap.read(), swaps.ROLLED_BACK, "no progress", by_nodes=True))
    served = node.serving()
    assert "was rolled back by the nodes" in step(identity)["msg"]
    swap.disarm()
    assert "was rolled back by the nodes" in step(identity)["msg"]
    assert node.serving() == served == ([A], [A], "a")


def test_a_commit_that_comes_too_late_says_when_and_why(node: Node, call: Call) -> None:
    identity = arm(call)
    swap = node.swap
    swap.apply(swap.decide(swap.read(), swaps.ROLLED_BACK, "n2 was restarted", by_nodes=True))
    late = call("committed", swap=identity, node="n1", after=AFTER)
    assert late["failed"]
    assert late["msg"].startswith("The swap from a to b was rolled back by the nodes at 20")
    assert late["msg"].endswith("n2 was restarted.")
    node.swap.disarm()
    assert call("committed", swap=identity, node="n1", after=AFTER)["msg"] == late["msg"]
    node.swap.note.unlink()
    assert "is not armed on this node any more" in call("committed", swap=identity, node="n1", after=AFTER)["msg"]
    assert node.serving() == ([A], [A], "a")


def test_a_failed_start_is_rolled_back_by_the_control_node(node: Node, call: Call) -> None:
    identity = arm(call)
    node.units.stop(A)
    node.units.start(B)
    result = call("rolled_back", swap=identity, node="n1", before=BEFORE)
    assert (result["stopped"], result["started"], result["by_nodes"]) == ([B], [A], False)
    assert node.serving() == ([A], [A], "a")
    assert node.swap.read_note() == {}  # the run itself reports it
    assert call("rolled_back", swap=identity, node="n1", before=BEFORE)["changed"] is False


def test_what_the_nodes_had_rolled_back_stays_and_is_reported(node: Node, call: Call) -> None:
    identity = arm(call)
    swap = node.swap
    swap.apply(swap.decide(swap.read(), swaps.ROLLED_BACK, "n2 was restarted", by_nodes=True))
    result = call("rolled_back", swap=identity, node="n1", before=BEFORE)
    assert (result["changed"], result["by_nodes"]) == (False, True)
    assert swap.read_note()["why"] == "n2 was restarted"


def test_without_a_model_before_the_new_one_is_enabled_by_its_commit_alone(node: Node, call: Call) -> None:
    node.units.stop(A)
    node.units.write_record({})
    node.units.start(B)
    assert node.serving() == ([B], [], None)
    assert call("committed", check=True, node="n1", after=AFTER)["changed"] is True
    assert node.serving() == ([B], [], None)
    call("committed", node="n1", after=AFTER)
    assert node.serving() == ([B], [B], "b")
    assert call("committed", node="n1", after=AFTER)["changed"] is False
    assert call("committed", check=True, node="n1", after=AFTER)["changed"] is False


def test_a_node_without_a_part_in_the_new_model_is_idle_afterwards(node: Node, call: Call) -> None:
    call("committed", node="n3", after=AFTER)
    assert node.serving() == ([], [], None)


def test_a_first_model_that_fails_leaves_nothing_running(node: Node, call: Call) -> None:
    node.units.start(B)
    call("rolled_back", node="n1", before={})
    assert node.serving() == ([], [], None)


def test_a_unit_that_is_not_rendered_is_refused(node: Node, call: Call) -> None:
    del node
    result = call("committed", node="n1", after={**AFTER, "unit": "vllm-c.service"})
    assert (result["failed"], "vllm-c.service is not rendered" in result["msg"]) == (True, True)


def test_check_mode_arms_and_ends_nothing(node: Node, call: Call) -> None:
    given = {"node": "n1", "head": "n1", "before": BEFORE, "after": AFTER, "program": "/p"}
    assert call("armed", check=True, **given)["changed"] is True
    assert call("absent", check=True)["changed"] is False
    assert (node.swap.read(), node.asked) == ({}, [])
