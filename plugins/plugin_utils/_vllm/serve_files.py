# SPDX-License-Identifier: Apache-2.0
"""Reading option tables and mods from disk for serve_args, on the control node."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files, serve_args
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError

#: The tables that the collection ships.
OWN_TABLES = Path(__file__).parent / "flags"


@functools.lru_cache(maxsize=8)
def load_tables(directories: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return version → table, from the given directories and the collection's own.

    :param directories: directories with ``<version>.json``, the first one wins.
    :raises ServeError: when a file is no table.
    """
    found: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    for directory in [*(Path(each) for each in directories), OWN_TABLES]:
        paths = sorted(directory.glob("*.json"))
        if not paths:
            errors.append(f"{directory} holds no table of options (<version>.json).")
        for path in paths:
            try:
                table = json.loads(path.read_text(encoding="utf-8"))
                found.setdefault(str(table["vllm"]), table)
                if not isinstance(table["options"], dict) or not isinstance(table["env"], dict):
                    raise TypeError("options and env must be dictionaries")
            except (json.JSONDecodeError, KeyError, TypeError) as problem:
                errors.append(f"{path} is no table of options ({problem}); make it with scripts/vllm_flags.py.")
    if errors:
        raise ServeError(errors)
    return found


def render(
    serve: Mapping[str, Any],
    vllm_version: str,
    env: Mapping[str, Any],
    mods: Sequence[str],
    mods_dirs: Iterable[str] = (),
    tables_dirs: Iterable[str] = (),
) -> serve_args.ServeArgs:
    """Return the arguments and environment of one rank; see plugin_utils/_vllm/serve_args.py.

    :raises ServeError: with everything that is wrong with options, variables and mods.
    """
    errors: list[str] = []
    known: dict[str, mods_logic.Mod] = {}
    try:
        known = mod_files.load_mods(mods_dirs)
        mods_logic.mods_plan(known, mods, vllm_version)
    except mods_logic.ModsError as problem:
        errors.extend(problem.errors)
    wanted = [known[name] for name in mods if name in known]
    try:
        rendered = serve_args.render_serve(
            serve,
            vllm_version,
            load_tables(tuple(str(each) for each in tables_dirs)),
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
