# SPDX-License-Identifier: Apache-2.0
"""Verdicts, figures, reasons and suggestions of the memory model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    Geometry,
    Mamba2,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import GIB
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import (
    default_batch,
    overheads_gib,
    weights_per_rank_gib,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    AUTO_LENGTH,
    FITS,
    FLASHINFER,
    REFUSED,
    TIGHT,
    UNKNOWN,
    VERDICTS,
    Budget,
    Figures,
    Settings,
    Suggestion,
    assumed_available_gib,
    available_on_idle_node,
    meminfo_gib,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate, tightest_of, unknown

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


# --- the node -------------------------------------------------------------------------------------------


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


# --- the parts ------------------------------------------------------------------------------------------


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
    assert short["prefill_outside_budget_gib"] == pytest.approx(full["prefill_outside_budget_gib"] / 8)


# --- verdicts -------------------------------------------------------------------------------------------


def test_a_model_that_fits() -> None:
    budget = evaluate(nano())
    assert budget.verdict == FITS
    assert budget.reasons == [
        "24.34 GiB hold 17.70 GiB of weights, 2.41 GiB of activations and runtime and a pool of 4.23 GiB: "
        "59.00 sequences of 8192 tokens. 86.19 GiB stay free during a long prefill."
    ]
    assert budget.suggestions == []
    assert budget.missing == []


@pytest.mark.parametrize("caching", [True, False, None])
@pytest.mark.parametrize("backend", ["marlin", "flashinfer"])
@pytest.mark.parametrize("total", [119.0, 121.69])
@pytest.mark.parametrize("available", [111.27, None])
def test_the_ladder_of_ultra(caching: bool | None, backend: str, total: float, available: float | None) -> None:
    """[S0] holds however its figures are read: both totals, both kernels, with and without prefix caching."""

    def accepted(**changes: Any) -> bool:
        settings = ultra(
            enable_prefix_caching=caching,
            fp4_backend=backend,
            mem_total_gib=total,
            mem_available_gib=available,
            **changes,
        )
        return evaluate(settings).verdict in (FITS, TIGHT)

    assert accepted(budget_gib=108)
    assert accepted(budget_gib=105)
    assert not accepted(budget_gib=95)
    assert not accepted(budget_gib=110)
    assert not accepted(max_num_batched_tokens=16384)


@pytest.mark.parametrize("total", [119.0, 121.69])
@pytest.mark.parametrize("expert_parallel", [True, False])
@pytest.mark.parametrize("caching", [True, False])
def test_the_utilization_of_qwen397(total: float, expert_parallel: bool, caching: bool) -> None:
    changes: dict[str, Any] = {
        "mem_total_gib": total,
        "expert_parallel": expert_parallel,
        "enable_prefix_caching": caching,
    }
    assert evaluate(qwen397(gpu_memory_utilization=0.9, **changes)).verdict in (FITS, TIGHT)
    assert evaluate(qwen397(gpu_memory_utilization=0.92, **changes)).verdict == REFUSED


def test_nothing_left_for_the_cache() -> None:
    budget = evaluate(nano(gpu_memory_utilization=0.15))
    assert budget.verdict == REFUSED
    assert budget.reasons == [
        "Nothing is left for the cache: a budget of 18.25 GiB less 17.70 GiB of weights and 2.41 GiB of activations "
        "and runtime is -1.85 GiB."
    ]


def test_a_cache_too_small_for_one_sequence() -> None:
    budget = evaluate(nano(gpu_memory_utilization=0.167, max_model_len=262144, enforce_eager=True))
    assert budget.verdict == REFUSED
    assert budget.reasons == [
        "The cache is too small: one sequence of 262144 tokens takes 0.80 GiB, the pool has 0.22 GiB, which is "
        "0.58 GiB short; it would hold 58464 tokens."
    ]


def test_a_cache_too_small_for_anything() -> None:
    budget = evaluate(nano(kv_cache_memory_gib=0.05))
    assert budget.verdict == REFUSED
    assert budget.reasons[0].endswith("0.02 GiB short of anything.")


def test_the_start_up_check_of_free_memory() -> None:
    budget = evaluate(qwen397(gpu_memory_utilization=0.92))
    assert budget.reasons == [
        "vLLM would refuse to start: it wants 111.95 GiB free and finds 111.27 GiB, 0.68 GiB short. "
        "A gpu_memory_utilization of 0.91 passes this check.",
        "The budget of 111.95 GiB is 92.0 % of the node's 121.69 GiB: up to 91 % was seen to serve, 92 % to crash.",
    ]


def test_an_explicit_pool_does_not_switch_the_start_up_check_off() -> None:
    settings = nano(gpu_memory_utilization=None, kv_cache_memory_gib=4, vllm_version="0.22.1")
    budget = evaluate(settings)
    assert budget.reasons == [
        "vLLM would refuse to start: it wants 111.95 GiB free and finds 111.27 GiB, 0.68 GiB short. "
        "A gpu_memory_utilization of 0.91 passes this check; it does not change the pool."
    ]
    assert evaluate(replace(settings, gpu_memory_utilization=0.91)).verdict == FITS
    assert evaluate(replace(settings, vllm_version="0.19.1")).verdict == FITS  # its default is 0.9


def test_a_raw_budget_above_what_is_free() -> None:
    budget = evaluate(ultra(budget_gib=112, mem_total_gib=125))
    assert budget.reasons[0] == (
        "vLLM would refuse to start: it wants 112.00 GiB free and finds 111.27 GiB, 0.73 GiB short."
    )
    assert not any("first long prompt" in reason for reason in budget.reasons)


def test_dying_at_the_first_long_prompt() -> None:
    budget = evaluate(ultra(budget_gib=110, mem_total_gib=121.69))
    assert budget.reasons == [
        "It would start and die at the first long prompt: of 111.27 GiB available the budget takes 110.00 GiB and a "
        "prefill in steps of 8192 tokens 2.25 GiB, which is 1.48 GiB too much for a floor of 0.50 GiB; the safe "
        "ceiling is 108.52 GiB."
    ]


def test_a_higher_floor_refuses_more() -> None:
    assert evaluate(ultra(floor_gib=1.0)).verdict == TIGHT
    assert evaluate(ultra(floor_gib=1.1)).verdict == REFUSED


def test_the_firm_cap() -> None:
    budget = evaluate(ultra(budget_gib=108, firm_cap_gib=107.5))
    assert budget.reasons == ["The budget of 108.00 GiB is 0.50 GiB above this cluster's firm cap of 107.50 GiB."]
    assert figures(budget).safe_ceiling_gib == 107.5


def test_graphs_want_a_block_for_every_sequence() -> None:
    settings = nano(gpu_memory_utilization=0.2, max_num_seqs=None, enforce_eager=False, vllm_version="0.22.1")
    budget = evaluate(settings)
    assert budget.verdict == REFUSED
    assert budget.reasons == [
        "CUDA graphs want a cache block for each of max_num_seqs 1024 sequences, and the pool has 312: set "
        "max_num_seqs to 312 or less."
    ]
    assert evaluate(replace(settings, max_num_seqs=312)).verdict == FITS
    assert evaluate(replace(settings, enforce_eager=True)).verdict == FITS
    assert evaluate(replace(settings, vllm_version="0.19.1")).verdict == FITS


def test_a_block_that_does_not_fit_into_a_step() -> None:
    settings = ultra(ssm_dtype="float32", mamba_cache_mode="align", fp4_backend="marlin")
    budget = evaluate(settings)
    assert budget.verdict == REFUSED
    assert budget.reasons == [
        "With prefix caching a block of 8416 tokens must fit into max_num_batched_tokens, which is 8192: raise it, "
        "keep the state in a smaller dtype, or switch prefix caching off."
    ]
    assert evaluate(replace(settings, ssm_dtype="float16")).verdict == TIGHT
    assert evaluate(replace(settings, vllm_version="0.27.1")).verdict == TIGHT


def test_tight_for_the_host() -> None:
    budget = evaluate(nano(gpu_memory_utilization=0.9))
    assert budget.verdict == TIGHT
    assert budget.reasons == [
        "Only 1.01 GiB of the node's memory stay free during a long prefill; below 6.00 GiB nodes were seen to stall "
        "in reclaim. Start nothing else on it."
    ]


def test_tight_for_two_long_requests() -> None:
    budget = evaluate(nano(max_num_seqs=2, max_model_len=262144, gpu_memory_utilization=0.175))
    assert budget.verdict == TIGHT
    assert budget.reasons == ["The pool holds 1.48 sequences of 262144 tokens: two long requests cannot run at once."]


def test_one_sequence_at_a_time_may_fill_the_pool() -> None:
    settings = nano(max_num_seqs=1, max_model_len=262144, gpu_memory_utilization=0.175)
    assert evaluate(settings).verdict == FITS


def test_the_cpu_build_is_judged_by_its_own_rules() -> None:
    settings = replace(
        DENSE, device="cpu", gpu_memory_utilization=None, kv_cache_memory_gib=1, mem_total_gib=8, mem_available_gib=4
    )
    budget = evaluate(settings)
    assert budget.verdict == REFUSED  # 2 of weights, 2 of process, 1 of pool
    assert budget.reasons[-1].startswith("It would start and die at the first long prompt")
    large = evaluate(replace(settings, kv_cache_memory_gib=5))
    assert "The budget of 9.00 GiB is 112.5 % of the node's 8.00 GiB." in large.reasons
    fits = evaluate(replace(settings, mem_available_gib=6))
    assert fits.verdict == FITS
    assert figures(fits).attn_block_tokens == 128
    assert figures(evaluate(replace(settings, mem_available_gib=6, block_granularity=32))).attn_block_tokens == 32


def test_a_model_that_does_not_split() -> None:
    budget = evaluate(ultra(tensor_parallel_size=3, expert_parallel=False))
    assert budget.verdict == REFUSED
    assert budget.reasons == [
        "vLLM cannot split 64 attention heads over 3 ranks.",
        "vLLM can neither split nor replicate 2 KV heads over 3 ranks.",
        "vLLM cannot split 256 Mamba heads over 3 ranks.",
        "vLLM cannot split 8 Mamba groups over 3 ranks: only a single group is replicated.",
        "vLLM cannot split 5120 columns of each expert (expert_parallel is off) over 3 ranks.",
    ]
    assert budget.figures is None


def test_a_delta_net_that_does_not_split() -> None:
    budget = evaluate(qwen397(tensor_parallel_size=32))
    assert budget.reasons == ["vLLM cannot split 16 key heads of the delta net over 32 ranks."]
    budget = evaluate(qwen397(tensor_parallel_size=3, expert_parallel=True))
    assert budget.reasons == [
        "vLLM cannot split 32 attention heads over 3 ranks.",
        "vLLM can neither split nor replicate 2 KV heads over 3 ranks.",
        "vLLM cannot split 16 key heads of the delta net over 3 ranks.",
        "vLLM cannot split 64 value heads of the delta net over 3 ranks.",
    ]


# --- unknown --------------------------------------------------------------------------------------------


def test_a_release_older_than_any_that_was_read() -> None:
    budget = evaluate(nano(vllm_version="0.17.1"))
    assert budget.verdict == UNKNOWN
    assert budget.missing == ["vLLM 0.17.1 is older than 0.18.0, the oldest release whose source was read."]
    assert budget.reasons == ["The memory of this model cannot be computed."]
    assert budget.figures is None


def test_a_draft_model_that_is_not_in_the_geometry() -> None:
    budget = evaluate(nano(speculative_tokens=2))
    assert budget.verdict == UNKNOWN
    assert budget.missing == [
        "speculative_tokens is 2, but the geometry has no mtp section: the layers of the draft model are unknown."
    ]


def test_a_chunk_that_mode_all_needs() -> None:
    settings = ultra()
    recurrent = settings.geometry.recurrent
    assert isinstance(recurrent, Mamba2)
    bare = replace(settings, geometry=replace(settings.geometry, recurrent=replace(recurrent, chunk_size=None)))
    budget = evaluate(bare)
    assert budget.verdict == UNKNOWN
    assert budget.missing == [
        "geometry.recurrent.chunk_size: with prefix caching this version of vLLM keeps a Mamba state at every block, "
        "and a block is a multiple of the chunk."
    ]
    assert evaluate(replace(bare, enable_prefix_caching=False)).verdict == TIGHT


def test_unknown_is_plain_data_without_figures() -> None:
    plain = unknown(["what is missing."]).as_dict()
    assert plain["verdict"] == UNKNOWN
    assert plain["missing"] == ["what is missing."]
    assert plain["kv_pool_gib"] is None
    assert set(Figures.__dataclass_fields__) <= set(plain)


# --- notes ----------------------------------------------------------------------------------------------


def test_notes() -> None:
    assert evaluate(nano(mem_available_gib=111.27)).notes == []
    assert evaluate(nano()).notes == [
        "mem_available_gib was not given: 111.27 GiB assumed, after the tightest node measured."
    ]
    lab = replace(DENSE, device="cpu", gpu_memory_utilization=None, kv_cache_memory_gib=1, mem_total_gib=8)
    assert evaluate(lab).notes == ["mem_available_gib was not given: 8.00 GiB assumed, all that the node has."]
    newer = evaluate(nano(vllm_version="0.34.0", mem_available_gib=111.27))
    assert newer.notes == [
        "vLLM 0.34.0 is newer than 0.33.0, the newest release whose source this model was held against; its rules are "
        "assumed unchanged."
    ]
    longer = evaluate(nano(max_model_len=1048576, mem_available_gib=111.27))
    assert longer.notes == [
        "max_model_len 1048576 is above the model's own 262144 tokens: vLLM wants VLLM_ALLOW_LONG_MAX_MODEL_LEN=1, and "
        "the model's position encoding must be made for it."
    ]
    waiting = evaluate(nano(max_num_seqs=8, max_model_len=262144, mem_available_gib=111.27))
    assert waiting.notes == [
        "Of max_num_seqs 8 sequences 5.28 fit at their full 262144 tokens; beyond that, requests wait."
    ]


# --- suggestions ----------------------------------------------------------------------------------------


def test_the_documented_order_comes_first() -> None:
    budget = evaluate(ultra(budget_gib=110, mem_total_gib=121.69))
    assert [each.order for each in budget.suggestions] == list(range(1, len(budget.suggestions) + 1))
    assert [each.change for each in budget.suggestions[:3]] == [
        {"speculative-config": None},
        {"max-num-seqs": 2},
        {"gpu-memory-utilization-gb": 108.0},
    ]
    assert [each.action for each in budget.suggestions] == [
        "Drop MTP: its head, its activations and its share of the cache: frees 8.54 GiB a node.",
        "Lower --max-num-seqs from 6 to 2: asks 17.10 GiB less of the cache when all are full.",
        "Lower --gpu-memory-utilization-gb to 108: leaves 2.00 GiB more to the host.",
        "Lower --max-num-batched-tokens from 8192 to 4096: frees 7.60 GiB a node.",
        "Set --mamba-cache-mode align instead of keeping a state at every block boundary: frees 19.15 GiB a node.",
        "Use Marlin for FP4 instead of FlashInfer, whose autotuner keeps its high-water mark: frees 5.44 GiB a node.",
        "Switch torch.compile and CUDA graphs off, about 3 % slower: frees 0.50 GiB a node.",
    ]
    assert [each.resolves for each in budget.suggestions] == [False, False, True, False, False, False, False]


def applied(settings: Settings, change: dict[str, Any]) -> Settings:
    """Return the settings with a suggestion's change in them."""
    names = {
        "speculative-config": ("speculative_tokens", lambda _value: 0),
        "max-num-seqs": ("max_num_seqs", int),
        "gpu-memory-utilization-gb": ("budget_gib", float),
        "gpu-memory-utilization": ("gpu_memory_utilization", float),
        "kv-cache-memory-bytes": ("kv_cache_memory_gib", lambda value: value / GIB),
        "max-num-batched-tokens": ("max_num_batched_tokens", int),
        "mamba-cache-mode": ("mamba_cache_mode", str),
        "enable-prefix-caching": ("enable_prefix_caching", bool),
        "kv-cache-dtype": ("kv_cache_dtype", str),
        "moe-backend": ("fp4_backend", str),
        "enforce-eager": ("enforce_eager", bool),
        "max-model-len": ("max_model_len", int),
    }
    ((option, value),) = change.items()
    name, convert = names[option]
    return replace(settings, **{name: convert(value)})  # type: ignore[operator]


@pytest.mark.parametrize(
    "settings",
    [
        ultra(budget_gib=95),
        ultra(),
        ultra(budget_gib=110),
        ultra(max_num_batched_tokens=16384),
        qwen397(gpu_memory_utilization=0.92),
        qwen397(enable_prefix_caching=True),
        nano(gpu_memory_utilization=0.15),
        nano(gpu_memory_utilization=0.9),
        nano(gpu_memory_utilization=0.167, max_model_len=262144),
        nano(kv_cache_memory_gib=0.05),
        nano(gpu_memory_utilization=0.5, kv_cache_memory_gib=95),
        nano(max_num_seqs=None, enforce_eager=False, vllm_version="0.22.1"),
        replace(DENSE, gpu_memory_utilization=0.031, kv_cache_dtype="bfloat16"),
    ],
)
def test_each_suggestion_does_what_it_says(settings: Settings) -> None:
    before = evaluate(settings)
    assert before.verdict != FITS
    assert before.suggestions
    for suggestion in before.suggestions:
        after = evaluate(applied(settings, suggestion.change))
        better = VERDICTS.index(after.verdict) < VERDICTS.index(before.verdict)
        assert suggestion.resolves == better, suggestion
        assert f"{suggestion.frees_gib:.2f} GiB" in suggestion.action
        assert suggestion.frees_gib >= 0


def test_dropping_mtp_gives_back_head_activations_and_cache() -> None:
    before, after = figures(evaluate(ultra())), figures(evaluate(ultra(speculative_tokens=0)))
    head = before.weights_gib_per_rank - after.weights_gib_per_rank
    draft = before.breakdown["draft_gib"]
    cache = 6 * (before.kv_gib_per_sequence - after.kv_gib_per_sequence)
    assert head == pytest.approx(20.9 / 4)
    assert action(evaluate(ultra()), "Drop MTP").frees_gib == pytest.approx(head + draft + cache)


def test_no_fewer_than_one_sequence_is_suggested() -> None:
    assert action(evaluate(ultra(budget_gib=95)), "Lower --max-num-seqs").change == {"max-num-seqs": 1}


def test_a_default_number_of_sequences_is_lowered_to_the_blocks() -> None:
    budget = evaluate(nano(max_num_seqs=None, enforce_eager=False, vllm_version="0.22.1"))
    found = action(budget, "Set --max-num-seqs")
    assert found.action == "Set --max-num-seqs to 312, below vLLM's default of 1024: frees 0.00 GiB a node."
    assert found.resolves


def test_a_starving_cache_gets_a_larger_budget() -> None:
    found = action(evaluate(ultra(budget_gib=95)), "Raise --gpu-memory-utilization-gb")
    assert found.action == "Raise --gpu-memory-utilization-gb to 105: adds 10.00 GiB to the cache."
    found = action(evaluate(nano(gpu_memory_utilization=0.15)), "Raise --gpu-memory-utilization")
    assert found.change == {"gpu-memory-utilization": 0.17}


def test_a_budget_is_not_raised_beyond_the_safe_ceiling() -> None:
    budget = evaluate(ultra(budget_gib=95, weights_gib=370))
    assert not any("Raise" in each.action for each in budget.suggestions)


def test_a_tight_host_gets_a_smaller_budget_only_when_the_cache_can_spare_it() -> None:
    found = action(evaluate(nano(gpu_memory_utilization=0.9)), "Lower --gpu-memory-utilization")
    assert found.change == {"gpu-memory-utilization": 0.85}
    assert found.resolves
    assert not any("--gpu-memory-utilization" in each.action for each in evaluate(ultra()).suggestions)


def test_an_explicit_pool_is_moved_by_its_own_option() -> None:
    small = action(evaluate(nano(kv_cache_memory_gib=0.05)), "Set --kv-cache-memory-bytes")
    assert small.change == {"kv-cache-memory-bytes": int(0.1 * GIB)}
    large = action(evaluate(nano(gpu_memory_utilization=0.5, kv_cache_memory_gib=95)), "Set --kv-cache-memory-bytes")
    assert large.action == "Set --kv-cache-memory-bytes to 89.9 GiB (96529389977): leaves 5.10 GiB more to the host."
    assert large.resolves


def test_a_pool_that_leaves_nothing_to_take_away_is_not_moved() -> None:
    budget = evaluate(nano(kv_cache_memory_gib=1, weights_gib=115.0))
    assert budget.verdict == REFUSED
    assert not any("kv-cache-memory-bytes" in each.change for each in budget.suggestions)


def test_smaller_sequences() -> None:
    budget = evaluate(replace(DENSE, gpu_memory_utilization=0.031))
    assert action(budget, "Keep the KV cache in fp8").change == {"kv-cache-dtype": "fp8"}
    budget = evaluate(qwen397(enable_prefix_caching=True))
    assert action(budget, "Switch prefix caching off").change == {"enable-prefix-caching": False}
    budget = evaluate(nano(gpu_memory_utilization=0.167, max_model_len=262144))
    found = action(budget, "Lower --max-model-len from 262144 to")
    assert found.change == {"max-model-len": 58464}
    assert found.resolves


def test_what_is_not_there_is_not_suggested() -> None:
    budget = evaluate(nano(gpu_memory_utilization=0.15, fp4_backend=FLASHINFER))
    starts = [each.action.split()[0] for each in budget.suggestions]
    assert "Drop" not in starts
    assert "Switch" not in starts
    assert "Use" in starts


# --- plain data and the cluster ---------------------------------------------------------------------------


def test_plain_data() -> None:
    plain = evaluate(ultra()).as_dict()
    assert plain["verdict"] == TIGHT
    assert plain["weights_gib_per_rank"] == 82.25
    assert plain["kv_bytes_per_token"] == 3328
    assert plain["attn_block_tokens"] == 4352
    assert plain["cache_mode"] == "all"
    assert plain["breakdown"]["distributed_gib"] == 3.2
    assert plain["suggestions"][0]["order"] == 1
    assert plain["suggestions"][0]["frees_gib"] == round(plain["suggestions"][0]["frees_gib"], 3)


def tightest(per_node: dict[str, Budget]) -> dict[str, Any]:
    """Ask as the filter does: with the results as plain data."""
    return tightest_of({name: budget.as_dict() for name, budget in per_node.items()})


def test_the_cluster_is_as_good_as_its_worst_node() -> None:
    verdict = tightest(
        {
            "gx10-1": evaluate(ultra()),
            "gx10-2": evaluate(ultra(mem_available_gib=110.0)),
            "gx10-3": evaluate(ultra(mem_available_gib=115.0)),
        }
    )
    assert verdict["verdict"] == REFUSED
    assert verdict["node"] == "gx10-2"
    assert verdict["reason"].startswith("gx10-2 is the tightest of 3 nodes (refused): It would start and die")
    assert verdict["per_node"] == {"gx10-1": TIGHT, "gx10-2": REFUSED, "gx10-3": TIGHT}


def test_among_equals_the_least_headroom_counts() -> None:
    verdict = tightest({"a": evaluate(ultra()), "b": evaluate(ultra(mem_available_gib=111.2))})
    assert verdict["node"] == "b"
    again = tightest({"b": evaluate(ultra()), "a": evaluate(ultra())})
    assert again["node"] == "a"


def test_unknown_is_worse_than_tight_and_names_what_is_missing() -> None:
    verdict = tightest({"a": evaluate(ultra()), "b": unknown(["The tokenizer of time."])})
    assert verdict["verdict"] == UNKNOWN
    assert verdict["reason"] == (
        "b is the tightest of 2 nodes (unknown): The memory of this model cannot be computed. The tokenizer of time."
    )


def test_a_cluster_of_one() -> None:
    assert tightest({"a": evaluate(nano())})["reason"].startswith("a (fits): 24.34 GiB hold")


def test_no_node_and_no_verdict() -> None:
    with pytest.raises(ValueError, match="No node was given: there is no tightest one"):
        tightest_of({})
    with pytest.raises(ValueError, match=r"The result of a is not one of gb10\.cluster\.memory_budget"):
        tightest_of({"a": {"msg": "failed"}})


@pytest.mark.parametrize("pool_gib", [0.6, 2.0])
def test_a_length_that_vllm_chooses_is_the_longest_that_fits(pool_gib: float) -> None:
    found = evaluate(nano(max_model_len=AUTO_LENGTH, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
    limit = nano().geometry.max_position_embeddings
    assert found.figures is not None
    length = found.figures.max_model_len
    assert f"max-model-len auto comes to {length} tokens" in found.reasons[0]
    one = evaluate(nano(max_model_len=length, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
    assert one.figures is not None
    assert one.figures.max_concurrency >= 1
    if length < limit:
        more = evaluate(nano(max_model_len=length + 1, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
        assert more.figures is not None
        assert more.figures.max_concurrency < 1
    else:
        assert "the model's own limit" in found.reasons[0]
    assert (length < limit) is (pool_gib < 1)


def test_a_length_that_vllm_chooses_is_refused_where_no_token_fits() -> None:
    found = evaluate(nano(max_model_len=AUTO_LENGTH, gpu_memory_utilization=0.05))
    assert found.verdict == REFUSED
    assert not any("auto comes to" in reason for reason in found.reasons)
