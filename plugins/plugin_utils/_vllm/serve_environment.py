# SPDX-License-Identifier: Apache-2.0
"""The engine's environment: which variables this vLLM reads, and what its own getters refuse."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import (
    INTEGER,
    NAMES,
    Check,
    Gone,
    gone_in,
    listed,
    show,
)

GONE_ENV = gone_in("gone_env")
#: What every node sets from its own fabric at each start (module_utils/_fabric/environment.py), over the model's value.
OF_THE_NODE: Sequence[str] = NAMES["of_the_node"]
#: Variables that are set by habit from another machine's recipe: (name, value or None for any) → what they do here.
_UNWISE: Mapping[tuple[str, str | None], str] = {(name, value): why for name, value, why in NAMES["unwise"]}
_TRUTHY = ("1", "true", "yes", "on", "y", "t")


def environment(check: Check, env: Mapping[str, Any], extra: set[str]) -> dict[str, str]:
    """Return the environment as text; note unknown ``VLLM_*`` names and wrong values."""
    known: Mapping[str, Mapping[str, Any]] = check.tables[check.name]["env"]
    found: dict[str, str] = {}
    for raw, value in env.items():
        name = str(raw)
        if isinstance(value, (bool, dict, list, tuple)) or value is None:
            check.errors.append(
                f"env.{name} must be text, found {show(value)}; quote what the variable is to hold, e.g. '1'."
            )
            continue
        found[name] = str(value)
        if name in OF_THE_NODE:
            check.notes.append(f"env.{name} has no effect: each node sets it from its own fabric. Leave it out.")
        why = _UNWISE.get((name, found[name])) or _UNWISE.get((name, None))
        if why:
            check.notes.append(f"env.{name} {why}. Leave it out.")
        elif name == "RAY_memory_monitor_refresh_ms" and found[name] != "0":
            check.notes.append(
                f"env.{name} switches Ray's memory monitor on, which kills ranks that use unified memory as "
                "they should. Leave it out."
            )
        gone = GONE_ENV.get(name)
        if name in extra:
            continue
        if gone and gone.since and check.version.release >= gone.since:
            since = ".".join(map(str, gone.since))
            check.unknown(
                f"env.{name}: vLLM {check.version.text} ignores it, it is gone since {since}: {gone.instead}."
            )
        elif name not in known:
            _unknown_variable(check, name, known, gone)
        else:
            if gone:
                until = f" and gone in {'.'.join(map(str, gone.since))}" if gone.since else ""
                check.notes.append(f"env.{name} is deprecated{until}: {gone.instead}.")
            _variable_value(check, name, found[name], known[name])
    return found


def _unknown_variable(check: Check, name: str, known: Mapping[str, Mapping[str, Any]], gone: Gone | None) -> None:
    """Note a variable of vLLM's that this version does not read."""
    near = difflib.get_close_matches(name.upper().replace("-", "_"), list(known), n=1, cutoff=0.8)
    if not name.startswith("VLLM_"):
        if near and (near[0] == name.upper() or name.upper().startswith(("VLLM", "VLM", "VLMM"))):
            check.errors.append(f"env.{name} is no variable of vLLM. Did you mean '{near[0]}'?")
        return
    sentence = f"env.{name}: vLLM {check.version.text} does not know it and would only warn."
    sentence += check.elsewhere(lambda table: name in table["env"])
    if name in check.providers:
        mods = " or ".join(f"'{mod}'" for mod in check.providers[name])
        sentence += f" The mod {mods} adds it; put that into model_spec.mods."
    elif gone:
        sentence += f" It is gone: {gone.instead}."
    elif near:
        sentence += f" Did you mean '{near[0]}'?"
    check.unknown(sentence)


def _variable_value(check: Check, name: str, text: str, entry: Mapping[str, Any]) -> None:
    """Note a value that vLLM's own getter would refuse when the engine starts; a build of others may take it."""
    choices = entry.get("choices")
    if choices:
        fold: Callable[[str], str] = str.lower if entry.get("fold") else str
        parts = text.split(",") if entry.get("nargs") else [text]
        for part in (each.strip() for each in parts):
            if fold(part) not in [fold(each) for each in choices]:
                check.unknown(f"env.{name} is {show(part)}; vLLM {check.version.text} takes {listed(choices)}.")
    elif entry.get("kind") == "bool":
        if text in entry["true"] or text.lower() in ("0", "false", "no", "off", ""):
            return
        read = "reads it as off" if text.lower() in _TRUTHY else "knows only on and off"
        check.unknown(
            f"env.{name} is {show(text)}; vLLM {check.version.text} {read}. Write '{entry['true'][0]}' or '0'."
        )
    elif entry.get("kind") == "int" and not INTEGER.match(text.strip()):
        check.unknown(f"env.{name} takes a whole number (0 and 1 for off and on), found {show(text)}.")
    elif entry.get("kind") == "float":
        try:
            float(text)
        except ValueError:
            check.unknown(f"env.{name} takes a number, found {show(text)}.")
    elif entry.get("kind") == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            check.unknown(f"env.{name} takes JSON, found {show(text)}.")
