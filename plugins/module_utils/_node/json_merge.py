# SPDX-License-Identifier: Apache-2.0
"""A JSON object of ours laid over one that belongs to someone else: daemon.json, a client's config.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any


class JsonMergeError(ValueError):
    """The file cannot be merged into; the message says where and why."""


def parse(text: str, path: str) -> dict[str, Any]:
    """Return the file's dictionary; an empty file is an empty dictionary.

    Raises:
        JsonMergeError: the text is not JSON, or not an object.
    """
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonMergeError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "The program that owns it cannot read it either; fix it by hand. Nothing was changed."
        ) from error
    if not isinstance(data, dict):
        raise JsonMergeError(f"{path} holds {type(data).__name__}, not an object; fix it by hand. Nothing was changed.")
    return data


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``current`` with ``wanted`` laid over it.

    Dictionaries merge key by key, lists gain what is missing in them (the owner's entries stay, in
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
