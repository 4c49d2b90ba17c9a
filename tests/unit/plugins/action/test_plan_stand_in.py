# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.plan refuses an image that holds a stand-in engine, unless a test asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[4]
PLAY = """
- name: Plan
  hosts: head
  gather_facts: false
  tasks:
    - name: Plan
      gb10.cluster.plan:
        model: m
        spec: {name: m, repo: a/b, served_name: a/b, size_gib: 1, nodes: 1, image: other, serve: {}}
        images:
          play: {base: x, vllm_version: 0.32.0+cpu, stand_in: true}
          other: {from: play}
        allow_stand_in: ALLOWED
"""


@pytest.mark.parametrize("allowed", [False, True])
def test_a_stand_in_is_refused_even_through_another_image(tmp_path: Path, *, allowed: bool) -> None:
    (tmp_path / "play.yml").write_text(PLAY.replace("ALLOWED", str(allowed).lower()), encoding="utf-8")
    hosts = "[head]\nnode ansible_host=10.9.9.1 gb10_fabric_address=10.8.8.1\n[gx10:children]\nhead\n"
    (tmp_path / "hosts").write_text(hosts, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(tmp_path / "hosts")]
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "play.yml")], env=env, cwd=REPO, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == allowed, done.stdout
    assert ("holds a stand-in engine" in done.stdout) != allowed
