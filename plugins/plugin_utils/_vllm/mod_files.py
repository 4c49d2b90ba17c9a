# SPDX-License-Identifier: Apache-2.0
"""Reading mods from disk, on the control node."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic

#: The mods that the collection ships.
OWN_MODS = Path(__file__).parents[3] / "mods"


def load_mods(directories: Iterable[str] = (), names: Iterable[str] | None = None) -> dict[str, mods_logic.Mod]:
    """Return the mods of the given directories and of the collection, by name.

    :param directories: directories with ``<name>/manifest.yml`` in them, the first one wins;
        the collection's own comes last.
    :param names: read these only; without it every mod is read.
    :raises ModsError: with everything that is wrong with any of the manifests.
    """
    wanted = None if names is None else set(names)
    found: dict[str, mods_logic.Mod] = {}
    errors: list[str] = []
    for directory in [*(Path(each) for each in directories), OWN_MODS]:
        for manifest in sorted(directory.glob("*/manifest.yml")):
            name = manifest.parent.name
            if name in found or (wanted is not None and name not in wanted):
                continue
            files = {
                str(path.relative_to(manifest.parent)): path.read_bytes().decode("utf-8", "replace")
                for path in sorted(manifest.parent.rglob("*.patch"))
            }
            try:
                data = yaml.safe_load(manifest.read_text(encoding="utf-8"))
            except yaml.YAMLError as problem:
                errors.append(f"mods/{name}/manifest.yml is no YAML: {problem}")
                continue
            mod, problems = mods_logic.parse_manifest(data, name, files)
            errors.extend(problems)
            if mod is not None:
                found[name] = mod
    if errors:
        raise mods_logic.ModsError(errors)
    return found


def mod_directory(name: str, directories: Iterable[str] = ()) -> Path:
    """Return the directory of one mod, by the same order of precedence as load_mods."""
    for directory in [*(Path(each) for each in directories), OWN_MODS]:
        if (directory / name / "manifest.yml").is_file():
            return directory / name
    raise mods_logic.ModsError([f"Mod '{name}' has no manifest.yml in any directory of mods."])
