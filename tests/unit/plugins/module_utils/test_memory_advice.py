# SPDX-License-Identifier: Apache-2.0
"""What is suggested, in which order, and what each change gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import GIB
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    FITS,
    FLASHINFER,
    REFUSED,
    VERDICTS,
    Settings,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate
from tests.unit.plugins.module_utils.memory_models import (
    DENSE,
    action,
    figures,
    nano,
    qwen397,
    ultra,
)


def test_the_documented_order_comes_first() -> None:
    budget = evaluate(ultra(budget_gib=110, mem_total_gib=121.69))
    assert [each.order for each in budget.suggestions] == list(range(1, len(budget.suggestions) + 1))
    assert [each.change for each in budget.suggestions[:4]] == [
        {"mamba-cache-mode": "align"},
        {"speculative-config": None},
        {"max-num-seqs": 2},
        {"gpu-memory-utilization-gb": 108.0},
    ]
    assert [each.action for each in budget.suggestions] == [
        "Set --mamba-cache-mode align instead of keeping a state at every block boundary, so that the pool holds 9.21 "
        "sequences instead of 2.34: frees 19.15 GiB a node.",
        "Drop MTP: its head, its activations and its share of the cache: frees 8.54 GiB a node.",
        "Lower --max-num-seqs from 6 to 2: asks 17.10 GiB less of the cache when all are full.",
        "Lower --gpu-memory-utilization-gb to 108: leaves 2.00 GiB more to the host.",
        "Lower --max-num-batched-tokens from 8192 to 4096: frees 7.66 GiB a node.",
        "Use Marlin for FP4 instead of FlashInfer, whose autotuner keeps its high-water mark: frees 5.44 GiB a node.",
        "Switch torch.compile and CUDA graphs off, about 3 % slower: frees 1.10 GiB a node.",
    ]
    assert [each.resolves for each in budget.suggestions] == [False, False, False, True, False, False, False]


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
    assert found.action == "Set --max-num-seqs to 310, below vLLM's default of 1024: frees 0.00 GiB a node."
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


def test_a_cache_mode_that_holds_more_is_noted_also_where_all_fits() -> None:
    budget = evaluate(ultra())
    note = next(each for each in budget.notes if "--mamba-cache-mode all" in each)
    aligned = figures(evaluate(ultra(mamba_cache_mode="align")))
    assert note.endswith(f"with --mamba-cache-mode align the same pool holds {aligned.max_concurrency:.2f}.")
    assert aligned.max_concurrency > 3.9 * figures(budget).max_concurrency
    assert not any("cache-mode" in each for each in evaluate(ultra(mamba_cache_mode="align")).notes)
