# SPDX-License-Identifier: Apache-2.0
"""Every module has a unit test that imports it or runs it in a play.

Where the action plugin of its name does the work, that one counts.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.lint.collection import REPO

PLUGINS = "ansible_collections.gb10.cluster.plugins."


def imported(source: str) -> set[str]:
    """Return the dotted names below plugins/ that a test imports, and those of the modules that its plays run."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix(PLUGINS) for name in names if name.startswith(PLUGINS)}
    played = re.findall(r"^ +gb10\.cluster\.([a-z_]+):$", source, re.MULTILINE)
    return found | {f"{room}.{name}" for room in ("modules", "action") for name in played}


def untested() -> set[str]:
    """Return the modules that no unit test runs."""
    tests = (path.read_text(encoding="utf-8") for path in (REPO / "tests" / "unit").rglob("test_*.py"))
    known = set().union(*map(imported, tests))
    found = set()
    for path in (REPO / "plugins" / "modules").glob("*.py"):
        action = Path(REPO, "plugins", "action", path.name)
        room = "modules" if "def main()" in path.read_text(encoding="utf-8") or not action.exists() else "action"
        if f"{room}.{path.stem}" not in known:
            found.add(path.stem)
    return found


def test_every_module_has_a_unit_test() -> None:
    found = untested()
    assert not found, f"no unit test imports or plays: {sorted(found)}"


def test_the_reader_of_imports() -> None:
    source = f"from {PLUGINS}modules import a, b\nimport {PLUGINS}action.c as x\nfrom pathlib import Path\n"
    assert {"modules.a", "modules.b", "action.c"} <= imported(source)
    assert imported('PLAY = """\n  tasks:\n    - gb10.cluster.other: {}\n      gb10.cluster.some_module:\n"""') == {
        "modules.some_module",
        "action.some_module",
    }
