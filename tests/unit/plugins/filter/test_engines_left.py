# SPDX-License-Identifier: Apache-2.0
"""What a run says is served when its return to the model before has failed."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.filter.launch import engines_left


def units(**active: bool) -> dict[str, Any]:
    """Return what engine_units returns of some models."""
    return {"units": {f"vllm-{model}.service": {"active": runs} for model, runs in active.items()}}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"n1": units(a=False), "n2": units()}, "Nothing is served now: no engine runs on any node."),
        ({"n1": units(a=True, b=False), "n2": units(a=True)}, "Started now, and not verified: a on n1, n2."),
        (
            {"n1": units(a=True), "n2": {"msg": "unreachable"}},
            "Started now, and not verified: a on n1. Not known: n2 did not answer.",
        ),
        (
            {"n1": units(a=True, b=True), "n2": units(b=True)},
            "Started now, and not verified: a on n1; b on n1, n2.",
        ),
        ({"n1": units()}, "No engine runs on the nodes that answer. Not known: n2 did not answer."),
        ({}, "Not known: n1, n2 did not answer."),
    ],
)
def test_what_runs_after_a_return_that_failed(results: dict[str, Any], expected: str) -> None:
    assert engines_left(results, ["n1", "n2"]) == expected
