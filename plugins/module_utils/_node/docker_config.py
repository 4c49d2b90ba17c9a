# SPDX-License-Identifier: Apache-2.0
"""What Docker's JSON files shall hold, and what a change of daemon.json costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

#: Keys that a running dockerd takes over on SIGHUP (Docker Engine documentation, "dockerd",
#: section on configuration reloading; the list has only grown since 20.10). "features" is on that list and not here:
#: which image store is used is decided when dockerd starts.
RELOADABLE = frozenset(
    {
        "debug",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "default-runtime",
        "runtimes",
        "authorization-plugins",
        "allow-nondistributable-artifacts",
        "insecure-registries",
        "registry-mirrors",
        "shutdown-timeout",
    }
)


class DaemonConfigError(ValueError):
    """The file that is there cannot be merged into; the message says where and why."""


def parse(text: str, path: str) -> dict[str, Any]:
    """Return the file's dictionary; an empty file is an empty dictionary.

    Raises:
        DaemonConfigError: the text is not JSON, or not an object.
    """
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DaemonConfigError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "What owns it cannot read it either; repair it by hand, nothing was changed."
        ) from error
    if not isinstance(data, dict):
        raise DaemonConfigError(f"{path} holds {type(data).__name__}, not an object; repair it by hand.")
    return data


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``current`` with ``wanted`` laid over it.

    Dictionaries merge key by key, lists gain what they lack (the owner's entries stay, in
    their order), anything else is replaced. A wanted ``None`` takes the key out.
    """
    result: dict[str, Any] = copy.deepcopy(dict(current))
    for key, value in wanted.items():
        have = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = merge(have if isinstance(have, Mapping) else {}, value)
        elif isinstance(value, list) and isinstance(have, list):
            result[key] = [*have, *(item for item in value if item not in have)]
        else:
            result[key] = copy.deepcopy(value)
    return result


def render(config: Mapping[str, Any]) -> str:
    """Return the text of the file: JSON, two spaces, the keys in the order they came in."""
    return json.dumps(config, indent=2) + "\n"


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the top-level keys whose values differ, sorted."""
    missing = object()
    return sorted(key for key in {*before, *after} if before.get(key, missing) != after.get(key, missing))


def needs_restart(keys: Iterable[str]) -> list[str]:
    """Return those keys that a running dockerd takes over only when it is restarted."""
    return sorted(set(keys) - RELOADABLE)
