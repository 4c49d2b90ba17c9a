# SPDX-License-Identifier: Apache-2.0
"""Tables of options on disk: one complete table, and for each further release what differs from the one below.

A complete table is ``{"vllm", "source", "options", "env"}``.  A difference names another table as its
``base``; its ``options`` and ``env`` hold the entries that are new or changed, and null for those that are
gone.  ``sha256`` is that of the complete table that it stands for.  ``scripts/vllm_flags.py`` writes both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: The parts of a table whose entries are compared one by one.
PARTS = ("options", "env")


def digest(table: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a complete table: of what it says, not of how it is written."""
    said = {key: table[key] for key in ("vllm", *PARTS)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def difference(table: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be changed in ``base`` to have ``table``; both are complete."""
    found: dict[str, Any] = {
        "vllm": table["vllm"],
        "source": table["source"],
        "base": base["vllm"],
        "sha256": digest(table),
    }
    for part in PARTS:
        new, old = table[part], base[part]
        changed = {name: entry for name, entry in new.items() if old.get(name) != entry}
        found[part] = {**changed, **{name: None for name in old if name not in new}}
    return found


def complete(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return version → complete table, of tables as they are stored.

    :raises ValueError: with a sentence about a base that is missing, or that leads back to itself.
    """
    found: dict[str, dict[str, Any]] = {}
    for version in stored:
        chain: list[str] = []
        name = version
        while name not in found:
            if name in chain:
                raise ValueError(f"the tables {' -> '.join([*chain, name])} are each other's base")
            if name not in stored:
                raise ValueError(f"the table of {chain[-1]} is a difference from that of {name}, which is missing")
            chain.append(name)
            if "base" not in stored[name]:
                break
            name = stored[name]["base"]
        for each in reversed(chain):
            found[each] = _applied(stored[each], found)
    return found


def _applied(stored: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if "base" not in stored:
        return dict(stored)
    table: dict[str, Any] = {"vllm": stored["vllm"], "source": stored["source"]}
    for part in PARTS:
        merged = {**found[stored["base"]][part], **stored[part]}
        table[part] = {name: merged[name] for name in sorted(merged) if merged[name] is not None}
    return table
