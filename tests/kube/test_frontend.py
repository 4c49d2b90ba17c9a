# SPDX-License-Identifier: Apache-2.0
"""The published request, its negative and the check of a tokenizer, with Dynamo's real frontend where it is at hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.action.dynamo_smoke import CHAT, direct, through
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render, smoke
from benchmarks import dynamo as benchmark
from lab.kube import frontend

HOW = "`make bench-dynamo ARGS=--smoke` installs it (0.5 GB)"
TARGET = benchmark.target()


def test_which_frontend_is_used(record_property: Any) -> None:
    """Always runs, so that a report says what the others ran against."""
    found = frontend.find("frontend")
    said = f"Dynamo {frontend.version('frontend', 'ai-dynamo')} with its mocker" if found else f"none: {HOW}"
    record_property("frontend", said)
    print(f"frontend: {said}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if frontend.find("frontend") is None:
        pytest.skip(f"there is no frontend of Dynamo: {HOW}")
    with frontend.serving(tmp_path_factory.mktemp("frontend"), TARGET.model) as url:
        yield url


def test_the_published_request_is_answered_and_its_negative_refused(served: str) -> None:
    ask = through(direct(served), "")
    assert smoke.wrong_models(*ask("GET", "/v1/models", None), TARGET.model) == ""
    body = smoke.request_body(TARGET.smoke, TARGET.model)
    assert body == (
        b'{"model":"nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4",\n'
        b'       "messages":[{"role":"user","content":"Hello!"}],\n'
        b'       "max_tokens":64,\n'
        b'       "chat_template_kwargs":{"enable_thinking":false,"force_nonempty_content":true}}'
    )
    assert smoke.wrong_answer(*ask("POST", CHAT, body)) == ""
    status, text = ask("POST", CHAT, smoke.refused_body(TARGET.smoke, TARGET.model))
    assert status == 400
    assert "Unsupported parameter(s): `force_nonempty_content`" in text


def test_another_model_is_not_found_and_there_is_no_tokenize(served: str) -> None:
    ask = through(direct(served), "")
    assert ask("POST", CHAT, smoke.request_body(TARGET.smoke, "other"))[0] == 404
    assert ask("POST", "/tokenize", b"{}")[0] == 404
    assert "lists nvidia/" in smoke.wrong_models(*ask("GET", "/v1/models", None), "other")


@pytest.mark.parametrize(("damage", "code"), [("", 0), ('{"version": "1.0"}', 43)])
def test_the_validation_job_loads_a_tokenizer(tmp_path: Path, damage: str, code: int) -> None:
    kept = frontend.find("frontend")
    if kept is None:
        pytest.skip(f"there is no package tokenizers: {HOW}")
    view = frontend.model_directory(tmp_path / "model")
    (view / "ultra_v3_reasoning_parser.py").write_text("x = 1\n", encoding="utf-8")
    if damage:
        (view / "tokenizer.json").write_text(damage, encoding="utf-8")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    # In place of pip: the real package of the frontend's environment.
    packages = next(kept.glob("lib/python3*/site-packages"))
    link = f"import os\nos.symlink({str(packages)!r}, {str(tmp_path / 'library')!r})\n"
    (tmp_path / "pip" / "__main__.py").write_text(link, encoding="utf-8")
    container = render.validate_job(TARGET)["spec"]["template"]["spec"]["containers"][0]
    script = container["command"][2].replace(f"{TARGET.cache['path']}/{TARGET.cache['view']}", str(view))
    script = script.replace("/tmp/library", str(tmp_path / "library")).replace("/tmp/compiled", str(tmp_path / "c"))
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("MODEL_VALIDATE_FAIL class=broken_tokenizer" if damage else "MODEL_VALIDATE_TOKENIZER vocabulary=4096") in (
        done.stdout
    )
