# SPDX-License-Identifier: Apache-2.0
"""Which room may import which: what runs on a node never reaches for what only the control node has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.lint.collection import REPO

PLUGINS = REPO / "plugins"
PREFIX = "ansible_collections.gb10.cluster.plugins."
#: What each room may import of the collection's own rooms. Everything below plugins/ has a line here.
MAY_IMPORT = {
    "module_utils": {"module_utils"},
    "modules": {"module_utils"},
    "plugin_utils": {"module_utils", "plugin_utils"},
    "action": {"module_utils", "plugin_utils", "action"},
    "filter": {"module_utils", "plugin_utils"},
    "callback": {"module_utils", "plugin_utils"},
    "lookup": {"module_utils", "plugin_utils"},
    "doc_fragments": set(),
}
FILES = sorted(PLUGINS.rglob("*.py"))


def rooms_of(source: str) -> set[str]:
    """Return the rooms below plugins/ that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix(PREFIX).split(".")[0] for name in names if name.startswith(PREFIX)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_arrows_run_one_way(path: Path) -> None:
    room = path.relative_to(PLUGINS).parts[0]
    assert room in MAY_IMPORT, f"plugins/{room}: say in tests/lint/test_rooms.py what it may import"
    forbidden = rooms_of(path.read_text(encoding="utf-8")) - MAY_IMPORT[room]
    assert not forbidden, f"{path.relative_to(REPO)} imports from {', '.join(sorted(forbidden))}"


def test_an_arrow_is_seen() -> None:
    assert rooms_of(f"from {PREFIX}plugin_utils._vllm import mods\nimport json") == {"plugin_utils"}
    assert rooms_of(f"from {PREFIX[:-1]} import module_utils") == {"module_utils"}
    assert rooms_of(f"import {PREFIX}module_utils._node.files") == {"module_utils"}
