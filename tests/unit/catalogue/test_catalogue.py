# SPDX-License-Identifier: Apache-2.0
"""Every model at its published setting: valid, sourced, accepted by its vLLM and by the memory model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.action.image_plan import ActionModule
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import Budget
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import rows
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import OUR_PORTS, Cluster, Wanted, propose
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import launch, serve_files

REPO = Path(__file__).resolve().parents[3]
MODELS = ms.names_from_files(map(str, (REPO / "playbooks" / "group_vars").glob("model_*.yml")))
#: What CUDA reports on a GX10 [P]; the tightest node then has 111.27 GiB for vLLM [S0].
GX10_GIB = 121.69
#: Ports on which the roles listen themselves, by variable.
TAKEN = {
    variable: int(port)
    for role in ("engine", "edge")
    for variable, port in yaml.safe_load((REPO / "roles" / role / "defaults" / "main.yml").read_text()).items()
    if variable in ("engine_tether_port", "engine_swap_port", "edge_engine_port")
}
#: Keys of a model file that need no source in a comment: they have one of their own, or each value below them has.
WITHOUT_A_COMMENT = frozenset("name steps provenance expected notes required_env memory serve ports".split())
#: The mark of a source, whose number docs/sources.md explains.
SOURCE = r"\[([A-Z]\d?r?)(?: [^\]]*)?\]"


def checked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model with its defaults, or fail with what is wrong with it."""
    full, errors = ms.validate(spec)
    assert not errors, errors
    return full


def budget(spec: Mapping[str, Any], vllm_version: str) -> Budget:
    """Return the memory model's verdict on the tightest known node."""
    return rows.budget_of(spec, vllm_version, GX10_GIB)


def version_of(spec: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """Return the release of vLLM that a model is checked against."""
    version = rows.version_of(spec, images)
    assert version is not None, f"{spec['image']} is not in gb10_images"
    return version


@pytest.mark.parametrize("model", MODELS)
def test_valid_and_says_nothing_twice(model: str, catalogue: dict[str, Any]) -> None:
    spec = checked(catalogue[model])
    assert not {"served-model-name", "port"} & spec["serve"].keys()


@pytest.mark.parametrize("model", MODELS)
def test_says_where_its_launch_comes_from(model: str, catalogue: dict[str, Any]) -> None:
    provenance = checked(catalogue[model])["provenance"]
    assert provenance, "every model of the catalogue has a status and its source"
    assert provenance["status"] in ("published", "altered", "combined"), "what the project's own playbooks write"
    assert re.search(SOURCE, provenance["source"]), f"{provenance['source']} names no source of docs/sources.md"


def test_models_do_not_share_a_rendezvous_port(catalogue: dict[str, Any]) -> None:
    ports = [spec["ports"]["master"] for spec in catalogue.values()]
    assert len(set(ports)) == len(ports), f"a forgotten engine would be met by the next one [S1]: {ports}"
    assert sorted(TAKEN.values()) == sorted(OUR_PORTS), "add_model keeps these free"


@pytest.mark.parametrize("model", MODELS)
def test_every_rank_passes_the_options_of_its_vllm(
    model: str, catalogue: dict[str, Any], images: dict[str, Any]
) -> None:
    spec = checked(catalogue[model])
    members = [f"gx10-{number + 1}" for number in range(spec["nodes"])]
    plan = {"spec": spec, "members": members, "multi_node": spec["nodes"] > 1, "head_address": "192.168.100.1"}
    version = version_of(spec, images)
    upstream = image_recipe.resolve(images, spec["image"])[0]["vllm_upstream"] or ""
    for host in members:
        options, errors = launch.rank_options(plan, host, "0.0.0.0", taken=TAKEN)
        assert not errors, errors
        result = serve_files.render(options, version, spec["env"], spec["mods"], upstream=upstream)
        known = version if version else "0.33.0"  # the newest, where no source states a version
        assert known.startswith(result.table), f"checked against the table of {result.table}, the image has {known}"


@pytest.mark.parametrize("model", MODELS)
def test_accepted_by_the_memory_model(model: str, catalogue: dict[str, Any], images: dict[str, Any]) -> None:
    spec = checked(catalogue[model])
    found = budget(spec, version_of(spec, images))
    assert found.verdict in ("fits", "tight"), found.reasons
    if found.figures is None:
        assert spec["expected"]["kv_cache"], "a cache without a rule is judged by a measured one"
    else:
        assert found.figures.max_concurrency >= 1


@pytest.mark.parametrize("model", MODELS)
def test_every_step_is_a_valid_override_that_fits(
    model: str, catalogue: dict[str, Any], images: dict[str, Any]
) -> None:
    for step in catalogue[model].get("steps", []):
        assert set(step) == {"name", "overrides", "source"}, step
        spec = checked(ms.deep_merge(catalogue[model], step["overrides"]))
        found = budget(spec, version_of(spec, images))
        assert found.verdict in ("fits", "tight"), (step["name"], found.reasons)
        serve_files.render(spec["serve"], version_of(spec, images), spec["env"], spec["mods"])


def test_super_goes_to_a_million_tokens_in_steps(catalogue: dict[str, Any]) -> None:
    spec = catalogue["nemotron-super"]
    lengths = [step["overrides"]["serve"]["max-model-len"] for step in spec["steps"]]
    assert lengths == [262144, 524288, 1048576]
    assert spec["serve"]["max-model-len"] == lengths[0]
    assert spec["env"]["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1", "longer than its config.json says [S2]"


def test_ultra_may_not_be_stretched(catalogue: dict[str, Any]) -> None:
    spec = catalogue["nemotron-ultra"]
    assert spec["env"]["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "0", "its RoPE is not extended [S0]"
    assert spec["serve"]["max-model-len"] == spec["geometry"]["max_position_embeddings"]


def test_super_demands_its_four_variables(catalogue: dict[str, Any]) -> None:
    spec = catalogue["nemotron-super"]
    assert sorted(spec["required_env"]) == sorted(spec["env"])
    assert len(spec["env"]) == 4


def figures(value: Any, path: str = "expected") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each dictionary under ``expected`` that holds a figure itself."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from figures(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        plain = [key for key, item in value.items() if not isinstance(item, (dict, list))]
        if plain:
            yield path, value
        else:
            for key, item in value.items():
                yield from figures(item, f"{path}.{key}")
    else:
        pytest.fail(f"{path} is a bare value {value!r}: put it into a dictionary with its source")


@pytest.mark.parametrize("model", MODELS)
def test_every_expected_figure_names_its_source(model: str, catalogue: dict[str, Any]) -> None:
    found = list(figures(catalogue[model]["expected"]))
    assert found, f"{model} has no expected figure"
    for path, entry in found:
        source = str(entry.get("source", ""))
        assert re.match(rf"{SOURCE}|calculated: ", source), f"{model}: {path} has no source, found {source!r}"


@pytest.mark.parametrize("model", MODELS)
def test_every_value_has_its_source_beside_it(model: str) -> None:
    path = REPO / "playbooks" / "group_vars" / f"model_{model.replace('-', '_')}.yml"
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    whole = re.search(rf"Every value is that of[^.]*{SOURCE}", header)
    section = ""
    for line in lines:
        match = re.match(r"^  (\w+):", line)
        if match:
            section = match[1]
        key = re.match(r"^    ?([\w-]+):", line) if section in ("serve", "env", "ports") else match
        if not key or key[1] in WITHOUT_A_COMMENT:
            continue
        sourced = re.search(rf"#.*({SOURCE}|free choice|calculated|one node needs)", line)
        inherited = whole and section in ("serve", "env")
        assert sourced or inherited, f"{path.name}: no source beside: {line.strip()}"


@pytest.mark.parametrize(
    ("image", "lineage"),
    [
        ("vllm-node", ["vllm-node"]),
        ("vllm-node-tf5", ["vllm-node", "vllm-node-tf5"]),
        ("vllm-node-mimo", ["vllm-node", "vllm-node-mimo"]),
        ("vllm-node-s1", ["vllm-node-s1"]),
        ("vllm-ray", ["vllm-ray"]),
    ],
)
def test_lineage_of_the_images(image: str, lineage: list[str], images: dict[str, Any]) -> None:
    recipe, errors = image_recipe.resolve(images, image)
    assert not errors, errors
    assert recipe["lineage"] == lineage
    if image != "vllm-ray":
        assert recipe["assertions"]["torch"] == "2.11.0+cu130"
        assert recipe["assertions"]["torch_cuda"] == "13.0"
    if image == "vllm-node-s1":
        # The line that a rebuild on a private wheel must not lose [S0, S1].
        last = recipe["steps"][-1]
        assert last["requirements"] == ["torch==2.11.0"], "torch needs a layer of its own"
        assert {"--no-deps", "--force-reinstall"} <= set(last["pip_args"])
    assert any("ray[default]" in step["requirements"] for step in recipe["steps"]), "vLLM asks for no Ray itself"


def arguments(images: Mapping[str, Any], name: str, wheels: Path, **more: Any) -> dict[str, Any]:
    """Return the arguments of gb10.cluster.image_plan."""
    given = {"name": name, "images": images, "mods": [], "wheels_dir": str(wheels), "require_wheels": True}
    return {
        **given,
        "mods_dir": str(REPO / "mods"),
        "overlays_dir": str(REPO / "overlays"),
        "locks_dir": str(REPO / "locks"),
        "digests": {image["base"]: "sha256:" + "0" * 64 for image in images.values() if "base" in image},
        "context_dir": None,
        **more,
    }


def plan_image(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what the action plugin makes of its arguments."""
    return ActionModule._plan(object.__new__(ActionModule), given)


def test_an_image_can_be_shown_without_its_wheels_but_not_built(images: dict[str, Any], tmp_path: Path) -> None:
    plan, errors = plan_image(arguments(images, "vllm-node-s1", tmp_path))
    assert not plan
    assert len(errors) == 1
    assert f"There are no wheels in {tmp_path}" in errors[0]
    plan, errors = plan_image(arguments(images, "vllm-node-s1", tmp_path, require_wheels=False))
    assert not errors
    assert plan["tag"] == "gb10/vllm-node-s1:unbuilt"
    assert plan["missing"]
    assert plan["dockerfile"].startswith("# Rendered by gb10.cluster")


def test_one_missing_wheel_is_enough_to_be_unbuilt(images: dict[str, Any], tmp_path: Path) -> None:
    recipe, _errors = image_recipe.resolve(images, "vllm-node-s1")
    names = [name for step in recipe["steps"] for name in step["wheels"]]
    assert len(names) == 4
    for name in names[1:]:
        (tmp_path / name).write_bytes(b"")
    plan, errors = plan_image(arguments(images, "vllm-node-s1", tmp_path, require_wheels=False))
    assert not errors
    assert plan["tag"].endswith(":unbuilt")
    assert [names[0] in sentence for sentence in plan["missing"]] == [True]
    (tmp_path / names[0]).write_bytes(b"")
    whole, errors = plan_image(arguments(images, "vllm-node-s1", tmp_path, require_wheels=False))
    assert not errors
    assert re.fullmatch(r"gb10/vllm-node-s1:[0-9a-f]{12}", whole["tag"])
    assert whole["missing"] == []
    assert plan_image(arguments(images, "vllm-node-s1", tmp_path))[0]["tag"] == whole["tag"]


def test_sources_are_those_of_the_list(catalogue: dict[str, Any]) -> None:
    listed = set(re.findall(r"^\| \[(\w+)\]", (REPO / "docs" / "sources.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"S0", "S1", "S2", "S3", "S4", "V", "P"} <= listed
    for path in (REPO / "playbooks" / "group_vars").glob("model_*.yml"):
        used = set(re.findall(SOURCE, path.read_text(encoding="utf-8")))
        assert used <= listed, f"{path.name} cites {used - listed}"
    assert yaml.safe_dump(catalogue), "plain data, so that it can be shown"


@pytest.mark.parametrize("model", ["qwen3-embedding", "qwen3-reranker"])
def test_add_model_would_have_written_the_pooling_models(
    model: str, catalogue: dict[str, Any], images: dict[str, Any]
) -> None:
    spec = catalogue[model]
    shape = spec["geometry"]
    config = {
        "architectures": [shape["architecture"]],
        "dtype": "bfloat16",
        "head_dim": shape["attention"]["head_dim"],
        "hidden_size": shape["hidden_size"],
        "max_position_embeddings": shape["max_position_embeddings"],
        "num_attention_heads": shape["attention"]["heads"],
        "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["attention"]["kv_heads"],
    }
    size = {"model.safetensors": int(spec["size_gib"] * 2**30)}
    read = Repository(spec["repo"], spec["revision"], "a hub", size, tuple(size), config)
    made = propose(read, Cluster([119.2], images), Wanted(name=spec["name"])).spec
    for key in ("name", "repo", "revision", "served_name", "size_gib", "nodes", "engine", "image", "mods", "shm_size"):
        assert made[key] == spec[key], key
    assert made["geometry"] == shape
    # How the weights are read is the owner's choice.
    assert made["serve"] == {key: value for key, value in spec["serve"].items() if key != "load-format"}
    for kind, figures in spec["expected"].items():
        assert {**made["expected"][kind], "source": ""} == {**figures, "source": ""}
