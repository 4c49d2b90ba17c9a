# SPDX-License-Identifier: Apache-2.0
"""The options of a module as its documentation states them, for the action plugin that checks a task against them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import yaml

PLUGINS = "ansible_collections.gb10.cluster.plugins"
#: What of an option's documentation is checked; the rest is for people.
CHECKED = ("type", "elements", "required", "default", "choices")


def argument_spec(module: str) -> dict[str, dict[str, Any]]:
    """Return the argument spec of a module of this collection, with the options of its documentation fragments."""
    page = yaml.safe_load(importlib.import_module(f"{PLUGINS}.modules.{module}").DOCUMENTATION)
    options: dict[str, Any] = {}
    for name in page["extends_documentation_fragment"]:
        room, _dot, variant = name.removeprefix("gb10.cluster.").partition(".")
        fragment = importlib.import_module(f"{PLUGINS}.doc_fragments.{room}").ModuleDocFragment
        options |= yaml.safe_load(getattr(fragment, variant.upper() or "DOCUMENTATION")).get("options", {})
    return _spec(options | {name: {**options.get(name, {}), **option} for name, option in page["options"].items()})


def _spec(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    spec = {name: {key: option[key] for key in CHECKED if key in option} for name, option in options.items()}
    for name, option in options.items():
        if "suboptions" in option:
            spec[name]["options"] = _spec(option["suboptions"])
    return spec
