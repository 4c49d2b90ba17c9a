# SPDX-License-Identifier: Apache-2.0
"""Recipe files become models that pass every check of a model file, or one sentence."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import importer, loading, source
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import read_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mapping import Imported, Known, slug, to_model
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mods import ImportedMod

EUGR = """
recipe_version: "1"
name: Some Model (TP=2)
description: A model   for two nodes.
container: vllm-node
model: org/some-model
cluster_only: true
build_args: [--x]
mods: [mods/fix-some]
defaults: {port: 8001, host: 0.0.0.0, tensor_parallel: 2, n: 3}
env: {VLLM_USE_V2_MODEL_RUNNER: 1, OF_A_FORK: x, NCCL_IB_HCA: mlx5_0, HF_TOKEN: sesame}
command: |
  vllm serve org/some-model -tp {tensor_parallel} --port {port} --host {host} \\
    -cc.mode 0 --kv-cache-memory-bytes 10G --max-model-len auto --chat-template some.jinja \\
    --served-model-name some other --revision main --distributed-executor-backend ray \\
    --speculative-config '{{"method":"dflash","model":"org/draft","revision":"abc","num_speculative_tokens":{n}}}'
"""
SPARKRUN = """
recipe_version: "2"
model: org/some-model
model_revision: 0123456789abcdef0123456789abcdef01234567
runtime: vllm
container: ghcr.io/org/some-fork:latest
min_nodes: 2
defaults: {tensor_parallel: 2, k: 4}
command: |
  vllm serve {model} --tensor-parallel-size {tensor_parallel} --a-forks-option {k} --load-format of-a-fork
"""
VLLM = """
meta: {slug: some-model, hardware: {dgx_spark_gb10: verified}}
model:
  model_id: org/some-model
  docker_image: vllm/vllm-openai:v0.30.0
  base_args: [--max-model-len, "65536", --trust-remote-code]
  base_env: {CUTE_DSL_ARCH: sm_121a}
features:
  tool_calling: {args: [--enable-auto-tool-choice, --tool-call-parser, qwen3_coder]}
"""


VLLM_ONE = """
recipe_version: "2"
model: org/some-model
runtime: vllm
container: own
command: vllm serve {model} --max-model-len 4096
"""


def model(text: str, known: Known | None = None, **more: str) -> Imported:
    return to_model(read_recipe(text, "some.yaml"), "some.yaml", known or Known(), **more)


def test_an_eugr_recipe() -> None:
    found = model(EUGR)
    assert found.spec == {
        "name": "some-model-tp-2",
        "repo": "org/some-model",
        "served_name": "some",
        "nodes": 2,
        "image": "eugr/spark-vllm:latest",
        "mods": [],
        "engine": "ray",
        "ports": {"api": 8001},
        "drafter": {"repo": "org/draft", "revision": "abc"},
        "serve": {
            "tensor-parallel-size": 2,
            "compilation-config": {"mode": 0},
            "kv-cache-memory-bytes": "10G",
            "max-model-len": "auto",
            "speculative-config": {"method": "dflash", "num_speculative_tokens": 3},
        },
        "env": {"VLLM_USE_V2_MODEL_RUNNER": "1", "OF_A_FORK": "x"},
        "provenance": {"status": "imported", "source": "some.yaml (eugr 1)"},
        "notes": ["A model for two nodes."],
    }
    assert ms.validate(found.spec)[1] == []
    for part in (
        "build_args",
        "container",
        "serve.served-model-name",
        "mods.fix-some",
        "serve.host",
        "serve.chat-template",
    ):
        assert any(line.startswith(f"{part}: ") for line in found.left), part
    for part in ("env.NCCL_IB_HCA", "env.HF_TOKEN"):
        assert any(line.startswith(f"{part}: ") for line in found.left), part
    assert not any("sesame" in line for line in [*found.left, *found.notes])


def test_nothing_of_a_recipe_is_dropped_in_silence() -> None:
    """Every key, option and variable of the file is in the model or named in the report."""
    found = model(EUGR)
    said = " ".join([*found.left, yaml.safe_dump(found.spec)])
    for word in (
        *(
            "build_args",
            "vllm-node",
            "fix-some",
            "8001",
            "host",
            "served-model-name",
            "other",
            "some.jinja",
            "10G",
            "auto",
        ),
        *("org/draft", "abc", "dflash", "NCCL_IB_HCA", "HF_TOKEN", "OF_A_FORK", "A model for two nodes"),
    ):
        assert word in said, word
    assert found.reasons["engine",] == "distributed-executor-backend ray in the recipe"
    assert "main" in found.reasons["revision",]


def test_a_sparkrun_recipe_of_a_fork_keeps_what_no_table_knows() -> None:
    found = model(SPARKRUN)
    assert found.spec["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert (found.spec["engine"], found.spec["image"]) == ("native", "ghcr.io/org/some-fork:latest")
    assert found.spec["serve"]["a-forks-option"] == 4
    assert found.spec["serve"]["load-format"] == "of-a-fork"
    assert any("a-forks-option" in note for note in found.notes)


def test_a_known_version_leaves_nothing_open() -> None:
    found = model(VLLM)
    assert (found.spec["image"], found.spec["nodes"], found.spec["engine"]) == ("vllm/vllm-openai:v0.30.0", 1, "native")
    with pytest.raises(RecipeError, match=r"cannot|no --a-forks-option"):
        model(VLLM.replace("--trust-remote-code", "--a-forks-option, x"))


def test_an_image_by_name_and_a_fork_with_its_upstream() -> None:
    images: dict[str, Any] = {
        "own": {"pull": "ghcr.io/org/own:1", "vllm_upstream": "0.30.0"},
        "vllm-node": {"base": "x", "vllm_version": "0.22.1"},
    }
    assert model(SPARKRUN.replace("ghcr.io/org/some-fork:latest", "own"), Known(images)).spec["image"] == "own"
    assert model(EUGR, Known(images)).spec["image"] == "eugr/spark-vllm:latest", "the same word, another image"
    assert model(EUGR, Known(images), image="own").spec["image"] == "own"


def test_size_and_geometry_come_from_what_is_known_of_the_repository() -> None:
    other = {"name": "other", "repo": "org/some-model", "size_gib": 7.5, "geometry": {"layers": 4}}
    found = model(SPARKRUN, Known(models={"x": other}))
    assert (found.spec["size_gib"], found.spec["geometry"]) == (7.5, {"layers": 4})
    assert found.reasons["size_gib",] == "as model other, which serves the same repository"
    here = model(SPARKRUN, Known(models={"x": other}, size_gib=lambda repo: 8.25 if repo == "org/some-model" else 0))
    assert here.spec["size_gib"] == 8.25
    assert "size_gib" not in model(SPARKRUN).spec


def test_a_mod_of_the_same_name_is_taken_where_the_version_is_known() -> None:
    images: dict[str, Any] = {"own": {"base": "x", "vllm_version": "0.33.0"}}
    text = SPARKRUN.replace("ghcr.io/org/some-fork:latest", "own").replace(
        "--a-forks-option {k} --load-format of-a-fork", "--gpu-memory-utilization-gb 108"
    )
    text += "mods: [mods/gpu-mem-util-gb]\n"
    assert model(text, Known(images, mods=["gpu-mem-util-gb"])).spec["mods"] == ["gpu-mem-util-gb"]
    unknown = model(text.replace("own", "ghcr.io/o/f:1"), Known(images, mods=["gpu-mem-util-gb"]))
    assert unknown.spec["mods"] == []
    assert any("the version of vLLM in the image is not known" in line for line in unknown.left)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            EUGR.replace("container: vllm-node", "container: vllm-node-special"),
            "needs the image vllm-node-special, which",
        ),
        (
            EUGR.replace("vllm serve org/some-model", "vllm serve /root/models/x"),
            "serves /root/models/x, a place on another",
        ),
        (SPARKRUN.replace("org/some-model", "../../etc/passwd"), "serves ../../etc/passwd, a place on another"),
        (SPARKRUN.replace("vllm serve {model}", "vllm serve {model} -dp 2"), "runs 2 data-parallel copies"),
        (SPARKRUN.replace("tensor_parallel: 2", "tensor_parallel: two"), "tensor-parallel-size is 'two'"),
        (SPARKRUN.replace("--load-format of-a-fork", "--quantization exl3"), "is another engine"),
        (SPARKRUN.replace("--load-format of-a-fork", "&& reboot"), "is a shell script"),
        (SPARKRUN.replace("--load-format of-a-fork", "--max-num-seqs many"), "takes a whole number"),
        (SPARKRUN.replace("vllm serve {model}", "vllm bench {model}"), "starts with 'vllm bench'"),
        (EUGR.replace("org/draft", "../draft"), ""),
    ],
)
def test_what_is_not_done_here_is_one_sentence(text: str, message: str) -> None:
    if not message:  # a draft model below the model's own directory stays a path
        assert model(text).spec["serve"]["speculative-config"]["model"] == "../draft"
        return
    with pytest.raises(RecipeError) as caught:
        model(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("some.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Some Model (TP=4)", "some-model-tp-4"),
        ("a.b_C", "a.b-c"),
        ("../../x", "x"),
        ("ä" * 3 + "b", "b"),
        ("x" * 200, "x" * 80),
    ],
)
def test_names(text: str, name: str) -> None:
    assert slug(text) == name


def test_the_file_says_where_it_comes_from_and_what_is_missing() -> None:
    found = model(EUGR)
    text = importer.document("some.yaml", found)
    assert yaml.safe_load(text)["model_spec"] == found.spec
    assert "# Imported from the recipe some.yaml (eugr 1)." in text
    assert "# - mods.fix-some: a script of the other project" in text
    assert "UNKNOWN size_gib" in text


def test_a_value_that_ansible_would_render_is_refused() -> None:
    with pytest.raises(RecipeError, match="Ansible would render as a template"):
        importer.document("some.yaml", model(SPARKRUN + 'env: {OF_A_FORK: \'{{ lookup("pipe", "reboot") }}\'}\n'))


# --- files ------------------------------------------------------------------------------------------------


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


REGISTRY = {
    ".sparkrun/registry.yaml": "registries: [{name: own, recipes: recipes, mods: mods}, {name: more, subpath: more}]\n",
    "recipes/_common.yaml": "runtime: vllm\ncontainer: ghcr.io/org/some-fork:latest\ndefaults: {tensor_parallel: 1}\n",
    "recipes/one.yaml": "include: _common\nmodel: org/one\ncommand: vllm serve {model} -tp {tensor_parallel}\n",
    "recipes/deep/two.yaml": 'include: "@own/one"\nmodel: org/two\ndefaults: {tensor_parallel: 2}\n',
    "recipes/engine.yaml": "model: org/x\nruntime: sglang\ncontainer: c\n",
    "more/one.yml": SPARKRUN,
    "compose.yaml": "services: {}\n",
}


def test_a_registry_gives_a_table(tmp_path: Path) -> None:
    rows = importer.read_all(str(tree(tmp_path, REGISTRY)), Known())
    assert {row.file: row.imported.spec["name"] if row.imported else row.sentence for row in rows} == {
        "more/one.yml": "one",
        "recipes/one.yaml": "recipes/one.yaml would be model one, as more/one.yml is; import it alone, with "
        "import_recipe_name.",
        "recipes/deep/two.yaml": "two",
        "recipes/engine.yaml": "recipes/engine.yaml is for the engine sglang; this project serves with vLLM.",
    }
    lines = importer.report(rows)
    assert lines[0] == "2 of 4 recipes are models now; of the others, one sentence each."
    assert any("-> model two: org/two on 2 node(s), engine native" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("@own/one", "org/one"),
        ("recipes/one", "org/one"),
        ("one.yml", "org/some-model"),
        ("deep/../x", ""),
        ("one", ""),
    ],
)
def test_one_recipe_of_a_registry(tmp_path: Path, name: str, repo: str) -> None:
    target = f"{tree(tmp_path, REGISTRY)}:{name}"
    if repo:
        assert importer.read_one(target, Known()).spec["repo"] == repo
        return
    with pytest.raises(RecipeError, match=r"has (no|2) recipes? named"):
        importer.read_one(target, Known())


def test_a_recipe_by_its_own_name_and_a_file_of_a_registry(tmp_path: Path) -> None:
    tree(tmp_path, {"a.yaml": EUGR, "other.yaml": "x: 1"})
    assert importer.read_one(f"{tmp_path}:Some Model (TP=2)", Known()).spec["name"] == "some-model-tp-2"
    tree(tmp_path / "r", REGISTRY)
    assert importer.read_one(str(tmp_path / "r/recipes/deep/two.yaml"), Known()).spec["repo"] == "org/two"
    with pytest.raises(RecipeError, match="name one recipe of it"):
        importer.read_one(str(tmp_path), Known())
    with pytest.raises(RecipeError, match="import_recipe_name names one model"):
        importer.read_all(str(tmp_path), Known(), name="x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"m.yaml": "include: ../secret\nmodel: a"}, "which names no file beside it"),
        ({"m.yaml": "include: /etc/passwd\nmodel: a"}, "which names no file beside it"),
        ({"m.yaml": "include: '@own/../../x'\nmodel: a", **REGISTRY}, "which names no file beside it"),
        ({"m.yaml": "include: '@elsewhere/x'\nmodel: a"}, "a recipe of another registry"),
        ({"m.yaml": "include: gone\nmodel: a"}, "has no such file"),
        ({"m.yaml": "include: n\nmodel: a", "n.yaml": "include: m"}, "in a circle"),
        ({"m.yaml": "a: " + "x" * loading.MAX_BYTES}, "is larger than 256 KiB"),
        (
            {".sparkrun/registry.yaml": "registries: [{name: x, recipes: ../..}]", "m.yaml": SPARKRUN},
            "outside its checkout",
        ),
        ({".sparkrun/registry.yaml": "registries: [x]", "m.yaml": SPARKRUN}, "must be a list of mappings"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path: Path, files: dict[str, str], message: str) -> None:
    tree(tmp_path / "secret.yaml", {})
    with pytest.raises(RecipeError) as caught:
        importer.read_one(str(tree(tmp_path / "in", files) / "m.yaml"), Known())
    assert message in str(caught.value)


def test_links_and_devices_are_not_read(tmp_path: Path) -> None:
    tree(tmp_path, {"secret.yaml": SPARKRUN, "in/own.yaml": SPARKRUN})
    folder = tmp_path / "in"
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (folder / "circle.yaml").symlink_to(folder / "circle.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe")
    (folder / "up").symlink_to(tmp_path)
    rows = {row.file: row.sentence for row in importer.read_all(str(folder), Known())}
    assert rows.pop("own.yaml") == ""
    assert "outside" in rows["link.yaml"]
    assert "outside" in rows["zero.yaml"]
    assert "circle.yaml" in rows["circle.yaml"]
    assert rows["pipe.yaml"] == "pipe.yaml is no regular file."
    assert rows["binary.yaml"] == "binary.yaml is no text in UTF-8."
    assert len(rows) == 5


def test_a_directory_that_is_too_large_or_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 3)
    with pytest.raises(RecipeError, match="holds no YAML file"):
        source.find(str(tmp_path))
    tree(tmp_path, {f"{n}.yaml": "a: 1" for n in range(3)})
    with pytest.raises(RecipeError, match="holds no recipe; its 3 YAML files are something else"):
        importer.read_all(str(tmp_path), Known())
    tree(tmp_path, {"3.yaml": "a: 1"})
    with pytest.raises(RecipeError, match="more than 3 YAML files"):
        source.find(str(tmp_path))
    with pytest.raises(RecipeError, match="There is no file and no directory"):
        source.find(str(tmp_path / "gone"))


def test_what_this_machine_knows(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "vars/model_a.yml": "model_spec: {name: a, repo: org/some-model, size_gib: 1}",
            "vars/model_b.yml": "a: [",
            "weights/org/some-model/model.safetensors": "x" * 2**20,
        },
    )
    known = importer.known_here({}, [str(tmp_path / "vars")], str(tmp_path / "weights"))
    assert [spec["name"] for spec in known.models.values()] == ["a"]
    assert "gpu-mem-util-gb" in known.mods
    assert known.size_gib("org/some-model") == 0.001
    assert known.size_gib("org/gone") == 0
    assert importer.known_here({}).size_gib("org/some-model") == 0


def test_model_files_never_take_the_name_of_a_model_of_the_collection(tmp_path: Path) -> None:
    rows = importer.read_all(str(tree(tmp_path, REGISTRY)), Known())
    files, done = importer.files_of(rows, Path("/vars"), ["two"])
    assert [(each["name"], each["path"]) for each in files] == [("one", "/vars/model_one.yml")]
    assert yaml.safe_load(files[0]["content"])["model_spec"]["name"] == "one"
    assert {row.file: row.sentence for row in done}["recipes/deep/two.yaml"] == (
        "recipes/deep/two.yaml would be model two, which this project brings itself; import it alone, with "
        "import_recipe_name."
    )
    with pytest.raises(RecipeError, match="which this project brings itself"):
        importer.files_of([row for row in rows if row.file == "more/one.yml"], Path("/vars"), ["one"])


PATCHED = """--- a/usr/local/lib/python3.12/dist-packages/vllm/some.py
+++ b/usr/local/lib/python3.12/dist-packages/vllm/some.py
@@ -1,2 +1,3 @@
 one
+between
 two
"""


def test_what_a_mod_is_is_said(tmp_path: Path) -> None:
    tree(
        tmp_path / "in",
        {
            "recipes/m.yaml": SPARKRUN + "mods: [mods/some-fix, mods/only-a-script, mods/linked, ../../secret]\n",
            "mods/some-fix/a.patch": PATCHED,
            "mods/some-fix/run.sh": "patch -p1 -d / < a.patch",
            "mods/only-a-script/run.sh": "reboot",
        },
    )
    tree(tmp_path, {"secret/c.patch": "x"})
    (tmp_path / "in/mods/linked").symlink_to(tmp_path / "secret")
    left = importer.read_one(f"{tmp_path / 'in'}:m", Known()).left
    for sentence in (
        "mods.some-fix: its patches can become a mod for an image whose vLLM version is known: import_recipe_image "
        "names one of gb10_images.",
        "mods.only-a-script: it does more than apply patches: 'reboot'; its script is not run (docs/mods.md).",
        "mods.linked: a script of the other project, which is not in this checkout; what it changes in vLLM is a mod "
        "here (docs/mods.md).",
    ):
        assert sentence in left
    assert any(line.startswith("mods.secret: a script") for line in left)


def test_patches_become_a_mod_of_an_image_whose_version_is_known(tmp_path: Path) -> None:
    recipe = VLLM_ONE + "mods: [mods/Some_Fix]\n"
    tree(
        tmp_path / "in",
        {
            "recipes/m.yaml": recipe,
            "mods/Some_Fix/a.patch": PATCHED,
            "mods/Some_Fix/run.sh": "#!/bin/bash\nset -e\npatch -p1 -d / < a.patch\n",
        },
    )
    images = {"own": {"pull": "ghcr.io/o/f:1", "vllm_version": "0.30.0"}}
    target = f"{tmp_path / 'in'}:m"
    once = importer.read_one(target, Known(images))
    assert (once.spec["mods"], once.mods) == ([], ())
    assert any("when the recipe is imported (playbooks/import_recipe.yml); left out" in line for line in once.left)

    rows = importer.read_all(target, Known(images, writes_mods=True))
    assert rows[0].imported is not None
    assert rows[0].imported.spec["mods"] == ["some-fix"]
    files = importer.mods_of([*rows, *rows], tmp_path / "mods")
    names = [str(Path(each["path"]).relative_to(tmp_path / "mods")) for each in files]
    assert names == ["some-fix/manifest.yml", "some-fix/patches/0.30.0.patch"]
    assert "carried over" not in " ".join(rows[0].imported.left).lower()
    assert "mod some-fix" in " ".join(importer.report(rows))
    assert importer.mods_of(importer.read_all(target, Known(images, writes_mods=True)), tmp_path / "mods") == files


def test_two_mods_of_one_name_are_refused(tmp_path: Path) -> None:
    row = importer.Row("a.yaml", model(EUGR))
    assert row.imported is not None
    one, other = (importer.Row(each, replace(row.imported, mods=(ImportedMod("m", {"x": each}),))) for each in "ab")
    with pytest.raises(RecipeError, match="b has another mod m than a recipe before it; import it alone"):
        importer.mods_of([one, other], tmp_path)
