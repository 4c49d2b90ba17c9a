# SPDX-License-Identifier: Apache-2.0
"""The periodic health check: what it records, whom it notifies, and that it runs from its archive alone."""

from __future__ import annotations

import fcntl
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._probe import watch
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build

ROLE = Path(__file__).resolve().parents[4] / "roles" / "watch"


READY = {"model": "a", "state": "ready", "summary": "It serves.", "diagnosis": []}
DEAD = {
    "model": "a",
    "state": "dead",
    "summary": "It does not.",
    "diagnosis": [{"name": "oom", "cause": "c", "remedy": "d"}],
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "engine").mkdir()
    (tmp_path / "state").mkdir()
    return {
        "record": str(tmp_path / "engine" / "active.json"),
        "engine_dir": str(tmp_path / "engine"),
        "state_dir": str(tmp_path / "state"),
        "failures": str(tmp_path / "engine" / "last_failure.json"),
        "swap": str(tmp_path / "swap.json"),
        "canary": True,
        "canary_tokens": 4,
        "silence_seconds": 60,
        "check_seconds": 300,
        "hook": [],
        "hook_seconds": 60,
        "log_max_bytes": 10_000,
        "log_keep": 2,
    }


def lines(config: dict[str, Any]) -> list[dict[str, Any]]:
    text = (Path(config["state_dir"]) / "transitions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_only_changes_are_transitions(config: dict[str, Any]) -> None:
    first = watch.note(config, READY, 100.0)
    assert (first["before"], first["before_seconds"]) == ("", 0.0)
    assert watch.note(config, READY, 160.0) == {}
    second = watch.note(config, DEAD, 220.0)
    assert (second["before"], second["before_seconds"], second["state"]) == ("ready", 120.0, "dead")
    # Another model in the same state is a change too.
    third = watch.note(config, {**DEAD, "model": "b"}, 300.0)
    assert (third["before_model"], third["model"]) == ("a", "b")
    assert [each["state"] for each in lines(config)] == ["ready", "dead", "dead"]
    state = json.loads((Path(config["state_dir"]) / "state.json").read_text())
    assert (state["state"], state["model"], state["since"], state["looked"]) == ("dead", "b", 300.0, 300.0)
    watch.note(config, {**DEAD, "model": "b"}, 360.0)
    state = json.loads((Path(config["state_dir"]) / "state.json").read_text())
    assert (state["since"], state["looked"]) == (300.0, 360.0)
    assert sorted(path.name for path in Path(config["state_dir"]).iterdir()) == ["state.json", "transitions.jsonl"]


def test_a_clock_that_is_put_back_makes_no_time_negative(config: dict[str, Any]) -> None:
    watch.note(config, READY, 5000.0)
    assert watch.note(config, READY, 1400.0) == {}
    assert json.loads((Path(config["state_dir"]) / "state.json").read_text())["since"] == 1400.0
    watch.note(config, READY, 5000.0)
    assert watch.note(config, DEAD, 1500.0)["before_seconds"] == 100.0
    assert watch.note(config, READY, 1000.0)["before_seconds"] == 0.0


def test_a_state_that_was_cut_short_begins_anew(config: dict[str, Any]) -> None:
    (Path(config["state_dir"]) / "state.json").write_text('{"state": "rea')
    assert watch.note(config, READY, 100.0)["before"] == ""


def test_the_log_is_put_aside_and_the_oldest_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for number in range(8):
        watch.append(log, {"n": number}, 1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert [json.loads((tmp_path / name).read_text())["n"] for name in ("log", "log.1", "log.2")] == [7, 6, 5]


def test_a_line_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"n": 1}\n{"n": 2, "summ')
    watch.append(log, {"n": 3}, 1000, 2)
    assert log.read_text().splitlines() == ['{"n": 1}', '{"n": 2, "summ', '{"n": 3}']


def test_the_hook_is_told_on_its_input_and_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "never")
    entry = {**DEAD, "before": "ready", "time": 5.0, "summary": "$(touch x); it is dead"}
    script = f'cat > {tmp_path}/input; env > {tmp_path}/env; echo "$1" > {tmp_path}/arguments'
    assert watch.run_hook(["/bin/sh", "-c", script, "hook", "a b"], entry, 60.0) == ""
    assert json.loads((tmp_path / "input").read_text()) == entry
    told = (tmp_path / "env").read_text()
    assert "GB10_STATE=dead\n" in told
    assert "GB10_BEFORE=ready\n" in told
    assert "GB10_SUMMARY=$(touch x); it is dead\n" in told
    assert "never" not in told
    assert (tmp_path / "arguments").read_text() == "a b\n"
    assert watch.run_hook([], entry, 5.0) == ""


@pytest.mark.parametrize(
    ("hook", "limit_s", "said"),
    [
        (["/nonexistent/hook"], 60.0, "/nonexistent/hook cannot be started: No such file"),
        (["/bin/sh", "-c", "echo no mail >&2; exit 3"], 60.0, "/bin/sh ended with 3: no mail"),
        (["/bin/sleep", "600"], 0.3, "/bin/sleep did not end within 0 s and was killed"),
    ],
)
def test_a_hook_that_fails_is_told_and_does_not_last(hook: list[str], limit_s: float, said: str) -> None:
    begun = time.monotonic()
    assert said in watch.run_hook(hook, {**DEAD, "before": "", "time": 0}, limit_s)
    assert time.monotonic() - begun < 300


BEFORE, AFTER = {"model": "a", "unit": "vllm-a.service"}, {"model": "b", "unit": "vllm-b.service", "members": ["n1"]}


@pytest.mark.parametrize(
    ("state", "before_runs", "model"),
    [
        ("pending", True, "a"),
        ("pending", False, "b"),
        ("committed", False, "a"),
        ("rolled_back", False, "a"),
        ("", False, "a"),
    ],
)
def test_during_a_swap_the_coming_model_is_checked_once_the_other_has_stopped(
    state: str, before_runs: bool, model: str
) -> None:
    swap = {"state": state, "before": BEFORE, "after": AFTER} if state else {}
    asked: list[str] = []

    def unit_runs(unit: str) -> bool:
        asked.append(unit)
        return before_runs

    assert watch.served(BEFORE, swap, unit_runs)["model"] == model
    assert set(asked) <= {"vllm-a.service"}


def test_between_two_engines_the_coming_one_starts(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "run", lambda *_given: (3, "", ""))
    Path(config["swap"]).write_text(
        json.dumps({"state": "pending", "before": BEFORE, "after": AFTER}), encoding="utf-8"
    )
    found = watch.check(config, BEFORE)
    assert (found["model"], found["state"], found["summary"]) == ("b", "starting", "In place of a.")


def test_without_a_record_nothing_is_to_be_served(config: dict[str, Any]) -> None:
    assert watch.in_time(config, {})["state"] == "absent"


def test_a_look_that_lasts_counts_as_wedged(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(*_given: object) -> dict[str, Any]:
        time.sleep(600)
        return {}

    monkeypatch.setattr(watch, "check", forever)
    begun = time.monotonic()
    found = watch.in_time({**config, "check_seconds": 0.2}, {"model": "a"})
    assert time.monotonic() - begun < 300
    assert (found["state"], found["model"]) == ("wedged", "a")
    assert "did not end within 0.2 s" in found["summary"]


def test_an_end_is_recorded_though_the_engine_runs_again(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watch.json").write_text(json.dumps(config), encoding="utf-8")
    Path(config["record"]).write_text(json.dumps({"model": "a", "members": ["n1", "n2"]}), encoding="utf-8")
    answers: list[dict[str, Any]] = [READY]
    monkeypatch.setattr(watch, "check", lambda *_given: answers[0])

    def end(epoch_s: float, model: str = "a") -> None:
        reason = "restarting with the others: rank 1 (n2): its engine exited with 1"
        text = json.dumps({"epoch_s": epoch_s, "model": model, "reason": reason})
        Path(config["failures"]).write_text(text, encoding="utf-8")

    def states() -> list[str]:
        watch.main([str(tmp_path / "watch.json")])
        return [line["state"] for line in lines(config)]

    end(50.0)  # before the watch was installed
    assert states() == ["ready"]
    assert states() == ["ready"]
    end(60.0)
    assert states() == ["ready", "dead", "ready"]
    assert lines(config)[1]["summary"].startswith("The engine ended: restarting with the others: rank 1 (n2): ")
    assert states() == ["ready", "dead", "ready"]
    answers[0] = DEAD
    end(40.0)  # the clock was set back
    assert states() == ["ready", "dead", "ready", "dead"]
    end(70.0, model="another")
    assert states() == ["ready", "dead", "ready", "dead"]


def test_an_end_is_reported_before_the_check_and_one_during_it_before_its_result(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watch.json").write_text(json.dumps(config), encoding="utf-8")
    Path(config["record"]).write_text(json.dumps({"model": "a", "members": ["n1", "n2", "n3"]}), encoding="utf-8")
    ends = [30.0]
    seen: list[list[str]] = []

    def check(*_given: object) -> dict[str, Any]:
        seen.append([line["summary"] for line in lines(config)][1:])
        if ends:
            epoch_s = ends.pop()
            text = json.dumps({"epoch_s": epoch_s, "model": "a", "reason": f"rank 2, n3 is gone at {epoch_s}"})
            Path(config["failures"]).write_text(text, encoding="utf-8")
        return READY

    monkeypatch.setattr(watch, "check", check)
    watch.note(config, READY, 10.0)
    watch.main([str(tmp_path / "watch.json")])
    dead = "The engine ended: rank 2, n3 is gone at 30.0"
    assert seen == [[], [dead]]
    assert [(line["state"], line["summary"]) for line in lines(config)[1:]] == [
        ("dead", dead),
        ("ready", READY["summary"]),
    ]


def test_the_first_end_of_all_is_new(config: dict[str, Any]) -> None:
    assert watch.ended(config, {"model": "a"}) == {}
    watch.note(config, READY, 10.0)
    assert watch.ended(config, {"model": "a"}) == {}
    Path(config["failures"]).write_text(json.dumps({"epoch_s": 5.0, "model": "a", "reason": "x"}), encoding="utf-8")
    assert watch.ended(config, {"model": "a"})["summary"] == "The engine ended: x"
    Path(config["failures"]).write_text("{", encoding="utf-8")
    assert watch.ended(config, {"model": "a"}) == {}


@pytest.mark.parametrize(
    ("reason", "summary"),
    [
        ("the container was killed", "The engine ended on n1, rank 0: the container was killed"),
        ("rank 1, n2 (10.0.0.2) is gone", "The engine ended: rank 1, n2 (10.0.0.2) is gone"),
    ],
)
def test_an_end_names_the_node_whose_rank_ended_first(config: dict[str, Any], reason: str, summary: str) -> None:
    record = {"model": "a", "members": ["n1", "n2"]}
    watch.note(config, READY, 10.0)
    failure = {"epoch_s": 5.0, "model": "a", "reason": reason}
    Path(config["failures"]).write_text(json.dumps(failure), encoding="utf-8")
    assert watch.ended(config, record)["summary"] == summary


class Api(http.server.BaseHTTPRequestHandler):
    """An API with a key, which yields tokens."""

    keys: ClassVar[list[str]] = []

    def log_message(self, *_given: object) -> None:
        """Stay silent."""

    def _answer(self, body: str, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        """Answer /health and /v1/models."""
        if self.path == "/health":
            return self._answer("")
        if self.headers["Authorization"] != "Bearer secret-5309":
            return self._answer("{}", 401)
        return self._answer('{"data": [{"id": "served/a"}]}')

    def do_POST(self) -> None:
        """Yield two tokens."""
        self.keys.append(str(self.headers["Authorization"]))
        self._answer('data: {"choices": [{"text": "x"}], "usage": {"completion_tokens": 4}}\n\ndata: [DONE]\n')


@pytest.fixture
def api() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def fake_node(directory: Path) -> dict[str, str]:
    """Programs that say that unit and container run."""
    answers = {
        "systemctl": "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nInvocationID=abc",
        "docker": '[{"State": {"Running": true, "Pid": 1}, "Config": {"Image": "i"}}]',
        "journalctl": "",
    }
    directory.mkdir()
    for name, answer in answers.items():
        (directory / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n", encoding="utf-8")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


def test_it_runs_with_what_is_shipped_alone_and_shows_no_key(config: dict[str, Any], api: int, tmp_path: Path) -> None:
    built = build("watch")
    program = tmp_path / built.name
    program.write_bytes(built.data)
    environment = fake_node(tmp_path / "bin")
    engine = Path(config["engine_dir"])
    record = {"model": "a", "served_name": "served/a", "members": ["gx10-1"], "api_port": api}
    (engine / "active.json").write_text(json.dumps(record))
    (engine / "a.env").write_text("VLLM_API_KEY=secret-5309\n")
    settings = tmp_path / "watch.json"
    settings.write_text(json.dumps({**config, "hook": ["/bin/sh", "-c", f"env > {tmp_path}/hook.env"]}))

    def look() -> str:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", str(program), "watch", str(settings)],
            check=False, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = look()
    assert said.startswith("<5>a is ready. 1 rank(s) up, served/a answered with 4 token(s).")
    assert Api.keys[-1] == "Bearer secret-5309"
    assert "GB10_STATE=ready\n" in (tmp_path / "hook.env").read_text()
    assert look() == ""
    (engine / "a.env").write_text("VLLM_API_KEY=another-6410\n")
    assert look().startswith("<4>a is degraded, was ready for ")
    # Nobody listens where the proxy should.
    (engine / "a.env").write_text("VLLM_API_KEY=secret-5309\n")
    assert look().startswith("<5>a is ready, was degraded for ")
    (engine / "active.json").write_text(json.dumps({**record, "proxy_port": 1}))
    assert "the proxy on port 1 does not answer (refused)" in look()
    everything = [path.read_text() for path in [*Path(config["state_dir"]).iterdir(), tmp_path / "hook.env"]]
    assert not [text for text in [*everything, said] if "5309" in text or "6410" in text]

    with (Path(config["state_dir"]) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look() == "another check is running\n"


def test_looks_do_not_overlap_and_are_bounded() -> None:
    unit = (ROLE / "templates" / "gb10-watch.service.j2").read_text(encoding="utf-8")
    assert "Type=oneshot" in unit
    assert "TimeoutStartSec={{ watch_check_seconds | int + watch_hook_seconds | int + 30 }}" in unit
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    # The completion's own limit must come first, or its reason is never told.
    assert defaults["watch_silence_seconds"] < defaults["watch_check_seconds"]
