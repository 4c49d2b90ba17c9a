# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import asserts as image_assert
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe

IMAGES: dict[str, Any] = {
    "node": {
        "base": "cuda:13",
        "packages": ["git"],
        "steps": [{"name": "vllm", "wheels": ["vllm-*.whl"]}],
        "env": {"A": "1"},
        "assertions": {"torch": "2.11.0+cu130"},
    },
    "tf5": {"from": "node", "steps": [{"name": "tf", "requirements": ["transformers>=5"]}], "env": {"B": "2"}},
    "mimo": {"from": "tf5", "steps": [{"name": "torch", "run": ["true"]}], "assertions": {"transformers": ">=5"}},
}


def test_lineage_is_flat_and_in_order() -> None:
    recipe, errors = image_recipe.resolve(IMAGES, "mimo")
    assert errors == []
    assert recipe["lineage"] == ["node", "tf5", "mimo"]
    assert [step["name"] for step in recipe["steps"]] == ["vllm", "tf", "torch"]
    assert recipe["base"] == "cuda:13"
    assert recipe["env"] == {"A": "1", "B": "2"}
    assert recipe["assertions"] == {"torch": "2.11.0+cu130", "transformers": ">=5"}


@pytest.mark.parametrize(
    ("images", "name", "sentence"),
    [
        (IMAGES, "mimoo", "gb10_images has no image 'mimoo'. Did you mean 'mimo'?"),
        ({"a": {"from": "b"}, "b": {"from": "a"}}, "a", "gb10_images: 'a -> b -> a' is circular."),
        ({"a": {"from": "gone"}}, "a", "gb10_images has no image 'gone'."),
        ({"a": {}}, "a", "gb10_images.a has none of `base`, `pull` and `from`"),
        (
            {"a": {"base": "x", "pakages": []}},
            "a",
            "gb10_images.a.pakages is not a known key. Did you mean 'packages'?",
        ),
        ({"a": {"base": "x", "steps": [{"name": "s"}]}}, "a", "gb10_images.a.steps[0] does nothing"),
        ({"a": {"base": "x", "steps": [{"name": "S!", "run": ["x"]}]}}, "a", "steps[0].name 'S!' must be lower-case"),
        (
            {"a": {"base": "x", "steps": [{"name": "s", "wheel": ["x"]}]}},
            "a",
            "wheel is not a known key. Did you mean 'wheels'?",
        ),
        (
            {"a": {"base": "x", "steps": [{"name": "s", "run": ["x"]}, {"name": "s", "run": ["y"]}]}},
            "a",
            "'s' is used twice",
        ),
    ],
)
def test_each_mistake_has_its_sentence(images: dict[str, Any], name: str, sentence: str) -> None:
    _recipe, errors = image_recipe.resolve(images, name)
    assert any(sentence in error for error in errors), errors


def test_wheels_are_chosen_by_pattern_and_taken_out_again() -> None:
    step = {"wheels": ["*.whl", "!torch-*"]}
    chosen, errors = image_recipe.choose_wheels(step, ["a-1.whl", "torch-2.whl"], "here")
    assert (chosen, errors) == (["a-1.whl"], [])


def test_a_missing_wheel_names_what_is_there_instead() -> None:
    _chosen, errors = image_recipe.choose_wheels(
        {"wheels": ["vllm-0.22.1-cp312.whl"]}, ["vllm-0.21.0-cp312.whl"], "image x"
    )
    (sentence,) = errors
    assert sentence.startswith("image x: wheel vllm-0.22.1-cp312.whl is missing.")
    assert sentence.endswith("Present is vllm-0.21.0-cp312.whl, which does not match the pins.")


def test_a_wheel_with_another_hash_is_refused() -> None:
    step = {"wheel_hashes": {"a.whl": "0" * 64}}
    errors = image_recipe.wrong_hashes(step, {"a.whl": "1" * 64}, "here")
    assert "a.whl has sha256 1111111111111111..., pinned is 0000000000000000..." in errors[0]
    assert image_recipe.wrong_hashes(step, {"a.whl": "0" * 64}, "here") == []


def test_the_fingerprint_does_not_depend_on_order() -> None:
    assert image_recipe.fingerprint({"a": 1, "b": 2}) == image_recipe.fingerprint({"b": 2, "a": 1})
    assert image_recipe.fingerprint({"a": 1}) != image_recipe.fingerprint({"a": 2})


def test_identity_ignores_what_differs_between_storage_drivers() -> None:
    image = {
        "RootFS": {"Layers": ["sha256:1"]},
        "Config": {"Env": ["A=1"], "Labels": {"x": "y"}},
        "Architecture": "arm64",
    }
    overlay2 = {**image, "Id": "sha256:config", "GraphDriver": {"Name": "overlay2"}}
    containerd = {**image, "Id": "sha256:manifest", "Config": {**image["Config"], "Cmd": None}}  # type: ignore[dict-item]
    assert image_recipe.identity(overlay2) == image_recipe.identity(containerd)
    changed = {**image, "RootFS": {"Layers": ["sha256:2"]}}
    assert image_recipe.identity(changed) != image_recipe.identity(overlay2)


@pytest.mark.parametrize(
    ("found", "wanted", "right"),
    [
        ("2.11.0+cu130", "2.11.0+cu130", True),
        ("2.11.0", "2.11.0+cu130", False),
        ("5.19.0", ">=5", True),
        ("4.57.1", ">=5.0.0", False),
        ("5.19.0", ">=5,<6", True),
        ("6.0", ">=5,<6", False),
        ("2.60.0", "==2.60", True),
        ("2.60.1", "!=2.60.0", True),
        ("2.60.1", ">2.60.1", False),
        ("2.60.1", "<=2.60.1", True),
    ],
)
def test_versions_are_exact_or_ranges(found: str, wanted: str, right: bool) -> None:
    assert image_assert.satisfies(found, wanted) is right


def test_a_range_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither an exact version nor comparisons"):
        image_assert.satisfies("1", ">=five")


def test_the_cpu_build_of_torch_comes_with_cause_and_cure() -> None:
    errors = image_assert.verdict(
        "img:1",
        {"torch": "2.11.0+cu130", "torch_cuda": "13.0", "ray": ">=2"},
        {"torch": "2.10.0+cpu", "torch_cuda": None, "ray": None},
        {"vllm": "ImportError: libtorch_cuda.so: cannot open shared object file"},
    )
    assert "img:1: torch is 2.10.0+cpu, asserted is 2.11.0+cu130. This is the CPU build" in errors[0]
    assert "--no-deps" in errors[0]
    assert errors[1] == "img:1: torch is built for CUDA none, asserted is 13.0."
    assert "ray is not installed, asserted is >=2" in errors[2]
    assert "`import vllm` fails: ImportError: libtorch_cuda.so" in errors[3]
    assert "Force-reinstall torch" in errors[3]


def test_the_right_image_has_nothing_wrong() -> None:
    assert image_assert.verdict("i", {"torch": "2.11.0+cu130"}, {"torch": "2.11.0+cu130"}, {}) == []


@pytest.mark.parametrize(
    ("reference", "name", "version"),
    [
        ("vllm/vllm-openai:v0.24.0-ubuntu2404", "vllm-vllm-openai-v0.24.0-ubuntu2404", "0.24.0"),
        ("docker.io/vllm/vllm-openai:v0.30.0", "vllm-vllm-openai-v0.30.0", "0.30.0"),
        ("vllm/vllm-openai:nightly", "vllm-vllm-openai-nightly", None),
        ("ghcr.io/org/Fork".lower() + ":latest", "org-fork", None),
        # The version of a fork, not of vLLM.
        (f"ghcr.io/org/fork:0.1.1@sha256:{'a' * 64}", "org-fork-0.1.1", None),
    ],
)
def test_a_reference_is_pulled_as_it_is(reference: str, name: str, version: str | None) -> None:
    recipe, errors = image_recipe.resolve(IMAGES, reference)
    assert errors == []
    assert (recipe["name"], recipe["pull"], recipe["base"], recipe["vllm_version"], recipe["venv"]) == (
        name,
        reference,
        reference,
        version,
        "",
    )


@pytest.mark.parametrize("name", ["node", "no-such", "ghcr.io/Org/Upper", "a b:c", "$(reboot):x", "../x"])
def test_a_key_or_nonsense_is_no_reference(name: str) -> None:
    assert image_recipe.by_reference(name) is None


@pytest.mark.parametrize(
    ("file", "architecture", "foreign"),
    [
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_aarch64.whl", "arm64", False),
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_x86_64.whl", "arm64", True),
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_x86_64.whl", "amd64", False),
        ("ray-2.60.0-cp312-cp312-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", "arm64", False),
        ("torch-2.11.0-cp312-cp312-win_amd64.whl", "arm64", True),
        ("flashinfer_python-0.6.12-py3-none-any.whl", "arm64", False),
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_x86_64.whl", "", False),
    ],
)
def test_a_wheel_of_another_platform_is_foreign(file: str, architecture: str, foreign: bool) -> None:
    assert image_recipe.foreign_wheels([file], architecture) == ([file] if foreign else [])
