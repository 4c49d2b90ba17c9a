# SPDX-License-Identifier: Apache-2.0
"""A control node whose rsync is macOS's own: refused with what to install, before anything is copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.roles.plays import run_play

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gb10.cluster.image, tasks_from: copy}
"""


def test_openrsync_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rsync = tmp_path / "bin" / "rsync"
    rsync.parent.mkdir()
    rsync.write_text("#!/bin/sh\necho 'openrsync: protocol version 29'\necho 'rsync version 2.6.9 compatible'\n")
    rsync.chmod(0o755)
    monkeypatch.setenv("PATH", f"{rsync.parent}:{os.environ['PATH']}")
    done = run_play(tmp_path, PLAY, "--check")
    assert done.returncode != 0, done.stdout
    said = " ".join(done.stdout.split())
    assert "The rsync of the control node is 'openrsync: protocol version 29'. rsync 3.2.3 or later is required" in said
    assert "`brew install rsync` on macOS" in said
