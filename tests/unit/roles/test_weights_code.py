# SPDX-License-Identifier: Apache-2.0
"""A model that brings code: the first run locks it in the inventory, and other code is refused until it is accepted."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.roles.plays import run_play

COMMIT, LATER = "1" * 40, "2" * 40
PLAY = """
- hosts: all
  gather_facts: false
  vars:
    weights_repo: org/with-code
    weights_revision: main
    weights_head: localhost
    weights_from: directory
    gb10_plan: {spec: {serve: {trust-remote-code: true}}}
    __weights_way: directory
    __weights_source: {held: "%s"}
    __weights_manifest:
      files: [{path: modeling_x.py, sha256: "%s"}, {path: model.safetensors, sha256: "%s"}]
  tasks:
    - ansible.builtin.include_role: {name: gb10.cluster.weights, tasks_from: code}
"""


def digest(text: str) -> str:
    return text * 64


def test_code_is_locked_kept_and_replaced_on_request(tmp_path: Path) -> None:
    lock = tmp_path / "group_vars" / "all" / "weights_lock.json"
    first = PLAY % (COMMIT, digest("a"), digest("b"))
    before = run_play(tmp_path, first, "--check")
    assert before.returncode == 0, before.stdout
    assert not lock.exists()
    assert run_play(tmp_path, first).returncode == 0
    entry = {"revision": COMMIT, "code": {"modeling_x.py": digest("a")}}
    assert json.loads(lock.read_text(encoding="utf-8")) == {"gb10_weights_lock": {"org/with-code": entry}}
    again = run_play(tmp_path, first)
    assert (again.returncode, "changed=0" in again.stdout) == (0, True), again.stdout

    other = PLAY % (LATER, digest("c"), digest("b"))
    refused = run_play(tmp_path, other)
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0, said
    assert f"this run has revision {LATER}, {lock} holds {COMMIT}; modeling_x.py is another" in said
    assert "-e weights_relock=true" in said
    assert json.loads(lock.read_text(encoding="utf-8")) == {"gb10_weights_lock": {"org/with-code": entry}}
    assert run_play(tmp_path, other, "-e", "weights_relock=true").returncode == 0
    assert json.loads(lock.read_text(encoding="utf-8"))["gb10_weights_lock"]["org/with-code"]["revision"] == LATER
