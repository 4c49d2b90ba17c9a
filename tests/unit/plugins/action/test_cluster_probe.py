# SPDX-License-Identifier: Apache-2.0
"""The processes of one task see each other's ranks; here each is a thread, and its node a script."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants
from ansible.errors import AnsibleActionFail

from ansible_collections.gb10.cluster.plugins.action import cluster_probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import EngineLog

NODES = ["gx10-1", "gx10-2", "gx10-3"]
HEAD = NODES[0]
NAME = "lab/tiny-qwen3"
TOKENS = [{"name": "completion", "ok": True, "tokens": 8, "detail": ""}]
Look = Callable[[int, bool], dict[str, Any]]
"""What a node answers to its n-th look (from 0), and whether a completion was asked for."""


def report(node: str, state: str = probe.RUNNING, **log: Any) -> dict[str, Any]:
    return {
        "node": node,
        "state": state,
        "unit": {
            "name": "vllm-t.service",
            "active_state": "active",
            "restarts": log.pop("restarts", 0),
            "seconds": 5.0,
        },
        "log": {**EngineLog(**log).as_dict(), "complete": True},
        "findings": [],
        "tail": [f"last words of {node}"],
    }


def answer(
    rank: dict[str, Any], health: int | None = None, canaries: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    if health is None:
        return {"rank": rank, "pulse": ["active"]}
    api = {
        "url": "http://127.0.0.1:8000",
        "health": health,
        "models": [NAME] if health == 200 else [],
        "canaries": canaries or [],
    }
    return {"rank": rank, "api": api, "pulse": ["active", str(health)]}


class Probe(cluster_probe.ActionModule):
    """The action with a script in place of the node."""

    def __init__(self, node: str, look: Look, options: dict[str, Any], *, check_mode: bool, shown: list[str]) -> None:
        self._task = SimpleNamespace(
            args=options, check_mode=check_mode, async_val=0, diff=False, _uuid="one-task", no_log=False, timeout=0
        )
        self._display = SimpleNamespace(display=shown.append)
        self._connection = SimpleNamespace(reset=lambda: None, _shell=SimpleNamespace(tmpdir=None))
        self._node = node
        self._look_up = look
        self._looks = 0
        self.asked: list[dict[str, Any]] = []

    def _execute_module(self, **call: Any) -> dict[str, Any]:
        options = call["module_args"]
        assert call["module_name"] == f"gb10.cluster.{'health_probe' if self._node == HEAD else 'rank_state'}"
        self.asked.append(options)
        if self._looks:
            time.sleep(min(0.05, float(options["poll_seconds"])))
        found = self._look_up(self._looks, bool(options.get("canary", False)))
        self._looks += 1
        return found


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """Runs the action on all nodes at once and returns each host's result."""
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))

    def run(
        looks: dict[str, Look], *, check_mode: bool = False, facts: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        options = {"name": "t", "served_name": NAME, "head": HEAD, "ranks": NODES, "poll_seconds": 0.05, **more}
        results: dict[str, dict[str, Any]] = {}
        shown: list[str] = []
        probes: dict[str, Probe] = {}
        ended = {node: threading.Event() for node in looks}
        run.ended = ended  # type: ignore[attr-defined]

        def on(node: str) -> None:
            probes[node] = Probe(node, looks[node], dict(options), check_mode=check_mode, shown=shown)
            variables: dict[str, Any] = {
                "inventory_hostname": node,
                "ansible_play_hosts_all": NODES,
                "ansible_play_hosts": NODES,
                "ansible_play_batch": NODES,
                "ansible_forks": 32,
                **(facts or {}),
            }
            started = time.monotonic()
            try:
                results[node] = probes[node].run(task_vars=variables)
            except AnsibleActionFail as problem:
                results[node] = {"failed": True, "msg": str(problem)}
            results[node]["took_s"] = time.monotonic() - started
            ended[node].set()

        threads = [threading.Thread(target=on, args=(node,)) for node in looks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == sorted(looks)
        run.shown, run.probes = shown, probes  # type: ignore[attr-defined]
        return results

    return run


def steady(node: str) -> Look:
    return lambda _look, _canary: answer(report(node, phase="profile"))


def everywhere(node: str, state: str) -> Look:
    return lambda _look, _canary: answer(report(node, state), 0 if node == HEAD else None)


def serving(from_look: int) -> Look:
    """A head whose start counts shards until it serves, and which yields tokens when asked."""

    def look(number: int, canary: bool) -> dict[str, Any]:
        if number < from_look:
            return answer(report(HEAD, phase="load", done=number, total=from_look), 0)
        return answer(report(HEAD, phase="ready"), 200, TOKENS if canary else [])

    return look


def workers() -> dict[str, Look]:
    return {node: steady(node) for node in NODES[1:]}


def test_all_hosts_end_ready_and_the_person_saw_the_progress(play: Any) -> None:
    results = play({HEAD: serving(4), **workers()})
    for node in NODES:
        assert results[node]["state"] == "ready"
        assert not results[node].get("failed")
        assert results[node]["ranks"] == dict.fromkeys(NODES, "running")
        assert results[node]["rank"]["node"] == node
    assert results[HEAD]["api"]["canaries"] == TOKENS
    assert results[HEAD]["seconds"] == 5.0
    assert play.shown[-1] == "  t: serving"
    assert "  t: loading weights, 3 of 4" in play.shown


def test_a_completion_is_asked_for_only_once_every_rank_has_reported_to_run(play: Any) -> None:
    def late(number: int, _canary: bool) -> dict[str, Any]:
        return answer(report(NODES[2], probe.STARTING if number < 5 else probe.RUNNING, phase="profile", done=number))

    results = play({HEAD: serving(0), NODES[1]: steady(NODES[1]), NODES[2]: late})
    assert results[HEAD]["state"] == "ready"
    asked = [bool(options["canary"]) for options in play.probes[HEAD].asked]
    assert asked[0] is False
    assert asked.index(True) == len(asked) - 1


def test_a_worker_that_dies_ends_the_wait_everywhere_within_a_look(play: Any) -> None:
    def dying(number: int, _canary: bool) -> dict[str, Any]:
        rank = report(NODES[2], probe.RUNNING if number < 3 else probe.DEAD, phase="profile", done=number)
        if number >= 3:
            rank["findings"] = [
                {"name": "oom_killer", "kind": "cause", "cause": "The OOM killer.", "remedy": "Less.", "line": "x"}
            ]
        return answer(rank)

    results = play({HEAD: serving(10**6), NODES[1]: steady(NODES[1]), NODES[2]: dying})
    assert all(results[node]["failed"] for node in NODES)
    assert all(results[node]["state"] == "dead" for node in NODES)
    assert max(results[node]["took_s"] for node in NODES) < 20
    assert "gx10-3: The OOM killer. Less." in results[HEAD]["msg"]
    assert results[NODES[2]]["msg"].startswith("This rank is dead. gx10-3: The OOM killer.")
    assert results[NODES[1]]["msg"] == "The engine is dead because of gx10-3; see there."
    assert results[NODES[2]]["tail"] == ["last words of gx10-3"]
    assert results[NODES[1]]["tail"] == []
    assert "rank" not in results[HEAD]


def test_a_rank_that_systemd_restarted_has_died(play: Any) -> None:
    def restarted(number: int, _canary: bool) -> dict[str, Any]:
        return answer(report(NODES[1], phase="profile", restarts=0 if number < 2 else 1))

    looks = {HEAD: serving(10**6), NODES[1]: restarted, NODES[2]: steady(NODES[2])}
    assert play(looks)[HEAD]["ranks"][NODES[1]] == "dead"


def test_progress_of_one_rank_keeps_all_waiting_and_its_end_is_a_stall(play: Any) -> None:
    def busy(number: int, _canary: bool) -> dict[str, Any]:
        return answer(report(NODES[1], phase="load", done=min(number, 20), total=40))

    def stuck(_number: int, _canary: bool) -> dict[str, Any]:
        return answer(report(HEAD, phase="rendezvous"), 0)

    results = play({HEAD: stuck, NODES[1]: busy, NODES[2]: steady(NODES[2])}, stall_seconds=3)
    for node in NODES:
        assert results[node]["failed"]
        assert results[node]["stalled"]
        assert results[node]["took_s"] > 20 * 0.05 + 2.9
        assert "no progress for" in results[node]["msg"]
        assert "joining the ranks" in results[node]["msg"]


def test_a_node_that_falls_silent_is_unreachable(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_probe, "SILENT_NODE_S", 3.0)

    def hung(number: int, _canary: bool) -> dict[str, Any]:
        if number == 2:
            play.ended[HEAD].wait()
        return answer(report(NODES[2], phase="profile", done=number))

    results = play({HEAD: serving(10**6), NODES[1]: steady(NODES[1]), NODES[2]: hung})
    assert results[HEAD]["ranks"][NODES[2]] == "unreachable"
    assert "gx10-3: The node does not answer: no report for" in results[HEAD]["msg"]
    # When it answers again the head has given up; so does it.
    assert results[NODES[2]]["state"] == "dead"


def test_a_slow_node_whose_door_is_open_is_waited_for() -> None:
    """A report that takes two minutes is one of a busy node; one whose port is shut is gone after seconds."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        action = Probe(HEAD, steady(HEAD), {}, check_mode=False, shown=[])
        action.poll_s, action.doors = 5.0, {NODES[1]: ("127.0.0.1", door.getsockname()[1])}
        assert action._silence(NODES[1], 125.0, asking=False) == ""
        assert action._silence(NODES[2], 125.0, asking=False) == ""
        assert "no report for" in action._silence(NODES[1], 600.0, asking=False)
    assert "is silent" in action._silence(NODES[1], 30.0, asking=False)


def test_a_node_whose_door_is_shut_is_given_up_sooner(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_probe, "SILENT_NODE_S", 60.0)
    monkeypatch.setattr(cluster_probe, "KNOCK_AFTER_S", 0.5)

    looked = threading.Event()

    def head(number: int, canary: bool) -> dict[str, Any]:
        looked.set()
        return serving(10**6)(number, canary)

    def cut(number: int, _canary: bool) -> dict[str, Any]:
        if number == 2:
            looked.wait()  # until then the head may still ask which doors are open
            doors[2].close()
            play.ended[HEAD].wait()
        return answer(report(NODES[2], phase="profile", done=number))

    doors = [socket.create_server(("127.0.0.1", 0)) for _node in NODES]
    hosts = {
        node: {"ansible_host": "127.0.0.1", "ansible_port": door.getsockname()[1]}
        for node, door in zip(NODES, doors, strict=True)
    }
    looks = {HEAD: head, NODES[1]: steady(NODES[1]), NODES[2]: cut}
    results = play(looks, facts={"hostvars": hosts})
    for door in doors:
        door.close()
    assert results[HEAD]["ranks"][NODES[2]] == "unreachable"
    assert f"127.0.0.1 port {hosts[NODES[2]]['ansible_port']} is silent" in results[HEAD]["msg"]


def test_a_long_completion_is_not_taken_for_a_silent_head(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_probe, "SILENT_NODE_S", 3.0)

    def slow(number: int, canary: bool) -> dict[str, Any]:
        if canary:
            time.sleep(4.5)
        return serving(0)(number, canary)

    results = play({HEAD: slow, **workers()})
    assert [results[node]["state"] for node in NODES] == ["ready"] * 3


def test_a_node_out_of_reach_is_reported_and_not_raised(play: Any) -> None:
    def away(_number: int, _canary: bool) -> dict[str, Any]:
        return {"unreachable": True, "msg": "No route to host"}

    results = play({HEAD: serving(10**6), NODES[1]: steady(NODES[1]), NODES[2]: away})
    assert results[HEAD]["ranks"][NODES[2]] == "unreachable"
    assert "No route to host" in results[HEAD]["msg"]


def test_one_look_asks_for_tokens_when_every_rank_runs(play: Any) -> None:
    results = play({HEAD: serving(0), **workers()}, wait=False)
    assert [results[node]["state"] for node in NODES] == ["ready"] * 3
    assert len(play.probes[HEAD].asked) == 2


def test_one_look_at_a_broken_cluster_does_not_fail_and_asks_for_no_token(play: Any) -> None:
    looks = {HEAD: serving(0), NODES[1]: steady(NODES[1])}
    looks[NODES[2]] = lambda _number, _canary: answer(report(NODES[2], probe.DEAD))
    results = play(looks, wait="false")
    assert [results[node]["state"] for node in NODES] == ["degraded"] * 3
    assert not any(results[node].get("failed") for node in NODES)
    assert len(play.probes[HEAD].asked) == 1


def test_check_mode_looks_once_and_never_fails(play: Any) -> None:
    looks = {node: everywhere(node, probe.ABSENT) for node in NODES}
    results = play(looks, check_mode=True)
    assert [results[node]["state"] for node in NODES] == ["absent"] * 3
    assert not any(results[node].get("failed") for node in NODES)


def test_waiting_for_what_was_never_started_fails_at_once(play: Any) -> None:
    looks = {node: everywhere(node, probe.STOPPED) for node in NODES}
    results = play(looks)
    assert results[HEAD]["msg"] == "No rank is started."
    assert results[HEAD]["took_s"] < 20


def test_a_host_that_failed_before_is_a_lost_rank(play: Any) -> None:
    facts = {"ansible_play_hosts": NODES[:2], "ansible_play_batch": NODES[:2]}
    looks = {HEAD: serving(0), NODES[1]: steady(NODES[1])}
    results = play(looks, facts=facts, wait=False)
    assert results[HEAD]["state"] == "degraded"
    assert results[HEAD]["ranks"][NODES[2]] == "unreachable"


@pytest.mark.parametrize(
    ("facts", "options", "words"),
    [
        ({"ansible_play_hosts_all": NODES[:2]}, {}, "gx10-3 is not in this play: remove --limit"),
        ({"ansible_forks": 2}, {}, "this run has 2 forks"),
        ({"ansible_play_batch": NODES[:1]}, {}, "batches of 1 host(s)"),
        ({}, {"head": "gx10-9"}, "The head 'gx10-9' is not among the ranks"),
        ({}, {"served_name": ""}, "the option 'served_name' is missing"),
    ],
)
def test_what_cannot_work_is_refused(play: Any, facts: dict[str, Any], options: dict[str, Any], words: str) -> None:
    results = play({HEAD: serving(0)}, facts=facts, **options)
    assert words in results[HEAD]["msg"]


def test_a_host_without_a_rank_is_skipped(play: Any) -> None:
    results = play({HEAD: serving(0)}, ranks=["gx10-1"], facts={"inventory_hostname": "gx10-8"})
    assert results[HEAD]["skipped"]


def test_the_address_of_a_forwarded_line_is_turned_into_its_node(play: Any) -> None:
    def dead(_number: int, _canary: bool) -> dict[str, Any]:
        rank = report(HEAD, probe.DEAD)
        rank["findings"] = [
            {"name": "gpu_fault", "kind": "cause", "cause": "A fault.", "remedy": "Look.", "address": "10.211.0.13"}
        ]
        return answer(rank, 0)

    addresses = {node: f"10.211.0.1{number}" for number, node in enumerate(NODES, 1)}
    results = play({HEAD: dead, **workers()}, addresses=addresses)
    assert results[HEAD]["diagnosis"][0]["node"] == NODES[2]


@pytest.mark.parametrize(("door_shut", "words"), [(True, "is silent"), (False, "no report for")])
def test_a_connection_that_hangs_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door_shut: bool, words: str
) -> None:
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(cluster_probe, "KNOCK_AFTER_S", 0.2)
    monkeypatch.setattr(cluster_probe, "LOOK_AGAIN_S", 0.2)
    monkeypatch.setattr(cluster_probe, "SILENT_NODE_S", 30.0 if door_shut else 0.1)
    door = socket.create_server(("127.0.0.1", 0))

    def hang(_number: int, _canary: bool) -> dict[str, Any]:
        if door_shut:
            door.close()
        time.sleep(600)
        raise AssertionError("the wait was not left")

    options = {"name": "t", "served_name": NAME, "head": HEAD, "ranks": [HEAD], "poll_seconds": 0.05, "canary": False}
    action = Probe(HEAD, hang, options, check_mode=False, shown=[])
    facts = {
        "inventory_hostname": HEAD,
        "ansible_play_hosts_all": [HEAD],
        "hostvars": {HEAD: {"ansible_host": "127.0.0.1", "ansible_port": door.getsockname()[1]}},
    }
    begun_s = time.monotonic()
    result = action.run(task_vars=facts)
    door.close()
    assert time.monotonic() - begun_s < 300
    assert result["failed"]
    assert result["ranks"] == {HEAD: "unreachable"}
    assert words in result["msg"]
