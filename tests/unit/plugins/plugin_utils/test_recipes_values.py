# SPDX-License-Identifier: Apache-2.0
"""What a recipe leaves to its launcher, names otherwise or never uses becomes a value, a line or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import importer
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import read_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mapping import Imported, Known, to_model

EUGR = """
recipe_version: "1"
container: vllm-node
model: org/some-model
defaults: {n: 3}
command: >-
  vllm serve org/some-model
  --speculative-config '{{"method":"dflash","model":"org/draft","revision":"abc","num_speculative_tokens":{n}}}'
"""
SPARKRUN = """
recipe_version: "2"
model: org/some-model
runtime: vllm
container: ghcr.io/org/some-fork:latest
defaults: {tensor_parallel: 2, k: 4}
command: |
  vllm serve {model} --tensor-parallel-size {tensor_parallel} --a-forks-option {k} --load-format of-a-fork
"""
ONE = """
recipe_version: "2"
model: org/some-model
runtime: vllm
container: own
command: vllm serve {model} --max-model-len 4096
"""


def model(text: str, known: Known | None = None) -> Imported:
    return to_model(read_recipe(text, "some.yaml"), "some.yaml", known or Known())


def test_a_default_that_the_command_does_not_use_is_named() -> None:
    more = "defaults: {tensor_parallel: 2, k: 4, top_k: 20, load_format: of-a-fork, dtype: half}"
    text = SPARKRUN.replace("defaults: {tensor_parallel: 2, k: 4}", more).rstrip("\n") + " --dtype auto\n"
    assert [line for line in model(text).left if line.startswith("defaults")] == [
        "defaults.top_k: 20 is not used by the command.",
        "defaults.dtype: 'half' is not used by the command, which has --dtype 'auto'.",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("env: {HF_TOKEN: '${HF_TOKEN}', NCCL_IB_HCA: $IB_IF}", ""),
        ("env: {OF_A_FORK: '$HOME/x'}", "env.OF_A_FORK is '$HOME/x', which another launcher fills in at its start"),
        ("env: {X: '{launch.model_path}'}", "env.X is '{launch.model_path}', which another launcher fills in"),
        ("env: {X: $(id)}", "env.X is '$(id)', which another launcher fills in"),
    ],
)
def test_what_a_launcher_would_fill_in_is_refused_unless_it_is_left_out_anyway(more: str, message: str) -> None:
    if not message:
        found = model(SPARKRUN + more)
        assert found.spec["env"] == {}
        assert {"env.HF_TOKEN: secrets are vaulted variables.", "env.NCCL_IB_HCA: it is found on each node."} <= set(
            found.left
        )
        return
    with pytest.raises(RecipeError) as caught:
        model(SPARKRUN + more)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["$ROOT/x", "${ROOT}", '"$(nproc)"'])
def test_an_option_that_a_launcher_would_fill_in_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"--load-format is .*, which another launcher fills in at its start"):
        model(SPARKRUN.replace("of-a-fork", value))


def test_a_variable_that_vllm_would_ignore_is_left_out() -> None:
    images: dict[str, Any] = {"own": {"base": "x", "vllm_version": "0.30.0"}}
    text = ONE + "env: {VLLM_USE_FLASHINFER_MOE_FP4: 1, VLLM_NOT_THERE: 1, NCCL_DEBUG: INFO}\n"
    found = model(text, Known(images))
    assert found.spec["env"] == {"NCCL_DEBUG": "INFO"}
    left = " ".join(found.left)
    assert "env.VLLM_USE_FLASHINFER_MOE_FP4: vLLM 0.30.0 ignores it" in left
    assert "env.VLLM_NOT_THERE: vLLM 0.30.0 does not know it and would only warn" in left
    assert any("container: own is the image of that name in gb10_images here" in line for line in found.left)


def test_names_of_local_images_become_what_the_same_project_publishes() -> None:
    found = model(SPARKRUN.replace("ghcr.io/org/some-fork:latest", "sparkrun-eugr-vllm-tf5"))
    assert found.spec["image"] == "ghcr.io/spark-arena/dgx-vllm-eugr-nightly-tf5:latest"
    assert any(line.startswith("container: sparkrun-eugr-vllm-tf5") for line in found.left)
    assert model(EUGR.replace("vllm-node", "vllm-node:latest")).spec["image"] == "eugr/spark-vllm:latest"
    with pytest.raises(RecipeError, match="needs the image some-runtime:own, which another project's script builds"):
        model(EUGR.replace("vllm-node", "some-runtime:own"))
    with pytest.raises(RecipeError, match="names no container; import_recipe_image names an image"):
        model(EUGR.replace("container: vllm-node\n", ""))


def test_a_head_that_is_named_as_the_model_itself_is_no_drafter() -> None:
    found = model(EUGR.replace("dflash", "ernie_mtp").replace("org/draft", "org/some-model"))
    assert "drafter" not in found.spec
    assert found.spec["serve"]["speculative-config"] == {
        "method": "ernie_mtp",
        "revision": "abc",
        "num_speculative_tokens": 3,
    }
    assert any(line.startswith("serve.speculative-config.model: it is the model itself") for line in found.left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tensor_parallel: 2", "tensor_parallel: 99999999999"), "has 99999999999 ranks, each of which is a node here"),
        (("--load-format of-a-fork", "--hf-overrides '" + "[" * 5000 + "'"), "serve.hf-overrides takes"),
        (
            ("--load-format of-a-fork", "--compilation-config '" + '{"a":' * 5000 + "'"),
            "serve.compilation-config takes",
        ),
        (("--load-format of-a-fork", "--speculative-config '" + "[" * 5000 + "'"), "serve.speculative-config takes"),
        (("--load-format of-a-fork", "--x" + ".a" * 5000 + " 1"), "--x has a key of 5000 levels; 20 is the most"),
        (("runtime: vllm", "runtime: " + "x" * 5000), "is for the engine xxx"),
        (("ghcr.io/org/some-fork:latest", '"\\u202e\\a"'), "needs the image ??, which"),
    ],
)
def test_what_is_too_large_is_one_short_sentence(change: tuple[str, str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        model(SPARKRUN.replace(*change))
    said = str(caught.value)
    assert message in said
    assert said.isprintable()
    assert len(said) <= 801


def test_lines_of_the_report_are_short_and_printable() -> None:
    found = model(SPARKRUN + 'zzz: 1\nmodel_url: x\n"a\\nb": 1\n' + f"{'k' * 900}: 1\n")
    assert all(line.isprintable() and len(line) <= 801 for line in found.left)
    assert any(line.startswith("a?b: ") for line in found.left)


def test_a_snapshot_in_a_cache_of_the_hub_is_the_repository_at_its_commit() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = "/cache/huggingface/hub/models--org--some-model.v2--x/snapshots/" + commit
    found = model(SPARKRUN.replace("vllm serve {model}", f"vllm serve {path}"))
    assert (found.spec["repo"], found.spec["revision"]) == ("org/some-model.v2--x", commit)
    assert found.spec["served_name"] == "org/some-model.v2--x"
    assert any(line.startswith(f"model: {path} is org/some-model.v2--x at {commit}") for line in found.left)
    drafted = model(EUGR.replace("org/draft", path).replace(',"revision":"abc"', ""))
    assert drafted.spec["drafter"] == {"repo": "org/some-model.v2--x", "revision": commit}
    with pytest.raises(RecipeError, match="a place on another machine"):
        model(SPARKRUN.replace("vllm serve {model}", "vllm serve /models/org--some-model"))


def test_recipes_of_one_name_go_by_their_files(tmp_path: Path) -> None:
    for name in ("a.yaml", "b-fp8.yaml", "deep/b-fp8.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SPARKRUN + "name: Same\n", encoding="utf-8")
    rows = importer.read_all(str(tmp_path), Known())
    assert [row.imported.spec["name"] if row.imported else row.sentence for row in rows] == [
        "same",
        "b-fp8",
        "deep/b-fp8.yaml would be model same, as a.yaml is; import it alone, with import_recipe_name.",
    ]
    assert rows[1].imported
    assert rows[1].imported.left[-1] == "name: same is that of a.yaml too; the file's name is taken."
