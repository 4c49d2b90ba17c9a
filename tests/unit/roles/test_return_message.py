# SPDX-License-Identifier: Apache-2.0
"""What a swap that failed says in the end: what serves now is its last sentence, also when the return failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

RETURN = Path(__file__).resolve().parents[3] / "roles" / "engine" / "tasks" / "return.yml"


def message(returns: bool, **more: Any) -> list[str]:
    """Return the lines of the report."""
    tasks = yaml.safe_load(RETURN.read_text(encoding="utf-8"))
    template = tasks[-1]["ansible.builtin.fail"]["msg"]
    known = {
        "engine_plan": {"model": "new"},
        "_engine_before": {"model": "old"} if returns else {},
        "_engine_returns": returns,
        "_engine_left": "Nothing is served now.",
        "__engine_failure": "new: no module named x",
    }
    # As Ansible renders: the newline after a block is no part of the text.
    environment = jinja2.Environment(trim_blocks=True, autoescape=False)
    environment.filters["bool"] = bool
    return environment.from_string(template).render(**{**known, **more}).splitlines()


@pytest.mark.parametrize(
    ("returns", "first"),
    [
        (True, "new did not start, and old serves again, verified by a completion."),
        (False, "new did not start, and no other model was served before: nothing is served now."),
    ],
)
def test_the_return_succeeded(returns: bool, first: str) -> None:
    assert message(returns) == [first, "new: no module named x"]


@pytest.mark.parametrize(
    ("returns", "first"),
    [
        (True, "new did not start, and the return to old failed as well."),
        (False, "new did not start, and stopping it failed as well."),
    ],
)
def test_the_return_failed(returns: bool, first: str) -> None:
    lines = message(returns, __engine_return_failure="old: rank 2 is gone")
    assert lines == [
        first,
        "new: no module named x",
        "The return failed: old: rank 2 is gone",
        "Nothing is served now.",
    ]


@pytest.mark.parametrize(
    ("behind", "ports", "sentence"),
    [
        (
            True,
            (8000, 0, 29602, 8000),
            "It was to listen on port 29602 of loopback, behind the proxy, for the first time (edge_proxy); "
            "-e edge_proxy=false starts it as before.",
        ),
        (
            False,
            (29602, 8000, 8000, 0),
            "It was to listen on port 8000 itself, without the proxy, for the first time (edge_proxy: false); "
            "-e edge_proxy=true starts it as before.",
        ),
        (True, (29602, 8000, 29602, 8000), ""),
    ],
)
def test_a_failed_restart_on_another_port_says_how_to_start_it_as_before(
    behind: bool, ports: tuple[int, int, int, int], sentence: str
) -> None:
    before_api, before_proxy, api, proxy = ports
    lines = message(
        False,
        _engine_before={"model": "new", "api_port": before_api, "proxy_port": before_proxy},
        _engine_api_port=api,
        _engine_proxy_port=proxy,
        engine_behind_proxy=behind,
    )
    assert lines[2:] == ([sentence] if sentence else [])
