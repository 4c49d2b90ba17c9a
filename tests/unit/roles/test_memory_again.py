# SPDX-License-Identifier: Apache-2.0
"""When site.yml and swap_model.yml check the memory again after the weights: what the first check could not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

PLAYBOOKS = Path(__file__).parents[3] / "playbooks"
NAME = "gb10_memory_from_files"
SHAPE = {"layers": 1}


@pytest.mark.parametrize(
    ("spec", "again"),
    [
        ({"size_gib": 5, "geometry": SHAPE}, False),
        ({"size_gib": 0, "geometry": SHAPE}, True),
        ({"size_gib": 5, "geometry": {}}, True),
        ({"size_gib": 5}, True),
        ({"size_gib": 5, "geometry": SHAPE, "drafter": {}}, False),
        ({"size_gib": 5, "geometry": SHAPE, "drafter": {"repo": "x", "geometry": {}}}, True),
        ({"size_gib": 5, "geometry": SHAPE, "drafter": {"repo": "x", "geometry": SHAPE}}, False),
    ],
)
def test_size_and_shape_that_come_with_the_weights_are_checked_after_them(spec: dict[str, Any], again: bool) -> None:
    text = yaml.safe_load((PLAYBOOKS / "group_vars" / "all" / "cluster.yml").read_text(encoding="utf-8"))[NAME]
    for pulled in (False, True):
        plan = {"spec": spec, "image_pulled": pulled}
        found = Templar(DataLoader(), variables={"gb10_plan": plan}).template(trust_as_template(text))
        # A pulled image says itself what it runs on.
        assert found is (again or pulled)


@pytest.mark.parametrize("playbook", ["site.yml", "swap_model.yml"])
def test_both_playbooks_ask_it_after_the_weights(playbook: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS / playbook).read_text(encoding="utf-8"))
    imported = [play["ansible.builtin.import_playbook"] for play in plays]
    assert imported.index("weights.yml") < imported.index("memory.yml") < imported.index("serve.yml")
    assert plays[imported.index("memory.yml")]["vars"] == {"memory_again": True}


def test_that_play_ends_at_once_where_the_first_check_knew_all() -> None:
    plays = yaml.safe_load((PLAYBOOKS / "memory.yml").read_text(encoding="utf-8"))
    first = plays[-1]["tasks"][0]
    assert first["ansible.builtin.meta"] == "end_play"
    assert first["when"] == f"memory_again | default(false) and not {NAME} | bool"
