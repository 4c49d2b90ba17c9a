# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node.docker_config import changed_keys, needs_restart
from ansible_collections.gb10.cluster.plugins.module_utils._node.json_merge import JsonMergeError, merge, parse, render

# What `nvidia-ctk runtime configure` leaves behind.
OWNER = {
    "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}},
    "registry-mirrors": ["https://mirror.example"],
    "log-opts": {"max-size": "10m", "compress": "true"},
}


def test_merge_keeps_what_the_owner_has() -> None:
    merged = merge(OWNER, {"log-opts": {"max-size": "50m"}, "registry-mirrors": ["https://second.example"]})
    assert merged["runtimes"] == OWNER["runtimes"]
    assert merged["log-opts"] == {"max-size": "50m", "compress": "true"}
    assert merged["registry-mirrors"] == ["https://mirror.example", "https://second.example"]


def test_merge_twice_is_merge_once() -> None:
    wanted = {"log-driver": "json-file", "insecure-registries": ["10.0.0.0/24"], "log-opts": {"max-file": "3"}}
    once = merge(OWNER, wanted)
    assert merge(once, wanted) == once
    assert changed_keys(once, merge(once, wanted)) == []


def test_merge_does_not_change_its_arguments() -> None:
    before = json.dumps(OWNER)
    merge(OWNER, {"log-opts": {"max-size": "1m"}})["runtimes"]["nvidia"]["args"].append("x")
    assert json.dumps(OWNER) == before


def test_null_takes_a_key_out_at_any_depth() -> None:
    merged = merge(OWNER, {"registry-mirrors": None, "log-opts": {"compress": None}, "absent": None})
    assert "registry-mirrors" not in merged
    assert merged["log-opts"] == {"max-size": "10m"}


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [("x", {"a": 1}, {"a": 1}), ({"a": 1}, "x", "x"), (["x"], "y", "y"), ("y", ["x"], ["x"])],
)
def test_a_value_of_another_type_is_replaced(have: object, want: object, expected: object) -> None:
    assert merge({"key": have}, {"key": want}) == {"key": expected}


def test_needs_restart() -> None:
    assert needs_restart(["insecure-registries", "registry-mirrors", "runtimes", "default-runtime"]) == []
    assert needs_restart(["log-driver", "insecure-registries", "data-root"]) == ["data-root", "log-driver"]
    assert needs_restart(["features"]) == ["features"]  # the containerd image store is one of them


def test_changed_keys() -> None:
    assert changed_keys({"a": 1, "b": 2, "c": None}, {"a": 1, "b": 3, "d": 4}) == ["b", "c", "d"]


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_an_empty_file_is_no_settings(text: str) -> None:
    assert parse(text, "/etc/docker/daemon.json") == {}


def test_parse_says_where_it_is_broken() -> None:
    with pytest.raises(JsonMergeError, match=r"/etc/docker/daemon\.json is not valid JSON \(line 2, column 3"):
        parse('{"a": 1,\n  b: 2}', "/etc/docker/daemon.json")
    with pytest.raises(JsonMergeError, match="holds list, not an object"):
        parse("[]", "/etc/docker/daemon.json")


def test_render_keeps_the_order() -> None:
    assert render({"b": 1, "a": [2]}) == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
