# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import (
    document,
    instant,
    last_failure,
    load_of,
    rate,
    screen,
    since_text,
    time_text,
)

NOW_S = 1_795_264_000.0
NODES = ["gx10-1", "gx10-2", "gx10-3"]
RECORD = {
    "model": "mellum",
    "unit": "vllm-mellum.service",
    "served_name": "qwen/qwen3.5-397b",
    "api_port": 8000,
    "members": ["gx10-1", "gx10-2"],
}


def rank(node: str, state: str = "running", **log: Any) -> dict[str, Any]:
    return {
        "node": node,
        "state": state,
        "unit": {"name": "vllm-mellum.service", "active_state": "active", "seconds": 5000.0, "restarts": 1},
        "log": {"phase": "ready", "phase_time_s": NOW_S - 3900, "complete": True, **log},
        "findings": [],
    }


def member(node: str, **more: Any) -> dict[str, Any]:
    return {
        "record": RECORD,
        "units": ["vllm-mellum.service"],
        "rank": rank(node),
        "mem_available_gib": 17.42,
        "mem_total_gib": 119.7,
        "mem_floor_gib": 12.0,
        "last_failure": {},
        "watch": {},
        **more,
    }


API = {
    "url": "http://127.0.0.1:8000",
    "health": 200,
    "models": ["qwen/qwen3.5-397b"],
    "models_status": 200,
    "canaries": [{"name": "completion", "ok": True, "tokens": 8}],
    "canary_wanted": True,
}
LOAD = load_of(
    {"generation_tokens_total": 1000, "prompt_tokens_total": 50},
    {
        "generation_tokens_total": 1083,
        "prompt_tokens_total": 50,
        "num_requests_running": 2,
        "num_requests_waiting": 1,
        "kv_cache_usage_perc": 0.1251,
        "num_preemptions_total": 0,
    },
    2.0,
)
IDLE = {**member("gx10-3", units=[], rank={}, mem_floor_gib=None), "record": {}}


def told(**changed: Any) -> dict[str, Any]:
    whole = {"gx10-1": member("gx10-1", api=API, load=LOAD), "gx10-2": member("gx10-2"), "gx10-3": IDLE}
    return {name: each for name, each in {**whole, **changed}.items() if each is not None}


def shown(found: dict[str, Any]) -> str:
    return "\n".join(screen(found))


def test_rates_of_counters() -> None:
    assert rate({"a": 10}, {"a": 30}, "a", 2) == 10.0
    # Began anew, told once, or no time between: no figure rather than a wrong one.
    assert rate({"a": 30}, {"a": 10}, "a", 2) is None
    assert rate({}, {"a": 10}, "a", 2) is None
    assert rate({"a": 1}, {"a": 2}, "a", 0) is None


def test_load() -> None:
    assert LOAD == {
        "running": 2,
        "waiting": 1,
        "kv_cache_percent": 12.5,
        "generated_tokens_per_s": 41.5,
        "prompt_tokens_per_s": 0.0,
        "preemptions": 0,
        "window_s": 2.0,
    }
    assert load_of({}, {}, 1.0)["kv_cache_percent"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3900, "1 h 5 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert since_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (12.5, 12.5),
        ("1970-01-01T00:01:00+00:00", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("yesterday", 0.0),
        (None, 0.0),
        (True, 0.0),
    ],
)
def test_instants(value: object, seconds: float) -> None:
    assert instant(value) == seconds
    assert time_text(60.0) == "1970-01-01 00:01:00 UTC"


def test_a_healthy_cluster_on_one_screen() -> None:
    found = document(NODES, "gx10-1", told(), {}, NOW_S)
    assert (found["state"], found["model"], found["since"]) == ("ready", "mellum", NOW_S - 3900)
    assert [each["rank"] for each in found["nodes"]] == [0, 1, None]
    assert found["unreachable"] == []
    lines = screen(found)
    assert lines[0] == "qwen/qwen3.5-397b (mellum): ready since 2026-11-21 11:21:40 UTC (1 h 5 min)"
    assert "0     gx10-1  running  1 h 23 min  1         17.4       119.7  12.0" in lines
    assert "-     gx10-3  idle     -           -         17.4       119.7  -" in lines
    assert "requests 2 running, 1 waiting   KV cache 12.5 %   tokens/s 41.5 generated, 0.0 read (over 2 s)" in lines
    assert max(len(line) for line in lines) < 100
    assert len(lines) < 24


def test_a_node_that_is_down_is_named_with_the_reason() -> None:
    found = document(NODES, "gx10-1", told(**{"gx10-2": None}), {"gx10-2": "Connection\n timed out"}, NOW_S)
    assert found["unreachable"] == ["gx10-2"]
    assert found["state"] == "degraded"
    assert "gx10-2 does not answer: Connection timed out" in shown(found)
    assert "1     gx10-2  unreachable" in shown(found)


def test_without_the_head_the_state_is_unknown() -> None:
    found = document(NODES, "gx10-1", told(**{"gx10-1": None}), {"gx10-1": "No route to host"}, NOW_S)
    assert (found["state"], found["model"], found["load"]) == ("unknown", "mellum", {})
    assert "gx10-1, which serves the API, does not answer: No route to host" in shown(found)


def test_nothing_is_served_and_nobody_answers() -> None:
    idle = dict.fromkeys(NODES, IDLE)
    assert screen(document(NODES, "gx10-1", idle, {}, NOW_S))[0] == "Nothing is served."
    none = document(NODES, "gx10-1", {}, {}, NOW_S)
    assert none["summary"] == "No node that answers has a record of what is served."
    assert none["unreachable"] == NODES
    assert "gx10-3 does not answer: no report" in shown(none)


def test_a_rank_that_is_gone_is_diagnosed() -> None:
    gone = member("gx10-2", rank=rank("gx10-2", "dead"))
    found = document(NODES, "gx10-1", told(**{"gx10-2": gone}), {}, NOW_S)
    assert found["state"] == "degraded"
    assert found["diagnosis"][0]["node"] == "gx10-2"


def test_without_a_completion_the_api_is_believed() -> None:
    head = member("gx10-1", api={**API, "canaries": [], "canary_wanted": False}, load=LOAD)
    assert document(NODES, "gx10-1", told(**{"gx10-1": head}), {}, NOW_S)["state"] == "ready"


def test_a_start_is_dated_from_the_unit() -> None:
    head = member("gx10-1", rank=rank("gx10-1", phase="load"), api={"health": 0, "canary_wanted": True})
    found = document(NODES, "gx10-1", told(**{"gx10-1": head}), {}, NOW_S)
    assert (found["state"], found["since"]) == ("starting", NOW_S - 5000)


def test_memory_under_the_floor_and_other_units_are_named() -> None:
    low = member("gx10-2", mem_available_gib=9.5, units=["vllm-mellum.service", "vllm-old.service"])
    text = shown(document(NODES, "gx10-1", told(**{"gx10-2": low}), {}, NOW_S))
    assert "gx10-2 has 9.5 GiB available, 2.5 below its start floor." in text
    assert "gx10-2 also runs vllm-old.service" in text


def test_the_rank_that_failed_explains_and_not_those_that_ended_with_it() -> None:
    cause = {"time": "2026-11-21T11:20:00+00:00", "unit": "vllm-m.service", "reason": "killed by signal 9"}
    follows = {
        "time": "2026-11-21T11:20:02+00:00",
        "unit": "vllm-m.service",
        "reason": "restarting with the others: rank 1",
    }
    later = {**follows, "time": "2026-11-21T12:20:02+00:00"}
    nodes = {"gx10-1": member("gx10-1", last_failure=follows), "gx10-2": member("gx10-2", last_failure=cause)}
    found = last_failure(nodes)
    assert found is not None
    assert (found["node"], found["reason"]) == ("gx10-2", "killed by signal 9")
    nodes["gx10-1"] = member("gx10-1", last_failure=later)
    found = last_failure(nodes)
    assert found is not None
    assert found["node"] == "gx10-1"


def test_the_last_failure_of_all_nodes() -> None:
    first = {"time": "2026-11-20T10:00:00+00:00", "unit": "vllm-a.service", "reason": "port 8000 is held"}
    second = {"time": 1_795_260_000, "unit": "vllm-b.service", "reason": "below the start floor"}
    nodes = {"gx10-1": member("gx10-1", last_failure=first, api=API), "gx10-2": member("gx10-2", last_failure=second)}
    failure = last_failure(nodes)
    assert failure is not None
    assert (failure["node"], failure["reason"]) == ("gx10-2", "below the start floor")
    assert last_failure({"gx10-1": member("gx10-1")}) is None
    text = shown(document(NODES, "gx10-1", told(**nodes), {}, NOW_S))
    assert "last failure: 2026-11-21 11:20:00 UTC on gx10-2, vllm-b.service: below the start floor" in text


def test_the_watch_is_shown_where_there_is_one() -> None:
    watch = {"state": "ready", "since": NOW_S - 100, "looked": NOW_S - 20}
    head = member("gx10-1", api=API, watch=watch)
    text = shown(document(NODES, "gx10-1", told(**{"gx10-1": head}), {}, NOW_S))
    assert "watch: ready since 2026-11-21 12:25:00 UTC, last look 20 s ago" in text


NEXT = {"model": "nimble", "unit": "vllm-nimble.service", "served_name": "org/nimble", "api_port": 8000, "nodes": 2}


def coming(node: str, rank_number: int, **more: Any) -> dict[str, Any]:
    """Return the report of a node on which the next model's rank starts in place of the recorded one."""
    return member(
        node,
        units=["vllm-nimble.service"],
        coming={**NEXT, "rank": rank_number},
        rank={**rank(node, "starting", phase="load", done=3, total=10), "unit": {"name": "vllm-nimble.service"}},
        **more,
    )


def test_during_a_swap_the_coming_model_and_its_phase_are_shown() -> None:
    swapping = {"gx10-1": coming("gx10-1", 0, api={"health": 0}), "gx10-2": coming("gx10-2", 1)}
    found = document(NODES, "gx10-1", told(**swapping), {}, NOW_S)
    assert (found["model"], found["state"], found["progress"]) == ("nimble", "starting", "loading weights, 3 of 10")
    assert found["replaces"] == {"model": "mellum", "served_name": "qwen/qwen3.5-397b"}
    text = shown(found)
    assert text.splitlines()[0].startswith("org/nimble (nimble): starting")
    assert "in place of qwen/qwen3.5-397b (mellum), which is stopped" in text
    assert [each["rank"] for each in found["nodes"]] == [0, 1, None]


def test_a_rank_of_the_coming_model_that_is_not_started_yet_is_counted() -> None:
    behind = member("gx10-2", units=[], rank=rank("gx10-2", "stopped"))
    found = document(NODES, "gx10-1", told(**{"gx10-1": coming("gx10-1", 0), "gx10-2": behind}), {}, NOW_S)
    assert (found["model"], found["state"]) == ("nimble", "starting")
    assert found["summary"] == "Starting: loading weights, 3 of 10. 1 of 2 ranks are started."
    headless = document(NODES, "gx10-1", told(**{"gx10-1": behind, "gx10-2": coming("gx10-2", 1)}), {}, NOW_S)
    assert (headless["state"], headless["summary"]) == ("starting", "Starting: rank 0 is not started yet.")


def test_a_swap_that_is_not_committed_says_when_the_nodes_return() -> None:
    swap = {"state": "pending", "before": "mellum", "after": "nimble", "head": "gx10-1", "stall_seconds": 900.0}
    swapping = {"gx10-1": coming("gx10-1", 0, swap=swap), "gx10-2": coming("gx10-2", 1, swap=swap)}
    text = shown(document(NODES, "gx10-1", told(**swapping), {}, NOW_S))
    assert (
        "The swap from mellum to nimble is not committed: the nodes return to mellum after 900 s without progress and "
        "without a commit by the control node." in text.splitlines()
    )


def test_an_engine_that_was_never_verified_is_named_with_the_remedy() -> None:
    first = {name: {**coming(name, number), "record": {}} for number, name in enumerate(NODES[:2])}
    text = shown(document(NODES, "gx10-1", told(**first), {}, NOW_S))
    wanted = "nimble is not verified and does not start at boot; playbooks/serve.yml -e model=nimble verifies it."
    assert wanted in text.splitlines()


def test_a_rollback_by_the_nodes_is_reported_until_a_swap_is_committed() -> None:
    older = {"time": "2026-11-27T03:00:00Z", "epoch_s": 1.0, "before": "a", "after": "b", "why": "old"}
    note = {"time": "2026-11-28T03:00:00Z", "epoch_s": 2.0, "before": "mellum", "after": "nimble", "why": "no commit"}
    nodes = {"gx10-1": member("gx10-1", rolled_back=older), "gx10-2": member("gx10-2", rolled_back=note)}
    found = document(NODES, "gx10-1", told(**nodes), {}, NOW_S)
    wanted = "The swap from mellum to nimble was rolled back by the nodes at 2026-11-28T03:00:00Z: no commit."
    assert found["swap"] == [wanted]
    assert wanted in shown(found).splitlines()
    assert document(NODES, "gx10-1", told(), {}, NOW_S)["swap"] == []


def test_a_first_start_replaces_nothing() -> None:
    first = {name: {**coming(name, number), "record": {}} for number, name in enumerate(NODES[:2])}
    found = document(NODES, "gx10-1", told(**first), {}, NOW_S)
    assert (found["model"], found["replaces"]) == ("nimble", {})
    assert "in place of" not in shown(found)


def test_without_a_completion_no_token_is_reported() -> None:
    head = member("gx10-1", api={**API, "canaries": [], "canary_wanted": False}, load=LOAD)
    found = document(NODES, "gx10-1", told(**{"gx10-1": head}), {}, NOW_S)
    assert found["state"] == "ready"
    assert found["summary"] == "2 rank(s) up, qwen/qwen3.5-397b is listed; no completion was asked for."


def test_whoever_changes_the_cluster_now_is_named() -> None:
    held = {"scope": "deployment", "run": "a", "who": "ada", "where": "desk", "what": "serve.yml", "since": "20:00",
            "seconds": 9.0, "renewed_seconds": 1.0, "process": {}}  # fmt: skip
    found = document(NODES, "gx10-1", told(**{"gx10-1": member("gx10-1", leases=[held])}), {}, NOW_S)
    assert found["leases"] == [held]
    assert "ada on desk runs serve.yml since 20:00 (9 s), with the lease of the deployment" in shown(found)
    assert document(NODES, "gx10-1", told(), {}, NOW_S)["leases"] == []


def test_an_api_without_a_key_is_on_the_screen() -> None:
    front = {"port": 8000, "proxied": True, "status": 200, "open": True, "engine": 200}
    head = told()["gx10-1"]
    found = document(NODES, "gx10-1", told(**{"gx10-1": {**head, "api": {**head["api"], "front": front}}}), {}, NOW_S)
    assert found["state"] == "ready"
    assert "The API on port 8000 of gx10-1 asks for no key: whoever reaches the port can use it." in "\n".join(
        screen(found)
    )
    assert "asks for no key" not in "\n".join(screen(document(NODES, "gx10-1", told(), {}, NOW_S)))
