# SPDX-License-Identifier: Apache-2.0
"""Every ``-e name=value`` that the documentation names, and what reads it: a role's border or a playbook's task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

REPO = Path(__file__).resolve().parents[3]
DOCUMENTS = (
    "README.md",
    "docs/**/*.md",
    "roles/*/README.md",
    "playbooks/*.yml",
)
_OPTION = re.compile(
    r"""(?:(?<![\w-])-e|--extra-vars)[ =](?:'(?P<json>\{[^']*\})'|"""
    r"""(?P<name>[a-z]\w*)=(?:"(?P<quoted>[^"]*)"|(?P<value>[^\s`"'\])]*)))"""
)
#: What stands for a value: <name>, NAME, DIRECTORY:NAME, nothing, an ellipsis.
_STANDS_FOR = re.compile(r"^(|.*[<>…].*|[A-Z:/]+)$")


class Taken(NamedTuple):
    """Where a module of a playbook takes a variable: its option, and the expression that the playbook gives it."""

    playbook: str
    module: str
    option: str
    expression: str


def values_in(text: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each variable of a command line in a text; None where a word stands for the value."""
    for found in _OPTION.finditer(text):
        if found["json"]:
            yield from json.loads(found["json"]).items()
            continue
        value = found["quoted"] if found["quoted"] is not None else found["value"].rstrip(".,;")
        if found["quoted"] is not None:
            yield found["name"], value.replace("\\|", "|")
        elif _STANDS_FOR.match(value):
            yield found["name"], None
        else:
            for each in value.split("|"):
                yield found["name"], each


def documented() -> dict[str, list[Any]]:
    """Return the values of each variable that the documentation gives on a command line."""
    found: dict[str, list[Any]] = {}
    for pattern in DOCUMENTS:
        for path in sorted(REPO.glob(pattern)):
            for name, value in values_in(path.read_text(encoding="utf-8")):
                values = found.setdefault(name, [])
                if value is not None and value not in values:
                    values.append(value)
    return found


@cache
def borders() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return role, entry point and specification of each option of a role.

    The entry point is one other than ``main`` where there is one: those of two roles have tasks that always run.
    """
    found = {}
    for path in sorted(REPO.glob("roles/*/meta/argument_specs.yml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        for entry in sorted(entries, key=lambda name: (name != "main", name)):
            for name, option in (entries[entry].get("options") or {}).items():
                found[name] = (path.parts[-3], entry, option)
    return found


@cache
def read_by_defaults() -> dict[str, str]:
    """Return the option of a role whose default is a variable of the command line: model_recipe of ``recipe``."""
    found: dict[str, str] = {}
    for path in sorted(REPO.glob("roles/*/defaults/main.yml")):
        for option, default in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).items():
            for name in re.findall(r"(?:\{\{ ?|default\()(\w+)(?= ?[|,])", str(default)):
                found.setdefault(name, option)
            for name in re.findall(r"was='(\w+)'", str(default)):
                found[name] = option
    return found


def _tasks(items: Any) -> Iterator[Mapping[str, Any]]:
    for item in items or []:
        yield item
        for part in ("tasks", "pre_tasks", "block", "rescue", "always"):
            yield from _tasks(item.get(part))


@cache
def in_playbooks() -> tuple[tuple[Taken, ...], ...]:
    """Return the arguments that playbooks give to modules of this collection, and the conditions that they assert."""
    taken, conditions = [], []
    for path in sorted((REPO / "playbooks").glob("*.yml")):
        for task in _tasks(yaml.safe_load(path.read_text(encoding="utf-8"))):
            for module, arguments in task.items():
                if module.startswith("gb10.cluster.") and isinstance(arguments, Mapping):
                    taken += [Taken(path.name, module, option, str(value)) for option, value in arguments.items()]
                elif module == "ansible.builtin.assert":
                    conditions.append(Taken(path.name, str(arguments["fail_msg"]), "that", str(arguments["that"])))
    return tuple(taken), tuple(conditions)


def names(expression: str, variable: str) -> bool:
    """Return whether a template or a condition reads a variable, under its name or its former name."""
    read = " ".join(re.findall(r"\{\{(.*?)\}\}", expression, re.DOTALL)) or expression
    return re.search(rf"(?<![\w.'-]){variable}(?![\w'(.:-])|'{variable}'", read) is not None


def module_option(module: str, option: str) -> dict[str, Any]:
    """Return the specification of a module's option, as its documentation has it."""
    path = REPO / "plugins" / "modules" / f"{module.rpartition('.')[2]}.py"
    text = re.search(r'^DOCUMENTATION = r"""\n(.*?)^"""', path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert text, path
    spec = yaml.safe_load(text[1])["options"][option]
    return {key: spec[key] for key in ("type", "elements", "choices") if key in spec}
