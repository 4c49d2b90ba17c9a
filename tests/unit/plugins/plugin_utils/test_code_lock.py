# SPDX-License-Identifier: Apache-2.0
"""What the lock of the inventory holds of a model's code, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.filter.weights import FilterModule
from ansible_collections.gb10.cluster.plugins.plugin_utils._weights.code_lock import fetched_revision, judge

FIRST, SECOND = "1" * 40, "2" * 40
LOCKED = {"revision": FIRST, "code": {"a.py": "x", "lib/b.py": "y"}}


def manifest(**code: str) -> dict[str, Any]:
    """Return a manifest with weights and Python files."""
    files = [{"path": f"{name}.py", "sha256": digest} for name, digest in code.items()]
    return {"files": [{"path": "model.safetensors", "sha256": "w"}, *files]}


SAME = {"files": [{"path": "a.py", "sha256": "x"}, {"path": "lib/b.py", "sha256": "y"}]}


def test_the_first_run_locks_the_code_with_the_commit_that_is_known() -> None:
    found = judge("o/m", manifest(a="x"), {}, revision="main", held=FIRST)
    assert found == {"error": "", "entry": {"revision": FIRST, "code": {"a.py": "x"}}}
    assert judge("o/m", manifest(a="x"), {}, revision="main")["entry"]["revision"] == "main"


@pytest.mark.parametrize(
    ("found", "revision", "held"),
    [(SAME, "main", ""), (SAME, "main", FIRST), (SAME, FIRST, ""), ({}, FIRST, ""), ({}, "main", "")],
)
def test_the_locked_code_is_accepted_and_the_lock_stays(found: dict[str, Any], revision: str, held: str) -> None:
    assert judge("o/m", found, LOCKED, revision=revision, held=held) == {"error": "", "entry": LOCKED}


@pytest.mark.parametrize(
    ("found", "revision", "held", "words"),
    [
        ({}, SECOND, "", f"this run has revision {SECOND}, the lock of the inventory holds {FIRST}"),
        (SAME, "main", SECOND, f"this run has revision {SECOND}"),
        (manifest(a="z"), "main", "", "a.py is another, lib/b.py is gone since it was locked at revision"),
        ({"files": [*SAME["files"], {"path": "c.py", "sha256": "q"}]}, "main", FIRST, "c.py is new since"),
    ],
)
def test_other_code_is_refused_with_what_differs(found: dict[str, Any], revision: str, held: str, words: str) -> None:
    verdict = judge("o/m", found, LOCKED, revision=revision, held=held)
    assert words in verdict["error"]
    assert "-e weights_relock=true" in verdict["error"]
    assert verdict["entry"] == LOCKED
    assert judge("o/m", found, LOCKED, revision=revision, held=held, relock=True)["error"] == ""


def test_a_lock_of_a_branch_takes_the_commit_once_it_is_known() -> None:
    branch = {"revision": "main", "code": LOCKED["code"]}
    assert judge("o/m", SAME, branch, revision="main", held=FIRST)["entry"] == LOCKED


def test_a_branch_is_downloaded_at_the_locked_commit() -> None:
    assert fetched_revision("main", LOCKED) == FIRST
    assert fetched_revision("main", LOCKED, relock=True) == "main"
    assert fetched_revision(SECOND, LOCKED) == SECOND, "refused by its name before anything is downloaded"
    assert fetched_revision("main", {"revision": "main"}) == "main"
    assert fetched_revision("v1", {}) == "v1"


def test_the_filters() -> None:
    assert {"weights_code", "weights_fetched", "weights_rails"} == set(FilterModule().filters())
