# SPDX-License-Identifier: Apache-2.0
"""Which files of a model vLLM reads, and what is reported as missing."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
GOOD = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors.index.json", *SHARDS, "modeling_nemotron_h.py", "super_v3_reasoning_parser.py",
]  # fmt: skip
LARGE = 10**9


def choose(
    names: list[str], index: Any = None, serve: dict[str, Any] | None = None, **indexes: Any
) -> tuple[list[str], dict[str, str], list[str]]:
    """Choose among files of which those with weights are large and the others small."""
    sizes = {name: LARGE if name.endswith((".safetensors", ".bin", ".pth", ".gguf")) else 1000 for name in names}
    given = {"model.safetensors.index.json": index} if index is not None else {}
    given |= {f"{name}.index.json": value for name, value in indexes.items()}
    return needs.choose(sizes, given, serve)


def test_everything_that_vllm_reads_is_needed() -> None:
    needed, left, errors = choose(GOOD, INDEX)
    assert (sorted(needed), left, errors) == (sorted(GOOD), {}, [])


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        ("consolidated.safetensors", "the same weights for load-format mistral"),
        ("model-00003-of-00003.safetensors", "a shard that neither the index nor load-format names"),
        ("pytorch_model.bin", "the same weights in another format"),
        ("original/consolidated.00.pth", "in a directory that vLLM does not read"),
        ("original/params.json", "in a directory that vLLM does not read"),
        ("metal/model.bin", "in a directory that vLLM does not read"),
        ("fp16/model.safetensors", "in a directory that vLLM does not read"),
        ("model-Q8_0.gguf", "the same weights in another format"),
        ("optimizer.pt", "a state of training"),
        ("model-00001-of-00002.safetensors.incomplete", "a partial download"),
        ("README.md", "nothing that vLLM reads"),
        ("LICENSE", "nothing that vLLM reads"),
        (".gitattributes", "nothing that vLLM reads"),
        ("assets/picture.png", "nothing that vLLM reads"),
        (".cache/huggingface/download/config.json.metadata", "nothing that vLLM reads"),
        (".huggingface/trees/x.json", "nothing that vLLM reads"),
        ("original/adapter_model.safetensors", "in a directory that vLLM does not read"),
        ("lora/adapter_model.safetensors", "in a directory that vLLM does not read"),
    ],
)
def test_what_does_not_belong_stays_behind(stray: str, why: str) -> None:
    needed, left, errors = choose([*GOOD, stray], INDEX)
    assert stray not in needed
    assert (left, errors) == ({stray: why}, [])


@pytest.mark.parametrize(
    "name",
    [
        "tiktoken.model", "tokenization_kimi.py",  # kimi: tokenizers/kimi_audio.py reads tiktoken.model
        "quantize_config.json", "quantization_config.json", "quant_config.json", "hf_quant_config.json",
        "sparse_attention_config.json", "torchao_config.json", "modules.json", "1_Pooling/config.json",
        "sentence_bert_config.json", "2_Dense/config.json", "params.json", "tekken.json", "spiece.model", "vocab.txt",
        "merges.txt", "audio_tokenizer/config.json", "speech_config.yaml", "mask_embedding.pt", "qwen.tiktoken",
    ],
)  # fmt: skip
def test_small_files_that_vllm_may_read_are_carried(name: str) -> None:
    needed, left, errors = choose([*GOOD, name], INDEX)
    assert name in needed
    assert (left, errors) == ({}, [])


def test_a_large_file_is_carried_when_it_is_text_and_left_when_nothing_is_known_of_it() -> None:
    sizes = dict.fromkeys(GOOD, 1000) | {"tokenizer.json": 50_000_000, "data.zip": 50_000_000, "lm.model": 10**8}
    needed, left, errors = needs.choose(sizes, {"model.safetensors.index.json": INDEX})
    assert {"tokenizer.json", "lm.model"} <= set(needed)
    assert (left, errors) == ({"data.zip": "nothing that vLLM reads"}, [])


def test_a_projection_of_a_pooling_model_comes_with_its_weights() -> None:
    module = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    needed, left, errors = choose(["config.json", "tokenizer.json", "model.safetensors", *module])
    assert set(module) <= set(needed)
    assert (left, errors) == ({}, [])


MISTRAL = [
    "config.json", "params.json", "tekken.json", "tokenizer.json", "tokenizer_config.json", "consolidated.safetensors",
    "model.safetensors.index.json", *SHARDS,
]  # fmt: skip


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3", "tokenizer.model.v7m1", "tokenizer.mm.model.v7"])
def test_each_kind_of_mistrals_tokenizer_counts(name: str) -> None:
    names = ["params.json", "consolidated.safetensors", name]
    needed, left, errors = choose(names, serve={"load-format": "mistral", "tokenizer-mode": "mistral"})
    assert (sorted(needed), left, errors) == (sorted(names), {}, [])


@pytest.mark.parametrize("directory", ["", "lora/", "adapters/speech-lora/"])
def test_an_adapter_comes_with_its_weights(directory: str) -> None:
    adapter = [f"{directory}adapter_config.json", f"{directory}adapter_model.safetensors"]
    needed, left, errors = choose([*GOOD, *adapter], INDEX)
    assert set(adapter) <= set(needed)
    assert (left, errors) == ({}, [])


def test_an_adapter_alone_is_no_model() -> None:
    names = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    errors = choose(names)[2]
    assert "there is no file with weights" in errors[0]
    assert "this is an adapter, which vLLM serves on its base model (lora-modules)" in errors[1]


@pytest.mark.parametrize(
    ("ranks", "size", "sentence"),
    [
        ([0, 1], 2, None),
        ([0, 1], None, None),
        ([1], 2, "there is no model-rank-0-part-*.safetensors"),
        ([0, 1], 4, "are saved for 2 ranks, and the model is served by 4: there is no model-rank-2-part"),
        ([0, 1, 2, 3], 2, "are saved for 4 ranks, and the model is served by 2."),
        ([0], "x", None),
    ],
)
@pytest.mark.parametrize("load_format", ["sharded_state", "runai_streamer_sharded"])
def test_weights_saved_by_rank_are_those_of_every_rank(
    load_format: str, ranks: list[int], size: Any, sentence: str | None
) -> None:
    names = ["config.json", "tokenizer.json", *(f"model-rank-{rank}-part-0.safetensors" for rank in ranks)]
    errors = choose(names, serve={"load-format": load_format, "tensor-parallel-size": size})[2]
    assert len(errors) == bool(sentence)
    assert (sentence or "") in "".join(errors)


#: What each loader of vLLM takes of a directory with weights in every form.
EVERY_FORM = [
    *SHARDS, "consolidated.safetensors", "model-rank-0-part-0.safetensors", "pytorch_model.bin", "model.pt",
    "model.tensors", "model-Q4_K_M.gguf",
]  # fmt: skip
TAKEN: dict[str, list[str]] = {
    "auto": SHARDS, "hf": SHARDS, "bitsandbytes": SHARDS, "modelexpress": SHARDS, "ipc_cache": SHARDS,
    "of-a-fork": SHARDS, "safetensors": SHARDS, "fastsafetensors": SHARDS, "instanttensor": SHARDS,
    "runai_streamer": SHARDS, "mistral": ["consolidated.safetensors"], "pt": ["model.pt"],
    "npcache": ["pytorch_model.bin"], "tensorizer": ["model.tensors"], "dummy": [], "gguf": [],
    "sharded_state": ["model-rank-0-part-0.safetensors"], "runai_streamer_sharded": ["model-rank-0-part-0.safetensors"],
}  # fmt: skip


@pytest.mark.parametrize("load_format", sorted({*needs.LOADERS, "of-a-fork"}))
def test_a_loader_takes_its_files(load_format: str) -> None:
    weights, errors = needs.choose_weights(EVERY_FORM, {"model.safetensors.index.json": INDEX}, load_format)
    assert sorted(weights) == sorted(TAKEN[load_format])
    assert bool(errors) == (load_format == "gguf")


@pytest.mark.parametrize("load_format", sorted(needs.LOADERS))
def test_a_loader_without_its_files_is_named(load_format: str) -> None:
    wanted = needs.patterns_of(load_format)
    left = [name for name in EVERY_FORM if not any(fnmatch(name, pattern) for pattern in wanted)]
    # The index of safetensors files that are there is no help to a loader of other files.
    indexes = {"model.safetensors.index.json": INDEX} if SHARDS[0] in left else {}
    errors = needs.choose_weights(left, indexes, load_format)[1]
    if load_format == "dummy":
        assert errors == []
    elif isinstance(wanted, str):
        assert errors == [wanted]
        assert "Take a repository with safetensors" in wanted
    else:
        (error,) = errors
        assert error.startswith(f"there is no file with weights ({', '.join(wanted)}) and no index of such files.")
        assert "vLLM reads no GGUF out of a directory; take a repository with safetensors." in error


def test_every_loader_of_the_releases_that_were_read_is_known() -> None:
    tables = serve_files.load_tables().values()
    assert {value for table in tables for value in table["options"]["load-format"]["known"]} == set(needs.LOADERS)


def test_weights_saved_by_rank_under_names_of_the_owners() -> None:
    serve = {"load-format": "sharded_state", "model-loader-extra-config": {"pattern": "r{rank}-{part}.safetensors"}}
    assert choose(["config.json", "tokenizer.json", "r0-0.safetensors"], None, serve)[2] == []


def test_a_vocabulary_without_its_merges_is_no_tokenizer() -> None:
    names = ["config.json", "model.safetensors", "vocab.json"]
    assert choose(names)[2] == ["merges.txt is missing, without which vocab.json is no tokenizer."]
    assert choose([*names, "merges.txt"])[2] == []


def test_load_format_mistral_takes_the_consolidated_weights() -> None:
    needed, left, errors = choose(MISTRAL, INDEX, {"load-format": "mistral"})
    assert {"consolidated.safetensors", "params.json", "tekken.json"} <= set(needed)
    assert (sorted(left), errors) == (SHARDS, [])


def test_without_it_the_consolidated_weights_are_the_same_again() -> None:
    needed, left, errors = choose(MISTRAL, INDEX)
    assert set(SHARDS) <= set(needed)
    assert (list(left), errors) == (["consolidated.safetensors"], [])


@pytest.mark.parametrize("serve", [{}, {"load-format": "mistral"}])
def test_a_model_in_mistrals_own_format_needs_no_config_json(serve: dict[str, Any]) -> None:
    names = ["params.json", "tekken.json", "consolidated-00001-of-00002.safetensors"]
    names.append("consolidated-00002-of-00002.safetensors")
    needed, left, errors = choose(names, serve=serve)
    assert (sorted(needed), left, errors) == (sorted(names), {}, [])
    assert choose(names[1:], serve=serve)[2] == ["params.json is missing."]
    assert "tokenizer-mode mistral" in choose([name for name in names if name != "tekken.json"], serve=serve)[2][0]


def test_the_index_of_consolidated_shards_is_the_one_that_counts() -> None:
    consolidated = {"weight_map": {"a": "consolidated-a.safetensors", "b": "consolidated-b.safetensors"}}
    _needed, _left, errors = choose(
        [*MISTRAL, "consolidated-a.safetensors"], INDEX, {"load-format": "mistral"},
        **{"consolidated.safetensors": consolidated},
    )  # fmt: skip
    assert errors == ["consolidated-b.safetensors is listed in consolidated.safetensors.index.json and is missing."]


@pytest.mark.parametrize(
    ("load_format", "weights"),
    [
        ("auto", ["pytorch_model-00001-of-00001.bin"]), ("npcache", ["pytorch_model.bin"]), ("pt", ["model.pt"]),
        ("tensorizer", ["model.tensors"]), ("runai_streamer", ["model.safetensors"]),
        ("sharded_state", ["model-rank-0-part-0.safetensors"]), ("a fork's own", ["model.safetensors"]), ("dummy", []),
    ],
)  # fmt: skip
def test_each_load_format_takes_its_own_weights(load_format: str, weights: list[str]) -> None:
    serve = {"load-format": load_format}
    needed, left, errors = choose(["config.json", "tokenizer.json", *weights], serve=serve)
    assert set(weights) <= set(needed)
    assert (left, errors) == ({}, [])
    if weights:
        assert "there is no file with weights" in choose(["config.json", "tokenizer.json"], serve=serve)[2][0]


def test_weights_in_a_directory_are_taken_when_there_are_none_above_it() -> None:
    """omnivinci: vLLM reads llm/*.safetensors."""
    needed, left, errors = choose(["config.json", "tokenizer.json", "llm/model.safetensors", "onnx/model.onnx"])
    assert "llm/model.safetensors" in needed
    assert (list(left), errors) == (["onnx/model.onnx"], [])


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (SHARDS[1], f"{SHARDS[1]} is listed in model.safetensors.index.json and is missing."),
        ("config.json", "config.json is missing."),
        ("tokenizer.json", "no tokenizer file is there (tokenizer.json, *.model, tekken.json, *.tiktoken or vocab.*)."),
    ],
)
def test_what_is_missing_is_named(missing: str, sentence: str) -> None:
    assert choose([name for name in GOOD if name != missing], INDEX)[2] == [sentence]


@pytest.mark.parametrize("serve", [{"tokenizer": "org/other"}, {"skip-tokenizer-init": True}])
def test_a_tokenizer_that_vllm_takes_from_elsewhere_or_not_at_all_is_not_missing(serve: dict[str, Any]) -> None:
    assert choose([name for name in GOOD if name != "tokenizer.json"], INDEX, serve)[2] == []


def test_shards_that_number_themselves_are_complete_without_an_index() -> None:
    names = ["config.json", "tokenizer.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    assert choose(names)[2] == [
        "1 of 3 shards is missing, the first one is model-00002-of-00003.safetensors; the index that lists them is "
        "missing too."
    ]
    assert choose([*names, "model-00002-of-00003.safetensors"])[2] == []


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {"a": 7}}, {"weight_map": {"a": "../../etc/passwd"}}, None, "x"],
)
def test_an_index_that_is_none_gets_a_sentence(index: Any) -> None:
    _needed, _left, errors = needs.choose(dict.fromkeys(GOOD, 1000), {"model.safetensors.index.json": index})
    assert len(errors) == 1
    assert errors[0].startswith("model.safetensors.index.json")


def safetensors(described: Any, announced: int | None = None) -> bytes:
    header = json.dumps(described).encode()
    return (announced if announced is not None else len(header)).to_bytes(8, "little") + header


def test_a_complete_shard_agrees_with_its_header() -> None:
    data = safetensors({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    assert needs.safetensors_error("s", len(data) + 8, data) is None


def test_a_cut_off_shard_says_by_how_much() -> None:
    data = safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}})
    assert "500 bytes are missing" in str(needs.safetensors_error("s", len(data) + 300, data))
    assert "100 bytes too many" in str(needs.safetensors_error("s", len(data) + 900, data))


@pytest.mark.parametrize(
    ("header", "size", "sentence"),
    [
        (b"abc", 3, "too short for a safetensors file"),
        (safetensors({}, announced=2**40), 1000, "announces a header of"),
        ((5).to_bytes(8, "little") + b"hello", 13, "has a header that is not JSON"),
        ((2 * 10**5).to_bytes(8, "little") + b"[" * 200_000, 200_008, "has a header that is not JSON"),
        (safetensors([]), 10, "does not say where the tensor"),
        (safetensors({"w": 7}), 100, "does not say where the tensor 'w' is"),
        (safetensors({"w": {"data_offsets": [0]}}), 100, "does not say where the tensor 'w' is"),
        (safetensors({"w": {"data_offsets": ["0", "8"]}}), 100, "does not say where the tensor 'w' is"),
        (safetensors({"w": {"data_offsets": [8, 0]}}), 100, "does not say where the tensor 'w' is"),
        (safetensors({"w": {"data_offsets": [-8, 0]}}), 100, "does not say where the tensor 'w' is"),
    ],
)
def test_what_is_no_safetensors(header: bytes, size: int, sentence: str) -> None:
    assert sentence in str(needs.safetensors_error("s", size, header))
