# SPDX-License-Identifier: Apache-2.0
"""A recipe file in place of a model: real runs of the playbooks, no node asked."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import importer

from .conftest import API_KEY, Site

RECIPE = """
recipe_version: "2"
name: some-recipe
model: org/some-model
runtime: vllm
container: ghcr.io/org/some-fork:latest
pre_exec: [echo hello]
defaults: {tensor_parallel: 2, port: 8010}
env: {OF_A_FORK: "1"}
command: |
  vllm serve {model} -tp {tensor_parallel} --port {port} --max-model-len 4096 -cc.mode 0 --a-forks-option x
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_recipe_renders_what_its_imported_model_renders(site: Callable[[], Site]) -> None:
    place = site()
    recipe = place.folder / "some-recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    ran = place.run(
        "render.yml", "-e", f"recipe={recipe}", "-e", f"model_render_dir={place.folder}/ran", VLLM_API_KEY=API_KEY
    )
    assert ran.returncode == 0, ran.output
    assert "pre_exec: scripts are not run in the container" in ran.output
    assert "-> model some-recipe: org/some-model on 2 node(s), engine native" in " ".join(ran.output.split())

    content = importer.document("some-recipe.yaml", importer.read_one(str(recipe), importer.known_here({})))
    assert yaml.safe_load(content)["model_spec"]["ports"] == {"api": 8010}
    (place.inventory / "group_vars").mkdir(exist_ok=True)
    (place.inventory / "group_vars" / "model_some_recipe.yml").write_text(content, encoding="utf-8")
    imported = place.run(
        "render.yml", "-e", "model=some-recipe", "-e", f"model_render_dir={place.folder}/imported", VLLM_API_KEY=API_KEY
    )
    assert imported.returncode == 0, imported.output

    names = files(place.folder / "ran")
    assert "gx10-1/etc/systemd/system/vllm-some-recipe.service" in names
    assert names == files(place.folder / "imported")
    _same, different, errors = filecmp.cmpfiles(place.folder / "ran", place.folder / "imported", names, shallow=False)
    assert (different, errors) == ([], [])
    assert "--a-forks-option x" in (place.folder / "ran/gx10-1/vllm-serve.sh").read_text(encoding="utf-8")


def test_what_is_wrong_with_a_recipe_is_said_before_anything_is_contacted(site: Callable[[], Site]) -> None:
    place = site()
    place.addresses()
    recipe = place.folder / "some-recipe.yaml"
    recipe.write_text(RECIPE.replace("runtime: vllm", "runtime: sglang"), encoding="utf-8")
    for arguments, sentence in (
        (("-e", f"recipe={recipe}"), "some-recipe.yaml is for the engine sglang; this project serves with vLLM."),
        (
            ("-e", f"recipe={recipe}", "-e", "model=qwen397"),
            "-e recipe= and -e model= choose the model of this run twice; give one of them.",
        ),
    ):
        run = place.run("validate.yml", *arguments)
        assert run.returncode != 0
        assert not run.contacted
        assert sentence in " ".join(run.output.split()), run.output
