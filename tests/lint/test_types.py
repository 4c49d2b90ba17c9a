# SPDX-License-Identifier: Apache-2.0
"""Variables of a role that are switches or numbers are converted where they are used.

``-e name=value`` gives text: 'false' is true to a condition, '1.5' is no number to a program. Each role converts at its
border: a switch is written ``name | bool``, a number ``name | int`` or ``name | float``, wherever it is more than
handed on unchanged to a module, whose own specification converts it. A list or an object that a role takes apart has no
conversion: the lease refuses it as text (plugin_utils/_choice/text.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from jinja2 import nodes

from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import TAKEN_APART
from tests.lint.test_contracts import REPO, ROLES, template_environment

CASTS: dict[str, set[str]] = {"bool": {"bool"}, "int": {"int", "float"}, "float": {"float", "int"}}
PARTS: dict[str, set[str]] = {"list": set(), "dict": set()}
CONDITIONS = ("when", "that", "until", "changed_when", "failed_when")
#: Where a number is put into a text as it is, or compared as text.
AS_TEXT = (nodes.Concat, nodes.Output)


def typed(role: str, kinds: Container[str] = tuple(CASTS)) -> dict[str, str]:
    """Return the options of a role of some types by name, with their types; else the switches and numbers."""
    path = REPO / "roles" / role / "meta" / "argument_specs.yml"
    found = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
        for name, option in (entry.get("options") or {}).items():
            if option.get("type") in kinds:
                found[name] = option["type"]
    return found


def expressions(value: Any, *, condition: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield (template, whether it may hand a variable on unchanged) of a YAML document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from expressions(inner, condition=key in CONDITIONS)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner, condition=condition)
    elif isinstance(value, str):
        if condition and "{{" not in value:
            yield "{{ " + value + " }}", False
        elif "{{" in value or "{%" in value:
            yield value, not condition


def unconverted(text: str, types: Mapping[str, str], *, may_hand_on: bool) -> Iterator[str]:
    """Yield the variables of a template that are used as they came from the command line."""
    tree = template_environment().parse(text)
    only = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
    if len(only) == 1 and isinstance(only[0], nodes.Name):
        if not may_hand_on and only[0].name in types:
            yield only[0].name
        return
    yield from _walk(tree, (), types)


def _walk(node: nodes.Node, parents: tuple[nodes.Node, ...], types: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, nodes.Name) and node.name in types:
        kind = types[node.name]
        # x | default(1) | int converts as well.
        above = [each for each in parents if not (isinstance(each, nodes.Filter) and each.name in ("default", "d"))]
        parent = above[-1] if above else None
        cast = isinstance(parent, nodes.Filter) and parent.name in {**CASTS, **PARTS}[kind]
        defined = isinstance(parent, nodes.Test) and parent.name in ("defined", "undefined")
        if not cast and not defined and not (kind != "bool" and isinstance(parent, AS_TEXT)):
            yield node.name
    for child in node.iter_child_nodes():
        yield from _walk(child, (*parents, node), types)


def templates_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the templates of a role's file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".j2":
        yield text, False
        return
    folder = path.parent.name
    for template, may_hand_on in expressions(yaml.safe_load(text)):
        yield template, may_hand_on and folder != "vars"


def files_of(role: str) -> list[Path]:
    """Return the files of a role that hold templates."""
    folders = ("tasks", "handlers", "defaults", "vars", "templates")
    found = [path for folder in folders for path in (REPO / "roles" / role / folder).rglob("*")]
    return sorted(path for path in found if path.suffix in (".yml", ".j2"))


@pytest.mark.parametrize("role", ROLES)
def test_switches_and_numbers_are_converted(role: str) -> None:
    types = {name: kind for each in ROLES for name, kind in typed(each).items()}
    found = [
        f"{path.relative_to(REPO)}: {name} | {types[name]}: {' '.join(text.split())[:100]}"
        for path in files_of(role)
        for text, may_hand_on in templates_of(path)
        for name in unconverted(text, types, may_hand_on=may_hand_on)
    ]
    assert not found, f"{len(found)} uses take text from the command line as it is:\n" + "\n".join(found)


def test_lists_that_roles_take_apart_are_refused_as_text() -> None:
    types = {name: kind for each in ROLES for name, kind in typed(each, PARTS).items()}
    found = {
        name
        for role in ROLES
        for path in files_of(role)
        for text, may_hand_on in templates_of(path)
        for name in unconverted(text, types, may_hand_on=may_hand_on)
    }
    assert found == TAKEN_APART


@pytest.mark.parametrize(
    ("text", "may_hand_on", "expected"),
    [
        ("{{ r_on }}", True, []),
        ("{{ r_on }}", False, ["r_on"]),
        ("{{ r_n }}", False, ["r_n"]),
        ("{{ r_on | bool }}", False, []),
        ("{{ r_on and x }}", True, ["r_on"]),
        ("{{ 'a' if r_on | bool else 'b' }}", True, []),
        ("{{ r_n + 1 }}", True, ["r_n"]),
        ("{{ r_n | int + 1 }}", True, []),
        ("{{ r_n | default(1) | int + 1 }}", True, []),
        ("{{ r_n | default(1) + 1 }}", True, ["r_n"]),
        ("n={{ r_n }}", False, []),
        ("{{ 'n=' ~ r_n }}", False, []),
        ("{{ {'n': r_n} | to_json }}", False, ["r_n"]),
        ("{% if r_on %}x{% endif %}", False, ["r_on"]),
        ("{{ r_on is defined }}", False, []),
        ("on={{ r_on }}", False, ["r_on"]),
    ],
)
def test_the_check_itself(text: str, may_hand_on: bool, expected: list[str]) -> None:
    assert list(unconverted(text, {"r_on": "bool", "r_n": "int"}, may_hand_on=may_hand_on)) == expected


def test_the_template_environment_parses_what_ansible_does() -> None:
    assert isinstance(template_environment(), jinja2.Environment)
    template_environment().parse("{{ x | gb10.cluster.model_path is search('a') }}")
