# SPDX-License-Identifier: Apache-2.0
"""Commands of programs on a node: their output, and that none of them lasts indefinitely."""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run


def test_status_and_output() -> None:
    assert run(["sh", "-c", "echo $LC_ALL; echo err >&2; exit 3"]) == (3, "C\n", "err\n")


def test_one_that_does_not_end_is_killed() -> None:
    assert run(["sleep", "30"], 0.2) == (124, "", "sleep did not end within 0.2 s")


def test_one_that_cannot_be_started() -> None:
    assert run(["/nonexistent/x"]) == (127, "", "/nonexistent/x is not installed")
    assert run(["/"]) == (127, "", "/ cannot be started: Permission denied")
