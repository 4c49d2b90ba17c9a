# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.engine_check: what it runs on the node, what it remembers, and what it reports of a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine.check import MARK
from ansible_collections.gb10.cluster.plugins.modules import engine_check
from tests.unit.helper import NodeModule, ended

IMAGE = {"Id": "sha256:1", "Architecture": "arm64", "RootFS": {"Layers": ["sha256:a"]}, "Config": {"Env": ["A=1"]}}
ACCEPTED = {"ok": True, "architecture": "TinyForCausalLM", "max_model_len": 4096}
REFUSED = {"ok": False, "stage": "parse", "error": "vllm: error: unrecognized arguments: --max-modell-len 7"}


def params(tmp_path: Path, **more: Any) -> dict[str, Any]:
    weights = tmp_path / "weights"
    program = tmp_path / "gb10-check-0.pyz"
    weights.mkdir(exist_ok=True)
    program.touch()
    return {
        "model": "tiny",
        "image": "gb10/probe:0123456789ab",
        "python": "python3",
        "argv": ["vllm", "serve", "/models/tiny", "--max-model-len", "4096"],
        "env": {"MAX_JOBS": 2},
        "weights": str(weights),
        "mounted_at": "/models/tiny",
        "beside": {str(tmp_path): "/models/tiny-draft"},
        "docker_args": ["--memory", "8g"],
        "program": str(program),
        "records_dir": str(tmp_path / "checks"),
        **more,
    }


def node(params_: dict[str, Any], verdict: dict[str, Any] | None, *, code: int = 0, check: bool = False) -> NodeModule:
    """Return a node whose image answers with a verdict, or ends with a code and none."""

    def answer(argv: list[str]) -> tuple[int, str, str]:
        if argv[1:3] == ["image", "inspect"]:
            return 0, json.dumps([IMAGE]), ""
        return code, f"INFO starting\n{MARK}{json.dumps(verdict)}\n" if verdict else "", "Killed"

    return NodeModule(params_, answer, check)


def test_an_accepted_configuration_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = node(params(tmp_path), ACCEPTED)
    assert ended(engine_check, monkeypatch, first).result == {"changed": False, "asked": True, "verdict": ACCEPTED}
    command = first.calls[-1]
    assert command[:6] == ["docker", "run", "--rm", "--interactive", "--network", "none"]
    assert command[6:8] == ["--memory", "8g"]
    assert f"{tmp_path}/weights:/models/tiny:ro" in command
    assert f"{tmp_path}:/models/tiny-draft:ro" in command
    assert json.loads(first.data[-1] or "") == {"argv": params(tmp_path)["argv"], "env": {"MAX_JOBS": "2"}}

    again = node(params(tmp_path), ACCEPTED)
    assert ended(engine_check, monkeypatch, again).result == {"changed": False, "asked": False}
    assert [call[1] for call in again.calls] == ["image"]

    other = node(params(tmp_path, env={"MAX_JOBS": 3}), ACCEPTED)
    assert ended(engine_check, monkeypatch, other).result["asked"] is True


def test_check_mode_asks_and_remembers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(engine_check, monkeypatch, node(params(tmp_path), ACCEPTED, check=True)).result["asked"] is True
    assert not (tmp_path / "checks").exists()


def test_a_refusal_has_the_words_of_vllm_and_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = ended(engine_check, monkeypatch, node(params(tmp_path), REFUSED, code=1))
    assert end.failed
    assert "gb10/probe:0123456789ab would not start tiny: its command line does not take these options." in str(end)
    assert "unrecognized arguments: --max-modell-len 7" in str(end)
    assert str(end).endswith("Nothing was stopped or changed.")
    assert not (tmp_path / "checks").exists()


def test_a_container_without_a_verdict_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = ended(engine_check, monkeypatch, node(params(tmp_path), None, code=137))
    assert "gave no verdict on tiny: the container ended with exit code 137" in str(end)
    assert "engine_check_docker_args" in str(end)
    assert "engine_config_check: false starts it without this check." in str(end)


@pytest.mark.parametrize("missing", ["docker", "weights", "image"])
@pytest.mark.parametrize("check", [False, True])
def test_what_the_check_needs_is_named(
    missing: str, check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = node(params(tmp_path), ACCEPTED, check=check)
    if missing == "docker":
        fake.missing = {"docker"}
        reason = "there is no docker on this node"
    elif missing == "weights":
        (tmp_path / "weights").rmdir()
        reason = f"{tmp_path}/weights is missing"
    else:
        fake.answer = lambda _argv: (1, "", "Error response from daemon: No such image: gb10/probe:0123456789ab\n")
        reason = "Error response from daemon: No such image: gb10/probe:0123456789ab"
    end = ended(engine_check, monkeypatch, fake)
    assert end.failed is not check
    if check:
        assert end.result == {"changed": False, "asked": False, "msg": f"Would be asked once it can be: {reason}."}
    else:
        assert str(end) == f"gb10/probe:0123456789ab cannot check tiny: {reason}. Run playbooks/site.yml."
