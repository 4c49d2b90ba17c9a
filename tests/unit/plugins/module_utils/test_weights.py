# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils import weights

INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
GOOD = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "modeling_nemotron_h.py", "super_v3_reasoning_parser.py",
]  # fmt: skip


def test_everything_that_vllm_reads_is_needed() -> None:
    needed, left, errors = weights.choose(GOOD, INDEX)
    assert (sorted(needed), left, errors) == (sorted(GOOD), {}, [])


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        ("consolidated.safetensors", "a shard that the index does not name"),
        ("pytorch_model.bin", "the same weights in another format"),
        ("original/consolidated.00.pth", "in a directory that vLLM does not read"),
        ("model-Q8_0.gguf", "the same weights in another format"),
        ("model-00001-of-00002.safetensors.incomplete", "a partial download"),
        ("README.md", "nothing that vLLM reads"),
    ],
)
def test_what_does_not_belong_stays_behind(stray: str, why: str) -> None:
    needed, left, errors = weights.choose([*GOOD, stray], INDEX)
    assert stray not in needed
    assert (left, errors) == ({stray: why}, [])


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("model-00002-of-00002.safetensors", "is named by model.safetensors.index.json and is not there."),
        ("config.json", "config.json is not there."),
    ],
)
def test_what_is_missing_is_named(missing: str, sentence: str) -> None:
    _needed, _left, errors = weights.choose([name for name in GOOD if name != missing], INDEX)
    assert any(sentence in error for error in errors)


def test_a_model_without_any_weights() -> None:
    _needed, _left, errors = weights.choose(["config.json", "tokenizer.json"], None)
    assert errors == ["there is neither a .safetensors file nor an index of such files."]


def test_a_model_without_a_tokenizer() -> None:
    _needed, _left, errors = weights.choose(["config.json", "model.safetensors"], None)
    assert "no tokenizer file is there" in errors[0]


def safetensors(described: dict[str, Any], announced: int | None = None) -> bytes:
    header = json.dumps(described).encode()
    return (announced if announced is not None else len(header)).to_bytes(8, "little") + header


def test_a_whole_shard_agrees_with_its_header() -> None:
    data = safetensors({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    assert weights.safetensors_error("s", len(data) + 8, data) is None


def test_a_cut_off_shard_says_by_how_much() -> None:
    data = safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}})
    sentence = weights.safetensors_error("s", len(data) + 300, data)
    assert sentence is not None
    assert "500 bytes are missing" in sentence
    longer = weights.safetensors_error("s", len(data) + 900, data)
    assert longer is not None
    assert "100 bytes too many" in longer


@pytest.mark.parametrize(
    ("header", "size", "sentence"),
    [
        (b"abc", 3, "too short for a safetensors file"),
        (safetensors({}, announced=2**40), 1000, "announces a header of"),
        ((5).to_bytes(8, "little") + b"hello", 13, "has a header that is no JSON"),
    ],
)
def test_what_is_no_safetensors(header: bytes, size: int, sentence: str) -> None:
    found = weights.safetensors_error("s", size, header)
    assert found is not None
    assert sentence in found


def manifest() -> dict[str, Any]:
    return weights.make_manifest(
        "o/m", "main", [{"path": "b", "size": 2, "sha256": "bb"}, {"path": "a", "size": 1, "sha256": "aa"}]
    )


def test_the_manifest_is_ordered_and_its_digest_is_of_its_content() -> None:
    assert [file["path"] for file in manifest()["files"]] == ["a", "b"]
    assert manifest()["bytes"] == 3
    assert manifest()["digest"] == manifest()["digest"]
    other = weights.make_manifest("o/m", "main", [{"path": "a", "size": 1, "sha256": "ab"}])
    assert other["digest"] != manifest()["digest"]


def test_without_a_stamp_everything_is_lacking() -> None:
    assert weights.lacking(manifest(), {"a": 1, "b": 2}, None) == ["a", "b"]


def test_with_a_stamp_only_what_differs_is() -> None:
    stamp = manifest()
    assert weights.lacking(manifest(), {"a": 1, "b": 2}, stamp) == []
    assert weights.lacking(manifest(), {"a": 1, "b": 1}, stamp) == ["b"]
    stamp["files"][0]["sha256"] = "other"
    assert weights.lacking(manifest(), {"a": 1, "b": 2}, stamp) == ["a"]
