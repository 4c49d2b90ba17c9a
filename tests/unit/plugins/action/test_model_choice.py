# SPDX-License-Identifier: Apache-2.0
"""What the files of the known models set."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gb10.cluster.plugins.action.model_choice import variables_of


def test_the_variables_of_every_file_of_a_model_are_counted(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    (one / "model_a.yml").write_text("model_spec: {}\n")
    (two / "model_a.yaml").write_text("engine_env: {A: '1'}\nkey: !vault secret\n")
    (one / "model_b.yml").write_text("a: [\n")
    (one / "model_c.yml").write_text("- a\n")
    (one / "other.yml").write_text("x: 1\n")
    assert variables_of([one, two, tmp_path / "none"]) == {
        "model_a": {"model_spec", "engine_env", "key"},
        "model_b": frozenset(),
        "model_c": frozenset(),
    }
