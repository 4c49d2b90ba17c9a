# SPDX-License-Identifier: Apache-2.0
"""No model of the catalogue is refused at its published settings, nor at any of its documented steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import Geometry, geometry_from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import Budget
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import deep_merge
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import rows
from scripts import models_page

REPO = Path(__file__).resolve().parents[3]
GROUP_VARS = REPO / "playbooks" / "group_vars"


def load(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


SPECS = {spec["name"]: spec for spec in (load(path)["model_spec"] for path in sorted(GROUP_VARS.glob("model_*.yml")))}


IMAGES = models_page.images()


def judge(spec: dict[str, Any], total_gib: float, **changes: Any) -> Budget:
    return rows.budget_of(spec, str(rows.version_of(spec, IMAGES)), total_gib, 111.27, **changes)


@pytest.mark.parametrize("total_gib", [119.0, 121.69])
@pytest.mark.parametrize("name", SPECS)
def test_a_model_at_its_published_settings(name: str, total_gib: float) -> None:
    budget = judge(SPECS[name], total_gib)
    assert budget.verdict in ("fits", "tight"), budget.reasons + budget.missing


@pytest.mark.parametrize(
    ("name", "step"), [(name, step["name"]) for name, spec in SPECS.items() for step in spec.get("steps", [])]
)
def test_a_model_at_each_documented_step(name: str, step: str) -> None:
    overrides = next(each["overrides"] for each in SPECS[name]["steps"] if each["name"] == step)
    budget = judge(deep_merge(SPECS[name], overrides), 121.69)
    assert budget.verdict in ("fits", "tight"), budget.reasons + budget.missing


def test_the_ladder_from_the_catalogue_file() -> None:
    ultra = SPECS["nemotron-ultra"]
    for budget_gib, verdict in ((95.0, "refused"), (105.0, "tight"), (108.0, "tight"), (110.0, "refused")):
        assert judge(ultra, 119.0, budget_gib=budget_gib).verdict == verdict
    assert judge(ultra, 119.0, max_num_batched_tokens=16384).verdict == "refused"
    assert judge(SPECS["qwen397"], 121.69, gpu_memory_utilization=0.92).verdict == "refused"
    assert judge(SPECS["nemotron-nano"], 121.69, gpu_memory_utilization=0.15).verdict == "refused"


#: The shapes that the published measurements are calculated with.
MEASURED = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_compared_with_measurements_is_the_shape_of_the_catalogue(name: str) -> None:
    def shape_of(geometry: dict[str, Any]) -> Geometry:
        shape = geometry_from_dict(geometry)
        # The size of a page is the launch's, not the model's.
        return replace(shape, compressed=shape.compressed and replace(shape.compressed, page_states=None))

    shapes = [shape_of(spec["geometry"]) for spec in SPECS.values() if spec.get("geometry")]
    measured = shape_of(MEASURED[name]["geometry"])
    same = [
        shape for shape in shapes if shape.architecture == measured.architecture and shape.layers == measured.layers
    ]
    assert not same or measured in same


@pytest.mark.parametrize("name", SPECS)
def test_a_model_that_serves_raises_no_memory_alert(name: str) -> None:
    """Between long prefills a model at its published budget leaves more than the floor of the alert."""
    floor_gib = load(REPO / "roles" / "monitor" / "defaults" / "main.yml")["monitor_memory_floor_gib"]
    figures = judge(SPECS[name], 119.0).figures
    if figures is None:
        assert SPECS[name]["expected"]["kv_cache"], "a cache without a rule is judged by a measured one"
        return
    assert figures.headroom_gib + figures.breakdown["prefill_outside_budget_gib"] > floor_gib
    # Measured: what Ultra leaves at 108 GiB [S0], above where earlyoom acts.
    assert 0.02 * 119 < floor_gib < 2.66
