# SPDX-License-Identifier: Apache-2.0
"""A rank's report from what systemctl, journalctl and docker print; the samples were captured on Debian 12."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import rank as probe_io
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine, read_engine_log
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import LogLimits, RankNames, RankReader

RUN = "bc638c5c80aa4b21a52cec60983990b0"
BEFORE = "1f0c0d0e5c80aa4b21a52cec60983990"
# systemd 252, `systemctl show vllm-t.service --property=…`
SHOW = {
    "Result": "success",
    "NRestarts": "0",
    "ExecMainPID": "666",
    "ExecMainCode": "0",
    "ExecMainStatus": "0",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "StateChangeTimestampMonotonic": "2635389958",
    "InactiveExitTimestampMonotonic": "2635388197",
    "ActiveEnterTimestampMonotonic": "2635389958",
    "InvocationID": RUN,
}
# Docker Engine 20.10, the fields that are read of `docker container inspect`.
INSPECT = [
    {
        "Image": "sha256:4f15536ff3f6",
        "Config": {"Image": "vllm-lab:1"},
        "State": {"Running": True, "StartedAt": "2026-11-20T20:30:00.5Z", "Pid": 666},
    }
]


def entry(message: object, *, invocation: str = RUN, about: str = "", at_us: int = 1795206721147568) -> str:
    """One line of `journalctl -o json`, systemd 252."""
    fields: dict[str, object] = {
        "SYSLOG_IDENTIFIER": "docker",
        "MESSAGE": message,
        "__REALTIME_TIMESTAMP": str(at_us),
        "_TRANSPORT": "stdout",
        "_PID": "666",
    }
    if about:
        fields["INVOCATION_ID"] = about
    else:
        fields["_SYSTEMD_INVOCATION_ID"] = invocation
    return json.dumps(fields)


class Node:
    """Stands for a node's commands; each is answered from a table, and kept."""

    def __init__(self, **more: Any) -> None:
        self.show = {**SHOW, **more.get("show", {})}
        self.logs: dict[str, list[str]] = more.get("logs", {})
        self.inspect = more.get("inspect", INSPECT)
        self.kernel: tuple[int, str] = more.get("kernel", (1, ""))
        self.killers: list[str] = more.get("killers", [])
        self.any_kernel_line: str = more.get("any_kernel_line", "")
        self.missing: frozenset[str] = frozenset(more.get("missing", ()))
        #: What the journal has received and not written yet; a synchronisation writes it.
        self.received: dict[str, list[str]] = more.get("received", {})
        #: How often systemd gives no answer in its own time.
        self.silences: int = more.get("silences", 0)
        self.asked: list[list[str]] = []

    def run(self, command: Sequence[str]) -> tuple[int, str, str]:
        self.asked.append(list(command))
        if command[0] in self.missing:
            return 127, "", "not installed"
        if command[0] == "systemctl" and self.silences > 0:
            self.silences -= 1
            return 1, "", "Failed to get properties: Connection timed out"
        if command[0] == "systemctl":
            return 0, "\n".join(f"{name}={value}" for name, value in self.show.items()), ""
        if command[:3] == ["docker", "container", "inspect"]:
            return (0, json.dumps(self.inspect), "") if self.inspect else (1, "[]\n", "No such container")
        if command[:2] == ["docker", "top"]:
            return 0, "PID COMMAND\n999999991 python3\n999999992 cicc\n999999993 ptxas\n", ""
        assert command[0] == "journalctl"
        if "--sync" in command:
            self.logs = {**self.logs, **self.received}
            return 0, "", ""
        if "--dmesg" in command:
            grep = any(each.startswith("--grep=") for each in command)
            return (*self.kernel, "") if grep else (0, self.any_kernel_line, "")
        if any(each == "--unit=earlyoom.service" for each in command):
            assert "--unit=systemd-oomd.service" in command
            return 0, "\n".join(self.killers), ""
        if any(each.startswith("--unit=") for each in command):
            return 0, "\n".join(line for lines in self.logs.values() for line in lines), ""
        count = next(int(each.removeprefix("--lines=")) for each in command if each.startswith("--lines="))
        wanted = next(each for each in command if each.startswith("_SYSTEMD_INVOCATION_ID="))
        return 0, "\n".join(self.logs.get(wanted.partition("=")[2], [])[-count:]), ""


def reader(node: Node, **limits: int) -> RankReader:
    return RankReader(node.run, RankNames("vllm-t.service", "vllm-t", "gx10-2"), LogLimits(**limits))


def test_a_running_rank() -> None:
    node = Node(logs={RUN: [entry("gb10: exec vllm"), entry("INFO:     Application startup complete.")]})
    report = reader(node).report()
    assert (report["node"], report["state"]) == ("gx10-2", "running")
    assert report["container"] == {
        "running": True,
        "image_id": "sha256:4f15536ff3f6",
        "image": "vllm-lab:1",
        "started_at": "2026-11-20T20:30:00.5Z",
        "pid": 666,
    }
    assert (report["log"]["phase"], report["log"]["complete"]) == ("ready", True)
    assert report["log"]["phase_time_s"] == pytest.approx(1795206721.147568)
    assert report["tail"][-1] == "INFO:     Application startup complete."
    assert report["findings"] == []
    assert report["activity"]["compilers"] == "999999992 999999993"
    assert report["mem_available_gib"] > 0


@pytest.mark.parametrize("missing", [["systemctl"], ["systemctl", "docker", "journalctl"]])
def test_a_node_without_the_programs_is_absent(missing: list[str]) -> None:
    report = reader(Node(missing=missing, inspect=[])).report()
    assert (report["state"], report["log"]["phase"], report["findings"]) == ("absent", "none", [])


def test_an_unknown_unit_is_absent_and_nothing_else_is_read() -> None:
    node = Node(
        show={"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead", "InvocationID": ""}, inspect=[]
    )
    assert reader(node).report()["state"] == "absent"
    assert not any(command[0] == "journalctl" for command in node.asked)


def test_a_systemd_that_answers_late_is_asked_again() -> None:
    node = Node(logs={RUN: [entry("gb10: exec vllm")]}, silences=2)
    assert reader(node).report()["state"] == "running"
    assert reader(Node(silences=100)).report()["state"] == "absent"


def test_a_start_that_waits_for_another_units_is_a_start() -> None:
    """Just after `systemctl start --no-block`, and while the Docker Engine itself is starting."""
    show = {"ActiveState": "inactive", "SubState": "dead", "InvocationID": "", "Job": "812"}
    assert reader(Node(show=show, inspect=[])).report()["state"] == "starting"
    assert reader(Node(show={**show, "Job": ""}, inspect=[])).report()["state"] == "stopped"


def test_the_last_words_of_a_run_are_read_after_its_end() -> None:
    """The unit ends while the journal has yet to write what the container printed last."""
    words = [entry("gb10: exec vllm"), entry("OSError: [Errno 98] Address already in use")]
    node = Node(
        show={"ActiveState": "deactivating", "SubState": "stop-post", "Result": "exit-code"},
        inspect=[],
        logs={RUN: words[:1]},
        received={RUN: words},
    )
    report = reader(node).report()
    assert report["state"] == "dead"
    assert [each["name"] for each in report["findings"]] == ["port_in_use"]


def test_a_starting_rank_is_preparing_until_its_container_runs() -> None:
    show = {"ActiveState": "activating", "SubState": "start-pre"}
    report = reader(Node(show=show, inspect=[])).report()
    assert (report["state"], report["log"]["phase"]) == ("starting", "prepare")
    assert reader(Node(show=show)).report()["log"]["phase"] == "image_start"


def test_the_reason_of_a_restart_is_read_from_the_run_before() -> None:
    node = Node(
        show={"NRestarts": "1"},
        logs={
            BEFORE: [entry("OSError: [Errno 98] Address already in use", invocation=BEFORE)],
            RUN: [entry("gb10: exec vllm")],
        },
    )
    report = reader(node).report()
    assert report["state"] == "running"
    assert [each["name"] for each in report["findings"]] == ["port_in_use"]
    assert report["log"]["lines"] == 1


def test_a_refused_start_is_a_death_before_systemd_gives_up() -> None:
    node = Node(
        show={"ActiveState": "activating", "SubState": "start-pre", "NRestarts": "1"},
        inspect=[],
        logs={RUN: [entry("gb10: start refused: port 8000 is held by python3 (pid 812); stop it")]},
    )
    report = reader(node).report()
    assert report["state"] == "dead"
    assert report["findings"][0]["name"] == "start_refused"


def test_a_unit_that_gave_up_is_explained_by_the_run_before() -> None:
    node = Node(
        show={"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "NRestarts": "5"},
        inspect=[],
        logs={
            BEFORE: [entry("OSError: [Errno 98] Address already in use", invocation=BEFORE)],
            RUN: [entry("gb10: gave up: 5 starts in 3 min, and at most 5 in 60 min are allowed")],
        },
    )
    report = reader(node).report()
    assert report["state"] == "dead"
    assert [each["name"] for each in report["findings"]] == ["port_in_use", "gave_up"]


def test_systemds_own_lines_are_told_apart() -> None:
    killed = "vllm-t.service: Main process exited, code=killed, status=9/KILL"
    node = Node(
        show={"ActiveState": "failed", "SubState": "failed", "Result": "signal", "ExecMainStatus": "9"},
        inspect=[],
        logs={RUN: [entry("gb10: exec vllm"), entry(killed, about=RUN)]},
    )
    report = reader(node).report()
    assert (report["state"], report["unit"]["exit_status"], report["log"]["lines"]) == ("dead", 9, 1)
    assert [each["name"] for each in report["findings"]] == ["killed"]


def test_the_kernels_lines_explain_a_death() -> None:
    oom = "Out of memory: Killed process 48211 (ray::RayWorkerP) total-vm:231306880kB"
    node = Node(
        kernel=(0, entry(oom, invocation="")), show={"ActiveState": "failed", "Result": "exit-code"}, inspect=[]
    )
    report = reader(node).report()
    assert report["kernel_log_readable"]
    assert [each["name"] for each in report["findings"]] == ["oom_killer"]


def test_who_killed_a_container_is_read_from_both_programs_that_do() -> None:
    node = Node(
        show={"ActiveState": "failed", "SubState": "failed", "Result": "signal"},
        logs={RUN: [entry("gb10: exec vllm")]},
        inspect=[],
        killers=[
            entry("Considered 61 cgroups for killing, top candidates were:"),
            entry("Killed /system.slice/docker-4be1.scope due to memory pressure for /system.slice being 70% > 60%"),
            entry('sending SIGTERM to process 48211 uid 0 "python3": oom_score 1300'),
        ],
    )
    assert [line.text[:12] for line in reader(node).earlyoom(0.0)] == ["Killed /syst", "sending SIGT"]
    assert "systemd_oomd" in [finding["name"] for finding in reader(node).report()["findings"]]


def test_the_kernels_log_is_read_from_the_runs_beginning_on() -> None:
    now_us = int(time.time() * 1e6)
    node = Node(logs={RUN: [entry("gb10: exec vllm", at_us=now_us - 100_000_000), entry("later", at_us=now_us)]})
    reader(node).report()
    since = [
        int(each.removeprefix("--since=@")) for call in node.asked for each in call if each.startswith("--since=@")
    ]
    assert since == [(now_us - 130_000_000) // 1_000_000] * 2


@pytest.mark.parametrize(
    ("times_s", "since_s"),
    [
        ([], 99_400.0),
        ([99_000.0, 99_900.0], 98_970.0),
        ([5_000.0], 13_600.0),
        # Put back by an hour while the engine ran: what it wrote since tells the oldest instant.
        ([102_000.0, 99_000.0], 98_970.0),
        # Put back, and nothing written since: nobody knows by how much.
        ([102_000.0, 103_000.0], 13_600.0),
    ],
)
def test_since_when_the_kernels_log_counts(times_s: list[float], since_s: float) -> None:
    lines = [LogLine("a line", time_s=time_s) for time_s in times_s]
    assert probe_io.oldest_blame(lines, 100_000.0) == since_s


@pytest.mark.parametrize(("line", "readable"), [("", False), (entry("Linux version 6.11", invocation=""), True)])
def test_a_kernel_log_without_a_match_is_told_from_one_that_cannot_be_read(line: str, readable: bool) -> None:
    assert reader(Node(any_kernel_line=line)).report()["kernel_log_readable"] is readable


def test_a_message_that_the_journal_gives_as_numbers_is_read() -> None:
    colours = list(
        b"\x1b[1;36m(EngineCore pid=7)\x1b[0;0m INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with"
    )
    report = reader(Node(logs={RUN: [entry(colours)]})).report()
    assert report["log"]["phase"] == "rendezvous"


def test_broken_json_and_empty_messages_are_passed_over() -> None:
    lines = probe_io.parse_journal("\n".join(["{half", "[]", entry(None), entry("whole")]))
    assert [line.text for line in lines] == ["", "whole"]


def test_of_a_long_log_the_end_is_read_and_called_incomplete() -> None:
    whole = [entry(f"line {number}", at_us=number) for number in range(30)]
    node = Node(logs={RUN: [*whole, entry('INFO:     10.0.0.1:5 - "POST /v1/completions HTTP/1.1" 200 OK')]})
    lines, complete = reader(node, read_lines=10).log(RUN)
    assert (len(lines), lines[0].text, complete) == (10, "line 21", False)
    assert reader(node, read_lines=10).report()["log"]["phase"] == "ready"
    assert reader(node, read_lines=100).log(RUN)[1]


def test_no_invocation_is_no_log() -> None:
    assert reader(Node()).log("") == ([], False)


def test_the_pulse_changes_with_the_units_state_and_run() -> None:
    pulses = {
        reader(Node(show=show)).pulse()
        for show in ({}, {"SubState": "stop"}, {"NRestarts": "1"}, {"InvocationID": BEFORE}, {"ActiveState": "failed"})
    }
    assert len(pulses) == 5
    assert reader(Node()).pulse() == reader(Node(show={"ExecMainPID": "7"})).pulse()


def test_meminfo_in_gib() -> None:
    text = "MemTotal:       125518848 kB\nMemFree: 1 kB\nMemAvailable:   18874368 kB\n"
    assert probe_io.meminfo_gib(text) == {"mem_total_gib": 119.7, "mem_available_gib": 18.0}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "q"}, RankNames("vllm-q.service", "vllm-q", "host")),
        (
            {"name": "q", "unit": "u.service", "container": "c", "node": "gx10-2"},
            RankNames("u.service", "c", "gx10-2"),
        ),
    ],
)
def test_names(params: dict[str, str], expected: RankNames) -> None:
    assert probe_io.rank_names(params, "host") == expected


def test_the_lines_keep_their_time_and_run() -> None:
    (line,) = probe_io.parse_journal(entry("hello"))
    assert line == LogLine("hello", time_s=1795206721.147568, source="engine", invocation=RUN)


# `journalctl -o json` of two ranks of a real start: vLLM 0.32.0 (CPU build), native engine over four
# simulated nodes, Debian 12. Left out: the list of routes, requests, the journal's cursors.
STARTS = Path(__file__).parents[2] / "fixtures" / "probe"


def phases_of(name: str) -> list[str]:
    lines = probe_io.parse_journal((STARTS / f"native-start-{name}.journal.jsonl").read_text(encoding="utf-8"))
    seen = [read_engine_log(lines[:count]).phase for count in range(1, len(lines) + 1)]
    return list(dict.fromkeys(seen))


def test_the_phases_of_a_real_start_on_the_head() -> None:
    assert phases_of("head") == [
        "none",
        "prepare",
        "image_start",
        "configure",
        "rendezvous",
        "load",
        "profile",
        "api_start",
        "ready",
    ]


def test_the_phases_of_a_real_start_on_a_worker() -> None:
    assert phases_of("worker") == ["none", "prepare", "image_start", "configure", "rendezvous", "load", "profile"]


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_healthy_start_shows_no_failure(name: str) -> None:
    raw = (STARTS / f"native-start-{name}.journal.jsonl").read_text(encoding="utf-8").splitlines()
    report = reader(Node(logs={RUN: raw})).report()
    assert report["findings"] == []
    assert report["log"]["facts"]["vllm_version"] == "0.32.0"
    assert report["log"]["facts"]["world_size"] == 4


def test_the_tail_leaves_the_list_of_routes_out() -> None:
    route = "(APIServer pid=7) INFO 11-20 21:58:27 [launcher.py:195] Route: /health, Methods: GET"
    report = reader(Node(logs={RUN: [entry("gb10: exec vllm"), entry(route), entry("")]})).report()
    assert report["tail"] == ["gb10: exec vllm"]
