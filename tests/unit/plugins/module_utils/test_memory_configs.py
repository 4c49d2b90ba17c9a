# SPDX-License-Identifier: Apache-2.0
"""Models read from the config.json of their repository, as published and damaged."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._memory.config_json import (
    KNOWN_ARCHITECTURES,
    checkpoint_kv_dtype,
    geometry_from_hf_config,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    UnknownGeometryError,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import MIB, rules_for
from ansible_collections.gb10.cluster.plugins.module_utils._memory.layout import Asked, plan_layout
from ansible_collections.gb10.cluster.plugins.module_utils._memory.parts import ALWAYS
from ansible_collections.gb10.cluster.plugins.module_utils._memory.sparse import indexer_buffer_bytes
from tests.unit.plugins.module_utils.hostile import bounded

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "memory"
CLASSES: dict[str, dict[str, Any]] = yaml.safe_load((FIXTURES / "classes.yml").read_text(encoding="utf-8"))
CONFIGS = FIXTURES / "config"
EXPECTED: dict[str, Any] = yaml.safe_load((CONFIGS / "expected.yml").read_text(encoding="utf-8"))


def config_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize(
    ("bound", "version", "blocks"), [(None, (0, 30, 0), 2), (-5.0, (0, 30, 0), 3), (-5.0, (0, 28, 0), 2)]
)
def test_a_bounded_gate_exports_a_checkpoint_from_0_29_on(
    bound: float | None, version: tuple[int, int, int], blocks: int
) -> None:
    values = config_of("kimi-linear-48b-a3b")
    section = values["linear_attn_config"] | {"gate_lower_bound": bound}
    around = {
        "architectures": ["KimiK3ForConditionalGeneration"],
        "text_config": values | {"linear_attn_config": section},
    }
    asked = Asked(
        tensor_parallel_size=1, kv_cache_dtype="auto", ssm_dtype="auto", speculative_tokens=0, block_granularity=16,
        prefix_caching=True, cache_mode=None, rules=rules_for(version),
    )  # fmt: skip
    assert plan_layout(geometry_from_hf_config(around), asked).state.fixed_blocks == blocks


@pytest.mark.parametrize(
    ("name", "max_model_len", "version", "expected"),
    [
        ("deepseek-v3.2", 163840, (0, 30, 0), 865_075_200),  # vLLM's own comment names the sum: 825 MB
        ("deepseek-v4.1-flash", 1048576, (0, 30, 0), 40 * 1048576 * 132),
        ("deepseek-v4.1-flash", 1048576, (0, 32, 0), 16 * 1048576 * 132),
        ("deepseek-v4.1-flash", 262144, (0, 32, 0), 40 * 262144 * 132),
        ("deepseek-v4-flash-0731", 1048576, (0, 31, 0), 10 * 1048576 * 132),
        ("glm-5.3-flash", 1048576, (0, 33, 0), 4 * 1048576 * 132),
        ("qwen3.8-flash-next", 262144, (0, 33, 0), None),
        ("minimax-m3", 262144, (0, 33, 0), None),
        ("gpt-oss-120b", 131072, (0, 33, 0), None),
    ],
)
def test_an_indexer_reserves_keys_of_several_contexts(
    name: str, max_model_len: int, version: tuple[int, int, int], expected: int | None
) -> None:
    found = indexer_buffer_bytes(geometry_from_hf_config(config_of(name)), max_model_len, rules_for(version))
    assert found == (0 if expected is None else expected + 512 * MIB)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_repository_is_read_from_its_config(name: str) -> None:
    expected = {key: value for key, value in EXPECTED[name].items() if key != "source"}
    found = geometry_from_hf_config(config_of(name))
    values = config_of(name)
    text = values.get("text_config", values)
    common = {
        "architecture": values["architectures"][0],
        "layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "max_position_embeddings": text.get("max_position_embeddings") or text["model_max_length"],
        "vocab_size": text["vocab_size"],
    }
    dense = {"intermediate_size": found.intermediate_size} if found.intermediate_size else {}
    assert found == geometry_from_dict(common | dense | expected)
    assert EXPECTED[name]["source"]


def described(name: str) -> dict[str, Any]:
    """Return the shape of a repository as a model's file says it."""
    found = geometry_from_hf_config(config_of(name))
    shape = {key: value for key, value in asdict(found).items() if value not in (None, ())}
    for key, value in shape.items():
        if isinstance(value, dict):
            shape[key] = {each: kept for each, kept in value.items() if kept not in (None, 0, False)}
    if found.recurrent:
        shape["recurrent"]["kind"] = found.recurrent.kind
    shape["windows"] = [{key: value for key, value in asdict(each).items() if value} for each in found.windows]
    return shape


@pytest.mark.parametrize("name", EXPECTED)
def test_a_shape_without_what_its_class_always_keeps_is_unknown(name: str) -> None:
    shape = described(name)
    assert geometry_from_dict(shape) == geometry_from_hf_config(config_of(name))
    for path, (what, classes) in ALWAYS.items():
        if shape["architecture"] not in classes:
            continue
        without = copy.deepcopy(shape)
        *above, last = path
        del (without[above[0]] if above else without)[last]
        if path == ("attention", "latent_dim"):
            without.pop("indexer", None)
        with pytest.raises(UnknownGeometryError) as caught:
            geometry_from_dict(without)
        assert any(
            f"geometry.{'.'.join(path)} is missing: {shape['architecture']} keeps {what}" in sentence
            for sentence in caught.value.missing
        )


def test_the_classes_that_always_keep_more_are_ones_that_are_read() -> None:
    named = {each for _what, classes in ALWAYS.values() for each in classes}
    assert named <= set(KNOWN_ARCHITECTURES)


def test_every_config_has_an_expectation() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(EXPECTED)
    assert len(EXPECTED) >= 10


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("deepseek-v3.2", {"index_topk_pattern": "S" * 61},
         "config.json has an index_topk_pattern that leaves no layer an indexer."),
        ("deepseek-v4-flash-0731", {"compress_ratios": [2] * 46},
         "config.json has no compress_ratios of 4 and 128 (and 0) for its 43 layers."),
        ("deepseek-v4-flash-0731", {"compress_ratios": [[4]] * 46},
         "config.json has no compress_ratios of 4 and 128 (and 0) for its 43 layers."),
        ("kimi-linear-48b-a3b", {"linear_attn_config": None},
         "config.json has no linear_attn_config with kda_layers and full_attn_layers."),
    ],
)  # fmt: skip
def test_a_variant_without_a_rule_is_unknown(name: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(config_of(name) | change)
    assert sentence in caught.value.missing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer_types": None}, "config.json does not list which layers are of which kind (layer_types)."),
        ({"layer_types": ["odd"] * 45},
         "config.json has layers of type odd, whose cache the memory model cannot size."),
        ({"layer_types": ["linear_attention"]}, "config.json lists 1 layer_types for 45 layers."),
        ({"linear_attn_config": {"num_heads": 64, "head_dim": 128}},
         "config.json has no short_conv_kernel_size or linear_conv_kernel_dim that is a whole number above zero."),
    ],
)  # fmt: skip
def test_a_wrapped_variant_without_a_rule_is_unknown(change: dict[str, Any], sentence: str) -> None:
    values = config_of("glm-5.3-flash")
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(values | {"text_config": values["text_config"] | change})
    assert sentence in caught.value.missing


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({}, None),
        ({"index_topk_freq": 1}, None),
        # Layers 0, 1, 5, 9, … 57: vLLM counts from the layer before the offset.
        ({"index_topk_freq": 4}, 16),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, 17),
        ({"index_topk_pattern": "F" + "S" * 60}, 1),
        ({"index_topk_freq": 4, "index_topk_pattern": "F" * 61}, None),
    ],
)
def test_an_indexer_that_serves_several_layers_is_counted_once(change: dict[str, Any], layers: int | None) -> None:
    indexer = geometry_from_hf_config(config_of("deepseek-v3.2") | change).indexer
    assert indexer is not None
    assert indexer.layers == layers


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("deepseek-v4.1-flash", {"compress_ratios": [4] * 40},
         "config.json has no compress_ratios of 2 and 1 (and 0) for its 40 layers."),
        ("deepseek-v4.1-flash", {"kv_source_layer_ids": [0, 2]},
         "config.json has no kv_source_layer_ids of layers whose ratio is 2 or 1."),
        ("deepseek-v4.1-flash", {"kv_source_layer_ids": [2, 99]},
         "config.json has no kv_source_layer_ids of layers whose ratio is 2 or 1."),
        ("minimax-m3", {"sparse_attention_config": None},
         "config.json has no sparse_attention_config with sparse_attention_freq of 60 figures."),
        ("minimax-m3", {"sparse_attention_config": {"sparse_attention_freq": [1] * 60}},
         "config.json has no sparse_index_dim that is a whole number above zero."),
        ("gemma-4-31b-it", {"layer_types": ["odd"]}, "config.json lists 1 layer_types for 60 layers: odd."),
        ("gemma-4-31b-it", {"use_bidirectional_attention": "all"},
         "config.json attends in both directions everywhere, which the memory model has no rule for."),
        ("gemma-4-31b-it", {"num_kv_shared_layers": 60},
         "config.json has no layer of full attention: the memory model needs one."),
    ],
)  # fmt: skip
def test_a_text_config_without_a_rule_is_unknown(name: str, change: dict[str, Any], sentence: str) -> None:
    values = config_of(name)
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(values | {"text_config": values["text_config"] | change})
    assert sentence in caught.value.missing


def test_gemma_4_whose_layers_all_share_a_cache_is_unknown() -> None:
    values = config_of("gemma-4-31b-it")
    shared = values["text_config"] | {"num_kv_shared_layers": values["text_config"]["num_hidden_layers"] + 2}
    with pytest.raises(UnknownGeometryError) as caught:
        geometry_from_hf_config(values | {"text_config": shared})
    assert "config.json has no layer of full attention: the memory model needs one." in caught.value.missing


NUMBERS = st.integers(-2, 2**70) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)


VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))


@settings(bounded, max_examples=150)
@given(st.sampled_from(sorted([*EXPECTED, *CLASSES])), st.data())
def test_a_damaged_config_is_a_geometry_or_unknown(name: str, data: st.DataObject) -> None:
    """Whatever stands in place of a value: never another exception, and never minutes of work."""
    values = copy.deepcopy(CLASSES[name]) if name in CLASSES else config_of(name)
    inner = values["text_config"] if "text_config" in values and data.draw(st.booleans()) else values
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(VALUES)
    with contextlib.suppress(UnknownGeometryError):
        assert geometry_from_hf_config(values).layers > 0


def test_gemma_4_without_layer_types_follows_the_default_of_its_class() -> None:
    values = config_of("gemma-4-31b-it")
    text = {key: value for key, value in values["text_config"].items() if key != "layer_types"}
    assert geometry_from_hf_config(values | {"text_config": text}) == geometry_from_hf_config(values)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        (None, "auto"),
        ({"quant_method": "mxfp4"}, "auto"),
        ({"quant_method": "awq", "kv_cache_quant_algo": "FP8"}, "auto"),
        ({"quant_method": "gptq"}, "auto"),
        ({"quant_method": "auto-round"}, "auto"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "auto"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}, "fp8"),
        ({"quant_method": "modelopt_fp4", "kv_cache_quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"type": "float", "num_bits": 8, "dynamic": True}}, "auto"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"type": "float", "num_bits": 4}}, "nvfp4"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"type": "int", "num_bits": 8, "dynamic": False}}, "auto"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "fp8"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, "auto"),
    ],
)
def test_what_auto_means_for_the_cache_of_a_quantised_checkpoint(quantization: object, dtype: str) -> None:
    assert checkpoint_kv_dtype(quantization) == dtype
