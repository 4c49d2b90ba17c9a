# SPDX-License-Identifier: Apache-2.0
"""Whether an engine runs with the files that are on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import started

UNIT = "vllm-a.service"


@pytest.mark.parametrize("name", [UNIT, "a.json", "a.env"])
def test_a_change_of_any_file_of_a_start_is_seen(tmp_path: Path, name: str) -> None:
    note, unit = tmp_path / "run" / "a.started", tmp_path / UNIT
    for file in (UNIT, "a.json", "b.env"):
        (tmp_path / file).write_text("old")
    assert not started.stale(note, unit, tmp_path), "nothing was noted"
    started.note(note, unit, tmp_path)
    assert note.stat().st_mode & 0o777 == 0o600
    (tmp_path / "b.env").write_text("new")
    assert not started.stale(note, unit, tmp_path), "another model's file"
    (tmp_path / name).write_text("new")
    assert started.stale(note, unit, tmp_path)
    started.note(note, unit, tmp_path)
    assert not started.stale(note, unit, tmp_path)
    (tmp_path / name).unlink()
    assert started.stale(note, unit, tmp_path)
