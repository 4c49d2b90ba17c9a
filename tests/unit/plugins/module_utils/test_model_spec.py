# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms

GOOD: dict[str, Any] = {
    "name": "some397",
    "repo": "org/Some-Model",
    "served_name": "some397",
    "size_gib": 379,
    "nodes": 4,
    "image": "vllm-node-mimo",
    "ports": {"master": 29510},
    "serve": {"tensor-parallel-size": 4},
}


def changed(**changes: Any) -> dict[str, Any]:
    return ms.deep_merge(GOOD, changes)


def test_defaults_are_filled_in_and_nothing_is_wrong() -> None:
    spec, errors = ms.validate(GOOD)
    assert errors == []
    assert spec["ports"] == {"api": 8000, "master": 29510, "ray": 6379}
    assert (spec["engine"], spec["revision"], spec["mods"]) == ("ray", "main", [])
    assert spec["size_gib"] == 379.0


def test_the_given_dictionary_is_left_as_it_was() -> None:
    before = copy.deepcopy(GOOD)
    ms.validate(GOOD)
    assert before == GOOD


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"served_nam": "x"}, "model_spec.served_nam is not a known key. Did you mean 'served_name'?"),
        ({"zzzz": 1}, "model_spec.zzzz is not a known key. Known: name, repo"),
        ({"ports": {"apii": 1}}, "model_spec.ports.apii is not a known key. Did you mean 'api'?"),
        ({"repo": None}, "model_spec.repo is missing."),
        ({"nodes": "four"}, "model_spec.nodes must be a number, found 'four'."),
        ({"nodes": 2.5}, "model_spec.nodes must be a whole number, found 2.5."),
        ({"nodes": 0}, "model_spec.nodes must be 1 or more, found 0."),
        ({"nodes": True}, "model_spec.nodes must be a number, found bool True."),
        ({"engine": "slurm"}, "model_spec.engine must be one of native, ray, found 'slurm'."),
        ({"serve": "--tensor-parallel-size 4"}, "model_spec.serve must be a dictionary, found str"),
        ({"mods": "gpu-mem-util-gb"}, "model_spec.mods must be a list, found str"),
        ({"mods": [{"a": 1}]}, "model_spec.mods[0] must be a string, found dict"),
        ({"name": "Qwen 397"}, "model_spec.name 'Qwen 397' must be lower-case letters"),
        ({"repo": "Qwen3.5"}, "model_spec.repo 'Qwen3.5' must be <organisation>/<repository>."),
        ({"size_gib": -1}, "model_spec.size_gib must not be negative, found -1.0."),
        ({"ports": {"api": 80}}, "model_spec.ports.api must be between 1024 and 65535, found 80."),
        ({"ports": {"ray": 29510}}, "model_spec.ports.ray and .master are both 29510; give each its own."),
        ({"env": {"1X": "a"}}, "model_spec.env has '1X', which is no variable name."),
        ({"env": {"X": True}}, "model_spec.env.X is a YAML boolean; quote what the variable must hold, e.g. '1'."),
        ({"env": {"X": ["a"]}}, "model_spec.env.X must be a string, found list."),
        ({"env": {"X": "a\nb"}}, "model_spec.env.X holds a line break"),
        ({"env": {"VLLM_API_KEY": "k"}}, "model_spec.env must not hold VLLM_API_KEY or HF_TOKEN"),
        (
            {"serve": {"tensor-parallel-size": "4"}},
            "tensor-parallel-size must be a whole number of 1 or more, found '4'.",
        ),
        ({"nodes": 2}, "tensor-parallel-size x pipeline-parallel-size is 4, but nodes is 2; a GB10 has one GPU"),
    ],
)
def test_each_mistake_has_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    _spec, errors = ms.validate(changed(**changes))
    assert any(sentence in error for error in errors), errors


DRAFTER = {"repo": "org/Some-Drafter", "size_gib": 3.5}
DATA = {"name": "tables", "command": ["make", "{model}", "{output}"], "mount": "/data/tables", "size_gib": 48}


def test_what_lies_beside_the_weights_gets_its_defaults() -> None:
    spec, errors = ms.validate(changed(drafter=DRAFTER, prepared_data=[{**DATA, "env": {"THREADS": 8}}]))
    assert errors == []
    assert spec["drafter"] == {**DRAFTER, "revision": "main", "geometry": {}}
    assert spec["prepared_data"] == [{**DATA, "size_gib": 48.0, "env": {"THREADS": "8"}}]
    plain, _none = ms.validate(changed(drafter={}))
    assert (plain["drafter"], plain["prepared_data"]) == ({}, [])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drafter": "org/d"}, "model_spec.drafter must be a dictionary, found str"),
        ({"drafter": {"size_gib": 1}}, "model_spec.drafter.repo is missing."),
        (
            {"drafter": {**DRAFTER, "revisoin": "x"}},
            "model_spec.drafter.revisoin is not a known key. Did you mean 'revision'?",
        ),
        ({"drafter": {**DRAFTER, "repo": "d"}}, "model_spec.drafter.repo 'd' must be <organisation>/<repository>."),
        ({"drafter": {**DRAFTER, "repo": GOOD["repo"]}}, "model_spec.drafter.repo is the model's own repository"),
        ({"drafter": {**DRAFTER, "size_gib": -1}}, "model_spec.drafter.size_gib must not be negative, found -1.0."),
        (
            {"drafter": {**DRAFTER, "revision": "a\nb"}},
            "model_spec.drafter.revision 'a\\nb' holds a control character.",
        ),
        ({"prepared_data": DATA}, "model_spec.prepared_data must be a list, found dict"),
        ({"prepared_data": ["x"]}, "model_spec.prepared_data[0] must be a dictionary, found str 'x'."),
        ({"prepared_data": [{**DATA, "cmd": []}]}, "model_spec.prepared_data[0].cmd is not a known key."),
        ({"prepared_data": [{**DATA, "name": "A b"}]}, "model_spec.prepared_data[0].name 'A b' must be lower-case"),
        ({"prepared_data": [{**DATA, "mount": "data"}]}, ".mount 'data' must be an absolute path"),
        ({"prepared_data": [{**DATA, "mount": "/data/../etc"}]}, ".mount '/data/../etc' must be an absolute path"),
        ({"prepared_data": [{**DATA, "mount": "/a:/b"}]}, ".mount '/a:/b' must be an absolute path"),
        ({"prepared_data": [{**DATA, "command": ["make"]}]}, ".command does not say where to write: give {output}"),
        ({"prepared_data": [{**DATA, "size_gib": -1}]}, ".size_gib must be above 0, found -1.0."),
        ({"prepared_data": [{**DATA, "env": {"1X": "a"}}]}, "prepared_data[0].env has '1X', which is no variable"),
        (
            {"prepared_data": [DATA, {**DATA, "name": "other"}]},
            "model_spec.prepared_data[1].mount '/data/tables' is also that of prepared_data[0]; give each its own.",
        ),
    ],
)
def test_each_mistake_beside_the_weights_has_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    _spec, errors = ms.validate(changed(**changes))
    assert any(sentence in error for error in errors), errors


def test_all_mistakes_come_at_once() -> None:
    _spec, errors = ms.validate({"name": "x", "nodes": "many", "colour": "red"})
    assert len(errors) >= 6


def test_pipeline_and_tensor_parallel_multiply() -> None:
    _spec, errors = ms.validate(changed(serve={"tensor-parallel-size": 2, "pipeline-parallel-size": 2}))
    assert errors == []


def test_overrides_merge_deeply_replace_lists_and_remove_by_null() -> None:
    merged = ms.deep_merge({"a": {"b": 1, "c": 2}, "l": [1, 2]}, {"a": {"b": None, "d": 3}, "l": [9]})
    assert merged == {"a": {"c": 2, "d": 3}, "l": [9]}


def test_unknown_model_lists_the_known_ones_and_the_nearest() -> None:
    sentence = ms.unknown_model("some39", ["other-big", "some397"])
    assert "Did you mean 'some397'?" in sentence
    assert "Known: other-big, some397." in sentence
    assert "group_vars/model_some39.yml" in sentence


def test_no_model_says_how_to_choose_one() -> None:
    assert "-e model=<name>" in ms.unknown_model("", ["some397"])


def test_names_come_from_files() -> None:
    files = ["a/group_vars/model_other_big.yml", "b/model_some397.yaml", "b/models.yml", "b/model_some397.yml"]
    assert ms.names_from_files(files) == ["other-big", "some397"]


def test_group_names_are_what_the_constructed_plugin_makes() -> None:
    assert ms.group_name("other-3.5-big") == "model_other_3_5_big"


def test_members_are_head_first_and_the_rest_stays_idle() -> None:
    members, idle, errors = ms.membership({"name": "m", "nodes": 2}, ["h"], ["w1", "w2", "w3"])
    assert (members, idle, errors) == (["h", "w1"], ["w2", "w3"], [])


def test_too_few_nodes_says_by_how_much() -> None:
    _members, _idle, errors = ms.membership({"name": "big", "nodes": 4}, ["h"], ["w"])
    assert errors == [
        "Model 'big' needs 4 nodes and this cluster has 2 (h, w): 2 short. Choose a model for 2 or fewer nodes."
    ]


@pytest.mark.parametrize("heads", [[], ["a", "b"]])
def test_there_is_one_head(heads: list[str]) -> None:
    _members, _idle, errors = ms.membership({"name": "m", "nodes": 1}, heads, [])
    assert f"exactly one host, found {len(heads)}" in errors[0]


@pytest.mark.parametrize(
    "address",
    [
        "CHANGE_ME",
        "change-me",
        "<head-node>",
        "192.0.2.11",
        "198.51.100.7",
        "203.0.113.9",
        "2001:db8::11",
        "x.x.x.x",
        "",
    ],
)
def test_a_placeholder_is_refused(address: str) -> None:
    errors = ms.inventory_errors({"n1": {"ansible_host": address, "fabric_address": "10.0.0.1"}})
    assert "n1: ansible_host is still the placeholder" in errors[0]


@pytest.mark.parametrize("address", ["10.1.2.3", "gx10-1.lan", "fd00::1", "spark-head"])
def test_a_real_address_is_not(address: str) -> None:
    assert ms.inventory_errors({"n1": {"ansible_host": address, "fabric_address": "10.0.0.1"}}) == []


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ({"a": ("10.0.0.1", None), "b": ("10.0.0.2", "10.1.0.2")}, "a: gb10_fabric_address is missing."),
        ({"a": ("10.0.0.1", "10.1.0.x")}, "a: gb10_fabric_address '10.1.0.x' is no IP address."),
        (
            {"a": ("10.0.0.1", "10.1.0.1"), "b": ("10.0.0.2", "10.1.0.1")},
            "b: gb10_fabric_address 10.1.0.1 is also that of a.",
        ),
        ({"a": ("10.0.0.1", "10.0.0.1"), "b": ("10.0.0.2", "10.1.0.1")}, "are both 10.0.0.1"),
    ],
)
def test_wrong_fabric_addresses(nodes: dict[str, tuple[str, str | None]], sentence: str) -> None:
    errors = ms.inventory_errors(
        {name: {"ansible_host": host, "fabric_address": fabric} for name, (host, fabric) in nodes.items()}
    )
    assert any(sentence in error for error in errors), errors


def test_one_node_needs_no_fabric() -> None:
    assert ms.inventory_errors({"a": {"ansible_host": "10.0.0.1", "fabric_address": None}}) == []


@pytest.mark.parametrize("key", ["served_name", "revision", "image", "shm_size"])
def test_a_line_break_cannot_reach_a_unit(key: str) -> None:
    _spec, errors = ms.validate({**GOOD, key: "a\nExecStartPost=/bin/b"})
    assert [error for error in errors if error.startswith(f"model_spec.{key} ") and "control character" in error]


@pytest.mark.parametrize("key", ["name", "repo"])
def test_a_name_with_a_line_break_at_its_end_is_refused(key: str) -> None:
    _spec, errors = ms.validate({**GOOD, key: GOOD[key] + "\n"})
    assert errors


def test_placeholders_are_named_one_by_one() -> None:
    found = ms.placeholder_errors({"a": "CHANGE_ME", "b": "10.1.2.3", "c": None, "d": "node.local"})
    assert [sentence.partition(":")[0] for sentence in found] == ["a", "c"]
