# SPDX-License-Identifier: Apache-2.0
"""What playbooks/teardown.yml gives back was kept before it was changed: files by their writer, links by a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.lint.collection import REPO


def tasks(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every task of a file, those of its blocks among them."""
    for item in items:
        yield item
        for part in ("block", "rescue", "always"):
            yield from tasks(item.get(part) or [])


def test_every_link_is_kept_before_it_is_changed() -> None:
    changed, kept = set(), set()
    for path in REPO.glob("roles/*/tasks/*.yml"):
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")) or []):
            made = task.get("ansible.builtin.file") or {}
            if made.get("state") == "link":
                changed.add((made.get("path") or made["dest"], path.parts[-3]))
            kept |= {(link, path.parts[-3]) for link in (task.get("gb10.cluster.owner_state") or {}).get("links") or []}
    assert changed
    assert changed - kept == set()
