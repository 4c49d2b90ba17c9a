# SPDX-License-Identifier: Apache-2.0
"""The memory budget of a model whose shape is not known, from a measured cache."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.plugins.modules.test_memory_budget import NANO, call

POINT = {"pool_gib": 8.33, "tokens": 1306505, "source": "a report"}


def measured(capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    """Ask about a model without a shape: 155.4 GiB over two ranks on boxes of 119.7 GiB."""
    asked: dict[str, Any] = {
        "measured": [POINT], "weights_gib": 155.4, "vllm_version": "0.30.0", "tensor_parallel_size": 2,
        "max_model_len": 1048576, "mem_total_gib": 119.7, "mem_available_gib": 111.27, "kv_cache_memory_gib": 8.33,
    }  # fmt: skip
    return call(capsys, **{**asked, **changes})


def test_a_measured_cache_stands_in_for_an_unknown_shape(capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(capsys)
    assert result["verdict"] == "tight"
    assert result["reasons"] == [
        "A pool of 8.33 GiB a rank holds about 1306505 tokens: measured were 1306505 tokens in 8.33 GiB a rank "
        "(a report). The activations are not known."
    ]
    assert result["missing"] == ["The shape of the model is not given, so its cache is not computed."]


def test_a_length_that_vllm_chooses_follows_from_a_measured_cache(capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(capsys, max_model_len=-1, kv_cache_memory_gib=2.0)
    assert result["verdict"] == "tight"
    assert "about 313686 tokens" in result["reasons"][0]
    assert "max-model-len auto takes what one sequence of them fits" in result["reasons"][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kv_cache_memory_gib": 2.0}, "a pool of 2.00 GiB holds about 313686 tokens, 1048576 are asked for"),
        ({"kv_cache_memory_gib": 30.0}, "The node cannot spare it:"),
        ({"kv_cache_memory_gib": None, "budget_gib": 70.0}, "Nothing is left for the cache: of 70.00 GiB the weights"),
    ],
)
def test_a_measured_cache_that_does_not_suffice(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    result = measured(capsys, **changes)
    assert result["verdict"] == "refused"
    assert any(sentence in reason for reason in result["reasons"])


def test_a_point_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(capsys, measured=[{"pool_gib": 0.0, "tokens": 1}, {"pool_gib": 1.0, "tokens": 0}])
    assert result["problems"] == [
        "expected.kv_cache[0].pool_gib is 0.0, but it must be above zero (GiB a rank).",
        "expected.kv_cache[1].tokens is 0, but it must be a whole number above zero.",
    ]


def test_a_known_shape_goes_before_a_measured_cache(capsys: pytest.CaptureFixture[str]) -> None:
    with_point, without = call(capsys, **{**NANO, "measured": [POINT]}), call(capsys, **NANO)
    assert (with_point["verdict"], with_point["reasons"]) == (without["verdict"], without["reasons"])


def test_compressed_attention_described_as_plain_is_unknown_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {
        "architecture": "DeepseekV4ForCausalLM", "layers": 30, "hidden_size": 3072, "max_position_embeddings": 524288,
        "attention": {"layers": 30, "heads": 48, "kv_heads": 1, "head_dim": 512},
    }  # fmt: skip
    sentence = "geometry.compressed is missing: DeepseekV4ForCausalLM keeps a compressed cache"
    result = measured(capsys, geometry=plain)
    assert result["verdict"] == "tight"
    assert "holds about 1306505 tokens" in result["reasons"][0]
    assert result["missing"][0].startswith(sentence)
    result = measured(capsys, geometry=plain, measured=[])
    assert result["verdict"] == "unknown"
    assert result["missing"][0].startswith(sentence)
    compressed = {
        "layers": 30, "window_tokens": 128, "indexed_layers": 14, "pooled_layers": 14, "head_dim": 512,
        "index_head_dim": 128,
    }  # fmt: skip
    asked = {"geometry": {**plain, "compressed": compressed}, "kv_cache_dtype": "fp8", "max_model_len": 524288}
    result = measured(capsys, **asked, measured=[])
    assert result["verdict"] in ("fits", "tight")
    assert result["kv_cache_tokens"] > 524288
