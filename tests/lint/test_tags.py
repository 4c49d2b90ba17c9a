# SPDX-License-Identifier: Apache-2.0
"""A tag of a dynamic include reaches what is included: without `apply` the include is selected, and nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]


def tasks_in(content: Any) -> Iterator[dict[str, Any]]:
    """Return the tasks of a file, those of plays and blocks included."""
    for each in content or []:
        if isinstance(each, dict):
            yield each
            for part in ("tasks", "block", "rescue", "always", "pre_tasks", "post_tasks", "handlers"):
                yield from tasks_in(each.get(part))


def unreached(content: Any) -> list[str]:
    """Return the names of tagged includes whose tags do not reach what they include."""
    found = []
    for task in tasks_in(content):
        tasks, role = task.get("ansible.builtin.include_tasks"), task.get("ansible.builtin.include_role")
        # The tasks of a role's main.yml have tags of their own.
        included = tasks if tasks is not None else role if role and "tasks_from" in role else None
        applied = included.get("apply", {}) if isinstance(included, dict) else {}
        if "tags" in task and included is not None and "tags" not in applied:
            found.append(str(task.get("name")))
    return found


def test_a_tag_that_stops_at_the_include_is_found() -> None:
    bare = [{"name": "a", "block": [{"name": "b", "ansible.builtin.include_tasks": "b.yml", "tags": ["x"]}]}]
    assert unreached(bare) == ["b"]
    bare[0]["block"][0]["ansible.builtin.include_tasks"] = {"file": "b.yml", "apply": {"tags": ["x"]}}  # type: ignore[index]
    assert unreached(bare) == []


def test_tags_reach_what_is_included() -> None:
    files = [*REPO.glob("roles/*/tasks/*.yml"), *REPO.glob("playbooks/*.yml")]
    assert len(files) > 60
    found = {str(path.relative_to(REPO)): unreached(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in files}
    assert {path: names for path, names in found.items() if names} == {}
