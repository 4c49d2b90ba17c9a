# SPDX-License-Identifier: Apache-2.0
"""Every wrong budget and geometry gets a sentence that says what is wrong with it; none is accepted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import GeometryError, geometry_from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import MemoryModelError, Settings
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]
ULTRA = MODELS["ultra"]

#: What makes it wrong (path in the geometry -> value; None removes the key) -> the sentence.
GEOMETRY: list[tuple[dict[str, Any], str]] = [
    ({"architecture": None}, "geometry.architecture is missing: it must be a text."),
    ({"architecture": ""}, "geometry.architecture is '', but it must be a text."),
    ({"layers": "108"}, "geometry.layers is '108', but it must be a whole number above zero."),
    ({"layers": -1}, "geometry.layers is -1, but it must be a whole number above zero."),
    ({"layers": 59}, "geometry.layers is 59, but attention and recurrent layers alone are 60."),
    ({"hidden_size": 8192.5}, "geometry.hidden_size is 8192.5, but it must be a whole number above zero."),
    ({"hidden_size": True}, "geometry.hidden_size is True, but it must be a whole number above zero."),
    ({"hiden_size": 8192}, "geometry.hiden_size is not a key that the memory model knows: did you mean hidden_size?"),
    (
        {"zzz": 1},
        "geometry.zzz is not a key that the memory model knows: known are architecture, attention, compressed, dtype, "
        "hidden_size, indexer, intermediate_size, kv_cache_dtype, layers, max_position_embeddings, moe, mtp, "
        "recurrent, short_conv, vocab_size, windows.",
    ),
    ({"dtype": "fp8"}, "geometry.dtype is 'fp8', but it must be one of float32, float16, bfloat16."),
    ({"attention": None}, "geometry.attention is missing: it must be a dictionary."),
    ({"attention": 12}, "geometry.attention is 12, but it must be a dictionary."),
    ({"attention.kv_heads": None}, "geometry.attention.kv_heads is missing: it must be a whole number above zero."),
    ({"attention.kv_heads": 0}, "geometry.attention.kv_heads is 0, but it must be a whole number above zero."),
    ({"attention.kv_heads": 5}, "geometry.attention.heads is 64, which is not a multiple of its 5 kv_heads."),
    (
        {"attention.num_kv_heads": 2},
        "geometry.attention.num_kv_heads is not a key that the memory model knows: did you mean kv_heads?",
    ),
    ({"recurrent": "mamba2"}, "geometry.recurrent is 'mamba2', but it must be a dictionary."),
    (
        {"recurrent.kind": "mamba3"},
        "geometry.recurrent.kind is 'mamba3', but it must be one of mamba1, mamba2, gated_delta_net, kda, short_conv.",
    ),
    (
        {"recurrent.kind": None},
        "geometry.recurrent.kind is None, but it must be one of mamba1, mamba2, gated_delta_net, kda, short_conv.",
    ),
    (
        {"recurrent.k_heads": 16},
        "geometry.recurrent.k_heads is not a key that the memory model knows: did you mean heads?",
    ),
    (
        {"recurrent.state_dtype": "auto"},
        "geometry.recurrent.state_dtype is 'auto', but it must be one of float32, float16, bfloat16.",
    ),
    (
        {"recurrent.conv_kernel": None},
        "geometry.recurrent.conv_kernel is missing: it must be a whole number above zero.",
    ),
    ({"layers": 10_001}, "geometry.layers is larger than any model's: 10000 at most."),
    ({"attention.layers": 10**400}, "geometry.attention.layers is larger than any model's: 10000 at most."),
    ({"hidden_size": 10**400}, "geometry.hidden_size is larger than any model's: 2147483647 at most."),
    ({"mtp.weights_gib": float("inf")}, "geometry.mtp.weights_gib is inf, but it must be a number above zero."),
    ({"moe": [512, 22]}, "geometry.moe is [512, 22], but it must be a dictionary."),
    ({"moe.experts_per_token": 600}, "geometry.moe.experts_per_token is 600, but there are only 512 experts."),
    (
        {"moe.expert_intermediate_size": None},
        "geometry.moe.expert_intermediate_size is missing: it must be a whole number above zero.",
    ),
    ({"moe.layers": 109}, "geometry.moe.layers is 109, but the model has 108 layers."),
    ({"mtp.weights_gib": -1}, "geometry.mtp.weights_gib is -1, but it must be a number above zero."),
    ({"mtp.layers": None}, "geometry.mtp.layers is missing: it must be a whole number above zero."),
]

#: Changed settings -> the sentence.
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"weights_gib": 0.0}, "weights_gib is 0.0, but it must be above zero (GiB)."),
    ({"weights_gib": -329.0}, "weights_gib is -329.0, but it must be above zero (GiB)."),
    ({"weights_gib": float("nan")}, "weights_gib is nan, but it must be above zero (GiB)."),
    ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0, but it must be above zero (ranks)."),
    ({"max_model_len": -2}, "max_model_len is -2, but it must be above zero (tokens)."),
    ({"max_num_seqs": 0}, "max_num_seqs is 0, but it must be above zero (sequences)."),
    ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0, but it must be above zero (tokens)."),
    (
        {"max_num_batched_tokens": 4},
        "max_num_batched_tokens is 4, below max_num_seqs 6: every running sequence needs a token in each step.",
    ),
    ({"speculative_tokens": -3}, "speculative_tokens is -3, but it must be zero or more."),
    ({"block_granularity": 0}, "block_granularity is 0, but it must be above zero (tokens)."),
    (
        {"kv_cache_dtype": "int4"},
        "kv_cache_dtype is 'int4', but it must be one of auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2, fp8_inc, "
        "int8_per_token_head, fp8_per_token_head, nvfp4, fp8_ds_mla, nvfp4_ds_mla.",
    ),
    ({"ssm_dtype": "fp8"}, "ssm_dtype is 'fp8', but it must be one of auto, float32, float16, bfloat16."),
    ({"mamba_cache_mode": "some"}, "mamba_cache_mode is 'some', but it must be one of none, align, all."),
    ({"fp4_backend": "cutlass"}, "fp4_backend is 'cutlass', but it must be one of marlin, flashinfer."),
    ({"device": "gpu"}, "device is 'gpu', but it must be one of cuda, cpu."),
    ({"vllm_version": ""}, "vllm_version is '', which names no release such as 0.22.1."),
    (
        {"vllm_version": "26.05.post1-py3"},
        "vllm_version is '26.05.post1-py3', which names no release such as 0.22.1.",
    ),
    ({"vllm_version": "latest"}, "vllm_version is 'latest', which names no release such as 0.22.1."),
    (
        {"budget_gib": None},
        "Nothing says how much memory the engine gets: give budget_gib, gpu_memory_utilization or kv_cache_memory_gib.",
    ),
    ({"budget_gib": 0.0}, "budget_gib is 0.0, but it must be above zero (GiB)."),
    ({"budget_gib": float("inf")}, "budget_gib is inf, but it must be above zero (GiB)."),
    (
        {"gpu_memory_utilization": 0.9},
        "budget_gib and gpu_memory_utilization exclude one another: give one of them.",
    ),
    ({"kv_cache_memory_gib": 4.0}, "budget_gib and kv_cache_memory_gib exclude one another: give one of them."),
    (
        {"gpu_memory_utilization": 0.9, "kv_cache_memory_gib": 4.0},
        "budget_gib and gpu_memory_utilization and kv_cache_memory_gib exclude one another: give one of them.",
    ),
    (
        {"budget_gib": None, "gpu_memory_utilization": 90.0},
        "gpu_memory_utilization is 90.0, but it is a share above 0 and at most 1; a number of GiB goes into "
        "budget_gib.",
    ),
    (
        {"budget_gib": None, "gpu_memory_utilization": 0.0},
        "gpu_memory_utilization is 0.0, but it is a share above 0 and at most 1; a number of GiB goes into budget_gib.",
    ),
    (
        {"budget_gib": None, "kv_cache_memory_gib": -1.0},
        "kv_cache_memory_gib is -1.0, but it must be above zero (GiB).",
    ),
    ({"floor_gib": -1.0}, "floor_gib is -1.0, but it must be zero or more (GiB)."),
    ({"firm_cap_gib": 0.0}, "firm_cap_gib is 0.0, but it must be above zero (GiB)."),
    ({"mem_total_gib": 0.0, "mem_available_gib": None}, "mem_total_gib is 0.0, but it must be above zero (GiB)."),
    ({"mem_available_gib": 0.0}, "mem_available_gib is 0.0, but it must be above zero (GiB)."),
    (
        {"mem_total_gib": 111.27, "mem_available_gib": 119.0},
        "mem_available_gib is 119.0, but the node has 111.27 GiB in all: are the two swapped?",
    ),
    (
        {"weights_gib": 20.0},
        "geometry.mtp.weights_gib is 20.9, but weights_gib, which includes the MTP head, is only 20.0.",
    ),
]

#: Settings that are right in themselves and could not run -> part of the refusal.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"budget_gib": 1.0}, "Nothing is left for the cache: a budget of 1.00 GiB less 82.25 GiB of weights"),
    ({"budget_gib": 82.0}, "Nothing is left for the cache"),
    ({"budget_gib": 0.9}, "Nothing is left for the cache"),
    ({"budget_gib": 110.0}, "It would start and die at the first long prompt"),
    ({"budget_gib": 119.0}, "vLLM would refuse to start: it wants 119.00 GiB free and finds 111.27 GiB"),
    ({"budget_gib": 128.0}, "The budget of 128.00 GiB is 107.6 % of the node's 119.00 GiB"),
    ({"firm_cap_gib": 100.0}, "is 8.00 GiB above this cluster's firm cap of 100.00 GiB."),
    ({"max_num_batched_tokens": 16384}, "a prefill in steps of 16384 tokens"),
    ({"tensor_parallel_size": 2}, "Nothing is left for the cache: a budget of 108.00 GiB less 164.50 GiB of weights"),
    ({"tensor_parallel_size": 5}, "vLLM cannot split 64 attention heads over 5 ranks."),
    ({"max_model_len": 1048576}, "The cache is too small: one sequence of 1048576 tokens takes"),
    ({"kv_cache_dtype": "bfloat16", "max_model_len": 524288}, "The cache is too small"),
    ({"mem_available_gib": 90.0}, "vLLM would refuse to start: it wants 108.00 GiB free and finds 90.00 GiB"),
    ({"floor_gib": 12.0}, "too much for a margin of 12.00 GiB (floor_gib); the safe ceiling is 97.02 GiB."),
    ({"weights_gib": 379.0}, "left for the cache"),
]


def changed_geometry(changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(ULTRA["geometry"])
    for path, value in changes.items():
        *parents, key = path.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[key]
        else:
            section[key] = value
    return values


def changed_settings(changes: dict[str, Any]) -> Settings:
    values = {**ULTRA["settings"], "weights_gib": float(ULTRA["weights_gib"]), **changes}
    return Settings(geometry=geometry_from_dict(ULTRA["geometry"]), **values)


@pytest.mark.parametrize(("changes", "sentence"), GEOMETRY, ids=[next(iter(changes)) for changes, _unused in GEOMETRY])
def test_a_wrong_geometry(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GeometryError) as caught:
        geometry_from_dict(changed_geometry(changes))
    assert sentence in caught.value.problems


@pytest.mark.parametrize(
    ("changes", "sentence"),
    SETTINGS,
    ids=[" ".join(changes) for changes, _unused in SETTINGS],
)
def test_a_wrong_setting(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MemoryModelError) as caught:
        evaluate(changed_settings(changes))
    assert caught.value.problems == [sentence]


@pytest.mark.parametrize(("changes", "part"), REFUSED, ids=[str(changes) for changes, _unused in REFUSED])
def test_a_setting_that_could_not_run(changes: dict[str, Any], part: str) -> None:
    budget = evaluate(changed_settings(changes))
    assert budget.verdict == "refused"
    assert part in " ".join(budget.reasons)


def test_an_experts_switch_without_experts() -> None:
    geometry = {key: value for key, value in ULTRA["geometry"].items() if key != "moe"}
    settings = Settings(geometry=geometry_from_dict(geometry), weights_gib=329.0, **ULTRA["settings"])
    with pytest.raises(MemoryModelError) as caught:
        evaluate(settings)
    assert caught.value.problems == [
        "expert_parallel is set, but the geometry has no moe section: there are no experts to share."
    ]


def test_all_wrong_settings_at_once() -> None:
    with pytest.raises(MemoryModelError) as caught:
        evaluate(changed_settings({"weights_gib": -1.0, "budget_gib": None, "ssm_dtype": "x", "floor_gib": -2.0}))
    assert len(caught.value.problems) == 4
    assert str(caught.value) == " ".join(caught.value.problems)


def test_the_unchanged_case_is_right() -> None:
    assert evaluate(changed_settings({})).verdict == "tight"
    geometry_from_dict(changed_geometry({}))
