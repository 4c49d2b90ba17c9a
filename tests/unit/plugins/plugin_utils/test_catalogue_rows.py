# SPDX-License-Identifier: Apache-2.0
"""Rows of the catalogue: published speeds, verdicts on a cluster and on other numbers of boxes, the table."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import rows

IMAGES = {"img": {"pull": "registry.example/vllm:1", "vllm_version": "0.30.0"}}
POINT = {"concurrency": 1, "decode_tokens_per_s": 20.0, "source": "x"}
SPEC: dict[str, Any] = {
    "name": "m",
    "repo": "o/m",
    "size_gib": 30.0,
    "nodes": 1,
    "image": "img",
    "serve": {"tensor-parallel-size": 1, "max-model-len": 8192, "max-num-seqs": 2, "gpu-memory-utilization": 0.8},
    "geometry": {
        "architecture": "Qwen3MoeForCausalLM",
        "layers": 48,
        "hidden_size": 2048,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "attention": {"layers": 48, "heads": 32, "kv_heads": 4, "head_dim": 128},
        "moe": {"layers": 48, "experts": 128, "experts_per_token": 8, "expert_intermediate_size": 768},
    },
    "expected": {
        "sweep": [
            POINT,
            {**POINT, "concurrency": 8, "decode_tokens_per_s": 90},
            {**POINT, "concurrency": 4, "decode_tokens_per_s": 70},
            {**POINT, "decode_tokens_per_s": 99, "settings": "other kernels"},
        ]
    },
}
LARGE = {**SPEC, "name": "large", "size_gib": 150.0, "expected": {}}
MEASURED = {
    **{key: value for key, value in SPEC.items() if key != "geometry"},
    "expected": {"kv_cache": [{"pool_gib": 10, "tokens": 100000, "source": "x"}]},
}


def test_speeds_are_those_of_the_model_s_own_settings() -> None:
    one, peak = rows.speeds(SPEC)
    assert one is not None
    assert peak is not None
    assert (one["decode_tokens_per_s"], peak["concurrency"]) == (20.0, 8)
    assert rows.speeds({"expected": {}}) == (None, None)


def test_speeds_of_other_settings_stand_in_and_say_so() -> None:
    one, peak = rows.speeds({"expected": {"sweep": [{**POINT, "settings": "other kernels"}]}})
    assert rows.speed_text(one) == "20 (other kernels)"
    assert peak is None
    assert rows.speed_text(peak) == "none published"
    assert rows.speed_text({**POINT, "concurrency": 8, "decode_tokens_per_s": 90}) == "90 for 8 requests"


def test_the_verdict_of_a_cluster_is_that_of_its_tightest_node() -> None:
    verdict, reason = rows.verdict_on(SPEC, IMAGES, [119.0])
    assert verdict == "fits"
    assert "95.20 GiB hold 30.00 GiB of weights" in reason
    assert rows.verdict_on(LARGE, IMAGES, [119.0])[0] == "refused"
    two = {**LARGE, "nodes": 2, "serve": {**SPEC["serve"], "tensor-parallel-size": 2}}
    assert rows.verdict_on(two, IMAGES, [119.0]) == ("too few nodes", "needs 2 nodes, here are 1")
    assert rows.verdict_on(two, IMAGES, [119.0, 119.0])[0] == "fits"
    assert rows.verdict_on(two, IMAGES, [119.0, 64.0])[0] == "refused"
    assert rows.verdict_on({**SPEC, "image": "none"}, IMAGES, [119.0]) == (
        "unknown",
        "its image is not in the catalogue",
    )


def test_a_measured_cache_stands_in_for_a_shape() -> None:
    verdict, reason = rows.verdict_on(MEASURED, IMAGES, [119.0])
    assert verdict == "tight"
    assert "measured were 100000 tokens" in reason
    assert rows.on_boxes(MEASURED, IMAGES, 2, 119.0)[0] == "unknown"
    nothing = {**MEASURED, "expected": {}}
    verdict, reason = rows.verdict_on(nothing, IMAGES, [119.0])
    assert verdict == "unknown"
    assert "The shape of the model is not given, so its cache is not computed." in reason


@pytest.mark.parametrize(("boxes", "verdict"), [(1, "refused"), (2, "fits"), (3, "not divisible"), (4, "fits")])
def test_a_model_is_split_over_other_numbers_of_boxes(boxes: int, verdict: str) -> None:
    assert rows.on_boxes(LARGE, IMAGES, boxes, 119.0)[0] == verdict


def test_rows_of_a_cluster() -> None:
    four = {**SPEC, "name": "four", "nodes": 4}
    stated = {**SPEC, "provenance": {"status": "published", "source": "[X]"}}
    found = rows.cluster([stated, LARGE, four, {**SPEC, "size_gib": 1}], IMAGES, ["a", "b"], {"a": 119.0, "b": 118.5})
    assert [(each["name"], each["verdict"]) for each in found["models"]] == [
        ("m", "fits"),
        ("large", "refused"),
        ("four", "too few nodes"),
    ]
    assert found["models"][0]["size_gib"] == 30.0, "the file of the first directory counts"
    assert (found["models"][0]["status"], found["models"][0]["source"]) == ("published", "[X]")
    assert (found["models"][1]["status"], found["models"][1]["source"]) == ("not stated", "")
    lines = rows.screen(found)
    assert lines[0] == "2 boxes, the smallest has 118.5 GiB"
    assert lines[1].split() == ["model", "boxes", "context", "GiB", "tokens/s", "peak", "here", "status", "image"]
    assert lines[2].split() == ["m", "1", "8192", "30", "20", "90", "x8", "fits", "published", "img"]
    assert lines[-1].startswith("large: Nothing is left for the cache")


def test_the_largest_that_fits_comes_first_and_what_cannot_be_last() -> None:
    specs = [
        LARGE, {**SPEC, "name": "wide", "nodes": 4}, SPEC,
        {**SPEC, "name": "shapeless", "geometry": {}, "expected": {}},
        {**SPEC, "name": "imageless", "image": "other", "size_gib": 1.0}, {**SPEC, "name": "larger", "size_gib": 40.0},
    ]  # fmt: skip
    found = rows.on_cluster(specs, IMAGES, [119.0, 119.0])
    assert [(each["name"], each["verdict"]) for each in found] == [
        ("larger", "fits"), ("m", "fits"), ("shapeless", "unknown"), ("imageless", "unknown"),
        ("large", "refused"), ("wide", "too few nodes"),
    ]  # fmt: skip
    assert found[-1]["reason"] == "needs 4 nodes, here are 2"


def test_what_is_computed_comes_before_what_was_measured() -> None:
    found = rows.on_cluster([{**MEASURED, "name": "larger", "size_gib": 40.0}, SPEC], IMAGES, [119.0])
    assert [(each["name"], each["verdict"], each["basis"]) for each in found] == [
        ("m", "fits", "computed"),
        ("larger", "tight", "measured"),
    ]


def test_a_fork_counts_as_the_release_that_it_is_based_on() -> None:
    images = {"img": {"pull": "registry.example/fork:1", "vllm_version": "0.1.dev7+gabc", "vllm_upstream": "0.30.0"}}
    row = rows.row(SPEC, images)
    assert (row["vllm_version"], row["vllm_is_fork"]) == ("0.30.0", True)
    assert rows.row(SPEC, IMAGES)["vllm_is_fork"] is False
    assert rows.verdict_on(SPEC, images, [119.0])[0] == "fits"


def test_a_node_that_does_not_answer_leaves_its_models_unknown() -> None:
    found = rows.cluster([SPEC, {**LARGE, "nodes": 2}], IMAGES, ["a", "b"], {"a": 119.0})
    assert [(each["name"], each["verdict"]) for each in found["models"]] == [("m", "fits"), ("large", "unknown")]
    assert found["models"][1]["reason"] == "of its 2 nodes, 1 did not answer"
    assert rows.screen(found)[0] == "2 boxes, the smallest has 119.0 GiB; no answer from b"
    assert rows.screen(rows.cluster([SPEC], IMAGES, ["a"], {}))[0] == "1 box; no answer from a"
