# SPDX-License-Identifier: Apache-2.0
"""Verdicts: refused, tight, fits and unknown, each with its sentence, and the notes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    GatedConv,
    Mamba1,
    Mamba2,
    Recurrent,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    FITS,
    REFUSED,
    TIGHT,
    UNKNOWN,
    Figures,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate, unknown
from tests.unit.plugins.module_utils.memory_models import (
    DENSE,
    figures,
    nano,
    qwen397,
    ultra,
)


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
        "prefill in steps of 8192 tokens 2.25 GiB, which is 1.48 GiB too much for a margin of 0.50 GiB (floor_gib); "
        "the safe ceiling is 108.52 GiB."
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
        "CUDA graphs want a cache block for each of max_num_seqs 1024 sequences, and the pool has 310: set "
        "max_num_seqs to 310 or less."
    ]
    assert evaluate(replace(settings, max_num_seqs=310)).verdict == FITS
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


@pytest.mark.parametrize(
    "recurrent", [Mamba1(63, 16384, 16, 4, "bfloat16"), GatedConv(63, 16384, 3)], ids=["mamba1", "short_conv"]
)
def test_channels_that_do_not_split(recurrent: Recurrent) -> None:
    settings = qwen397(tensor_parallel_size=3, expert_parallel=True)
    budget = evaluate(replace(settings, geometry=replace(settings.geometry, recurrent=recurrent)))
    assert "vLLM cannot split 16384 channels of the recurrent layers over 3 ranks." in budget.reasons


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
