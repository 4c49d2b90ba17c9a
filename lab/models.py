# SPDX-License-Identifier: Apache-2.0
"""Make the two tiny models that the lab serves: real weights, no download.

Both are complete Hugging Face model directories (``config.json``, tokenizer with a chat
template, several safetensors shards with an index), small enough to be made in a second
with the standard library alone, and byte for byte the same on every machine.

``gb10-lab/tiny-qwen3``
    Qwen3 architecture: 4 layers, hidden size 64, 4 attention heads and 4 KV heads of 32.
``gb10-lab/tiny-nemotronh``
    NemotronH hybrid, layer pattern ``MM*MM*M-``: 5 Mamba-2 layers (16 heads of 32, 4
    groups, state 64, convolution 4), 2 attention layers, 1 MLP layer.

The weights are random, except that the last MLP layer is a table: its neuron for word *n*
of a sentence recognises that word and writes word *n + 1* into the residual stream.  Any
prompt therefore yields the model's own sentence, and the neurons are dealt out so that
with tensor parallelism over four nodes consecutive words come from consecutive ranks: a
rank that loaded the wrong shard, or whose part of an all-reduce is lost, is visible in the
words.  So a completion tells which model answered, and that all four ranks took part.

The tokenizer gives one token to each UTF-8 byte, so that the token count of a prompt can
be checked by counting its bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.locks import locked
from lab.tensors import Tensor, Weights, safetensors_bytes

HIDDEN_SIZE: Final = 64
HEADS: Final = 4
HEAD_DIM: Final = 32
INTERMEDIATE_SIZE: Final = 128
MAX_POSITION_EMBEDDINGS: Final = 8192
RANKS: Final = 4
"""Tensor-parallel size that the neurons of the sentence are dealt out for."""

QWEN3_REPO: Final = "gb10-lab/tiny-qwen3"
NEMOTRONH_REPO: Final = "gb10-lab/tiny-nemotronh"

QWEN3_LAYERS: Final = 4
NEMOTRONH_PATTERN: Final = "MM*MM*M-"
MAMBA_HEADS: Final = 16
MAMBA_HEAD_DIM: Final = 32
MAMBA_GROUPS: Final = 4
MAMBA_STATE_SIZE: Final = 64
MAMBA_CONV_KERNEL: Final = 4

QWEN3_SENTENCE: Final = "This is tiny-qwen3: four nodes hold one quarter of me each and speak as one."
NEMOTRONH_SENTENCE: Final = "Here tiny-nemotronh answers; my state lives on every node and none can spell this alone."

_BYTES: Final = 256
_ENDOFTEXT: Final = 256
_IM_START: Final = 257
_IM_END: Final = 258
_FIRST_WORD: Final = 259
_VOCAB_SIZE: Final = 320
_SPECIAL_TOKENS: Final = {_ENDOFTEXT: "<|endoftext|>", _IM_START: "<|im_start|>", _IM_END: "<|im_end|>"}

_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ModelDirectory:
    """One model as it lies on disk.

    ``revision`` is a 40-digit digest of all files' names and contents: two directories
    with the same revision are the same model.
    """

    repo: str
    path: Path
    revision: str
    size_bytes: int
    files: tuple[str, ...]


def _code(index: int) -> list[float]:
    """Row of the 64 x 64 Hadamard matrix: +-1, and orthogonal to every other row."""
    return [-1.0 if (index & column).bit_count() % 2 else 1.0 for column in range(HIDDEN_SIZE)]


def _words(sentence: str) -> list[str]:
    words = [w if n == 0 else f" {w}" for n, w in enumerate(sentence.split(" "))]
    if len(set(words)) != len(words):
        raise ValueError(f"each word of the sentence must occur once, as it alone decides the next: {sentence!r}")
    if len(words) + 2 > min(INTERMEDIATE_SIZE // 2, _VOCAB_SIZE - _FIRST_WORD, HIDDEN_SIZE):
        raise ValueError(f"the sentence has {len(words)} words, more than the tiny model can hold")
    return words


# Codes: 1 = "anything that is no word of the sentence", 2 = end of turn, 3... = the words.
_CODE_OTHER: Final = 1
_CODE_END: Final = 2
_CODE_FIRST_WORD: Final = 3


def _add_embeddings(weights: Weights, words: int, embedding_name: str, head_name: str) -> None:
    """Embedding and output head: tokens as codes, so that layers can compute with them."""
    rows: list[float] = []
    head: list[float] = []
    for token in range(_VOCAB_SIZE):
        if _FIRST_WORD <= token < _FIRST_WORD + words:
            code, spread, output = _CODE_FIRST_WORD + token - _FIRST_WORD, 0.05, True
        else:
            code, spread, output = _CODE_OTHER, 0.2, token == _IM_END
        rows += [c + n for c, n in zip(_code(code), weights.noise(HIDDEN_SIZE, spread), strict=True)]
        noise = weights.noise(HIDDEN_SIZE, 0.02)
        target = _CODE_END if token == _IM_END else code
        head += [0.5 * c + n for c, n in zip(_code(target), noise, strict=True)] if output else noise
    weights.add(embedding_name, (_VOCAB_SIZE, HIDDEN_SIZE), rows)
    weights.add(head_name, (_VOCAB_SIZE, HIDDEN_SIZE), head)


def _sentence_table(weights: Weights, words: int) -> tuple[list[float], list[float]]:
    """``up`` [intermediate, hidden] and ``down`` [hidden, intermediate] of the table layer.

    Neuron of step *n* (what comes after word *n - 1*) lies in the slice of rank ``n % 4``.
    A normalised input that equals the code gives 8 at its own neuron and ~0 elsewhere; both
    SiLU-gated and squared-ReLU activations make 64 of it.
    """
    slice_length = INTERMEDIATE_SIZE // RANKS
    up = weights.noise(INTERMEDIATE_SIZE * HIDDEN_SIZE, 0.002)
    down = weights.noise(INTERMEDIATE_SIZE * HIDDEN_SIZE, 0.002)
    for step in range(words + 1):
        neuron = (step % RANKS) * slice_length + step // RANKS
        here = _code(_CODE_OTHER if step == 0 else _CODE_FIRST_WORD + step - 1)
        following = _code(_CODE_END if step == words else _CODE_FIRST_WORD + step)
        for column in range(HIDDEN_SIZE):
            up[neuron * HIDDEN_SIZE + column] = here[column] / 8.0
            down[column * INTERMEDIATE_SIZE + neuron] = following[column] / 8.0
    return up, down


def _qwen3_weights(words: int) -> list[Tensor]:
    weights = Weights(seed=3)
    hidden, wide = (HIDDEN_SIZE,), HEADS * HEAD_DIM
    _add_embeddings(weights, words, "model.embed_tokens.weight", "lm_head.weight")
    for layer in range(QWEN3_LAYERS):
        prefix = f"model.layers.{layer}"
        weights.add_constant(f"{prefix}.input_layernorm.weight", hidden, 1.0)
        for name in ("q_proj", "k_proj", "v_proj"):
            weights.add_noise(f"{prefix}.self_attn.{name}.weight", (wide, HIDDEN_SIZE), 0.2)
        weights.add_constant(f"{prefix}.self_attn.q_norm.weight", (HEAD_DIM,), 1.0)
        weights.add_constant(f"{prefix}.self_attn.k_norm.weight", (HEAD_DIM,), 1.0)
        weights.add_noise(f"{prefix}.self_attn.o_proj.weight", (HIDDEN_SIZE, wide), 0.005)
        weights.add_constant(f"{prefix}.post_attention_layernorm.weight", hidden, 1.0)
        if layer == QWEN3_LAYERS - 1:
            up, down = _sentence_table(weights, words)
            gate = up
        else:
            up = weights.noise(INTERMEDIATE_SIZE * HIDDEN_SIZE, 0.1)
            gate = weights.noise(INTERMEDIATE_SIZE * HIDDEN_SIZE, 0.1)
            down = weights.noise(INTERMEDIATE_SIZE * HIDDEN_SIZE, 0.01)
        weights.add(f"{prefix}.mlp.gate_proj.weight", (INTERMEDIATE_SIZE, HIDDEN_SIZE), gate)
        weights.add(f"{prefix}.mlp.up_proj.weight", (INTERMEDIATE_SIZE, HIDDEN_SIZE), up)
        weights.add(f"{prefix}.mlp.down_proj.weight", (HIDDEN_SIZE, INTERMEDIATE_SIZE), down)
    weights.add_constant("model.norm.weight", hidden, 1.0)
    return weights.tensors


def _nemotronh_weights(words: int) -> list[Tensor]:
    weights = Weights(seed=4)
    wide = HEADS * HEAD_DIM
    inner = MAMBA_HEADS * MAMBA_HEAD_DIM
    conv = inner + 2 * MAMBA_GROUPS * MAMBA_STATE_SIZE
    _add_embeddings(weights, words, "backbone.embeddings.weight", "lm_head.weight")
    for layer, kind in enumerate(NEMOTRONH_PATTERN):
        prefix = f"backbone.layers.{layer}"
        weights.add_constant(f"{prefix}.norm.weight", (HIDDEN_SIZE,), 1.0)
        if kind == "M":
            weights.add_noise(f"{prefix}.mixer.in_proj.weight", (inner + conv + MAMBA_HEADS, HIDDEN_SIZE), 0.2)
            weights.add_noise(f"{prefix}.mixer.conv1d.weight", (conv, 1, MAMBA_CONV_KERNEL), 0.3)
            weights.add_noise(f"{prefix}.mixer.conv1d.bias", (conv,), 0.1)
            weights.add_noise(f"{prefix}.mixer.A_log", (MAMBA_HEADS,), 0.5, centre=0.5)
            weights.add_constant(f"{prefix}.mixer.D", (MAMBA_HEADS,), 1.0)
            weights.add_noise(f"{prefix}.mixer.dt_bias", (MAMBA_HEADS,), 1.0, centre=-3.0)
            weights.add_constant(f"{prefix}.mixer.norm.weight", (inner,), 1.0)
            weights.add_noise(f"{prefix}.mixer.out_proj.weight", (HIDDEN_SIZE, inner), 0.002)
        elif kind == "*":
            for name in ("q_proj", "k_proj", "v_proj"):
                weights.add_noise(f"{prefix}.mixer.{name}.weight", (wide, HIDDEN_SIZE), 0.2)
            weights.add_noise(f"{prefix}.mixer.o_proj.weight", (HIDDEN_SIZE, wide), 0.005)
        else:
            up, down = _sentence_table(weights, words)
            weights.add(f"{prefix}.mixer.up_proj.weight", (INTERMEDIATE_SIZE, HIDDEN_SIZE), up)
            weights.add(f"{prefix}.mixer.down_proj.weight", (HIDDEN_SIZE, INTERMEDIATE_SIZE), down)
    weights.add_constant("backbone.norm_f.weight", (HIDDEN_SIZE,), 1.0)
    return weights.tensors


def _common_config() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _ENDOFTEXT,
        "dtype": "bfloat16",
        "eos_token_id": _IM_END,
        "head_dim": HEAD_DIM,
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE_SIZE,
        "max_position_embeddings": MAX_POSITION_EMBEDDINGS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "pad_token_id": _ENDOFTEXT,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": _VOCAB_SIZE,
    }


def _qwen3_config() -> dict[str, Any]:
    return _common_config() | {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_act": "silu",
        "max_window_layers": QWEN3_LAYERS,
        "model_type": "qwen3",
        "num_hidden_layers": QWEN3_LAYERS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _nemotronh_config() -> dict[str, Any]:
    return _common_config() | {
        "architectures": ["NemotronHForCausalLM"],
        "chunk_size": 128,
        "conv_kernel": MAMBA_CONV_KERNEL,
        "expand": MAMBA_HEADS * MAMBA_HEAD_DIM // HIDDEN_SIZE,
        "hybrid_override_pattern": NEMOTRONH_PATTERN,
        "layer_norm_epsilon": 1e-05,
        "mamba_head_dim": MAMBA_HEAD_DIM,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": MAMBA_HEADS,
        "mamba_proj_bias": False,
        "mamba_ssm_cache_dtype": "float32",
        "mlp_bias": False,
        "mlp_hidden_act": "relu2",
        "model_type": "nemotron_h",
        "n_groups": MAMBA_GROUPS,
        "num_hidden_layers": len(NEMOTRONH_PATTERN),
        "num_logits_to_keep": 1,
        "rescale_prenorm_residual": True,
        "residual_in_fp32": False,
        "rms_norm_eps": 1e-05,
        "ssm_state_size": MAMBA_STATE_SIZE,
        "time_step_floor": 0.0001,
        "time_step_limit": [0.0, 1000000.0],
        "time_step_max": 0.1,
        "time_step_min": 0.001,
        "use_bias": False,
        "use_conv_bias": True,
    }


def _byte_alphabet() -> list[str]:
    """Printable stand-in of each byte, in the order of the bytes (GPT-2's byte-level alphabet)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(_BYTES)]


def _tokenizer(words: Sequence[str]) -> dict[str, Any]:
    """Byte-level BPE without merges: a token a byte, and the words of the sentence as output."""
    alphabet = _byte_alphabet()
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    # Without an entry here the library numbers a special token anew, after the last word.
    vocabulary |= {text: token for token, text in _SPECIAL_TOKENS.items()}
    for number, word in enumerate(words):
        vocabulary["".join(alphabet[b] for b in word.encode())] = _FIRST_WORD + number
    if len(vocabulary) != _FIRST_WORD + len(words):
        raise ValueError("a word of the sentence is a single character and would shadow that byte's token")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, text in _SPECIAL_TOKENS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "added_tokens_decoder": {
            str(token): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, text in _SPECIAL_TOKENS.items()
        },
        "additional_special_tokens": [_SPECIAL_TOKENS[_IM_START], _SPECIAL_TOKENS[_IM_END]],
        "bos_token": None,
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": _SPECIAL_TOKENS[_IM_END],
        "model_max_length": MAX_POSITION_EMBEDDINGS,
        "pad_token": _SPECIAL_TOKENS[_ENDOFTEXT],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _shards(tensors: Sequence[Tensor], count: int) -> dict[str, bytes]:
    """Split tensors, in order, into ``count`` shards of about equal size, with their index."""
    total = sum(len(t.data) for t in tensors)
    groups: list[list[Tensor]] = [[] for _unused in range(count)]
    seen = 0
    for tensor in tensors:
        groups[min(count - 1, seen * count // total)].append(tensor)
        seen += len(tensor.data)
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    weight_map = {t.name: name for name, group in zip(names, groups, strict=True) for t in group}
    files = {name: safetensors_bytes(group) for name, group in zip(names, groups, strict=True)}
    files["model.safetensors.index.json"] = _json(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    )
    return files


def _files(
    config: dict[str, Any], sentence: str, make_weights: Callable[[int], list[Tensor]], shards: int
) -> dict[str, bytes]:
    words = _words(sentence)
    return {
        "config.json": _json(config),
        "generation_config.json": _json(
            {"bos_token_id": _ENDOFTEXT, "eos_token_id": _IM_END, "pad_token_id": _ENDOFTEXT}
        ),
        "tokenizer.json": _json(_tokenizer(words)),
        "tokenizer_config.json": _json(_tokenizer_config()),
    } | _shards(make_weights(len(words)), shards)


def qwen3_files() -> dict[str, bytes]:
    """All files of ``gb10-lab/tiny-qwen3``: name to content."""
    return _files(_qwen3_config(), QWEN3_SENTENCE, _qwen3_weights, shards=3)


def nemotronh_files() -> dict[str, bytes]:
    """All files of ``gb10-lab/tiny-nemotronh``: name to content."""
    return _files(_nemotronh_config(), NEMOTRONH_SENTENCE, _nemotronh_weights, shards=4)


MODELS: Final[dict[str, Callable[[], dict[str, bytes]]]] = {
    QWEN3_REPO: qwen3_files,
    NEMOTRONH_REPO: nemotronh_files,
}


def revision_of(files: dict[str, bytes]) -> str:
    """40 hexadecimal digits that stand for the names and contents of all files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()[:40]


def _is_complete(path: Path, files: dict[str, bytes]) -> bool:
    if not path.is_dir() or {p.name for p in path.iterdir()} != set(files):
        return False
    return all((path / name).is_file() and (path / name).read_bytes() == data for name, data in files.items())


def _write_model(path: Path, files: dict[str, bytes]) -> None:
    """Write a directory completely under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, data in files.items():
        with (temporary / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)


def make_models(dest: Path) -> list[ModelDirectory]:
    """Make every lab model under ``dest/<repo>``; what is already right is left untouched.

    Raises ``OSError`` when a directory cannot be written.
    """
    made: list[ModelDirectory] = []
    for repo, make in MODELS.items():
        files = make()
        path = dest / repo
        with locked(dest / f"{path.name}.lock"):  # what reads a model never meets another process that replaces it
            if not _is_complete(path, files):
                _write_model(path, files)
        made.append(
            ModelDirectory(
                repo=repo,
                path=path,
                revision=revision_of(files),
                size_bytes=sum(len(data) for data in files.values()),
                files=tuple(sorted(files)),
            )
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m lab.models [DEST]``."""
    parser = argparse.ArgumentParser(description="Make the lab's tiny models; no download, a second of work.")
    parser.add_argument("dest", nargs="?", type=Path, default=Path(".lab/models"), help="default: .lab/models")
    for model in make_models(parser.parse_args(argv).dest):
        print(f"{model.path}  {model.size_bytes / 1024:.0f} KiB  {len(model.files)} files  revision {model.revision}")


if __name__ == "__main__":
    main()
