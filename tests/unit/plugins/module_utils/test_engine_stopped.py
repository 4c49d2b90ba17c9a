# SPDX-License-Identifier: Apache-2.0
"""What is recorded after an engine's end: the likeliest reason, on the node, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import stopped


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["gb10: start refused: port 8000 is held by x"], "start refused: port 8000 is held by x"),
        (
            ["RuntimeError: gloo", "gb10: restarting with the others: rank 1, b (10.0.0.2) is gone: x"],
            "restarting with the others: rank 1, b (10.0.0.2) is gone: x",
        ),
        (
            [
                "(Worker pid=1) ValueError: first cause",
                "RuntimeError: second",
                "gb10: the engine exited unexpectedly: status 1",
            ],
            "ValueError: first cause",
        ),
        (
            [
                "(EngineCore pid=19) ERROR 11-20 22:30:57 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
                "unexpectedly (exit code: 0), shutting down executor.",
                "(APIServer pid=16) ERROR 11-21 16:12:52 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: "
                "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                "gb10: the engine exited unexpectedly: status 0",
            ],
            "Worker proc VllmWorker-0 died unexpectedly (exit code: 0)",
        ),
        (
            [
                "(APIServer pid=16) ERROR 11-21 16:12:52 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: "
                "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            ],
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for "
            "the root cause.",
        ),
        (
            [
                "2026-11-20 21:10:58,535\tERR scripts.py:1307 -- Some Ray subprocesses exited unexpectedly:",
                "2026-11-20 21:10:58,535\tERR scripts.py:87 -- raylet [exit code=1]",
                "gb10: the engine exited unexpectedly: status 1",
            ],
            "Ray's raylet [exit code=1] ended",
        ),
        (
            ["words", "gb10: the engine exited unexpectedly: killed by signal 9"],
            "the engine exited unexpectedly: killed by signal 9",
        ),
        (["docker: Error response from daemon: no such runtime."], "Error response from daemon: no such runtime."),
        (["gb10: missing environment: A must be set"], "missing environment: A must be set"),
        (["nothing that is known"], "systemd: exit-code, exited 3"),
        (
            [
                "(APIServer pid=1) INFO:     Application startup complete.",
                "(APIServer pid=1) vllm.exceptions.VLLMValidationError: max_tokens=9000 cannot be greater than 4096",
                "(EngineCore pid=2) ERROR 11-03 09:00:00 [core.py:9] RuntimeError: the core's own",
            ],
            "RuntimeError: the core's own",
        ),
        (
            [
                "(APIServer pid=1) INFO:     Application startup complete.",
                "(APIServer pid=1) vllm.exceptions.VLLMValidationError: max_tokens=9000 cannot be greater than 4096",
                "gb10: the engine exited unexpectedly: killed by signal 9",
            ],
            "the engine exited unexpectedly: killed by signal 9",
        ),
    ],
)
def test_the_reason_of_an_end_is_the_likeliest_line(lines: list[str], reason: str) -> None:
    assert stopped.reason_of(lines, "exit-code", "exited", "3") == reason


def test_a_killed_container_is_called_so() -> None:
    assert "killed with SIGKILL" in stopped.reason_of([], "exit-code", "exited", "137")
    assert "lost the Docker Engine" in stopped.reason_of([], "exit-code", "exited", "125")


def test_the_reason_is_kept_on_the_node_and_no_secret_with_it(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text(json.dumps(launch))
    log = ["api_key': 'top'", f"'api_key': 'secret-1' hf_{'a' * 20}", "ValueError: no room"]
    monkeypatch.setattr(stopped, "log_of", lambda _run: log)
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    monkeypatch.setenv("EXIT_CODE", "exited")
    monkeypatch.setenv("EXIT_STATUS", "1")
    stopped.main([str(tmp_path / "m.json")])
    kept = Path(launch["last_failure"])
    found = json.loads(kept.read_text())
    assert (found["reason"], found["model"], found["rank"], found["exit_status"]) == (
        "ValueError: no room",
        "m",
        1,
        "1",
    )
    assert "secret-1" not in kept.read_text()
    assert "hf_" not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["last_failure.json"]
    assert "gb10: this run ended: ValueError: no room" in capsys.readouterr().out

    monkeypatch.setattr(stopped, "log_of", lambda _run: ["gb10: gave up: 5 starts"])
    stopped.main([str(tmp_path / "m.json")])
    found = json.loads(kept.read_text())
    assert (found["reason"], found["before"]["reason"]) == ("gave up: 5 starts", "ValueError: no room")

    monkeypatch.setenv("SERVICE_RESULT", "success")
    monkeypatch.setattr(stopped, "log_of", lambda _run: ["another"])
    stopped.main([str(tmp_path / "m.json")])
    assert json.loads(kept.read_text()) == found


@pytest.mark.parametrize(
    ("jobs", "recorded"),
    [
        ("812 vllm-m.service stop running\n", False),
        ("812 vllm-m.service restart waiting\n", False),
        ("813 vllm-other.service stop running\n814 vllm-m.service start waiting\n", True),
        ("", True),
    ],
)
def test_a_stop_that_was_requested_is_no_failure(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, recorded: bool
) -> None:
    (tmp_path / "m.json").write_text(json.dumps({**launch, "unit": "vllm-m.service"}))
    monkeypatch.setattr(stopped, "run", lambda _command, _limit_s=0.0: (0, jobs, ""))
    for name, value in (("SERVICE_RESULT", "exit-code"), ("EXIT_CODE", "exited"), ("EXIT_STATUS", "143")):
        monkeypatch.setenv(name, value)
    stopped.main([str(tmp_path / "m.json")])
    assert Path(launch["last_failure"]).exists() is recorded


def test_a_full_disk_keeps_the_reason_in_the_journal(
    launch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("in the way")
    (tmp_path / "m.json").write_text(json.dumps(launch))
    monkeypatch.setattr(stopped, "log_of", lambda _run: ["ValueError: no room"])
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    stopped.main([str(tmp_path / "m.json")])
    told = capsys.readouterr().out
    assert "the reason could not be recorded in" in told
    assert "gb10: this run ended: ValueError: no room" in told
