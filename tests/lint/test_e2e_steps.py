# SPDX-License-Identifier: Apache-2.0
"""The end-to-end tests stop runs at tasks by their names: each such name is one that a role has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lint.collection import REPO

FILES = sorted((REPO / "tests" / "e2e").glob("test_*.py"))


def steps_of(source: str) -> list[str]:
    """Return the names in a module's STEPS: words, or pairs of which the first is one."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(getattr(each, "id", "") == "STEPS" for each in node.targets):
            return [each if isinstance(each, str) else str(each[0]) for each in ast.literal_eval(node.value)]
    return []


def names_in(tasks: Any) -> Iterator[str]:
    """Yield the names of tasks, those of blocks included."""
    for task in tasks or []:
        yield str(task.get("name", ""))
        for key in ("block", "rescue", "always"):
            yield from names_in(task.get(key))


def task_names() -> dict[str, list[str]]:
    """Return role -> the names of its tasks."""
    found: dict[str, list[str]] = {}
    for path in sorted((REPO / "roles").glob("*/tasks/*.yml")):
        found.setdefault(path.parts[-3], []).extend(names_in(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return found


@pytest.mark.parametrize(
    "path", [path for path in FILES if steps_of(path.read_text("utf-8"))], ids=lambda each: each.stem
)
def test_every_step_is_the_name_of_a_task(path: Path) -> None:
    names = task_names()
    unknown = []
    for step in steps_of(path.read_text(encoding="utf-8")):
        role, _colon, name = step.rpartition(" : ")
        among = names[role] if role else [each for every in names.values() for each in every]
        # What follows a template is known when the task runs, and not before.
        if not any(each.startswith(name) or name.startswith(each.partition("{{")[0] or "\0") for each in among):
            unknown.append(step)
    assert not unknown, f"no task begins with: {unknown}"
