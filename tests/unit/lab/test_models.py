# SPDX-License-Identifier: Apache-2.0
"""The lab's tiny models: what is written is what vLLM reads, and says what it is meant to say.

The reader of safetensors and the arithmetic here are written anew, apart from lab/models.py:
the models are walked through as an engine with four ranks would.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lab import models, tensors

REPO_ROOT = Path(__file__).resolve().parents[3]
SENTENCES = {models.QWEN3_REPO: models.QWEN3_SENTENCE, models.NEMOTRONH_REPO: models.NEMOTRONH_SENTENCE}

#: A change of these is a change of the models: say so in CHANGELOG, and expect nodes to fetch them anew.
REVISIONS = {
    models.QWEN3_REPO: "765bfddd5b90141cef1c67b28d1328075294ce57",
    models.NEMOTRONH_REPO: "8db64acb2133a0100c0299f5877c72eee0c9f3ac",
}

Matrix = list[list[float]]
Tensors = dict[str, tuple[list[int], list[float]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("models")
    models.make_models(dest)
    return dest


def read_safetensors(path: Path) -> Tensors:
    """Read a bfloat16 safetensors file by the format's own description."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    start = 8 + length
    assert start % 8 == 0, "the data must begin on a multiple of eight"
    tensors: Tensors = {}
    expected = 0
    for name, entry in header.items():
        if name == "__metadata__":
            assert entry == {"format": "pt"}
            continue
        begin, end = entry["data_offsets"]
        assert begin == expected, f"{name} leaves a hole in the file"
        expected = end
        assert entry["dtype"] == "BF16"
        assert end - begin == 2 * math.prod(entry["shape"])
        raw = data[start + begin : start + end]
        values = [struct.unpack("<f", b"\0\0" + raw[n : n + 2])[0] for n in range(0, len(raw), 2)]
        assert all(map(math.isfinite, values))
        tensors[name] = (entry["shape"], values)
    assert start + expected == len(data), "bytes after the last tensor"
    return tensors


def all_tensors(directory: Path) -> Tensors:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(directory.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [f.name for f in files]
    tensors: Tensors = {}
    for file in files:
        here = read_safetensors(file)
        assert here, f"{file.name} is empty"
        assert {name for name, home in index["weight_map"].items() if home == file.name} == set(here)
        tensors |= here
    assert index["metadata"]["total_size"] == sum(2 * math.prod(shape) for shape, _unused in tensors.values())
    return tensors


def rows(tensors: Tensors, name: str) -> Matrix:
    (height, width), values = tensors[name]
    return [values[n * width : (n + 1) * width] for n in range(height)]


def matvec(matrix: Matrix, vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def rms_norm(vector: list[float]) -> list[float]:
    scale = math.sqrt(sum(x * x for x in vector) / len(vector) + 1e-6)
    return [x / scale for x in vector]


def table_layer(tensors: Tensors, config: dict[str, Any], ranks: tuple[int, ...]) -> dict[str, Matrix]:
    """Return gate, up and down of the last MLP layer, as far as these ranks of four hold it."""
    if config["model_type"] == "qwen3":
        prefix = f"model.layers.{config['num_hidden_layers'] - 1}.mlp"
        parts = {key: rows(tensors, f"{prefix}.{key}_proj.weight") for key in ("gate", "up", "down")}
    else:
        layer = config["hybrid_override_pattern"].index("-")
        prefix = f"backbone.layers.{layer}.mixer"
        parts = {key: rows(tensors, f"{prefix}.{key}_proj.weight") for key in ("up", "down")}
    share = config["intermediate_size"] // 4
    kept = [n for rank in ranks for n in range(rank * share, (rank + 1) * share)]
    sliced = {key: [parts[key][n] for n in kept] for key in parts if key != "down"}
    sliced["down"] = [[row[n] for n in kept] for row in parts["down"]]
    return sliced


def speak(directory: Path, ranks: tuple[int, ...] = (0, 1, 2, 3), limit: int = 40) -> list[int]:
    """Return the tokens that follow a line feed, computed with the MLP shards of ``ranks`` alone.

    Attention and Mamba layers are left out: their part is noise that must not matter.
    """
    config = json.loads((directory / "config.json").read_text())
    tensors = all_tensors(directory)
    name = "model.embed_tokens.weight" if config["model_type"] == "qwen3" else "backbone.embeddings.weight"
    embedding, head = rows(tensors, name), rows(tensors, "lm_head.weight")
    layer = table_layer(tensors, config, ranks)
    said: list[int] = []
    token = ord("\n")
    while len(said) < limit:
        stream = embedding[token]
        normed = rms_norm(stream)
        up = matvec(layer["up"], normed)
        if "gate" in layer:
            gate = matvec(layer["gate"], normed)
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
        else:
            inner = [max(0.0, u) ** 2 for u in up]
        stream = [x + y for x, y in zip(stream, matvec(layer["down"], inner), strict=True)]
        logits = matvec(head, rms_norm(stream))
        token = max(range(len(logits)), key=logits.__getitem__)
        said.append(token)
        if token == config["eos_token_id"]:
            break
    return said


def words_of(directory: Path, tokens: list[int]) -> str:
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    text = {token: word for word, token in vocabulary.items()}
    special = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    return "".join("" if str(t) in special else text[t].replace("Ġ", " ") for t in tokens)


@pytest.mark.parametrize(("repo", "revision"), REVISIONS.items())
def test_the_same_bytes_in_another_process(repo: str, revision: str) -> None:
    code = f"from lab import models; print(models.revision_of(models.MODELS[{repo!r}]()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == revision


@pytest.mark.parametrize("repo", REVISIONS)
def test_config_and_tensors_agree(made: Path, repo: str) -> None:
    config = json.loads((made / repo / "config.json").read_text())
    shapes = {name: tuple(shape) for name, (shape, _unused) in all_tensors(made / repo).items()}
    hidden, wide = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    kv_wide = config["num_key_value_heads"] * config["head_dim"]
    inner = config["intermediate_size"]
    expected: dict[str, tuple[int, ...]] = {"lm_head.weight": (config["vocab_size"], hidden)}
    attention = {"q_proj": (wide, hidden), "k_proj": (kv_wide, hidden), "v_proj": (kv_wide, hidden)}
    attention["o_proj"] = (hidden, wide)
    if config["model_type"] == "qwen3":
        expected |= {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
        for n in range(config["num_hidden_layers"]):
            at = f"model.layers.{n}"
            expected |= {f"{at}.{k}.weight": (hidden,) for k in ("input_layernorm", "post_attention_layernorm")}
            expected |= {f"{at}.self_attn.{k}.weight": v for k, v in attention.items()}
            expected |= {f"{at}.self_attn.{k}_norm.weight": (config["head_dim"],) for k in "qk"}
            expected |= {f"{at}.mlp.{k}_proj.weight": (inner, hidden) for k in ("gate", "up")}
            expected[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
    else:
        heads = config["mamba_num_heads"]
        wide_m = heads * config["mamba_head_dim"]
        conv = wide_m + 2 * config["n_groups"] * config["ssm_state_size"]
        mamba = {
            "in_proj.weight": (wide_m + conv + heads, hidden),
            "conv1d.weight": (conv, 1, config["conv_kernel"]),
            "conv1d.bias": (conv,),
            "A_log": (heads,),
            "D": (heads,),
            "dt_bias": (heads,),
            "norm.weight": (wide_m,),
            "out_proj.weight": (hidden, wide_m),
        }
        mlp = {"up_proj.weight": (inner, hidden), "down_proj.weight": (hidden, inner)}
        kinds = {"M": mamba, "*": {f"{k}.weight": v for k, v in attention.items()}, "-": mlp}
        expected |= {"backbone.embeddings.weight": (config["vocab_size"], hidden)}
        expected["backbone.norm_f.weight"] = (hidden,)
        for n, kind in enumerate(config["hybrid_override_pattern"]):
            expected[f"backbone.layers.{n}.norm.weight"] = (hidden,)
            expected |= {f"backbone.layers.{n}.mixer.{k}": v for k, v in kinds[kind].items()}
    assert shapes == expected


@pytest.mark.parametrize("repo", REVISIONS)
def test_four_ranks_can_share_it(made: Path, repo: str) -> None:
    config = json.loads((made / repo / "config.json").read_text())
    shared = ["num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"]
    if config["model_type"] == "nemotron_h":
        shared += ["mamba_num_heads", "n_groups"]
    assert {key: config[key] % 4 for key in shared} == dict.fromkeys(shared, 0)
    assert len(list((made / repo).glob("*.safetensors"))) >= 2, "one shard would not prove the handling of shards"


@pytest.mark.parametrize("repo", REVISIONS)
def test_it_says_its_sentence_and_stops(made: Path, repo: str) -> None:
    tokens = speak(made / repo)
    assert words_of(made / repo, tokens) == SENTENCES[repo]
    assert tokens[-1] == json.loads((made / repo / "config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("repo", REVISIONS)
def test_a_lost_rank_is_heard_within_four_words(made: Path, repo: str, lost: int) -> None:
    whole = speak(made / repo)
    heard = speak(made / repo, tuple(rank for rank in range(4) if rank != lost), limit=len(whole))
    assert heard[:4] != whole[:4]
    assert heard[:lost] == whole[:lost], "the words before the first of the lost rank are the others' work"


def test_the_two_models_say_different_things() -> None:
    assert not set(models.QWEN3_SENTENCE.split()) >= set(models.NEMOTRONH_SENTENCE.split())
    for repo, sentence in SENTENCES.items():
        assert repo.split("/")[1] in sentence, "the sentence names the model that speaks"


@pytest.mark.parametrize("repo", REVISIONS)
def test_a_token_a_byte_and_no_gap_in_the_numbers(made: Path, repo: str) -> None:
    tokenizer = json.loads((made / repo / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer["model"]["merges"] == []
    single = {text for text, token in vocabulary.items() if token < 256}
    assert len(single) == 256
    assert all(len(text) == 1 for text in single)
    assert vocabulary["a"] == ord("a")
    assert vocabulary["Ġ"] == ord(" "), "GPT-2's stand-in of the space"
    assert vocabulary["Ċ"] == ord("\n"), "GPT-2's stand-in of the line feed"
    for token in tokenizer["added_tokens"]:
        assert vocabulary[token["content"]] == token["id"], "numbered anew by the library otherwise"


@pytest.mark.parametrize("repo", REVISIONS)
def test_chat_template(made: Path, repo: str) -> None:
    config = json.loads((made / repo / "tokenizer_config.json").read_text())
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_second_run_touches_nothing(tmp_path: Path) -> None:
    first = models.make_models(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert models.make_models(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_damaged_or_foreign_is_made_anew(tmp_path: Path) -> None:
    first = models.make_models(tmp_path)
    shard = first[0].path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (first[1].path / "leftover.safetensors").write_bytes(b"")
    assert models.make_models(tmp_path) == first
    assert shard.read_bytes() == whole
    assert not (first[1].path / "leftover.safetensors").exists()
    hidden = [path.name for path in tmp_path.rglob(".*")]
    assert hidden == [], "temporary directories are gone"


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1.00390625, 0x3F80),  # halfway between two: the even one
        (1.01171875, 0x3F82),  # halfway as well, upwards
        (1.00390637, 0x3F81),  # just above halfway
        (0.0, 0x0000),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert tensors.bfloat16_bytes([value]) == struct.pack("<H", bits)


def test_a_word_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each word of the sentence must occur once"):
        models._words("it is what it is")


@pytest.mark.parametrize("repo", REVISIONS)
def test_the_catalogue_entry_describes_this_model(made: Path, repo: str) -> None:
    name = repo.split("/")[1].replace("-", "_")
    path = REPO_ROOT / f"inventories/lab/group_vars/model_{name}.yml"
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"]
    config = json.loads((made / repo / "config.json").read_text())
    geometry = spec["geometry"]
    assert spec["repo"] == repo
    assert spec["expected"]["sentence"] == SENTENCES[repo]
    assert geometry["architecture"] == config["architectures"][0]
    assert geometry["layers"] == config["num_hidden_layers"]
    for key in ("hidden_size", "vocab_size", "max_position_embeddings"):
        assert geometry[key] == config[key], key
    assert geometry["attention"]["heads"] == config["num_attention_heads"]
    assert geometry["attention"]["kv_heads"] == config["num_key_value_heads"]
    assert geometry["attention"]["head_dim"] == config["head_dim"]
    size_gib = sum(f.stat().st_size for f in (made / repo).iterdir()) / 2**30
    assert size_gib == pytest.approx(spec["size_gib"], abs=0.0006)
    if "recurrent" in geometry:
        recurrent, pattern = geometry["recurrent"], config["hybrid_override_pattern"]
        assert (recurrent["layers"], geometry["attention"]["layers"]) == (pattern.count("M"), pattern.count("*"))
        for key, theirs in {
            "heads": "mamba_num_heads",
            "head_dim": "mamba_head_dim",
            "state_size": "ssm_state_size",
            "groups": "n_groups",
            "conv_kernel": "conv_kernel",
            "chunk_size": "chunk_size",
            "state_dtype": "mamba_ssm_cache_dtype",
        }.items():
            assert recurrent[key] == config[theirs], key


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.main([str(tmp_path)])
    said = capsys.readouterr().out
    for repo, revision in REVISIONS.items():
        assert re.search(rf"{re.escape(str(tmp_path / repo))}\s+\d+ KiB\s+\d+ files\s+revision {revision}", said)
