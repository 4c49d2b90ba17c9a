# SPDX-License-Identifier: Apache-2.0
"""The cluster's state follows from its ranks and its API; every state, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import EngineLog, MtpWiring

HEAD = "gx10-1"
NODES = [f"gx10-{number}" for number in range(1, 5)]
WANTED = {"served_name": "nvidia/nemotron-3-ultra"}


def rank(node: str, state: str = probe.RUNNING, **more: Any) -> dict[str, Any]:
    log = {**EngineLog(phase=more.pop("phase", "ready")).as_dict(), "complete": True, **more.pop("log", {})}
    unit = {
        "name": "vllm-ultra.service",
        "active_state": "active",
        "sub_state": "running",
        "result": "success",
        "restarts": 0,
        "exit_status": 0,
        "invocation": f"run-of-{node}",
        **more.pop("unit", {}),
    }
    return {"node": node, "state": state, "unit": unit, "log": log, "findings": [], **more}


def ranks(**states: str) -> list[dict[str, Any]]:
    return [rank(node, states.get(node.replace("-", "_"), probe.RUNNING)) for node in NODES]


def finding(name: str, kind: str = "cause", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "cause": f"Cause of {name}.",
        "remedy": f"Remedy of {name}.",
        "line": "a line",
        **more,
    }


def api(**more: Any) -> dict[str, Any]:
    return {
        "url": "http://127.0.0.1:8000",
        "health": 200,
        "health_error": "",
        "models": ["nvidia/nemotron-3-ultra"],
        "key_refused": False,
        "canaries": [{"name": "completion", "ok": True, "tokens": 8, "detail": ""}],
        **more,
    }


def merge(reports: list[dict[str, Any]], answer: dict[str, Any] | None, **more: Any) -> probe.ClusterState:
    more.setdefault("expected", WANTED)
    return probe.merge(reports, answer, head=HEAD, **more)


def test_ready_needs_every_rank_the_model_and_tokens() -> None:
    state = merge(ranks(), api())
    assert state.state == probe.READY
    assert state.diagnosis == []
    assert state.summary == "4 rank(s) up, nvidia/nemotron-3-ultra answered with 8 token(s)."


def test_without_a_completion_it_is_not_ready_unless_none_was_wanted() -> None:
    assert merge(ranks(), api(canaries=[])).state == probe.STARTING
    assert merge(ranks(), api(canaries=[]), expected={**WANTED, "canary": False}).state == probe.READY


@pytest.mark.parametrize("lost", [probe.DEAD, probe.STOPPED, probe.ABSENT, probe.UNREACHABLE])
def test_a_gone_worker_is_degraded_while_health_is_200_and_dead_otherwise(lost: str) -> None:
    assert merge(ranks(gx10_3=lost), api()).state == probe.DEGRADED
    assert merge(ranks(gx10_3=lost), api(health=0)).state == probe.DEAD
    assert merge(ranks(gx10_3=lost), None).state == probe.DEAD


def test_a_gone_head_is_dead_whatever_else_answers_on_its_port() -> None:
    assert merge(ranks(gx10_1=probe.DEAD), api()).state == probe.DEAD


def test_nothing_started_is_absent() -> None:
    state = merge([rank(node, probe.ABSENT if node == HEAD else probe.STOPPED) for node in NODES], None)
    assert (state.state, state.summary) == (probe.ABSENT, "No rank is started.")


def test_another_model_that_runs_instead_is_named() -> None:
    state = merge([rank(node, "absent", others=["vllm-nimble.service"]) for node in NODES], None)
    assert state.summary == (
        "No rank is started. vllm-nimble.service runs instead: give its model with -e model=…, or start this one with "
        "playbooks/serve.yml."
    )


def test_503_is_dead() -> None:
    state = merge(ranks(), api(health=503))
    assert state.state == probe.DEAD
    assert [each.name for each in state.diagnosis] == ["health_503"]


def test_another_model_on_the_port_is_wrong_model_and_named() -> None:
    state = merge(ranks(), api(models=["qwen3.5-397b"], canaries=[]))
    assert state.state == probe.WRONG_MODEL
    assert "qwen3.5-397b where nvidia/nemotron-3-ultra is expected" in state.summary


def test_a_refused_key_is_degraded_and_no_wrong_model() -> None:
    state = merge(ranks(), api(models=[], key_refused=True, models_status=401, canaries=[]))
    assert state.state == probe.DEGRADED
    assert state.diagnosis[0].name == "api_key_refused"


def test_no_token_is_wedged_with_what_the_logs_show() -> None:
    reports = ranks()
    reports[2]["findings"] = [finding("collective_timeout")]
    canary = {"name": "completion", "ok": False, "tokens": 0, "detail": "no byte for 120 s"}
    state = merge(reports, api(canaries=[canary]))
    assert state.state == probe.WEDGED
    assert [each.name for each in state.diagnosis] == ["no_token", "collective_timeout"]


def test_a_failed_optional_canary_is_degraded() -> None:
    tool = {"name": "tool_call", "ok": False, "tokens": 31, "detail": "the parser returned no tool call"}
    state = merge(ranks(), api(canaries=[*api()["canaries"], tool]))
    assert state.state == probe.DEGRADED
    assert state.diagnosis[0].name == "canary_tool_call"
    assert "the parser returned no tool call" in state.summary


def test_starting_shows_the_heads_phase_and_progress() -> None:
    reports = ranks()
    reports[0] = rank(HEAD, phase="load", log={"done": 3, "total": 10})
    reports[1] = rank(NODES[1], phase="configure")
    state = merge(reports, api(health=0, health_error="refused"))
    assert (state.state, state.phase, state.done, state.total) == (probe.STARTING, "load", 3, 10)
    assert state.summary == "Starting: loading weights, 3 of 10."


def test_while_starting_a_cause_in_a_log_is_a_warning_only() -> None:
    reports = ranks()
    reports[0] = rank(HEAD, phase="load", findings=[finding("ray_nodes_short", "context"), finding("gpu_fault")])
    state = merge(reports, api(health=0))
    assert state.state == probe.STARTING
    assert [each.name for each in state.warnings] == ["gpu_fault", "ray_nodes_short"]


@pytest.mark.parametrize(
    ("error", "seconds", "expected"),
    [
        ("refused", 5.0, probe.STARTING),
        # The clock was put back by an hour since: the line is not of the future.
        ("refused", -3600.0, probe.DEAD),
        ("refused", probe.API_GRACE_S + 1, probe.DEAD),
        ("timeout", probe.API_GRACE_S + 1, probe.WEDGED),
    ],
)
def test_an_api_that_does_not_answer_after_it_said_it_serves(error: str, seconds: float, expected: str) -> None:
    reports = ranks()
    reports[0] = {**rank(HEAD, log={"phase_time_s": 5000.0}), "read_s": 5000.0 + seconds}
    state = merge(reports, api(health=0, health_error=error))
    assert state.state == expected


def test_a_dead_ranks_cause_comes_before_a_living_ranks_and_before_consequences() -> None:
    reports = ranks(gx10_3=probe.DEAD)
    reports[0]["findings"] = [finding("engine_dead", "consequence", time_s=3.0), finding("port_in_use", time_s=1.0)]
    reports[2]["findings"] = [finding("oom_killer", time_s=2.0)]
    state = merge(reports, api(health=0))
    assert [(each.node, each.name) for each in state.diagnosis] == [
        ("gx10-3", "oom_killer"),
        (HEAD, "port_in_use"),
        (HEAD, "engine_dead"),
    ]
    assert "gx10-3: Cause of oom_killer. Remedy of oom_killer. Line: a line" in state.summary


def test_a_line_that_ray_forwarded_is_laid_at_the_door_of_its_own_node() -> None:
    reports = ranks(gx10_1=probe.DEAD)
    reports[0]["findings"] = [finding("gloo_mesh_failed", address="10.211.0.13")]
    state = merge(reports, None, nodes_by_address={"10.211.0.13": "gx10-3"})
    assert [each.node for each in state.diagnosis if each.name == "gloo_mesh_failed"] == ["gx10-3"]


def test_a_death_without_a_known_line_says_what_systemd_says() -> None:
    reports = ranks()
    reports[1] = rank(
        NODES[1],
        probe.DEAD,
        unit={
            "active_state": "failed",
            "sub_state": "failed",
            "result": "exit-code",
            "exit_status": 137,
            "restarts": 2,
        },
    )
    state = merge(reports, None)
    assert state.diagnosis[0].cause == (
        "vllm-ultra.service is failed (failed) with result exit-code and exit status 137 after 2 restart(s)."
    )


def test_a_rank_that_missed_its_head_blames_the_head() -> None:
    reports = ranks(gx10_1=probe.DEAD, gx10_2=probe.DEAD)
    reports[0]["findings"] = [finding("kv_cache_too_small", time_s=9.0)]
    reports[1]["findings"] = [finding("ray_head_unreachable", time_s=5.0)]
    assert [each.name for each in merge(reports, None).diagnosis] == ["kv_cache_too_small", "ray_head_unreachable"]


def test_what_a_lost_rank_shows_comes_before_what_the_others_noticed() -> None:
    reports = ranks(gx10_3=probe.DEAD)
    reports[0]["findings"] = [finding("worker_died", "consequence", time_s=1.0)]
    reports[2]["findings"] = [finding("killed", "consequence", time_s=2.0)]
    assert [(each.node, each.name) for each in merge(reports, None).diagnosis] == [
        ("gx10-3", "killed"),
        (HEAD, "worker_died"),
    ]


def test_a_cause_on_a_living_rank_explains_the_loss_of_another() -> None:
    reports = ranks(gx10_3=probe.DEAD)
    reports[0]["findings"] = [finding("cuda_out_of_memory")]
    reports[2]["findings"] = [finding("peer_closed", "consequence")]
    assert [each.name for each in merge(reports, None).diagnosis] == ["cuda_out_of_memory", "peer_closed"]


def test_a_stopped_rank_among_running_ones_is_to_be_started() -> None:
    reports = ranks(gx10_4=probe.STOPPED)
    reports[3]["unit"].update(active_state="inactive", sub_state="dead")
    state = merge(reports, None)
    assert (state.diagnosis[0].node, state.diagnosis[0].name) == ("gx10-4", "unit_not_running")


def test_driver_allocation_failures_alone_say_nothing_of_a_living_engine() -> None:
    reports = ranks()
    reports[0]["findings"] = [finding("driver_no_memory", "context"), finding("unknown_environment", "context")]
    state = merge(reports, api())
    assert state.state == probe.READY
    assert [each.name for each in state.warnings] == ["unknown_environment"]


def mtp_rank(tokens: int, *, detected: bool, complete: bool = True, method: str = "mtp") -> list[dict[str, Any]]:
    reports = ranks()
    mtp = {"method": method, "num_spec_tokens": tokens, "detected": detected}
    reports[0] = rank(HEAD, log={"mtp": mtp, "complete": complete})
    return reports


@pytest.mark.parametrize(
    ("reports", "name"),
    [
        (mtp_rank(0, detected=False), "mtp_not_wired"),
        (mtp_rank(2, detected=True), "mtp_not_wired"),
        (mtp_rank(3, detected=False), "mtp_not_detected"),
        (mtp_rank(3, detected=True), None),
        (mtp_rank(3, detected=False, method="draft_model"), None),
        (mtp_rank(3, detected=False, method="dflash"), None),
        (mtp_rank(2, detected=False, method="eagle3"), "mtp_not_wired"),
        (mtp_rank(0, detected=False, complete=False), None),
    ],
)
def test_speculation_must_be_wired_where_it_is_expected(reports: list[dict[str, Any]], name: str | None) -> None:
    state = merge(reports, api(), expected={**WANTED, "mtp_tokens": 3})
    assert [each.name for each in state.diagnosis] == ([name] if name else [])
    assert state.state == (probe.DEGRADED if name else probe.READY)


def test_sockets_where_rdma_is_expected_are_degraded_and_the_node_is_named() -> None:
    reports = ranks()
    reports[1] = rank(NODES[1], log={"nccl_network": "Socket"})
    assert merge(reports, api()).state == probe.READY
    state = merge(reports, api(), expected={**WANTED, "rdma": True})
    assert (state.state, state.diagnosis[0].node) == (probe.DEGRADED, "gx10-2")


@pytest.mark.parametrize("network", ["IB", "IBext_v8", "IBext_v10"])
def test_rdma_by_way_of_a_plugin_is_rdma(network: str) -> None:
    reports = [rank(node, log={"nccl_network": network}) for node in NODES]
    assert merge(reports, api(), expected={**WANTED, "rdma": True}).state == probe.READY


def test_no_report_of_the_head_is_an_error() -> None:
    with pytest.raises(ValueError, match="no report of the head 'gx10-1' among those of gx10-2"):
        probe.merge([rank("gx10-2")], None, head=HEAD)


@pytest.mark.parametrize(
    ("load", "active", "sub", "result", "running", "expected"),
    [
        ("not-found", "inactive", "dead", "success", False, probe.ABSENT),
        ("", "", "", "", False, probe.ABSENT),
        ("loaded", "inactive", "dead", "success", False, probe.STOPPED),
        ("loaded", "inactive", "dead", "exec-condition", False, probe.DEAD),
        ("loaded", "activating", "start-pre", "success", False, probe.STARTING),
        ("loaded", "activating", "auto-restart", "exit-code", False, probe.DEAD),
        ("loaded", "active", "running", "success", False, probe.STARTING),
        ("loaded", "active", "running", "success", True, probe.RUNNING),
        ("loaded", "deactivating", "stop-sigterm", "success", True, probe.STOPPED),
        ("loaded", "failed", "failed", "start-limit-hit", False, probe.DEAD),
    ],
)
def test_state_of_a_unit(load: str, active: str, sub: str, result: str, running: bool, expected: str) -> None:
    assert probe.state_of_unit(load, active, sub, result, container_running=running) == expected


def restarted(times: int, state: str = probe.RUNNING, active: str = "active", *names: str) -> dict[str, Any]:
    findings = [finding(name) for name in names]
    return rank(HEAD, state, unit={"restarts": times, "active_state": active}, findings=findings)


@pytest.mark.parametrize(
    ("report", "before", "allowed", "expected"),
    [
        (restarted(0), 0, 0, probe.RUNNING),
        (restarted(3), 3, 0, probe.RUNNING),
        (restarted(1), 0, 0, probe.DEAD),
        (restarted(1), 0, 1, probe.STARTING),
        (restarted(2), 0, 1, probe.DEAD),
        (restarted(0, probe.DEAD, "activating"), 0, 0, probe.DEAD),
        (restarted(0, probe.DEAD, "activating"), 0, 1, probe.STARTING),
        (restarted(0, probe.DEAD, "failed"), 0, 5, probe.DEAD),
        (restarted(1, probe.RUNNING, "active", "torch_without_cuda"), 0, 5, probe.DEAD),
        (restarted(1, probe.RUNNING, "active", "rendezvous_timeout"), 0, 5, probe.STARTING),
        (restarted(0, probe.STOPPED, "inactive"), 0, 5, probe.STOPPED),
    ],
)
def test_a_restart_during_the_wait(report: dict[str, Any], before: int, allowed: int, expected: str) -> None:
    assert probe.state_with_restarts(report, before, allowed) == expected


def test_progress_is_what_moves_and_nothing_else() -> None:
    quiet = probe.progress_token(ranks(), api(health=0))
    assert probe.progress_token(list(reversed(ranks())), api(health=0)) == quiet
    moved: list[Any] = []
    for change in (
        {"state": probe.DEAD},
        {"log": {**EngineLog(phase="load").as_dict()}},
        {"log": {**EngineLog(phase="ready", done=4, total=10).as_dict()}},
        {"log": {**EngineLog(phase="ready", distinct_lines=5).as_dict()}},
        {"activity": {"compilers": "812", "read_mib": 0}},
        {"activity": {"compilers": "", "read_mib": 4096}},
    ):
        reports = ranks()
        reports[2].update(change)
        moved.append(probe.progress_token(reports, api(health=0)))
    moved.append(probe.progress_token(ranks(), api(health=200)))
    assert quiet not in moved
    reports = ranks()
    reports[2].update(activity={"compilers": "", "read_mib": 3}, mem_available_gib=4.0)
    assert probe.progress_token(reports, api(health=0)) == quiet


def test_stall_counts_from_the_last_change() -> None:
    watch = probe.StallWatch()
    assert watch.quiet_seconds((1,), 100.0) == 0.0
    assert watch.quiet_seconds((1,), 160.0) == 60.0
    assert watch.quiet_seconds((2,), 170.0) == 0.0
    assert watch.quiet_seconds((2,), 900.0) == 730.0


def test_a_stall_says_where_and_suspects_what_the_logs_show() -> None:
    reports = ranks()
    reports[0] = rank(HEAD, phase="ray_join", log={"done": 3, "total": 4}, findings=[finding("ray_nodes_missing")])
    sentence = probe.stall_sentence(merge(reports, api(health=0)), 612.4)
    assert sentence.startswith(
        "The start has made no progress for 612 s in phase: waiting for Ray nodes, 3 of 4 joined "
        "(ranks: gx10-1 running, gx10-2 running, gx10-3 running, gx10-4 running)."
    )
    assert "Cause of ray_nodes_missing." in sentence


def test_an_unreachable_rank_is_lost_and_named() -> None:
    reports = [rank(HEAD, phase="load"), probe.unreachable_rank("gx10-2", "no route to host")]
    state = merge(reports, None)
    assert state.state == probe.DEAD
    assert state.summary.startswith("The engine is dead (gx10-2 unreachable)")
    assert "no route to host" in state.summary


def test_a_state_survives_the_way_through_plain_data() -> None:
    reports = ranks(gx10_3=probe.DEAD)
    reports[2]["findings"] = [finding("oom_killer"), finding("unknown_environment", "context")]
    state = merge(reports, None)
    assert probe.state_from_dict(state.as_dict()) == state


def test_wiring_travels_as_plain_data() -> None:
    assert EngineLog(mtp=MtpWiring("mtp", 3, detected=True)).as_dict()["mtp"]["num_spec_tokens"] == 3


def test_a_line_that_names_the_thing_comes_before_an_earlier_one_that_many_failures_end_in() -> None:
    findings = [
        {**finding("gpu_fault", "cause"), "time_s": 1.0},
        {**finding("kernel_image_missing", "cause"), "time_s": 2.0},
    ]
    state = merge([rank(node, probe.DEAD, findings=findings if node == HEAD else []) for node in NODES], None)
    assert [each.name for each in state.diagnosis][:2] == ["kernel_image_missing", "gpu_fault"]
