# SPDX-License-Identifier: Apache-2.0
"""The models of the published measurements as settings, for the tests of the memory model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    Geometry,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    Budget,
    Figures,
    Settings,
    Suggestion,
)

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]


def published(model: str, **changes: Any) -> Settings:
    """Return a model's published settings with some of them changed."""
    values = {**MODELS[model]["settings"], "weights_gib": float(MODELS[model]["weights_gib"]), **changes}
    return Settings(geometry=geometry_from_dict(MODELS[model]["geometry"]), **values)


def ultra(**changes: Any) -> Settings:
    return published("ultra", **changes)


def nano(**changes: Any) -> Settings:
    return published("nano", **{"gpu_memory_utilization": 0.2, **changes})


def qwen397(**changes: Any) -> Settings:
    return published("qwen397", **changes)


DENSE = Settings(
    geometry=Geometry("Qwen3ForCausalLM", 4, 1024, 32768, Attention(layers=4, heads=16, kv_heads=8, head_dim=64)),
    weights_gib=2,
    vllm_version="0.22.1",
    max_model_len=32768,
    max_num_seqs=4,
    mem_total_gib=121.69,
    gpu_memory_utilization=0.3,
)


def figures(budget: Budget) -> Figures:
    assert budget.figures is not None
    return budget.figures


def action(budget: Budget, start: str) -> Suggestion:
    """Return the suggestion that starts with some words."""
    found = [each for each in budget.suggestions if each.action.startswith(start)]
    assert len(found) == 1, [each.action for each in budget.suggestions]
    return found[0]
