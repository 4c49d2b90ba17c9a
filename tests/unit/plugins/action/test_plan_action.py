# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.plan: one word becomes one plan, from the catalogue, an owner's overrides and the inventory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import plan
from tests.hub import serve
from tests.unit.repositories import MOE, repository

REPO = Path(plan.__file__).parents[2]
GROUP_VARS = REPO / "playbooks" / "group_vars"
IMAGES: dict[str, Any] = yaml.safe_load((GROUP_VARS / "all" / "images.yml").read_text(encoding="utf-8"))["gb10_images"]
#: Any model of the catalogue that takes more than one node.
FILE = next(
    path
    for path in sorted(GROUP_VARS.glob("model_*.yml"))
    if yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"].get("nodes", 1) > 1
)
#: A file of weights that holds one empty tensor.
_HEADER = b'{"a":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}'
WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER
SPEC: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["model_spec"]


def run(
    monkeypatch: pytest.MonkeyPatch,
    *,
    nodes: int = 8,
    groups: dict[str, list[str]] | None = None,
    extra: dict[str, Any] | None = None,
    known: dict[str, dict[str, str]] | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Return the task's result for an inventory of some nodes.

    :param extra: variables of the command line.
    :param known: variables by node; addresses in two networks unless given.
    """
    names = [f"node{number}" for number in range(1, nodes + 1)]
    found = {"gx10": names, "head": names[:1], "workers": names[1:]} if groups is None else groups
    hostvars = known or {
        name: {"ansible_host": f"10.20.0.{number}", "gb10_fabric_address": f"10.30.0.{number}"}
        for number, name in enumerate(names, 1)
    }
    arguments = {"model": SPEC["name"], "spec": copy.deepcopy(SPEC), "images": IMAGES, **given}
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})

    def checked(_self: object, argument_spec: dict[str, Any], **_more: Any) -> tuple[None, dict[str, Any]]:
        unknown = set(arguments) - set(argument_spec)
        assert not unknown, f"no such argument: {unknown}"
        return None, {name: arguments.get(name, rule.get("default")) for name, rule in argument_spec.items()}

    monkeypatch.setattr(plan.ActionModule, "validate_argument_spec", checked)
    monkeypatch.setattr(plan, "load_extra_vars", lambda _loader: extra or {})
    plugin = plan.ActionModule.__new__(plan.ActionModule)
    plugin._loader = None
    result: dict[str, Any] = plugin.run(task_vars={"groups": found, "hostvars": hostvars})
    return result


def test_the_members_are_the_head_and_as_many_workers_as_the_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch)["plan"]
    assert found["members"] == [f"node{number}" for number in range(1, SPEC["nodes"] + 1)]
    assert found["idle"] == [f"node{number}" for number in range(SPEC["nodes"] + 1, 9)]
    assert (found["head"], found["head_address"]) == ("node1", "10.30.0.1")
    assert found["api_url"] == f"http://10.20.0.1:{found['spec']['ports']['api']}"
    assert (found["unit"], found["multi_node"]) == (f"vllm-{SPEC['name']}.service", True)
    assert found["vllm_version"] == str(found["vllm_version"])


def test_too_few_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, nodes=1)
    assert found["failed"] is True
    assert "plan" not in found
    assert str(SPEC["nodes"]) in found["msg"]


def test_an_empty_inventory_says_where_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, groups={"gx10": [], "head": [], "workers": []})
    assert "Group 'gx10' is empty" in found["errors"][0]


def test_an_unknown_model_names_its_neighbours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_of_the_owner.yml").touch()
    found = run(monkeypatch, model="of_the_ownr", spec=None, catalogue=[str(tmp_path)])
    assert found["failed"] is True
    assert "of-the-owner" in found["msg"]
    assert "of-the-owner" in run(monkeypatch, model="", spec=None, catalogue=[str(tmp_path)])["msg"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": "vllm-nod"}, "model_spec.image 'vllm-nod' is not in gb10_images. Did you mean 'vllm-node'?"),
        ({"mods": ["no-such-mod"]}, "model_spec.mods has 'no-such-mod', which is no mod."),
        ({"name": "another"}, f"model_spec.name is 'another', but model '{SPEC['name']}' was asked for."),
        ({"nodes": "many"}, "nodes"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str) -> None:
    found = run(monkeypatch, spec={**copy.deepcopy(SPEC), **change})
    assert found["failed"] is True
    assert words in found["msg"]


def test_every_error_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {**copy.deepcopy(SPEC), "image": "vllm-nod", "mods": ["no-such-mod"]}
    found = run(monkeypatch, nodes=1, spec=spec)
    assert len(found["errors"]) == 3


def test_an_image_without_a_version_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {SPEC["image"]: {"base": "ubuntu:24.04", "steps": [], "assertions": {}}}
    found = run(monkeypatch, images=images)
    assert f"gb10_images.{SPEC['image']}.vllm_version is missing" in found["msg"]


def test_overrides_are_shown_and_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = copy.deepcopy(SPEC)
    spec["serve"]["max-num-seqs"] = 6
    found = run(monkeypatch, spec=spec, overrides={"serve": {"max-num-seqs": 1}})
    assert found["overridden"] == ["serve.max-num-seqs: 6 -> 1"]
    assert found["plan"]["spec"]["serve"]["max-num-seqs"] == 1
    assert '"max-num-seqs": 6' in found["diff"]["before"]
    assert '"max-num-seqs": 1' in found["diff"]["after"]


CHANGE = {"serve": {"max-num-seqs": 1, "gpu-memory-utilization": None}}


def test_overrides_of_the_command_line_are_part_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, overrides=CHANGE, extra={"model_overrides": CHANGE})["plan"]
    assert found["overrides"] == CHANGE
    assert "gpu-memory-utilization" not in found["spec"]["serve"]
    assert run(monkeypatch, overrides=CHANGE)["plan"]["overrides"] == {}, "an inventory has its own for later runs too"


def record(**more: Any) -> dict[str, Any]:
    """Return what was last verified: the model on its nodes."""
    members = [f"node{number}" for number in range(1, SPEC["nodes"] + 1)]
    return {"model": SPEC["name"], "members": members, **more}


def test_what_was_verified_with_overrides_is_planned_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    served = run(monkeypatch, overrides=CHANGE, extra={"model_overrides": CHANGE})["plan"]
    found = run(monkeypatch, record=record(overrides=CHANGE))
    assert found["plan"] == served, "what serves is what was last verified"
    assert found["overridden"][0].startswith("As last verified, with the model_overrides of that run")
    assert "serve.max-num-seqs: " in found["overridden"][1] or "serve.max-num-seqs: " in found["overridden"][2]


@pytest.mark.parametrize(
    ("extra", "has"),
    [
        ({"model_overrides": {}}, {}),
        ({}, {"model": "another", "overrides": CHANGE}),
        ({}, {}),  # of a release that did not record them, or the command line names the model
    ],
)
def test_overrides_of_another_run_are_left_out(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], has: dict[str, Any]
) -> None:
    has = has if has else record(overrides=CHANGE) if extra else record()
    assert run(monkeypatch, record=has, extra=extra)["plan"] == run(monkeypatch)["plan"]


@pytest.mark.parametrize(
    ("host", "url"),
    [("fd00:1::11", "http://[fd00:1::11]:"), ("gx10-1.lab.internal", "http://gx10-1.lab.internal:")],
)
def test_the_api_has_a_url_whatever_the_head_is_called(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    spec = {**copy.deepcopy(SPEC), "nodes": 1}
    spec["serve"] = {**spec["serve"], "tensor-parallel-size": 1, "pipeline-parallel-size": 1}
    found = run(monkeypatch, nodes=1, spec=spec, known={"node1": {"ansible_host": host}})
    assert found["plan"]["api_url"] == f"{url}{found['plan']['spec']['ports']['api']}"
    assert found["plan"]["addresses"] == {"node1": "127.0.0.1"}, "an engine can listen on no name of its node"


def test_two_clusters_in_one_inventory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"gx10": ["node1", "node2"], "head": ["node1", "node2"], "workers": []}
    found = run(monkeypatch, nodes=2, groups=groups)
    assert "Group 'head' must hold exactly one host, found 2: node1, node2. An inventory is one cluster" in found["msg"]


def test_the_lines_of_a_change() -> None:
    assert plan.changes({"a": 1, "b": {"c": 2}, "d": 3}, {"a": 1, "b": {"c": 4}, "e": None}) == [
        "b.c: 2 -> 4",
        "d: 3 -> nothing",
    ]


def test_a_fork_says_which_release_it_is_based_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = {"pull": "ghcr.io/org/fork:1", "vllm_upstream": "0.30.0"}
    found = run(monkeypatch, images={SPEC["image"]: {**fork, "vllm_version": "0.1.dev20051+g487ecf187"}})["plan"]
    assert (found["vllm_version"], found["vllm_upstream"]) == ("0.1.dev20051+g487ecf187", "0.30.0")
    assert found["image_pulled"] is True
    unnamed = run(monkeypatch, images={SPEC["image"]: fork})["plan"]
    assert (unnamed["vllm_version"], unnamed["vllm_upstream"]) == ("", "0.30.0")
    built = {"base": "ubuntu:24.04", "vllm_version": "0.33.0"}
    plain = run(monkeypatch, images={SPEC["image"]: built})["plan"]
    assert (plain["vllm_upstream"], plain["image_pulled"]) == ("", False)


def test_a_model_without_a_size_gets_that_of_its_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = {**SPEC, "size_gib": 0, "geometry": {}, "drafter": {}}
    folder = tmp_path / spec["repo"]
    folder.mkdir(parents=True)
    unread = run(monkeypatch, spec=spec, source_root=str(tmp_path))
    assert unread["plan"]["spec"]["size_gib"] == 0
    assert unread["sizes"][0].endswith(f"{folder} does not exist, and no hub was named.")

    for name, content in repository(MOE, 1).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else WEIGHTS)
    found = run(monkeypatch, spec=spec, source_root=str(tmp_path))
    assert found["plan"]["spec"]["size_gib"] == 0.001
    assert found["plan"]["spec"]["geometry"]["layers"] == MOE["num_hidden_layers"]
    assert run(monkeypatch, spec=spec, source_root=str(tmp_path), render_only=True)["plan"]["spec"]["size_gib"] == 0


def test_a_hub_is_asked_where_the_control_node_has_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = {**SPEC, "size_gib": 0, "revision": "main", "geometry": {}, "drafter": {}}
    with serve({spec["repo"]: repository(MOE, 29)}) as hub:
        found = run(monkeypatch, spec=spec, source_root=str(tmp_path), endpoint=hub.url)
        assert found["plan"]["spec"]["size_gib"] == 29
        assert found["sizes"] == [f"model_spec.size_gib is 0: 29 GiB, read at {hub.url}/{spec['repo']}."]
        assert not [path for path in hub.seen if path.endswith(".safetensors")]
