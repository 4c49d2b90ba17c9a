# SPDX-License-Identifier: Apache-2.0
"""Each role's meta/argument_specs.yml and defaults/main.yml say the same.

A required option has no default, so it must not stand in defaults/main.yml; every other option
must, and with a value of the type that the specification names. Defaults stand there alone, beside their reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (REPO / "roles").glob("*") if path.is_dir())

TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "raw": (object,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_template(value: object) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def wrong_type(option: Mapping[str, Any], value: object) -> bool:
    """Return whether a default is not of its option's type; templates and null are of any type."""
    if value is None or is_template(value):
        return False
    kind = str(option.get("type", "str"))
    if isinstance(value, bool) and kind in ("int", "float"):
        return True
    return not isinstance(value, TYPES[kind])


def disagreements(role: str, specs: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference between a role's specifications and its defaults."""
    found = []
    options: dict[str, Mapping[str, Any]] = {}
    for entry in specs.values():
        for name, option in (entry.get("options") or {}).items():
            if name in options and options[name].get("type") != option.get("type"):
                found.append(f"{name} has two types in the entry points of {role}")
            options[name] = {**options.get(name, {}), **option}
    for name in sorted(options.keys() | defaults.keys()):
        option = options.get(name)
        if option is None:
            found.append(f"{name} stands in defaults/main.yml, but not in meta/argument_specs.yml")
        elif option.get("required"):
            if name in defaults:
                found.append(f"{name} is required, yet has a default in defaults/main.yml")
        elif name not in defaults:
            found.append(f"{name} stands in meta/argument_specs.yml, but has no default in defaults/main.yml")
        elif wrong_type(option, defaults[name]):
            found.append(f"{name} should be of type {option.get('type', 'str')}, its default is {defaults[name]!r}")
        elif "default" in option:
            found.append(f"{name} has a default in its specification, and in defaults/main.yml")
        if not name.startswith(f"{role}_"):
            found.append(f"{name} does not begin with {role}_")
    return found


def test_there_are_roles() -> None:
    assert ROLES, "no role found: the checks below would pass without checking anything"


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_specs_equal_defaults(role: Path) -> None:
    specs = read(role / "meta" / "argument_specs.yml")
    assert specs, f"{role.name} has no meta/argument_specs.yml"
    found = disagreements(role.name, specs["argument_specs"], read(role / "defaults" / "main.yml") or {})
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_every_entry_point_has_tasks_and_words(role: Path) -> None:
    for name, entry in read(role / "meta" / "argument_specs.yml")["argument_specs"].items():
        assert (role / "tasks" / f"{name}.yml").is_file(), f"entry point {name} of {role.name} has no tasks/{name}.yml"
        assert entry.get("short_description"), f"entry point {name} of {role.name} has no short_description"
        for option_name, option in (entry.get("options") or {}).items():
            assert option.get("description"), f"{option_name} of {role.name} has no description"


@pytest.mark.parametrize(
    ("options", "defaults", "expected"),
    [
        ({"r_a": {"type": "int"}}, {"r_a": 1}, []),
        ({"r_a": {"type": "int", "required": True}}, {}, []),
        ({"r_a": {"type": "int"}}, {"r_a": "{{ 1 }}"}, []),
        ({"r_a": {"type": "int"}}, {}, ["has no default"]),
        ({}, {"r_a": 1}, ["not in meta/argument_specs.yml"]),
        ({"r_a": {"required": True}}, {"r_a": "x"}, ["is required, yet"]),
        ({"r_a": {"type": "int"}}, {"r_a": "1"}, ["should be of type int"]),
        ({"r_a": {"type": "int"}}, {"r_a": True}, ["should be of type int"]),
        ({"r_a": {"default": "x"}}, {"r_a": "x"}, ["has a default in its specification"]),
        ({"a": {}}, {"a": ""}, ["does not begin with r_"]),
    ],
)
def test_the_check_itself(options: dict[str, Any], defaults: dict[str, Any], expected: list[str]) -> None:
    found = disagreements("r", {"main": {"options": options}}, defaults)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))
