# SPDX-License-Identifier: Apache-2.0
"""From the text of a recipe file to plain data: bounded YAML, and sparkrun's ``include``.  Pure.

Recipe files come from strangers.  A document of a few lines can name a structure of gigabytes (aliases of aliases), and
a template of a few lines a text of gigabytes; both are measured before they are expanded.

``include`` follows sparkrun: it names one file, and the outer file wins; mappings merge key by key, all else replaces;
a null removes what the inner file had; a value in ``defaults`` or ``env`` is one setting and never merged;
``metadata`` of another model is not inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import deep_merge

#: Largest recipe file; the largest known one has 16 KiB.
MAX_BYTES = 256 * 1024
#: Most values that a file may have once aliases are expanded.
MAX_VALUES = 20_000
#: Most files that one recipe may consist of, as in sparkrun.
MAX_INCLUDES = 8

#: Returns (identity, text) of the file that ``include`` names, given that name and the identity of the including file.
Include = Callable[[str, str], tuple[str, str]]

#: Most characters of a message: it quotes the file of a stranger.
MAX_MESSAGE = 800


def one_line(text: str) -> str:
    """Return a text for a message or a report: one line, printable, of bounded length."""
    line = "".join(each if each.isprintable() else "?" for each in text[: MAX_MESSAGE + 1])
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…"


class RecipeError(ValueError):
    """The file is no recipe that this project can run; the message says why, in one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NoRecipeError(RecipeError):
    """The file is some other YAML."""


def parse(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    :raises RecipeError: no YAML, no mapping, or a structure that expands beyond `MAX_VALUES`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _values(node, {}) > MAX_VALUES:
            raise RecipeError(f"{where} expands to more than {MAX_VALUES} values, which no recipe needs.")
        data = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = " ".join(str(getattr(problem, "problem", None) or problem).split())[:200]
        raise RecipeError(f"{where}{line} is not valid YAML: {said}.") from None
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply, or contains itself.") from None
    except RecipeError:
        raise
    except ValueError as problem:
        raise RecipeError(f"{where} holds a value that YAML cannot read: {str(problem)[:200]}.") from None
    if not isinstance(data, dict):
        raise NoRecipeError(f"{where} is no recipe: its top level is no mapping.")
    return data


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a document has with every alias expanded, a long text counting as several.

    A document that contains itself ends in RecursionError.
    """
    if id(node) in known:
        return known[id(node)]
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    own = 1 + (len(node.value) // 64 if isinstance(node, yaml.ScalarNode) else 0)
    known[id(node)] = own + sum(_values(each, known) for each in inner)
    return known[id(node)]


def load(text: str, where: str, include: Include | None = None) -> dict[str, Any]:
    """Return what a recipe file says with everything that it includes.

    :param include: reads an included file; None refuses includes.
    :raises RecipeError: see `parse`; a circle, or more than `MAX_INCLUDES` files.
    """
    data, above = parse(text, where), [where]
    layers = [data]
    while "include" in layers[-1]:
        name = layers[-1].pop("include")
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if not isinstance(name, str) or not name.strip():
            raise RecipeError(f"{where}: 'include' must name one recipe, found {str(name)[:80]!r}.")
        if include is None:
            raise RecipeError(f"{where} includes {name}, and files beside it are not read here.")
        identity, inner = include(name.strip(), above[-1])
        if identity in above:
            raise RecipeError(f"{where} includes {name} in a circle.")
        if len(above) > MAX_INCLUDES:
            raise RecipeError(f"{where} consists of more than {MAX_INCLUDES} files that include each other.")
        above.append(identity)
        layers.append(parse(inner, identity))
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = merge(merged, layer)
    return merged


def merge(base: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an included recipe with the including one over it."""
    merged = dict(base)
    if "model" in outer and outer["model"] != base.get("model"):
        merged.pop("metadata", None)
    for key, value in outer.items():
        inner = merged.get(key)
        if key == "overrides" and isinstance(value, list) and isinstance(inner, list):
            merged[key] = [*inner, *value]
        elif isinstance(value, dict) and isinstance(inner, dict) and key in ("defaults", "env"):
            # Each value of these is one setting, which is never merged.
            kept = {name: each for name, each in inner.items() if value.get(name, "") is not None}
            merged[key] = kept | {name: each for name, each in value.items() if each is not None}
        elif isinstance(value, dict) and isinstance(inner, dict):
            merged[key] = deep_merge(inner, value)
        elif value is None and inner is not None:
            del merged[key]
        else:
            merged[key] = value
    return merged
