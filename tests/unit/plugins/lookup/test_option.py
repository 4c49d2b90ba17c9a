# SPDX-License-Identifier: Apache-2.0
"""A renamed variable is read under both names, the former with a warning."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.lookup.option import LookupModule


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the user as a warning."""
    said: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda _self, text, *_more, **_options: said.append(text))
    return said


def look(variables: dict[str, Any], *terms: str, **options: Any) -> Any:
    """Return what the lookup finds among the variables."""
    plugin = LookupModule(loader=None, templar=Templar(DataLoader(), variables=variables))
    return plugin.run(list(terms) or ["logs_lines"], variables, **{"was": "lines", "default": 200, **options})


@pytest.mark.parametrize(
    ("variables", "value", "notices"),
    [
        ({}, 200, 0),
        ({"logs_lines": 7}, 7, 0),
        ({"lines": 8}, 8, 1),
        ({"logs_lines": 7, "lines": 8}, 7, 0),
        ({"logs_lines": ""}, "", 0),
    ],
)
def test_the_new_name_wins_and_the_former_warns(
    warnings: list[str], variables: dict[str, Any], value: Any, notices: int
) -> None:
    assert look(variables) == [value]
    assert len(warnings) == notices
    assert all("'lines' is now named 'logs_lines'" in each for each in warnings)


def test_it_reads_one_variable() -> None:
    with pytest.raises(AnsibleLookupError, match="reads one variable, not 2"):
        look({}, "a", "b")
