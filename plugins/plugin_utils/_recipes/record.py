# SPDX-License-Identifier: Apache-2.0
"""What a recipe file says, whatever its format, and how the parts of a file are read.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError

READERS = "it describes the recipe to readers"
#: What is read of each format, why the rest is not, and what other projects call images, options and variables.
PARTS: Mapping[str, Any] = json.loads((Path(__file__).parent / "parts.json").read_text(encoding="utf-8"))


def reasons_of(part: str) -> dict[str, str]:
    """Return key of a format → why it is not carried over."""
    return {key: why for why, keys in PARTS[part]["why"].items() for key in keys}


@dataclass
class Recipe:
    """What a recipe says, whatever its format.

    :ivar origin: the format, such as ``sparkrun 2``.
    :ivar words: the arguments of ``vllm serve`` when the format lists them; otherwise ``command`` is set.
    :ivar nodes: (fewest, most) nodes; most is None without a limit.
    :ivar unused: keys of ``defaults`` that neither the command nor a variable uses, with their values.
    :ivar left: key of the recipe -> why it was not carried over.
    """

    origin: str
    name: str
    model: str
    revision: str = ""
    description: str = ""
    container: str = ""
    command: str = ""
    words: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    nodes: tuple[int, int | None] = (1, None)
    ray: bool = False
    mods: list[str] = field(default_factory=list)
    unused: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def mapping_of(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the mapping below a key; empty without one."""
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: '{key}' must be a mapping, found {type(value).__name__}.")
    return {str(name): each for name, each in value.items()}


def listed(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return the list below a key; empty without one."""
    value = data.get(key) or []
    if not isinstance(value, list):
        raise RecipeError(f"{where}: '{key}' must be a list, found {type(value).__name__}.")
    return value


def as_text(value: Any) -> str:
    """Return a value as the text that a shell would get: structures as JSON."""
    if isinstance(value, (Mapping, list)):
        return json.dumps(value, default=str)
    return str(value).lower() if isinstance(value, bool) else str(value)
