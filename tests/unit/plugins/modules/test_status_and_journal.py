# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.node_status and node_journal on a node of which only the commands are not real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._node import lease
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import Reply
from ansible_collections.gb10.cluster.plugins.modules import node_journal, node_status

RECORD = {"model": "a", "served_name": "served/a", "members": ["gx10-1", "gx10-2"], "api_port": 8123}
ACTIVE = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nInvocationID=abc\nNRestarts=2\n"
CONTAINER = '[{"State": {"Running": true, "Pid": 1}}]'


class Commands:
    """What the node's programs answer, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answers: dict[str, tuple[int, str, str]] = {
            "systemctl show": (0, ACTIVE, ""),
            "systemctl list-units": (0, "vllm-a.service loaded active running x\n", ""),
            "docker container": (0, CONTAINER, ""),
        }

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer by program and first word."""
        words = [Path(command[0]).name, *command[1:]]
        self.asked.append(words)
        return self.answers.get(" ".join(words[:2]), self.answers.get(words[0], (0, "", "")))


class Client:
    """An API whose counters grow between two looks."""

    metrics = 0

    def __init__(self, url: str, *, api_key: str | None = None, silence_seconds: float = 0) -> None:
        self.url, self.api_key = url, api_key

    def get(self, path: str, *, patient: bool = False) -> Reply:
        """Answer as the API of a serving engine."""
        if path == "/metrics":
            Client.metrics += 50
            return Reply(200, f'vllm:generation_tokens_total{{a="b"}} {Client.metrics}\nvllm:num_requests_running 3\n')
        if path == "/v1/models" and self.api_key != "secret":
            return Reply(401)
        return Reply(200, '{"data": [{"id": "served/a"}]}')

    def stream(self, _path: str, _payload: object) -> Any:
        """Yield tokens."""
        yield 'data: {"choices": [{"text": "x"}], "usage": {"completion_tokens": 8}}'


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_rest: f"/usr/bin/{name}")
    monkeypatch.setattr(node_status, "ProbeClient", Client)
    return made


def call(module: Any, capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run a module as Ansible does and return what it prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    engine, state = tmp_path / "etc", tmp_path / "lib"
    for each in (engine, state / "engine", state / "watch"):
        each.mkdir(parents=True)
    (engine / "active.json").write_text(json.dumps(RECORD))
    (engine / "a.json").write_text('{"memory_needed_gib": 90.0, "memory_floor_gib": 12.0}')
    (state / "engine" / "last_failure.json").write_text('{"time": 5, "unit": "vllm-a.service", "reason": "why"}')
    (state / "watch" / "state.json").write_text('{"state": "ready"')
    return {"record_path": str(engine / "active.json"), "state_dir": str(state)}


@pytest.mark.usefixtures("commands")
def test_the_head_tells_all(capsys: pytest.CaptureFixture[str], places: dict[str, str]) -> None:
    told = call(node_status, capsys, node="gx10-1", api_key="secret", window_seconds=0.05, **places)
    status = told["status"]
    assert told["changed"] is False
    assert (status["rank"]["node"], status["rank"]["state"], status["rank"]["unit"]["restarts"]) == (
        "gx10-1",
        "running",
        2,
    )
    assert status["units"] == ["vllm-a.service"]
    assert status["mem_floor_gib"] == 12.0
    assert status["mem_total_gib"] > 0
    assert status["last_failure"]["reason"] == "why"
    # Cut short: as if it were not there.
    assert status["watch"] == {}
    assert status["api"]["url"] == "http://127.0.0.1:8123"
    assert status["api"]["canaries"][0]["tokens"] == 8
    assert status["load"]["running"] == 3
    assert status["load"]["generated_tokens_per_s"] > 0
    assert "secret" not in json.dumps(status)


def test_the_reason_of_an_end_during_the_look_is_told(
    commands: Commands, capsys: pytest.CaptureFixture[str], places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit records why it ended before systemd calls it ended; the record must not be read before that."""
    record = Path(places["state_dir"]) / "engine" / "last_failure.json"
    answer = commands.run

    def ends(command: list[str]) -> tuple[int, str, str]:
        if "vllm-a.service" in command:
            record.write_text('{"time": 9, "unit": "vllm-a.service", "reason": "just now"}', encoding="utf-8")
        return answer(command)

    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: ends(command))
    status = call(node_status, capsys, node="gx10-2", **places)["status"]
    assert status["last_failure"]["reason"] == "just now"


@pytest.mark.usefixtures("commands")
def test_the_head_names_the_run_that_changes_it(
    capsys: pytest.CaptureFixture[str], places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "FOLDER", tmp_path / "lease")
    lease.hold(tmp_path / "lease", ["cluster"], {"run": "r", "who": "ada", "where": "desk", "what": "image.yml"})
    leases = call(node_status, capsys, node="gx10-3", **places)["status"]["leases"]
    assert [(each["who"], each["scope"]) for each in leases] == [("ada", "cluster")]


@pytest.mark.usefixtures("commands")
def test_a_worker_asks_no_api_and_an_idle_node_has_no_rank(
    capsys: pytest.CaptureFixture[str], places: dict[str, str], tmp_path: Path
) -> None:
    worker = call(node_status, capsys, node="gx10-2", **places)["status"]
    assert (worker["rank"]["state"], worker["api"], worker["load"]) == ("running", {}, {})
    idle = call(node_status, capsys, node="gx10-3", **places)["status"]
    assert (idle["rank"], idle["mem_floor_gib"]) == ({}, None)
    bare = call(node_status, capsys, node="gx10-1", record_path=str(tmp_path / "no"), state_dir=str(tmp_path / "no"))
    assert (bare["status"]["record"], bare["status"]["last_failure"], bare["status"]["rank"]) == ({}, {}, {})


def test_a_model_that_is_started_in_place_of_the_recorded_one(
    commands: Commands, capsys: pytest.CaptureFixture[str], places: dict[str, str]
) -> None:
    launch = {"model": "b", "unit": "vllm-b.service", "container": "vllm-b", "served_name": "served/b",
              "api_port": 8124, "rank": 0, "nodes": 2, "memory_floor_gib": 11.0}  # fmt: skip
    Path(places["record_path"]).with_name("b.json").write_text(json.dumps(launch))
    commands.answers["systemctl list-units"] = (0, "vllm-b.service loaded activating start x\n", "")
    status = call(node_status, capsys, node="gx10-2", api_key="secret", window_seconds=0.05, **places)["status"]
    assert status["coming"]["model"] == "b"
    assert (status["record"]["model"], status["mem_floor_gib"]) == ("a", 11.0)
    assert status["rank"]["unit"]["name"] == "vllm-b.service"
    # Rank 0 of the coming model answers the API, whichever node was the head before.
    assert status["api"]["url"] == "http://127.0.0.1:8124"


def test_a_foreign_unit_is_no_coming_model(
    commands: Commands, capsys: pytest.CaptureFixture[str], places: dict[str, str]
) -> None:
    commands.answers["systemctl list-units"] = (0, "vllm-foreign.service loaded active running x\n", "")
    status = call(node_status, capsys, node="gx10-3", **places)["status"]
    assert (status["coming"], status["rank"], status["units"]) == ({}, {}, ["vllm-foreign.service"])


def test_the_journal_is_asked_for_what_is_wanted(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.answers["journalctl"] = (0, '{"__REALTIME_TIMESTAMP": "5", "MESSAGE": "m", "UNIT": "vllm-a.service"}', "")
    told = call(node_journal, capsys, since="1 hour ago", lines=7, grep="a|b", units=["x*", "y.service"])
    assert told["entries"] == [{"time_us": 5, "unit": "vllm-a.service", "text": "m"}]
    assert commands.asked[0][5:] == [
        "--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT", "--lines=7", "--unit=x*", "--unit=y.service",
        "--since=1 hour ago", "--grep=a|b",
    ]  # fmt: skip
    lines = "\n".join(f'{{"__REALTIME_TIMESTAMP": "{at}", "MESSAGE": "{at}"}}' for at in (3, 2))
    commands.answers["journalctl"] = (0, lines, "")
    # With --grep and --lines journalctl begins with the newest.
    assert [each["text"] for each in call(node_journal, capsys, grep="x")["entries"]] == ["2", "3"]
    commands.asked.clear()
    commands.asked.append([])
    call(node_journal, capsys)
    assert not [word for word in commands.asked[1] if word.startswith(("--since", "--grep"))]
    assert "--unit=vllm-*.service" in commands.asked[1]


def test_no_match_is_no_error_and_nonsense_is(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.answers["journalctl"] = (1, "", "")
    assert call(node_journal, capsys, grep="nothing")["entries"] == []
    commands.answers["journalctl"] = (1, "", "Failed to add filter for units: No data available\n")
    assert call(node_journal, capsys)["entries"] == []
    commands.answers["journalctl"] = (1, "", "Failed to parse timestamp: the day after\n")
    failed = call(node_journal, capsys, since="the day after")
    assert failed["msg"] == (
        "journalctl refuses since='the day after' or grep='': Failed to parse timestamp: the day after"
    )
