# SPDX-License-Identifier: Apache-2.0
"""Model files of vllm-project/recipes are read as their site reads them for a GB10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import source
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.command import read_command
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import command_of, read_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mapping import Known, to_model
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import Recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

OPTIONS = serve_files.load_tables()["0.30.0"]["options"]


def some(**more: Any) -> dict[str, Any]:
    """Return a file for this machine, with parts replaced."""
    return {
        "meta": {"slug": "some-model", "hardware": {"dgx_spark_gb10": "verified"}},
        "model": {
            "model_id": "org/some-model",
            "base_args": ["--max-model-len", "65536", "--trust-remote-code"],
            "base_env": {"VLLM_B": 1},
        },
        "features": {"reasoning": {"args": ["--reasoning-parser", "qwen3"]}},
        "hardware_overrides": {"dgx_spark_gb10": {"extra_args": ["--max-num-seqs", "4"], "extra_env": {"VLLM_C": "x"}}},
        **more,
    }


def read(data: dict[str, Any], variant: str = "") -> Recipe:
    return read_recipe(yaml.safe_dump(data, sort_keys=False), "x.yaml", None, variant)


def options(data: dict[str, Any], variant: str = "") -> dict[str, Any]:
    return read_command(command_of(read(data, variant)), OPTIONS).serve


def test_base_features_and_the_settings_for_this_machine() -> None:
    recipe = read(some(variants={"default": {"model_id": "org/some-model"}}))
    assert (recipe.name, recipe.container, recipe.env, recipe.left) == (
        "some-model",
        "vllm/vllm-openai:latest",
        {"VLLM_B": "1", "VLLM_C": "x"},
        {},
    )
    assert options(some()) == {
        "max-model-len": 65536,
        "trust-remote-code": True,
        "reasoning-parser": "qwen3",
        "max-num-seqs": 4,
    }


def test_what_is_not_read_is_named() -> None:
    found = some(guide="read me", dependencies=[{"command": "pip install x"}], a_key_of_tomorrow=1)
    found["model"] |= {"min_vllm_version": "1.0.0", "architecture": "moe"}
    found["hardware_overrides"]["h100"] = {"extra_args": ["--x"]}
    found["strategy_overrides"] = {"pd_cluster": {"prefill": {}}}
    assert read(found).left == {
        "hardware_overrides.h100": "it is for another machine",
        "strategy_overrides.pd_cluster": "the ranks of an engine here are tensor parallel, one on each node; "
        "model_overrides changes that",
        "model.min_vllm_version": "it says 1.0.0; whether the image is new enough shows in its own check",
        "model.architecture, guide": "it describes the recipe to readers",
        "dependencies": "an image is taken as it is; what it needs besides is a step of an image in gb10_images",
        "a_key_of_tomorrow": "this project has nothing of that name",
    }


VARIANTS = {
    "default": {
        "model_id": "org/some-model-fp8",
        "extra_args": ["--kv-cache-dtype", "fp8", "--max-num-seqs", "16"],
        "extra_env": {"VLLM_D": "1"},
        "docker_image": "vllm/vllm-openai:v0.25.0",
        "default_modes": {"spec_decoding": "dspark"},
        "hardware_overrides": {
            "dgx_spark_gb10": {
                "docker_image": "eugr/spark-vllm-b12x:latest",
                "extra_args": ["--moe-backend", "b12x"],
                "extra_env": {"VLLM_E": "1"},
            },
            "blackwell": {"extra_args": ["--moe-backend", "deep_gemm", "--block-size", "256"]},
            "h100": {"extra_args": ["--x"]},
        },
    },
    "nvfp4": {"model_id": "nvidia/some-model-NVFP4", "precision": "nvfp4"},
}
MODES = {
    "default_mode": "mtp",
    "modes": {
        "mtp": {"variants": ["nvfp4"], "args": ["--speculative-config", '{"method":"mtp"}']},
        "dspark": {
            "variants": ["default"],
            "args": ["--speculative-config", '{"method":"dspark","num_speculative_tokens":7}'],
            "hardware_overrides": {
                "dgx_spark_gb10": {"args": ["--speculative-config", '{"method":"dspark","num_speculative_tokens":5}']}
            },
        },
    },
}


def test_the_default_variant_brings_its_checkpoint_image_and_settings() -> None:
    data = some(variants=VARIANTS, features={"spec_decoding": MODES}, opt_in_features=["spec_decoding"])
    recipe = read(data)
    assert (recipe.name, recipe.model, recipe.container) == (
        "some-model",
        "org/some-model-fp8",
        "eugr/spark-vllm-b12x:latest",
    )
    assert recipe.env == {"VLLM_B": "1", "VLLM_C": "x", "VLLM_D": "1", "VLLM_E": "1"}
    assert options(data) == {
        "max-model-len": 65536,
        "trust-remote-code": True,
        "kv-cache-dtype": "fp8",
        "max-num-seqs": 4,
        "moe-backend": "b12x",
        "block-size": 256,
        "speculative-config": {"method": "dspark", "num_speculative_tokens": 5},
    }, "this machine's settings count over its generation's, and a mode that the variant asks for is on"
    assert recipe.left == {
        "variants": "default is taken; <file>:<variant> chooses another: nvfp4 (nvidia/some-model-NVFP4)",
        "variants.default.hardware_overrides.h100": "it is for another machine",
        "features.spec_decoding": "the mode dspark is taken; left out: mtp",
    }


def test_another_variant_is_chosen_by_its_name() -> None:
    data = some(variants=VARIANTS, features={"spec_decoding": MODES}, opt_in_features=["spec_decoding"])
    recipe = read(data, "nvfp4")
    assert (recipe.name, recipe.model, recipe.container) == (
        "some-model nvfp4",
        "nvidia/some-model-NVFP4",
        "vllm/vllm-openai:latest",
    )
    assert recipe.left["features.spec_decoding"] == (
        'it is off unless asked for: --speculative-config \'{"method":"mtp"}\''
    )
    with pytest.raises(RecipeError, match=r"x\.yaml has no variant 'int4'; it has: default, nvfp4"):
        read(data, "int4")
    with pytest.raises(RecipeError, match=r"x\.yaml has no variant 'int4': its format has none"):
        read_recipe("model: org/m\nruntime: vllm\ncontainer: c", "x.yaml", None, "int4")


def test_features_that_are_off_stay_off_but_for_parsers() -> None:
    data = some(
        features={
            "tool_calling": {"args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]},
            "text_only": {"args": ["--language-model-only"]},
            "dcp": {"args": ["-dcp", "2"], "strategies": ["multi_node_tp"]},
            "fast": {"args": ["--x"], "hardware": {"blackwell": "unsupported"}},
            "encoder": {"args": ["--y"], "hardware_overrides": {"nvidia": {"args": ["--mm-encoder-tp-mode", "data"]}}},
        },
        opt_in_features=["tool_calling", "text_only"],
    )
    assert options(data).keys() - options(some()).keys() == {
        "enable-auto-tool-choice",
        "tool-call-parser",
        "mm-encoder-tp-mode",
    }
    assert read(data).left == {
        "features.text_only": "it is off unless asked for: --language-model-only",
        "features.dcp": "it is not for single_node_tp",
        "features.fast": "it is not for this variant or machine",
    }


@pytest.mark.parametrize(
    ("needed", "nodes"), [(64, 1), (128, 1), (200, 2), (298, 4), (1680, 16), ("many", 1), (None, 1)]
)
def test_a_variant_gets_as_many_nodes_as_it_needs_memory(needed: Any, nodes: int) -> None:
    data = some(
        variants={"default": {"vram_minimum_gb": needed}},
        strategy_overrides={
            "single_node_tp": {"extra_args": ["--block-size", "16"]},
            "multi_node_tp": {"hardware_overrides": {"blackwell": {"extra_args": ["--block-size", "32"]}}},
        },
    )
    found = options(data)
    assert found.get("tensor-parallel-size", 1) == nodes
    assert found["block-size"] == (16 if nodes == 1 else 32)
    assert ("nodes" in read(data).left) == (nodes > 1)
    assert to_model(read(data), "x.yaml", Known()).spec["nodes"] == nodes
    data["model"]["base_args"] += ["--tensor-parallel-size", "2"]
    assert options(data)["tensor-parallel-size"] == 2


@pytest.mark.parametrize(
    ("image", "more", "expected"),
    [
        ({"nvidia": "a/b:1", "amd": "c/d:1"}, {}, "a/b:1"),
        ({"nvidia": {"cu130": "a/b:13", "cu129": "a/b:12"}}, {}, "a/b:13"),
        ({"cu129": "a/b:12"}, {}, "a/b:12"),
        ({"amd": "c/d:1"}, {}, "vllm/vllm-openai:latest"),
        (None, {"nightly_required": True}, "vllm/vllm-openai:nightly"),
    ],
)
def test_images(image: Any, more: dict[str, Any], expected: str) -> None:
    found = some()
    found["model"] |= {"docker_image": image, **more}
    assert read(found).container == expected


def test_a_file_that_does_not_name_this_machine_keeps_its_generation_for_others() -> None:
    data = some(meta={"hardware": {"b200": "verified"}}, hardware_overrides={"blackwell": {"extra_args": ["--x"]}})
    assert read(data).left == {
        "meta.hardware": "the recipe does not name this machine: its figures and options are for others",
        "hardware_overrides.blackwell": "it is for other machines of this generation, as the recipe does not name this "
        "one",
    }
    assert "x" not in options(data)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"omni": {"tasks": []}}, "is for vLLM-Omni, which makes images, sound or video"),
        ({"meta": {"hardware": {"dgx_spark_gb10": "unsupported"}}}, "does not run on this machine yet"),
        ({"features": [1]}, "'features' must be a mapping, found list"),
        ({"variants": {"default": 1}}, "'default' must be a mapping, found int"),
        ({"variants": {"default": {"extra_args": "--x"}}}, "'extra_args' must be a list, found str"),
        ({"features": {"x": {"modes": {"a": {"hardware_overrides": 1}}}}}, "'hardware_overrides' must be a mapping"),
        ({"opt_in_features": "x"}, "'opt_in_features' must be a list, found str"),
        ({"meta": "x"}, "'meta' must be a mapping, found str"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(some(**more))
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.yaml")


def test_a_variant_stands_behind_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump(some(variants=VARIANTS)), encoding="utf-8")
    found = source.find(f"{path}:nvfp4")
    assert (found.files, found.read(path).model) == ([path], "nvidia/some-model-NVFP4")
    assert source.find(str(path)).read(path).model == "org/some-model-fp8"
