# SPDX-License-Identifier: Apache-2.0
"""Every module has a unit test that imports it, or the action plugin of its name where that does the work."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.lint.collection import REPO

PLUGINS = "ansible_collections.gb10.cluster.plugins."
#: Modules without a test of their own yet; none enters this list.
UNTESTED: frozenset[str] = frozenset(
    {
        "engine_check",
        "plan",
        "serve_args",
    }
)


def imported(source: str) -> set[str]:
    """Return the dotted names below plugins/ that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix(PLUGINS) for name in names if name.startswith(PLUGINS)}
    return found


def untested() -> set[str]:
    """Return the modules that no unit test imports."""
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
    found = untested() - UNTESTED
    assert not found, f"no unit test imports: {sorted(found)}"


def test_the_reader_of_imports() -> None:
    source = f"from {PLUGINS}modules import a, b\nimport {PLUGINS}action.c as x\nfrom pathlib import Path\n"
    assert {"modules.a", "modules.b", "action.c"} <= imported(source)
