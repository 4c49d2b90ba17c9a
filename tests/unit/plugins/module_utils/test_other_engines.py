# SPDX-License-Identifier: Apache-2.0
"""Engines that this project does not start are named in one sentence, and vLLM's own words are not taken for them."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe, other_engines
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms

SPEC: dict[str, Any] = {
    "name": "m",
    "repo": "org/m",
    "served_name": "m",
    "nodes": 1,
    "image": "i",
    "serve": {"quantization": "modelopt"},
}


@pytest.mark.parametrize(
    ("changes", "key", "engine"),
    [
        ({"engine": "sglang"}, "engine", "SGLang"),
        ({"engine": "trtllm"}, "engine", "TensorRT-LLM"),
        ({"engine": "TensorRT-LLM"}, "engine", "TensorRT-LLM"),
        ({"engine": "atlas"}, "engine", "Atlas"),
        ({"runtime": "sglang"}, "runtime", "SGLang"),
        ({"image": "lmsysorg/sglang:v0.5.11-cu130"}, "image", "SGLang"),
        ({"image": "nvcr.io/nvidia/tensorrt-llm/release:1.2"}, "image", "TensorRT-LLM"),
        ({"image": "ghcr.io/someone/atlas:latest"}, "image", "Atlas"),
        ({"repo": "someone/Some-Model-exl3"}, "repo", "ExLlamaV3 (EXL3)"),
        ({"serve": {"quantization": "exl3"}}, "serve.quantization", "ExLlamaV3 (EXL3)"),
    ],
)
def test_a_model_of_another_engine_is_refused_in_one_sentence(changes: dict[str, Any], key: str, engine: str) -> None:
    _spec, errors = ms.validate({**SPEC, **changes})
    assert len(errors) == 1
    assert errors[0].startswith(f"model_spec.{key} is '")
    assert errors[0].endswith(f": this project starts vLLM, and {engine} is another engine.")


@pytest.mark.parametrize("key", ["base", "pull"])
def test_an_image_of_another_engine_is_refused_in_one_sentence(key: str) -> None:
    _recipe, errors = image_recipe.resolve({"i": {key: "lmsysorg/sglang:latest"}}, "i")
    assert errors == [
        f"gb10_images.i.{key} is 'lmsysorg/sglang:latest': this project starts vLLM, and SGLang is another engine."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "ray",
        "native",
        "vllm/vllm-openai:v0.30.0",
        "flashinfer_trtllm",
        "atlas-lab/Some-Model",
        "org/Atlasia-9B",
        "nvcr.io/nvidia/vllm:26.05.post1-py3",
    ],
)
def test_words_of_vllm_are_not_taken_for_another_engine(text: str) -> None:
    assert other_engines.other_engine(text) == ""


def test_values_of_any_type_are_left_to_the_validation() -> None:
    assert other_engines.refusals({"engine": 7, "image": None, "serve": "sglang"}, "model_spec") == []
