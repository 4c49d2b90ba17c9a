# SPDX-License-Identifier: Apache-2.0
"""A recipe file in place of a model: real runs of the playbooks, no node asked."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from ansible_collections.gb10.cluster.plugins.action import recipe as recipe_action

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

    wrote = place.run("import_recipe.yml", "-e", f"recipe={recipe}")
    assert wrote.returncode == 0, wrote.output
    assert not wrote.contacted
    content = (place.inventory / "group_vars" / "model_some_recipe.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(content)["model_spec"]["ports"] == {"api": 8010}
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


def words(text: str) -> str:
    return " ".join(text.split())


def test_an_import_never_overwrites_what_the_owner_changed(site: Callable[[], Site]) -> None:
    place = site()
    recipe = place.folder / "some-recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    file = place.inventory / "group_vars" / "model_some_recipe.yml"

    shown = place.run("import_recipe.yml", "-e", f"recipe={recipe}", "--check", "--diff")
    assert shown.returncode == 0, shown.output
    assert "+  repo: org/some-model" in shown.output
    assert not file.exists()

    def run(*arguments: str) -> tuple[int, str, str]:
        done = place.run("import_recipe.yml", "-e", f"recipe={recipe}", *arguments)
        changed = re.search(r"changed=(\d+)", done.output)
        return done.returncode, changed[1] if changed else "", words(done.output)

    assert run()[:2] == (0, "1")
    assert run()[:2] == (0, "0")
    recipe.write_text(RECIPE.replace("8010", "8020"), encoding="utf-8")
    assert run()[:2] == (0, "1"), "a file that nobody changed follows its recipe"
    assert "api: 8020" in file.read_text(encoding="utf-8")

    file.write_text(file.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    code, changed, said = run()
    assert (code, changed) == (2, "0")
    assert "is left as it is: it was changed by hand" in said
    assert "-e import_recipe_replace=true writes it anew and keeps the old file beside it" in said
    assert run("-e", "import_recipe_replace=true")[:2] == (0, "1")
    assert "# mine" not in file.read_text(encoding="utf-8")
    assert any("# mine" in path.read_text(encoding="utf-8") for path in file.parent.glob("*.old"))


def test_a_directory_is_imported_with_a_table(site: Callable[[], Site]) -> None:
    place = site()
    folder = place.folder / "recipes"
    folder.mkdir()
    (folder / "one.yaml").write_text(RECIPE.replace("some-recipe", "one"), encoding="utf-8")
    (folder / "two.yaml").write_text(RECIPE.replace("runtime: vllm", "runtime: sglang"), encoding="utf-8")
    run = place.run("import_recipe.yml", "-e", f"recipe={folder}", "-e", f"import_recipe_dir={place.folder}/vars")
    assert run.returncode == 0, run.output
    assert "1 of 2 recipes are models now; of the others, one sentence each." in words(run.output)
    assert "two.yaml is for the engine sglang; this project serves with vLLM." in words(run.output)
    assert [path.name for path in (place.folder / "vars").iterdir()] == ["model_one.yml"]

    for arguments, sentence in (
        (("-e", f"recipe={folder}:two"), "two.yaml is for the engine sglang; this project serves with vLLM."),
        (("-e", f"recipe={folder}:three"), "has no recipe named 'three'. It has: one.yaml, two.yaml."),
        ((), "Name a recipe: -e recipe=<file, directory or <directory>:<recipe>>."),
    ):
        refused = place.run("import_recipe.yml", *arguments)
        assert refused.returncode == 2
        assert sentence in words(refused.output), refused.output


def test_the_action_contacts_no_node() -> None:
    assert recipe_action.ActionModule._requires_connection is False
