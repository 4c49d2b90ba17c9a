# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself on the head, and what a second one is told."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.action import lease
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import text_refusal

HELD = {"scope": "deployment", "who": "ada", "where": "desk", "what": "serve.yml", "since": "20:00", "seconds": 9.0,
        "renewed_seconds": 4.0}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "extra", "expected"),
    [
        ({"args": ("playbooks/serve.yml",)}, {}, "serve.yml"),
        ({"args": ("a/swap-model.yml",)}, {"model": "m", "gb10_api_key": "secret"}, "swap-model.yml -e model=m"),
        ({"args": ("a.yml", "b.yml"), "subset": "gx10-1"}, {}, "a.yml b.yml --limit gx10-1"),
        ({}, {}, "ansible"),
    ],
)
def test_a_run_names_its_playbooks_and_its_model(arguments: Any, extra: Any, expected: str) -> None:
    assert lease.command_line(arguments, extra) == expected


def test_a_refusal_is_one_line_with_who_and_what_to_do() -> None:
    text = lease.refusal("gx10-1", [HELD])
    assert text.startswith("gx10-1: ada on desk runs serve.yml since 20:00 (9 s), with the lease of the deployment, ")
    assert "-e take_over=true" in text
    assert "180 s after its last renewal" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"edge_open_ports": "9000, 9001"}, """give -e '{"edge_open_ports": ["9000", "9001"]}'"""),
        ({"edge_open_ports": "[9000]"}, """give -e '{"edge_open_ports": [9000]}'"""),
        ({"host_docker_config": '{"debug": true}'}, """give -e '{"host_docker_config": {"debug": true}}'"""),
        ({"watch_hook": "it's"}, """give -e '{"watch_hook": ["it'\\''s"]}'"""),
        ({"edge_open_ports": [9000]}, ""),
        ({"edge_open_ports": "{{ ports }}"}, ""),
        ({"bench_concurrency": "1,4", "edge_tls": "true"}, ""),
    ],
)
def test_a_list_that_is_text_is_refused_with_what_to_write(extra: dict[str, Any], expected: str) -> None:
    assert expected in text_refusal(extra)
    assert bool(text_refusal(extra)) == bool(expected)
