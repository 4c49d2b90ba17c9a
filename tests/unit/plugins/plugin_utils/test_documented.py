# SPDX-License-Identifier: Apache-2.0
"""What a module documents is what its action plugin checks, and names what the code knows."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ansible_collections.gb10.cluster.plugins.action import doctor_report
from ansible_collections.gb10.cluster.plugins.module_utils._node import lease
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import export, gates, points
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import drafts, pooling
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import bench


def test_the_options_of_fragments_count() -> None:
    spec = argument_spec("dynamo_check")
    assert spec["kubeconfig"] == {"type": "path", "default": ""}
    assert spec["settings"] == {"type": "dict", "required": True}
    assert set(spec) >= {"specs", "target", "context", "token_env", "replace", "keep_others"}


def test_options_of_options_count() -> None:
    assert argument_spec("bench")["needles"] == {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"tokens": {"type": "int", "required": True}, "depth": {"type": "float", "default": 0.5}},
    }


@pytest.mark.parametrize(
    ("module", "option", "known"),
    [
        ("add_model", "drafts", drafts.KINDS),
        ("add_model", "task", pooling.TASKS),
        ("bench", "profile", ("", *points.PROFILES)),
        ("bench", "export", export.FORMATS),
        ("bench", "gates", gates.GATES),
        ("doctor_report", "fail_on", doctor_report.LEVELS),
        ("lease", "scopes", lease.SCOPES),
    ],
)
def test_the_choices_are_those_of_the_code(module: str, option: str, known: Iterable[str]) -> None:
    assert argument_spec(module)[option]["choices"] == list(known)


def test_the_replay_is_done_with_the_published_version() -> None:
    assert argument_spec("dynamo_bench")["aiperf"]["default"] == bench.PUBLISHED_AIPERF
