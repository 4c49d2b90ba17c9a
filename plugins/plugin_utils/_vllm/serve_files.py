# SPDX-License-Identifier: Apache-2.0
"""Reading option tables and mods from disk for serve_args, on the control node."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files, serve_args, tables
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError

#: The tables that the collection ships.
OWN_TABLES = Path(__file__).parent / "flags"


@functools.lru_cache(maxsize=8)
def load_tables(directories: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return version → complete table, from the given directories and the collection's own.

    :param directories: directories with ``<version>.json``, the first one wins; differences (tables.py) are resolved.
    :raises ServeError: when a file is no table.
    """
    own = _complete(OWN_TABLES, {})
    found: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    for directory in directories:
        try:
            read = _complete(Path(directory), own)
        except ServeError as problem:
            errors += problem.errors
            continue
        found = {**read, **found}
    if errors:
        raise ServeError(errors)
    return {**own, **found}


def _complete(directory: Path, own: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the tables of one directory; what they differ from may be among the collection's own."""
    stored: dict[str, dict[str, Any]] = {}
    paths = sorted(directory.glob("*.json"))
    errors = [] if paths else [f"{directory} holds no table of options (<version>.json)."]
    for path in paths:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            stored[str(table["vllm"])] = table
            if not isinstance(table["options"], dict) or not isinstance(table["env"], dict):
                raise TypeError("options and env must be dictionaries")
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            errors.append(f"{path} is no table of options ({problem}); make it with scripts/vllm_flags.py.")
    if errors:
        raise ServeError(errors)
    try:
        complete = tables.complete({**own, **stored})
    except ValueError as problem:
        raise ServeError([f"{directory}: {problem}; make it with scripts/vllm_flags.py."]) from None
    return {version: complete[version] for version in stored}


def load_image_table(path: str) -> dict[str, Any] | None:
    """Return the table that an image gave, or None when its file does not exist.

    :raises ServeError: the file is no table.
    """
    if not path or not Path(path).is_file():
        return None
    try:
        table: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if not (isinstance(table["vllm"], str) and isinstance(table["options"], dict) and table["env"].keys()):
            raise TypeError("it has no options, variables or version")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ServeError(
            [f"{path} is no table of options ({problem}); remove it, and playbooks/image.yml reads it anew."]
        ) from None
    return table


def render(
    serve: Mapping[str, Any],
    vllm_version: str,
    env: Mapping[str, Any],
    mods: Sequence[str],
    mods_dirs: Iterable[str] = (),
    tables_dirs: Iterable[str] = (),
    upstream: str = "",
    image_table: str = "",
) -> serve_args.ServeArgs:
    """Return the arguments and environment of one rank; see plugin_utils/_vllm/serve_args.py.

    :param upstream: the release that a fork is based on.
    :param image_table: file with the table that the image itself gave; one that does not exist is left out.
    :raises ServeError: with everything that is wrong with options, variables and mods.
    """
    errors: list[str] = []
    known: dict[str, mods_logic.Mod] = {}
    try:
        known = mod_files.load_mods(mods_dirs)
        mods_logic.mods_plan(known, mods, upstream or vllm_version)
    except mods_logic.ModsError as problem:
        errors.extend(problem.errors)
    wanted = [known[name] for name in mods if name in known]
    try:
        rendered = serve_args.render_serve(
            serve,
            vllm_version,
            load_tables(tuple(str(each) for each in tables_dirs)),
            upstream=upstream,
            own_table=load_image_table(image_table),
            env=env,
            extra_options=mods_logic.options_of(known, mods),
            extra_env=[name for mod in wanted for name in mod.env],
            extra_parsers=[name for mod in wanted for name in mod.parsers],
            providers=mods_logic.providers_of(known),
        )
    except ServeError as problem:
        # A version that cannot be read is reported by both; say it once.
        raise ServeError([*errors, *(each for each in problem.errors if each not in errors)]) from None
    if errors:
        raise ServeError(errors)
    return rendered
