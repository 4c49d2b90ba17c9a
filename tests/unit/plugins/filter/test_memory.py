# SPDX-License-Identifier: Apache-2.0
"""The filters around memory_budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.filter.memory import FilterModule, memory_arguments, tightest


def result(verdict: str, headroom: float | None) -> dict[str, Any]:
    return {"verdict": verdict, "headroom_gib": headroom, "reasons": ["Because."], "missing": []}


def test_the_filters_by_name() -> None:
    assert FilterModule().filters() == {"tightest": tightest, "memory_arguments": memory_arguments}


def test_the_tightest_node() -> None:
    found = tightest([result("tight", 3.0), result("tight", 1.0), result("fits", 0.5)], ["a", "b", "c"])
    assert found == {
        "verdict": "tight",
        "node": "b",
        "reason": "b is the tightest of 3 nodes (tight): Because.",
        "report": "fits on this cluster. b is the tightest of 3 nodes (tight): Because.",
        "per_node": {"a": "tight", "b": "tight", "c": "fits"},
        "unsized": False,
    }


def test_nodes_without_the_weights_yet_are_no_refusal() -> None:
    waiting = result("unknown", None) | {"unsized": True}
    assert tightest([waiting, waiting], ["a", "b"])["unsized"]
    assert not tightest([waiting, result("refused", 1.0)], ["a", "b"])["unsized"]
    assert not tightest([result("unknown", None)], ["a"])["unsized"]


def test_a_refusal_without_figures_is_the_tightest() -> None:
    assert tightest([result("refused", 1.0), result("refused", None)], ["a", "b"])["node"] == "b"


def test_the_report_of_a_refusal_says_what_to_do() -> None:
    first = {"order": 1, "action": "Drop MTP: frees 3.00 GiB a node.", "resolves": True}
    found = tightest([result("refused", 1.0) | {"suggestions": [first]}], ["a"])
    assert found["report"] == (
        "does not fit on this cluster. a (refused): Because.\n1. Drop MTP: frees 3.00 GiB a node. This alone is enough."
    )


def test_the_report_of_an_unknown_shape_says_how_to_go_on() -> None:
    found = tightest([result("unknown", None) | {"missing": ["No rule for it."]}], ["a"])
    assert found["report"].splitlines() == [
        "cannot be sized. a (unknown): Because. No rule for it.",
        "A cache that was measured makes an estimate possible: expected.kv_cache of the model's file (docs/memory.md). "
        "-e model_memory_check=false continues without this check.",
    ]


def test_wrong_input() -> None:
    with pytest.raises(AnsibleFilterError, match=r"gb10\.cluster\.tightest: 1 results for 2 nodes"):
        tightest([result("fits", 1.0)], ["a", "b"])
    with pytest.raises(AnsibleFilterError, match="No node was given"):
        tightest([], [])
    with pytest.raises(AnsibleFilterError, match="The result of a is not one of"):
        tightest([{"skipped": True}], ["a"])


def test_arguments_of_a_model() -> None:
    found = memory_arguments({"repo": "a/b", "size_gib": 1, "serve": {"max-model-len": 2048}}, "0.32.0+cpu")
    assert found["max_model_len"] == 2048
    assert found["device"] == "cpu"
    assert "config_json" not in found
    spec = {"repo": "a/b", "size_gib": 1, "serve": {"max-model-len": 2048}}
    assert memory_arguments(spec, "0.32.0", "/srv/models")["config_json"] == "/srv/models/a/b"
    with pytest.raises(AnsibleFilterError, match=r"memory_arguments: model_spec\.serve has no max-model-len"):
        memory_arguments({"repo": "a/b", "size_gib": 1, "serve": {}}, "0.32.0")
    with pytest.raises(AnsibleFilterError, match="memory_arguments: model_spec has no 'size_gib'"):
        memory_arguments({"repo": "a/b", "serve": {"max-model-len": 2048}}, "0.32.0")


@pytest.mark.parametrize(
    ("version", "says", "device", "release"),
    [
        ("0.32.0", None, "cuda", "0.32.0"),
        ("", None, "cuda", "0.33.0"),
        ("", {}, "auto", "0.33.0"),
        ("0.30.0", {}, "auto", "0.30.0"),
        ("0.32.0+cpu", {}, "cpu", "0.32.0+cpu"),
        ("", {"vllm": "0.32.0+cpu", "device": "cpu"}, "cpu", "0.32.0+cpu"),
        ("0.32.0", {"vllm": "0.32.0+cpu", "device": "cpu"}, "cpu", "0.32.0"),
        ("", {"vllm": "0.30.1.dev5+gabc", "device": "cuda"}, "cuda", "0.30.1.dev5+gabc"),
        # Neither of them: ROCm, say.
        ("", {"vllm": "0.31.0", "device": ""}, "cuda", "0.31.0"),
        # A fork's own count of versions, and a table of before the device was read.
        ("", {"vllm": "0.1.dev20051+g487ecf187"}, "cuda", "0.33.0"),
        ("", {"vllm": "0.32.0+cpu"}, "cpu", "0.32.0+cpu"),
    ],
)
def test_a_pulled_image_says_itself_what_it_runs_on(
    tmp_path: Path, version: str, says: dict[str, str] | None, device: str, release: str
) -> None:
    spec = {"repo": "a/b", "size_gib": 1, "serve": {"max-model-len": 2048}}
    table = tmp_path / "table.json"
    if says:
        table.write_text(json.dumps({"options": {}, "env": {"VLLM_X": {}}, **says}), encoding="utf-8")
    found = memory_arguments(spec, version, "", "" if says is None else str(table))
    assert (found["device"], found["vllm_version"]) == (device, release)


def test_a_pool_for_the_cpu_build_says_what_an_image_runs_on_that_was_not_asked() -> None:
    spec = {"repo": "a/b", "size_gib": 1, "serve": {"max-model-len": 2048}, "env": {"VLLM_CPU_KVCACHE_SPACE": 2}}
    found = memory_arguments(spec, "", "", "/no/such/table.json")
    assert (found["device"], found["kv_cache_memory_gib"]) == ("cpu", 2)


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{", encoding="utf-8")
    spec = {"repo": "a/b", "size_gib": 1, "serve": {"max-model-len": 2048}}
    with pytest.raises(AnsibleFilterError, match=r"table\.json is no table of options .* reads it anew"):
        memory_arguments(spec, "", "", str(tmp_path / "table.json"))
