# SPDX-License-Identifier: Apache-2.0
"""The names of vllm serve's options: their spellings, and what to write in place of one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_check

#: Gone from every table that ships; ``since`` only where it was read in the packages themselves.
GONE_OPTIONS: Mapping[str, serve_check.Gone] = serve_check.gone_in("gone_options")
#: What other programs (SGLang, llama.cpp, TensorRT-LLM), and owners from memory, call an option of vLLM's.
MEANT: Mapping[str, str] = serve_check.NAMES["meant"]


def spellings(options: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, bool]]:
    """Return spelling → (canonical name, what a switch stores)."""
    found: dict[str, tuple[str, bool]] = {}
    for name, entry in options.items():
        found[name] = (name, True)
        found.update(dict.fromkeys(entry.get("aliases", ()), (name, True)))
        found.update(dict.fromkeys(entry.get("off", ()), (name, False)))
    return found


def _nested(check: serve_check.Check, key: str, known: Mapping[str, tuple[str, bool]]) -> str:
    """Return a dotted key as the dictionary that is meant, in the spelling that `serve_values` accepts."""
    head, *tail = key.split(".")
    name = known[head][0]
    level: Any = check.options[name].get("keys")
    words = []
    for word in tail:
        spelt = word
        if isinstance(level, Mapping):
            underscored = word.replace("-", "_")
            near = difflib.get_close_matches(underscored, list(level), n=1)
            spelt = word if word in level else underscored if underscored in level or not near else near[0]
            level = level.get(spelt)
        elif name.endswith("-kwargs"):
            spelt = word.replace("-", "_")  # Python's keyword arguments
        words.append(spelt)
    return f"{name}: {''.join(f'{{{word}: ' for word in words)}...{'}' * len(words)}"


def unknown_option(check: serve_check.Check, key: str, known: Mapping[str, tuple[str, bool]]) -> str:
    """Return the sentence for an option that this vLLM does not have."""
    here = f"serve.{key}: vLLM {check.version.text} has no --{key}."
    bare = key.lstrip("-")
    dashed = bare.replace("_", "-")
    if key[:2] != "--":
        for name, entry in check.options.items():
            if f"-{bare}" in entry.get("short", ()):
                return f"serve.{key} is short for --{name}; write '{name}', in full."
    if key != dashed and dashed in known:
        return f"serve.{key} must be written '{dashed}': the long name, without dashes before it."
    head, dot, rest = key.partition(".")
    if dot and head.replace("_", "-") in known:
        return f"serve.{key} must be a dictionary: '{_nested(check, head.replace('_', '-') + dot + rest, known)}'."
    if dashed in check.providers:
        mods = " or ".join(f"'{mod}'" for mod in check.providers[dashed])
        return (
            f"serve.{key}: --{dashed} is in no release of vLLM, the mod {mods} adds it; put "
            "that into model_spec.mods, so that the image is built with it."
        )
    gone = GONE_OPTIONS.get(dashed)
    if gone is not None:
        since = f" since {'.'.join(map(str, gone.since))}" if gone.since else ""
        return f"serve.{key}: vLLM {check.version.text} has no --{dashed}, it is gone{since}: {gone.instead}."
    meant = MEANT.get(dashed)
    if meant in known:
        return f"{here} In vLLM it is '{meant}'."
    longer = sorted({known[each][0] for each in known if each.startswith(dashed)})
    elsewhere = check.elsewhere(lambda table: dashed in spellings(table["options"]))
    if elsewhere:
        near = serve_check.close(dashed, list(known))
        return here + elsewhere + (f" The nearest here is '{near}'." if near else "")
    if dashed and len(longer) == 1:
        return (
            f"serve.{key} is an abbreviation that vLLM's parser would take for "
            f"--{longer[0]}; write '{longer[0]}', in full."
        )
    if dashed and len(longer) > 1:
        return f"serve.{key} is an abbreviation of {serve_check.listed(longer, 5)}; write one of them, in full."
    near = serve_check.close(dashed, list(known))
    if near:
        return f"{here} Did you mean '{near}'?"
    everywhere = sorted({name for table in check.tables.values() for name in table["options"]})
    near = serve_check.close(dashed, everywhere)
    if near:
        elsewhere = check.versions_with(lambda table: near in table["options"])
        return f"{here} The nearest is '{near}', which vLLM {elsewhere} has."
    return f"{here} No version that is known here has it ({serve_check.in_ranges(check.tables, check.tables)})."
