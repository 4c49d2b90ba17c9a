# SPDX-License-Identifier: Apache-2.0
"""From a model file to the arguments of memory_budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import MemoryModelError
from ansible_collections.gb10.cluster.plugins.plugin_utils._memory.spec import (
    measured_points,
    memory_arguments,
    parse_number,
)

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]

ULTRA: dict[str, Any] = {
    "name": "big",
    "repo": "org/Big-NVFP4",
    "size_gib": 329,
    "serve": {
        "tensor-parallel-size": 4,
        "enable-expert-parallel": True,
        "kv-cache-dtype": "fp8",
        "gpu-memory-utilization-gb": 108,
        "max-model-len": 262144,
        "max-num-seqs": 6,
        "max-num-batched-tokens": 8192,
        "enable-prefix-caching": True,
        "mamba-ssm-cache-dtype": "float16",
        "moe-backend": "flashinfer_cutlass",
        "speculative-config": {"method": "nemotron_h_mtp", "num_speculative_tokens": 3},
        "trust-remote-code": True,
    },
    "env": {"VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm"},
    "geometry": MODELS["ultra"]["geometry"],
    "memory": {"firm_cap_gib": 110},
}


def spec(**changes: Any) -> dict[str, Any]:
    return {**ULTRA, **changes}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (262144, 262144.0),
        (0.9, 0.9),
        ("256k", 256000.0),
        ("1M", 1048576.0),
        ("8G", 2.0**33),
        ("1.5k", 1500.0),
        ("12", 12.0),
        ("8GiB", None),
        (10**400, None),
        ("9" * 400, None),
        (float("nan"), None),
        ("auto", None),
        (True, None),
        (None, None),
    ],
)
def test_numbers_as_vllm_reads_them(value: object, expected: float | None) -> None:
    assert parse_number(value) == expected


def test_everything_that_ultra_says() -> None:
    assert memory_arguments(ULTRA, "0.22.1") == {
        "geometry": MODELS["ultra"]["geometry"],
        "weights_gib": 329.0,
        "vllm_version": "0.22.1",
        "device": "cuda",
        "fp4_backend": "flashinfer",
        "kv_cache_dtype": "fp8",
        "ssm_dtype": "float16",
        "expert_parallel": True,
        "enable_prefix_caching": True,
        "tensor_parallel_size": 4,
        "max_model_len": 262144,
        "max_num_seqs": 6,
        "max_num_batched_tokens": 8192,
        "budget_gib": 108.0,
        "speculative_tokens": 3,
        "firm_cap_gib": 110.0,
    }


def test_the_budget_in_its_three_forms() -> None:
    share = memory_arguments(spec(serve={"max-model-len": "256k", "gpu-memory-utilization": 0.75}), "0.22.1")
    assert (share["gpu_memory_utilization"], share["max_model_len"]) == (0.75, 256000)
    pool = memory_arguments(spec(serve={"max-model-len": 8192, "kv-cache-memory-bytes": "8G"}), "0.22.1")
    assert pool["kv_cache_memory_gib"] == 8.0
    section = memory_arguments(
        spec(serve={"max-model-len": 8192}, memory={"budget_gib": 100, "floor_gib": 2}), "0.22.1"
    )
    assert (section["budget_gib"], section["floor_gib"]) == (100.0, 2.0)


def test_the_remaining_options() -> None:
    serve = {
        "max-model-len": 8192,
        "enforce-eager": True,
        "enable-prefix-caching": False,
        "mamba-cache-mode": "align",
        "block-size": 32,
    }
    found = memory_arguments(spec(serve=serve), "0.22.1")
    assert found["enforce_eager"] is True
    assert found["enable_prefix_caching"] is False
    assert found["mamba_cache_mode"] == "align"
    assert found["block_granularity"] == 32
    assert "speculative_tokens" not in found


@pytest.mark.parametrize(
    ("repo", "serve", "env", "backend"),
    [
        ("a/b-NVFP4", {}, {}, "flashinfer"),
        ("a/b-NVFP4", {"moe-backend": "marlin"}, {}, "marlin"),
        ("a/b-NVFP4", {"linear-backend": "marlin"}, {}, "marlin"),
        ("a/b-NVFP4", {}, {"VLLM_NVFP4_GEMM_BACKEND": "marlin"}, "marlin"),
        ("a/b-NVFP4", {"moe-backend": "flashinfer_cutlass"}, {"VLLM_NVFP4_GEMM_BACKEND": "marlin"}, "flashinfer"),
        ("a/b-FP8", {}, {}, "marlin"),
    ],
)
def test_the_kernels_of_fp4(repo: str, serve: dict[str, Any], env: dict[str, str], backend: str) -> None:
    found = memory_arguments(spec(repo=repo, serve={"max-model-len": 1, **serve}, env=env), "0.22.1")
    assert found["fp4_backend"] == backend


def test_without_a_geometry_the_path_of_the_model_is_the_callers() -> None:
    assert "geometry" not in memory_arguments(spec(geometry={}), "0.22.1")


def test_the_cpu_build_takes_its_pool_from_the_environment() -> None:
    serve = {"max-model-len": 2048, "gpu-memory-utilization": 0.5}
    found = memory_arguments(spec(serve=serve, env={"VLLM_CPU_KVCACHE_SPACE": "1"}, memory={}), "0.32.0+cpu", "cpu")
    assert found["kv_cache_memory_gib"] == 1.0
    assert "gpu_memory_utilization" not in found
    assert found["device"] == "cpu"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"serve": {"max-model-len": "long"}},
            "model_spec.serve.max-model-len is 'long', which is no number that vLLM reads.",
        ),
        (
            {"serve": {"max-model-len": 8192, "max-num-seqs": 1.5}},
            "model_spec.serve.max-num-seqs is 1.5, which is no number that vLLM reads.",
        ),
        (
            {"serve": {"max-model-len": 8192, "kv-cache-memory-bytes": "8GiB"}},
            "model_spec.serve.kv-cache-memory-bytes is '8GiB', which is no number that vLLM reads.",
        ),
        ({"serve": {}}, "model_spec.serve has no max-model-len: without it nothing can be sized."),
        (
            {"serve": {"max-model-len": 8192, "speculative-config": {"method": "mtp"}}},
            "model_spec.serve.speculative-config names no num_speculative_tokens, on which the size of the cache "
            "depends.",
        ),
        ({"memory": {"budget": 108}}, "model_spec.memory.budget is not known. Did you mean budget_gib?"),
        (
            {"memory": {"zzz": 108}},
            "model_spec.memory.zzz is not known. Known: budget_gib, gpu_memory_utilization, kv_cache_memory_gib, "
            "floor_gib, firm_cap_gib, "
            "weights_on_disk_gib.",
        ),
        ({"memory": {"budget_gib": 105}}, "model_spec.memory.budget_gib is 105, but model_spec.serve says 108."),
        ({"memory": {"floor_gib": "much"}}, "model_spec.memory.floor_gib is 'much', which is no number."),
    ],
)
def test_what_is_wrong_with_a_model(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MemoryModelError) as caught:
        memory_arguments(spec(**changes), "0.22.1")
    assert caught.value.problems == [sentence]


def test_a_cpu_pool_that_is_no_number() -> None:
    with pytest.raises(MemoryModelError) as caught:
        memory_arguments(spec(env={"VLLM_CPU_KVCACHE_SPACE": "some"}), "0.32.0", "cpu")
    assert caught.value.problems == ["model_spec.env.VLLM_CPU_KVCACHE_SPACE is 'some', which is no number of GiB."]


def test_a_model_without_a_geometry_is_read_from_its_weights() -> None:
    assert memory_arguments(spec(geometry={}), "0.22.1", weights_root="/srv/models")["config_json"] == (
        "/srv/models/org/Big-NVFP4"
    )
    assert "config_json" not in memory_arguments(ULTRA, "0.22.1", weights_root="/srv/models")


def test_caches_that_were_measured_are_found_in_both_places() -> None:
    point = {"pool_gib": 8.33, "tokens": 1306505, "source": "a report"}
    row = {"gpu_memory_utilization": 0.2, "kv_cache_gb": 4.2, "kv_cache_tokens": 292000, "loaded_gb": 32.1}
    measured = spec(expected={"kv_cache": [point], "memory": [row, {"loaded_gb": 3}]})
    assert measured_points(measured) == [point, {"pool_gib": 4.2, "tokens": 292000, "source": "no source"}]
    assert memory_arguments(measured, "0.22.1")["measured"] == measured_points(measured)


def test_a_draft_model_counts_with_its_weights_and_its_shape() -> None:
    drafter: dict[str, Any] = {"repo": "org/draft", "size_gib": 4.0}
    found = memory_arguments(spec(drafter=drafter), "0.22.1", weights_root="/srv/models")
    assert (found["weights_gib"], found["draft_weights_gib"]) == (329.0, 4.0)
    assert found["draft_config_json"] == "/srv/models/org/draft"
    shaped = memory_arguments(spec(drafter=drafter | {"geometry": {"layers": 5}}), "0.22.1", weights_root="/srv/models")
    assert (shaped["draft_geometry"], "draft_config_json" in shaped) == ({"layers": 5}, False)
    alone = {**ULTRA["serve"]["speculative-config"], "draft_tensor_parallel_size": 1}
    serve = {**ULTRA["serve"], "speculative-config": alone}
    # On one rank of four it is not divided: as if it were four times as large.
    assert memory_arguments(spec(drafter=drafter, serve=serve), "0.22.1")["draft_weights_gib"] == 16.0


def test_a_draft_model_that_nothing_uses_does_not_count() -> None:
    serve = {key: value for key, value in ULTRA["serve"].items() if key != "speculative-config"}
    found = memory_arguments(spec(drafter={"repo": "org/draft", "size_gib": 4.0}, serve=serve), "0.22.1")
    assert not any(key.startswith("draft") for key in found)


def test_a_search_in_the_text_has_no_layers() -> None:
    serve = {**ULTRA["serve"], "speculative-config": {"method": "ngram", "num_speculative_tokens": 3}}
    assert memory_arguments(spec(serve=serve), "0.22.1")["draft_has_layers"] is False


def test_weights_on_disk_take_no_memory() -> None:
    assert memory_arguments(spec(memory={"weights_on_disk_gib": 29}), "0.22.1")["weights_gib"] == 300.0
    for wrong in (-1, 330, "some"):
        with pytest.raises(MemoryModelError) as caught:
            memory_arguments(spec(memory={"weights_on_disk_gib": wrong}), "0.22.1")
        assert caught.value.problems == [
            f"model_spec.memory.weights_on_disk_gib is {wrong!r}, but it must be a number from 0 to size_gib, 329."
        ]


@pytest.mark.parametrize("length", ["auto", -1, "-1"])
def test_a_length_that_vllm_chooses_is_passed_on(length: object) -> None:
    assert memory_arguments(spec(serve={**ULTRA["serve"], "max-model-len": length}), "0.22.1")["max_model_len"] == -1
