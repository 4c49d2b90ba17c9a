# SPDX-License-Identifier: Apache-2.0
"""What runs on a node arrives as an archive of Python files alone: every module must import from one.

ansible-core packs a module with the Python files that it imports; a table beside them stays behind.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

REPO = Path(__file__).resolve().parents[2]
PLUGINS = REPO / "plugins"
IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module("ansible_collections.gb10.cluster.plugins." + name)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
"""


def failures(archive: Path, modules: list[str]) -> list[str]:
    """Return a line for each module that does not import from the archive."""
    command = [sys.executable, "-c", IMPORT_ALL, str(archive), *modules]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=archive.parent)
    return run.stdout.splitlines()


def pack(archive: Path, files: list[Path]) -> None:
    """Write plugins into an archive as ansible-core does: every directory is a package."""
    names = {
        file: PurePosixPath("ansible_collections/gb10/cluster/plugins") / file.relative_to(PLUGINS) for file in files
    }
    packages = {str(parent) for name in names.values() for parent in name.parents if parent.name}
    with zipfile.ZipFile(archive, "w") as packed:
        for package in packages:
            packed.writestr(f"{package}/__init__.py", "")
        for file, name in names.items():
            if file.name != "__init__.py":
                packed.write(file, str(name))


def test_every_module_imports_from_an_archive_without_tables(tmp_path: Path) -> None:
    modules = sorted(path for path in (PLUGINS / "modules").glob("*.py"))
    assert modules
    utils = sorted((PLUGINS / "module_utils").rglob("*.py"))
    pack(tmp_path / "module.zip", [*modules, *utils])
    assert failures(tmp_path / "module.zip", [f"modules.{path.stem}" for path in modules]) == []


def test_a_module_that_does_not_import_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "module.zip", [PLUGINS / "modules" / "node_facts.py"])
    (found,) = failures(tmp_path / "module.zip", ["modules.node_facts"])
    assert found.startswith("modules.node_facts: ModuleNotFoundError: ")
