# SPDX-License-Identifier: Apache-2.0
"""Every fitted constant stays within the measurements that it was fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory import fit as memory_fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.fit import CPU, GB10, Fit
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import geometry_from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import overheads_gib
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import FLASHINFER, Settings

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]
OBSERVATIONS = yaml.safe_load((REPO / "benchmarks" / "memory_observations.yml").read_text(encoding="utf-8"))[
    "observations"
]


def settings(model: str) -> Settings:
    values = {"gpu_memory_utilization": 0.9, **MODELS[model]["settings"]}
    if "budget_gib" in values:
        del values["gpu_memory_utilization"]
    return Settings(geometry=geometry_from_dict(MODELS[model]["geometry"]), weights_gib=100, **values)


NANO, ULTRA, QWEN397, QWEN8 = settings("nano"), settings("ultra"), settings("qwen397"), settings("qwen3-8b")


def beside(of: Settings, **changes: object) -> float:
    return sum(overheads_gib(replace(of, **changes), 8192).values())  # type: ignore[arg-type]


def activations(of: Settings, **changes: object) -> float:
    return overheads_gib(replace(of, **changes), 8192)["activations_gib"]  # type: ignore[arg-type]


def prefill(of: Settings) -> float:
    return GB10.prefill_tensors_outside_budget * 8192 * of.geometry.hidden_size * 2 / 2**30


DERIVATIONS: dict[str, Callable[[], float]] = {
    "nano_beside_weights": lambda: beside(NANO),
    "nano_autotuner": lambda: beside(NANO, fp4_backend=FLASHINFER) - beside(NANO),
    "nano_graphs": lambda: beside(NANO, enforce_eager=False) - beside(NANO),
    "h200_dense_eager": lambda: activations(QWEN8),
    "h200_dense_compiled": lambda: activations(QWEN8, enforce_eager=False),
    "h200_graphs": lambda: overheads_gib(replace(QWEN8, enforce_eager=False), 8192)["graphs_gib"],
    "h200_moe_eager": lambda: activations(replace(NANO, max_num_seqs=8)),
    "h200_runtime": lambda: overheads_gib(QWEN8, 8192)["runtime_gib"],
    "h200_logits": lambda: 64 * 151936 * GB10.logits_bytes / 2**30,
    "h200_outside_budget": lambda: GB10.least_outside_budget_gib,
    "nano_host_processes": lambda: GB10.host_processes_gib,
    "ultra_beside_weights_marlin": lambda: beside(ULTRA, fp4_backend="marlin"),
    "ultra_beside_weights_flashinfer": lambda: beside(ULTRA),
    "ultra_prefill": lambda: prefill(ULTRA),
    "qwen397_prefill": lambda: prefill(QWEN397),
    "largest_share": lambda: GB10.largest_share,
    "cpu_process": lambda: CPU.runtime_gib,
}


def holds(observation: dict[str, Any]) -> bool:
    derived = DERIVATIONS[observation["key"]]()
    return bool(observation.get("low", -math.inf) <= derived <= observation.get("high", math.inf))


def test_every_observation_is_derived() -> None:
    assert {observation["key"] for observation in OBSERVATIONS} == set(DERIVATIONS)


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=lambda observation: str(observation["key"]))
def test_the_fit_keeps_to_its_data(observation: dict[str, Any]) -> None:
    assert observation["meaning"]
    assert observation["source"]
    assert observation.keys() & {"low", "high"}
    assert holds(observation)


def test_moving_any_constant_of_the_fit_breaks_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that could be anything would not be fitted."""

    def broken(fit: Fit) -> bool:
        monkeypatch.setattr(memory_fit, "GB10", fit)
        monkeypatch.setattr(memory_fit, "DISCRETE", replace(fit, runtime_gib=discrete.runtime_gib))
        monkeypatch.setitem(globals(), "GB10", fit)
        return not all(map(holds, OBSERVATIONS))

    original, discrete = GB10, memory_fit.DISCRETE
    assert not broken(original)
    for field in fields(Fit):
        value = getattr(original, field.name)
        assert any(broken(replace(original, **{field.name: value * factor})) for factor in (0.0, 0.25, 4.0)), field.name
