# SPDX-License-Identifier: Apache-2.0
"""The parts of a plan: the node's memory, weights, overheads, the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._memory.fit import GB10
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    GatedConv,
    GatedDeltaNet,
    Indexer,
    Mamba2,
    Recurrent,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import rules_for
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import (
    default_batch,
    in_flight_tokens,
    make_plan,
    overheads_gib,
    weights_per_rank_gib,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    FITS,
    assumed_available_gib,
    available_on_idle_node,
    meminfo_gib,
    ssm_dtype_of,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate
from tests.unit.plugins.module_utils.memory_models import (
    DENSE,
    figures,
    nano,
    qwen397,
    ultra,
)


def test_meminfo_in_gib() -> None:
    text = "MemTotal:    127535180 kB\nMemFree:     1000 kB\nMemAvailable:  116391936 kB\nHugePages_Total:    0\n"
    total, available = meminfo_gib(text)
    assert total == pytest.approx(121.627, abs=0.001)
    assert available == pytest.approx(111.0, abs=0.001)


@pytest.mark.parametrize("absent", ["MemTotal", "MemAvailable"])
def test_meminfo_without_a_line(absent: str) -> None:
    text = "\n".join(f"{name}: 1000 kB" for name in ("MemTotal", "MemAvailable") if name != absent)
    with pytest.raises(ValueError, match=f"/proc/meminfo has no line {absent}"):
        meminfo_gib(text)


def test_an_idle_node_still_has_to_carry_the_engines_processes() -> None:
    assert available_on_idle_node(114.17, 0, "cuda") == pytest.approx(111.27)
    assert available_on_idle_node(5.0, 109.0, "cuda") == pytest.approx(111.1)
    assert available_on_idle_node(20.0, 0, "cpu") == 20.0
    assert available_on_idle_node(0.5, 0, "cuda") == 0.01


@pytest.mark.parametrize(
    ("total", "available"), [(119, 111.27), (121.69, 111.27), (128, 111.27), (64, 53.58), (8, 0.0)]
)
def test_what_is_assumed_of_a_node_that_cannot_be_asked(total: float, available: float) -> None:
    assert assumed_available_gib(total) == pytest.approx(available)
    assert assumed_available_gib(total, "cpu") == total


def test_weights_are_split_over_the_ranks() -> None:
    assert weights_per_rank_gib(ultra()) == pytest.approx(82.25)


def test_the_draft_head_is_loaded_only_when_used() -> None:
    assert weights_per_rank_gib(ultra(speculative_tokens=0)) == pytest.approx((329 - 20.9) / 4)


def test_a_draft_head_of_unknown_size_is_counted_in() -> None:
    assert weights_per_rank_gib(qwen397(speculative_tokens=0)) == pytest.approx(379 / 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (4, 8192)),
        ({"max_num_seqs": None}, (1024, 8192)),
        ({"max_num_seqs": None, "max_num_batched_tokens": 512}, (512, 512)),
        ({"max_num_seqs": None, "mem_total_gib": 64.0}, (256, 2048)),
        ({"max_num_seqs": None, "device": "cpu"}, (128, 2048)),
        ({"max_num_seqs": None, "device": "cpu", "tensor_parallel_size": 4}, (512, 8192)),
    ],
)
def test_vllms_own_batch(changes: dict[str, Any], expected: tuple[int, int]) -> None:
    assert default_batch(replace(DENSE, **changes)) == expected


def test_overheads_grow_with_the_batch_and_vanish_where_nothing_causes_them() -> None:
    small, large = overheads_gib(ultra(), 4096), overheads_gib(ultra(), 8192)
    for part in ("activations_gib", "autotuner_gib", "draft_gib"):
        assert large[part] == pytest.approx(2 * small[part])
    lone = overheads_gib(nano(), 8192)
    for part in ("autotuner_gib", "draft_gib", "graphs_gib", "distributed_gib"):
        assert lone[part] == 0.0
    assert overheads_gib(DENSE, 8192)["autotuner_gib"] == 0.0


def test_an_indexers_buffer_takes_from_the_pool_and_the_cpu_build_has_none() -> None:
    latent = replace(DENSE.geometry.attention, kv_heads=1, latent_dim=576)
    geometry = replace(DENSE.geometry, attention=latent, indexer=Indexer("dsa", 128))
    settings = replace(DENSE, geometry=geometry, max_model_len=163840)
    rules = rules_for((0, 30, 0))
    with_it, without = make_plan(settings, rules), make_plan(replace(settings, device="cpu"), rules)
    assert with_it.overheads["indexer_gib"] == pytest.approx(865_075_200 / 2**30 + 0.5)
    assert "indexer_gib" not in without.overheads


def test_expert_parallel_keeps_whole_experts_on_a_rank() -> None:
    whole, split = overheads_gib(ultra(), 8192), overheads_gib(ultra(expert_parallel=False), 8192)
    assert whole["activations_gib"] > split["activations_gib"]


def test_the_breakdown_adds_up_to_the_budget() -> None:
    found = figures(evaluate(ultra()))
    outside = ("prefill_outside_budget_gib", "floor_gib")
    inside = sum(value for name, value in found.breakdown.items() if name not in outside)
    assert inside == pytest.approx(found.budget_gib, abs=1e-6)
    left = found.mem_available_gib - found.budget_gib - found.breakdown["prefill_outside_budget_gib"]
    assert found.headroom_gib == pytest.approx(left)


def test_an_explicit_pool_comes_on_top_of_the_rest() -> None:
    budget = evaluate(nano(gpu_memory_utilization=0.5, kv_cache_memory_gib=4))
    found = figures(budget)
    assert found.kv_pool_gib == 4
    assert found.budget_gib == pytest.approx(17.695 + 4 + 2.41, abs=0.01)
    assert budget.verdict == FITS


def test_a_step_is_no_larger_than_all_sequences_together() -> None:
    short = figures(evaluate(nano(max_model_len=1024))).breakdown
    full = figures(evaluate(nano(max_model_len=8192))).breakdown
    assert short["activations_gib"] == pytest.approx(full["activations_gib"] / 8)
    # What stays outside the budget does not vanish with the step.
    assert full["prefill_outside_budget_gib"] == pytest.approx(18 * 8192 * 2688 * 2 / 2**30)
    assert short["prefill_outside_budget_gib"] == GB10.least_outside_budget_gib


def test_the_width_of_dense_layers_counts() -> None:
    usual = overheads_gib(DENSE, 8192)["activations_gib"]
    wide = replace(DENSE, geometry=replace(DENSE.geometry, intermediate_size=8 * DENSE.geometry.hidden_size))
    narrow = replace(DENSE, geometry=replace(DENSE.geometry, intermediate_size=DENSE.geometry.hidden_size))
    assert overheads_gib(narrow, 8192)["activations_gib"] < usual < overheads_gib(wide, 8192)["activations_gib"]


def test_many_sequences_of_a_large_vocabulary_take_more_than_a_layer() -> None:
    geometry = replace(DENSE.geometry, vocab_size=248320)
    few, many = (replace(DENSE, geometry=geometry, max_num_seqs=number) for number in (1, 1024))
    assert overheads_gib(many, 2048)["activations_gib"] == pytest.approx(1024 * 248320 * 6 / 2**30)
    assert overheads_gib(few, 2048)["activations_gib"] < overheads_gib(many, 2048)["activations_gib"]


MAMBA = Mamba2(2, 16, 32, 64, 4, 4, "bfloat16", 128)
DELTA = GatedDeltaNet(3, 4, 8, 64, 64, 4, "bfloat16")


HAS_BOTH = ("avx512_bf16", "amx_tile")


@pytest.mark.parametrize(
    ("recurrent", "asked", "flags", "kept", "kept_before"),
    [
        (MAMBA, "auto", HAS_BOTH, "float32", "float32"),
        (MAMBA, "auto", ("avx512_bf16",), "float32", "auto"),
        (MAMBA, "auto", (), "auto", "auto"),
        (MAMBA, "bfloat16", HAS_BOTH, "bfloat16", "float32"),
        (MAMBA, "float32", None, "float32", "float32"),
        (MAMBA, "auto", None, None, None),
        (replace(MAMBA, state_dtype="float32"), "auto", None, "auto", "auto"),
        (DELTA, "auto", HAS_BOTH, "float32", "float32"),
        (DELTA, "bfloat16", HAS_BOTH, "bfloat16", "float32"),
        (GatedConv(2, 64, 3), "auto", None, "auto", "auto"),
        (None, "auto", None, "auto", "auto"),
    ],
)
def test_the_cpu_build_keeps_float32_states_on_some_processors(
    recurrent: Recurrent | None, asked: str, flags: tuple[str, ...] | None, kept: str | None, kept_before: str | None
) -> None:
    geometry = replace(DENSE.geometry, layers=20, recurrent=recurrent)
    settings = replace(DENSE, geometry=geometry, device="cpu", ssm_dtype=asked, cpu_flags=flags, vllm_version="0.32.0")
    rules = rules_for((0, 32, 0))
    assert ssm_dtype_of(settings, rules) == kept
    assert ssm_dtype_of(settings, rules_for((0, 28, 0))) == kept_before
    assert ssm_dtype_of(settings, rules_for((0, 25, 1))) == asked
    assert ssm_dtype_of(replace(settings, device="cuda"), rules) == asked
    said = evaluate(settings).missing
    assert [sentence for sentence in said if "processor with avx512_bf16" in sentence] == (said if kept is None else [])
    assert bool(said) is (kept is None)


def test_the_cpu_build_does_not_heed_what_falcon_h1_is_asked_for() -> None:
    geometry = replace(DENSE.geometry, architecture="FalconH1ForCausalLM", layers=20, recurrent=MAMBA)
    settings = replace(DENSE, geometry=geometry, device="cpu", ssm_dtype="bfloat16", cpu_flags=HAS_BOTH)
    assert ssm_dtype_of(settings, rules_for((0, 32, 0))) == "float32"


@pytest.mark.parametrize(
    ("device", "overlap", "version", "tokens"),
    [
        ("cuda", True, (0, 32, 0), 4096),
        ("cuda", False, (0, 32, 0), 2048),
        # vLLM's CPU build switches asynchronous scheduling off.
        ("cpu", True, (0, 32, 0), 2048),
        ("cuda", True, (0, 25, 1), 2048),
    ],
)
def test_tokens_under_way_are_those_of_one_step_or_of_two(
    device: str, overlap: bool, version: tuple[int, int, int], tokens: int
) -> None:
    settings = replace(DENSE, device=device, async_scheduling=overlap)
    assert in_flight_tokens(settings, 2048, rules_for(version)) == tokens
