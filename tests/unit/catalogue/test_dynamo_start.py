# SPDX-License-Identifier: Apache-2.0
"""The script that a worker begins with, run as it is: the recipe's checks with their exit codes, then the engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render
from tests.unit.catalogue.test_dynamo import target

#: nvidia-smi of a node: LIST for -L, USED for the memory, APPS for what computes.
SMI = """#!/bin/bash
case "$*" in
    -L) printf "$LIST" ;;
    *memory.used*) printf "$USED" ;;
    *compute-apps*) printf "$APPS" ;;
    *) exit 1 ;;
esac
"""
GPUS = "".join(f"GPU {number}: NVIDIA B200 (UUID: GPU-{number})\\n" for number in range(4))
GOOD = {"LIST": GPUS, "USED": "0\\n3\\n1024\\n0\\n", "APPS": ""}


def started(name: str, component: int, at: Path, smi: dict[str, str], files: tuple[str, ...]) -> tuple[int, str, str]:
    """Run a component's script; return its exit code, its output, and the words of the program that it became."""
    (at / "bin").mkdir()
    for program, text in (("nvidia-smi", SMI), ("python3", f'#!/bin/bash\nprintf "%s\\n" "$@" >{at}/words\n')):
        (at / "bin" / program).write_text(text, encoding="utf-8")
        (at / "bin" / program).chmod(0o755)
    (at / "model").mkdir()
    for file in files:
        (at / "model" / file).write_text("x", encoding="utf-8")
    main = render.graph(target(name))["spec"]["components"][component]["podTemplate"]["spec"]["containers"][0]
    # Locked memory without limit is a right of the pod, not of who runs this test.
    script = main["args"][0].replace("ulimit -l unlimited", ":")
    env = {"PATH": f"{at}/bin:/usr/bin:/bin", "MODEL_PATH": f"{at}/model", "SERVED_MODEL_NAME": "a/b", **smi}
    env["LOG_DIR"] = f"{at}/logs"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env)
    words = at / "words"
    return done.returncode, done.stdout + done.stderr, words.read_text(encoding="utf-8") if words.exists() else ""


FILES = ("config.json", "ultra_v3_reasoning_parser.py")


@pytest.mark.parametrize(
    ("smi", "files", "code", "said"),
    [
        ({}, FILES[1:], 42, "no model at "),
        ({}, FILES[:1], 43, "no ultra_v3_reasoning_parser.py at "),
        ({"LIST": GPUS + "GPU 4: x\\n"}, FILES, 96, "GPU 4: x"),
        ({"LIST": ""}, FILES, 96, ""),
        ({"USED": "0\\n0\\n1025\\n0\\n"}, FILES, 97, "1025"),
        ({"APPS": "4711\\n"}, FILES, 98, "4711"),
    ],
)
def test_each_check_has_its_exit_code(
    tmp_path: Path, smi: dict[str, str], files: tuple[str, ...], code: int, said: str
) -> None:
    found, output, words = started("agg-b200-chat-mtp", 1, tmp_path, {**GOOD, **smi}, files)
    assert (found, words) == (code, "")
    assert said in output


def test_the_worker_becomes_the_engine(tmp_path: Path) -> None:
    # The partitions of a GPU are listed below it and do not count.
    listed = {**GOOD, "LIST": GPUS + "  MIG 1g.23gb Device 0: (UUID: MIG-0)\\n"}
    found, output, words = started("disagg-b200-agentic", 1, tmp_path, listed, FILES)
    assert found == 0, output
    assert words.split("\n")[:5] == ["-m", "dynamo.vllm", "--model", f"{tmp_path}/model", "--served-model-name"]
    assert f"{tmp_path}/model/ultra_v3_reasoning_parser.py" in words.split("\n")
    assert '{"kv_connector":"NixlConnector","kv_role":"kv_both"}' in words.split("\n")
    kept = (tmp_path / "logs" / "status" / "prefill.command").read_text(encoding="utf-8")
    assert "--disaggregation-mode prefill" in kept


def test_the_frontend_keeps_its_command_and_becomes_it(tmp_path: Path) -> None:
    found, output, words = started("agg-b200-chat-nomtp", 0, tmp_path, GOOD, ())
    assert found == 0, output
    assert words.split("\n")[1:6] == [
        "dynamo.frontend",
        "--router-mode",
        "kv",
        "--router-kv-events",
        "--kv-cache-block-size",
    ]
    assert "--http-port 8000" in (tmp_path / "logs" / "status" / "frontend.command").read_text(encoding="utf-8")
