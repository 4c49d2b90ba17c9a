# SPDX-License-Identifier: Apache-2.0
"""The tasks that tests and benchmarks wait for by name exist: a name that changed would be waited for in vain."""

from __future__ import annotations

import re

import pytest

from tests.lint.collection import REPO

NAMED = re.compile(r'"([a-z_]+) : ([A-Z][^"]+)"')
CITED = sorted(
    {
        (role, task, str(path.relative_to(REPO)))
        for tree in ("tests/e2e", "benchmarks", "lab")
        for path in (REPO / tree).rglob("*.py")
        for role, task in NAMED.findall(path.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize(("role", "task", "where"), CITED)
def test_a_task_that_is_waited_for_exists(role: str, task: str, where: str) -> None:
    names = {
        name.strip("\"' ")
        for path in (REPO / "roles" / role).rglob("*.yml")
        for name in re.findall(r"^ *-? *name: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert any(name.startswith(task) for name in names), (
        f"{where} waits for a task {task!r}, which the role {role} does not have"
    )
