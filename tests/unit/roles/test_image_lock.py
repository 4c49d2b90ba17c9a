# SPDX-License-Identifier: Apache-2.0
"""The role's plan with a tag: its digest is recorded in the inventory, kept when the tag moves, replaced on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.unit.plugins.module_utils.image.conftest import serve
from tests.unit.roles.plays import run_play

FIRST, SECOND = "sha256:" + "1" * 64, "sha256:" + "2" * 64
PLAY = """
- hosts: all
  gather_facts: false
  vars:
    image_name: probe
    image_mods: []
    image_wheels_dir: {folder}/wheels
    image_head: localhost
    image_catalogue: {{probe: {{pull: "{reference}", vllm_version: 0.30.0}}}}
  tasks:
    - name: Plan the image
      ansible.builtin.include_role:
        name: gb10.cluster.image
        tasks_from: plan
    - name: Show what was planned
      ansible.builtin.copy:
        dest: {folder}/planned.json
        content: "{{{{ gb10_image | to_json }}}}"
        mode: "0600"
"""


class Tag(BaseHTTPRequestHandler):
    """A registry whose only tag has a digest."""

    digest = FIRST
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Docker-Content-Digest", self.digest)
        self.end_headers()

    def log_message(self, *_words: Any) -> None:
        return


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a reference into the registry."""
    monkeypatch.setattr(Tag, "digest", FIRST)
    monkeypatch.setattr(Tag, "asked", [])
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Tag)):
        yield url.removeprefix("http://") + "/probe:1"


def planned(folder: Path, reference: str, *arguments: str) -> dict[str, Any]:
    """Run the role's plan on this machine; return what it planned."""
    done = run_play(folder, PLAY.format(folder=folder, reference=reference), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "planned.json").read_text(encoding="utf-8"))
    return found


def test_a_tag_is_recorded_kept_and_replaced_on_request(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "group_vars" / "all" / "image_lock.json"
    first = planned(tmp_path, reference)
    assert json.loads(lock.read_text(encoding="utf-8")) == {"gb10_image_lock": {reference: FIRST}}
    assert (first["digest"], first["base"]) == (FIRST, reference.replace(":1", f"@{FIRST}"))
    assert (tmp_path / "cache" / "gb10" / "build" / "probe" / "Dockerfile").is_file()
    # The tag moves: the plan stays what it was, without a question.
    monkeypatch.setattr(Tag, "digest", SECOND)
    Tag.asked.clear()
    assert planned(tmp_path, reference)["tag"] == first["tag"]
    assert Tag.asked == []
    second = planned(tmp_path, reference, "-e", "image_relock=true")
    assert json.loads(lock.read_text(encoding="utf-8")) == {"gb10_image_lock": {reference: SECOND}}
    assert second["tag"] != first["tag"]
