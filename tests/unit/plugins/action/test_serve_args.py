# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.serve_args in a play, on a host that nobody could reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[4]
PLAY = """
- name: Check options
  hosts: nowhere.invalid
  gather_facts: false
  vars:
    tokens: 3
    wanted:
      tensor-parallel-size: "{{ tokens + 1 }}"
      speculative-config: {method: nemotron_h_mtp, num_speculative_tokens: "{{ tokens }}"}
      gpu-memory-utilization-gb: 108
      enable-prefix-caching: false
  tasks:
    - name: Good
      gb10.cluster.serve_args:
        serve: "{{ wanted | combine({'port': 8000}) }}"
        vllm_version: 0.33.0
        model: /models/a b
        mods: [gpu-mem-util-gb]
        env: {NCCL_DEBUG: WARN}
    - name: Bad
      gb10.cluster.serve_args:
        serve: {gpu-memory-util: 0.9, headless: true}
        vllm_version: 0.22.1
        env: {VLLM_FOO: 1}
        mods: [nope]
"""


def play(folder: Path, text: str) -> dict[str, dict[str, Any]]:
    """Return task name → result of a play on one unreachable host."""
    (folder / "play.yml").write_text(text, encoding="utf-8")
    (folder / "hosts").write_text("nowhere.invalid\n", encoding="utf-8")
    env = {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts")]
    done = subprocess.run(
        [*command, str(folder / "play.yml")], env=env, cwd=REPO, capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return {task["task"]["name"]: task["hosts"]["nowhere.invalid"] for task in report["plays"][0]["tasks"]}


def test_in_a_play(tmp_path: Path) -> None:
    results = play(tmp_path, PLAY)
    good = results["Good"]
    assert good["changed"] is False
    assert good["args"] == [
        *("--tensor-parallel-size", "4"),
        *("--speculative-config", '{"method":"nemotron_h_mtp","num_speculative_tokens":3}'),
        *("--gpu-memory-utilization-gb", "108"),
        "--disable-prefix-caching",
        *("--port", "8000"),
    ]
    assert good["env"] == {"NCCL_DEBUG": "WARN"}
    assert good["command"].startswith("vllm serve '/models/a b' --tensor-parallel-size 4 --speculative-config '{")
    assert (good["notes"], good["table"]) == ([], "0.33.0")
    bad = results["Bad"]
    assert bad["failed"] is True
    assert len(bad["errors"]) == 4
    assert bad["msg"] == "\n".join(bad["errors"])
    for part in ("Mod 'nope' is not known.", "serve.gpu-memory-util is an abbreviation", "env.VLLM_FOO: vLLM 0.22.1"):
        assert part in bad["msg"]
