# SPDX-License-Identifier: Apache-2.0
"""Which files of a model vLLM reads, and whether they are complete.  Pure: no file is read here.

Derived from what vLLM opens (0.22.1 to 0.33.0): model_loader/default_loader.py and its siblings for the weights,
transformers_utils/config.py and tokenizers/ for the rest, quantization/*.get_config_filenames.  Names and headers come
from a model repository, so every function takes anything and returns a value or a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._weights.manifest import OWN_FILES, path_error

INDEX = "model.safetensors.index.json"
MISTRAL_INDEX = "consolidated.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
INDEXES = (INDEX, MISTRAL_INDEX, BIN_INDEX)
CONSOLIDATED = "consolidated*.safetensors"
RANKS = "model-rank-*-part-*.safetensors"
ANY = ("*.safetensors", "*.bin", "*.pt")
#: `--load-format` -> the files that vLLM's loader of that name looks for in the model's directory, first come first
#: served; none for one that loads no weights, a sentence for one that reads no directory.  One that is not known here,
#: as of a fork, counts as `auto`.  vllm/model_executor/model_loader/: default_loader.py, bitsandbytes_loader.py (up to
#: 0.27), runai_streamer_loader.py, sharded_state_loader.py, tensorizer.py, gguf_loader.py (up to 0.23); modelexpress
#: and ipc_cache ask another process first.
LOADERS: dict[str, tuple[str, ...] | str] = {
    "auto": ANY,
    "bitsandbytes": ANY,
    "dummy": (),
    "fastsafetensors": ("*.safetensors",),
    "gguf": (
        "serve.load-format gguf reads one .gguf file by its path, but what is served here is the model's directory; "
        "vLLM 0.24 and later read no GGUF at all. Take a repository with safetensors (quantised: AWQ, GPTQ, FP8 or "
        "NVFP4) and leave load-format out."
    ),
    "hf": ANY,
    "instanttensor": ("*.safetensors",),
    "ipc_cache": ANY,
    "mistral": (CONSOLIDATED,),
    "modelexpress": ANY,
    "npcache": ("*.bin", "*.pt"),
    "pt": ("*.pt",),
    "runai_streamer": ("*.safetensors",),
    "runai_streamer_sharded": (RANKS,),
    "safetensors": ("*.safetensors",),
    "sharded_state": (RANKS,),
    "tensorizer": ("*.tensors",),
}
#: safetensors' own limit.
MAX_HEADER_BYTES = 100_000_000
#: A file that nothing here knows is carried when it is no larger.
SMALL_BYTES = 16 * 2**20

_WEIGHTS = re.compile(r"\.(?:safetensors|bin|pth|pt|gguf|ggml|msgpack|h5|onnx|ot|tflite|mlmodel|tensors|ckpt)$")
#: What vLLM itself leaves out (weight_utils.py, filter_files_not_needed_for_inference).
_TRAINING = re.compile(r"(?:^|/)(?:training_args|optimizer|scheduler|scaler|rng_state\w*)\.(?:bin|pt|pth)$")
_PARTIAL = re.compile(r"\.(?:incomplete|part|lock|tmp|aria2|crdownload)$")
_TEXT = re.compile(r"\.(?:json|txt|model|tiktoken|py|jinja|vocab)$|^tokenizer(?:\.mm)?\.model\.v[\w@]+$")
_UNREAD = re.compile(
    r"\.(?:md|png|jpe?g|gif|svg|webp|pdf|mp4|mp3|wav|parquet|ipynb)$|(?:^|/)\.\w|(?:^|/)(?:LICENSE|NOTICE)[^/]*$", re.I
)
#: Directories with the model in another form.
_OTHER_FORMS = re.compile(r"^(?:original|metal|onnx|openvino|coreml|runs|logs|checkpoint-\d+)/")
#: The modules of sentence-transformers (modules.json): pooling, projections with weights of their own.
_MODULE = re.compile(r"^\d+_\w+/")
_NUMBERED = re.compile(r"^(.*?)-?(\d{5})-of-(\d{5})\.(safetensors|bin|gguf)$")
#: An adapter (LoRA): its weights stand beside its description, also in a directory of their own.
_ADAPTER = re.compile(r"^(?P<directory>(?:[^/]+/)*)adapter_model\.(?:safetensors|bin|pt)$")
_RANK = re.compile(r"^model-rank-(\d+)-part-\d+\.safetensors$")
_TOKENIZER = re.compile(
    r"^(?:tokenizer\.json|tokenizer(?:\.mm)?\.model(?:\.v[\w@]+)?|tekken\.json|vocab\.(?:json|txt)|tokenizer\.tok\.json"
    r"|[\w.-]*\.model|[\w.-]*\.tiktoken|rwkv_vocab\w*\.txt)$"
)
_MISTRAL_TOKENIZER = re.compile(r"^(?:tekken\.json|tokenizer(?:\.mm)?\.model(?:\.v[\w@]+)?)$")


def is_weights(name: str) -> bool:
    """Tell whether a file holds weights, in whatever format, by its name."""
    return bool(_WEIGHTS.search(name))


def choose(
    files: Mapping[str, int], indexes: Mapping[str, Any], serve: Mapping[str, Any] | None = None
) -> tuple[list[str], dict[str, str], list[str]]:
    """Return (needed files, what is left out and why, sentences about what is missing).

    :param files: size in bytes by relative path of all files in the source directory.
    :param indexes: the parsed files of `INDEXES` that are there.
    :param serve: vLLM's options of the model; load-format, tensor-parallel-size, tokenizer-mode, config-format,
        hf-config-path and tokenizer are read.
    """
    serve = serve or {}
    names = sorted(name for name in files if name not in OWN_FILES)
    adapters = set(filter(lambda name: is_adapter(name, files), names))
    load_format = str(serve.get("load-format", "auto"))
    extra = serve.get("model-loader-extra-config")
    if patterns_of(load_format) == (RANKS,) and isinstance(extra, Mapping) and "pattern" in extra:
        load_format = "safetensors"  # the files have names of the owner's own
    weights, errors = choose_weights([name for name in names if name not in adapters], indexes, load_format)
    if patterns_of(load_format) == (RANKS,) and weights:
        errors += rank_errors(weights, serve.get("tensor-parallel-size"))
    needed, left = [], {}
    for name in names:
        reason = None if name in weights | adapters else why_left(name, files[name], "modules.json" in files)
        if reason:
            left[name] = reason
        else:
            needed.append(name)
    mistral = "mistral" in (serve.get("load-format"), serve.get("config-format")) or (
        "config.json" not in files and any(fnmatchcase(name, CONSOLIDATED) for name in weights)
    )
    config = "params.json" if mistral else "config.json"
    if config not in needed and not serve.get("hf-config-path"):
        adapter = (
            " adapter_config.json is there: this is an adapter, which vLLM serves on its base model (lora-modules)."
            if "adapter_config.json" in files
            else ""
        )
        errors.append(f"{config} is missing.{adapter}")
    errors += tokenizer_errors(needed, serve, mistral)
    return needed, left, errors


def patterns_of(load_format: str) -> tuple[str, ...] | str:
    """Return what a loader looks for, or why it reads no directory; see `LOADERS`."""
    return LOADERS.get(load_format, ANY)


def is_adapter(name: str, files: Iterable[str]) -> bool:
    """Tell whether a file holds the weights of an adapter, which is described beside it."""
    found = _ADAPTER.match(name)
    return found is not None and not _OTHER_FORMS.search(name) and f"{found['directory']}adapter_config.json" in files


def rank_errors(names: Iterable[str], ranks: Any) -> list[str]:
    """Return a sentence when the weights that were saved rank by rank are not those of this many ranks.

    :param ranks: vLLM's tensor-parallel-size; what is no number counts as the ranks that are there.
    """
    there = {int(found[1]) for found in map(_RANK.match, names) if found}
    wanted = ranks if type(ranks) is int else max(there, default=-1) + 1
    if there == set(range(wanted)):
        return []
    missing = next((rank for rank in range(wanted) if rank not in there), None)
    return [
        f"the weights are saved for {max(there, default=-1) + 1} ranks, and the model is served by {wanted}"
        + (f": there is no model-rank-{missing}-part-*.safetensors." if missing is not None else ".")
    ]


def choose_weights(names: Iterable[str], indexes: Mapping[str, Any], load_format: str) -> tuple[set[str], list[str]]:
    """Return (the files with the weights that vLLM loads, sentences about those that are missing).

    :param load_format: vLLM's option; one that is not known here counts as ``auto``.
    """
    names = [name for name in names if not _PARTIAL.search(name) and not _TRAINING.search(name)]
    patterns = patterns_of(load_format)
    if isinstance(patterns, str):
        return set(), [patterns]
    if not patterns:
        return set(), []
    found: list[str] = []
    for pattern in patterns:
        found = [name for name in names if "/" not in name and fnmatchcase(name, pattern)]
        if found:
            break
    consolidated = [name for name in found if fnmatchcase(name, CONSOLIDATED)]
    if load_format != "mistral" and len(consolidated) < len(found):
        # The same weights twice. vLLM takes either; these are the ones that config.json describes.
        found = [name for name in found if name not in consolidated]
        consolidated = []
    bins = bool(found) and all(name.endswith(".bin") for name in found)
    index_name = MISTRAL_INDEX if load_format == "mistral" or consolidated else BIN_INDEX if bins else INDEX
    shards: list[str] = []
    errors: list[str] = []
    # An index of files that this loader does not look for says nothing.
    looked_for = any(fnmatchcase(index_name.removesuffix(".index.json"), pattern) for pattern in patterns)
    if index_name in indexes and looked_for:
        shards, error = shards_of(index_name, indexes[index_name])
        errors += [error] if error else []
    if shards:
        errors += [f"{shard} is listed in {index_name} and is missing." for shard in shards if shard not in names]
        return {shard for shard in shards if shard in names}, errors
    if not found and load_format == "auto":
        found = [name for name in names if name.endswith(".safetensors") and not _OTHER_FORMS.search(name)]
    if not found:
        other = next((name for name in names if name.endswith(".gguf")), None)
        errors.append(
            f"there is no file with weights ({', '.join(patterns)}) and no index of such files."
            + (f" {other}: vLLM reads no GGUF out of a directory; take a repository with safetensors." if other else "")
        )
    return set(found), errors + numbering_errors(found)


def why_left(name: str, size: int, modules: bool) -> str | None:
    """Return why a file that has no weights for vLLM stays behind, or None; in doubt a small file is carried."""
    if _PARTIAL.search(name):
        return "a partial download"
    module = modules and bool(_MODULE.match(name))
    if _OTHER_FORMS.search(name) or ("/" in name and not module and _WEIGHTS.search(name)):
        return "in a directory that vLLM does not read"
    if _UNREAD.search(name):
        return "nothing that vLLM reads"
    if _TRAINING.search(name):
        return "a state of training"
    if _WEIGHTS.search(name) and not module:
        if fnmatchcase(name, CONSOLIDATED):
            return "the same weights for load-format mistral"
        if fnmatchcase(name, "*.safetensors"):
            return None if size <= SMALL_BYTES else "a shard that neither the index nor load-format names"
        # Some models read a tensor from a file of its own (vLLM's qwen3_dflash: mask_embedding.pt).
        small = size <= SMALL_BYTES and name.endswith(".pt")
        return None if small else "the same weights in another format"
    if size <= SMALL_BYTES or module or _TEXT.search(name):
        return None
    return "nothing that vLLM reads"


def tokenizer_errors(needed: Collection[str], serve: Mapping[str, Any], mistral: bool) -> list[str]:
    """Return a sentence when no file is there from which vLLM can make the tokenizer.

    tokenizer_config.json describes one and is none.
    """
    if serve.get("tokenizer") or serve.get("skip-tokenizer-init"):
        return []
    if mistral or serve.get("tokenizer-mode") == "mistral":
        if not any(_MISTRAL_TOKENIZER.match(name) for name in needed):
            return ["no tokenizer file is there for tokenizer-mode mistral (tekken.json or tokenizer.model.v*)."]
        return []
    found = {name for name in needed if _TOKENIZER.match(name)}
    if found == {"vocab.json"} and "merges.txt" not in needed:
        return ["merges.txt is missing, without which vocab.json is no tokenizer."]
    if not found:
        return ["no tokenizer file is there (tokenizer.json, *.model, tekken.json, *.tiktoken or vocab.*)."]
    return []


def shards_of(name: str, index: Any) -> tuple[list[str], str | None]:
    """Return (the shards that an index names, what is wrong with the index or None)."""
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        return [], f"{name} has no weight_map from tensors to files; download it again."
    shards = sorted(set(found.values()))
    outside = next((error for error in map(path_error, shards) if error), None)
    return ([], f"{name}: {outside}") if outside else (shards, None)


def numbering_errors(names: Iterable[str]) -> list[str]:
    """Return a sentence for each series of shards (``…-00001-of-00003``) of which a number is missing."""
    series: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        found = _NUMBERED.match(name)
        if found:
            series.setdefault((found[1], int(found[3]), found[4]), set()).add(int(found[2]))
    errors = []
    for (stem, total, suffix), there in sorted(series.items()):
        missing = total - len(there & set(range(1, total + 1)))
        if missing:
            first = next(number for number in range(1, total + 1) if number not in there)
            dash = "-" if stem else ""
            errors.append(
                f"{missing} of {total} shards {'is' if missing == 1 else 'are'} missing, the first one is "
                f"{stem}{dash}{first:05}-of-{total:05}.{suffix}; the index that lists them is missing too."
            )
    return errors


def safetensors_error(name: str, size: int, header: bytes) -> str | None:
    """Return what is wrong with a safetensors file, from its length and its first bytes, or None.

    :param size: length of the file in bytes.
    :param header: the first 8 bytes and as many more as they announce.
    """
    if len(header) < 8:
        return f"{name} is {size} bytes long, too short for a safetensors file."
    length = int.from_bytes(header[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        return (
            f"{name} announces a header of {length} bytes and is {size} bytes long: it is cut off or not a safetensors "
            "file."
        )
    try:
        described = json.loads(header[8 : 8 + length])
    except (ValueError, RecursionError):
        return f"{name} has a header that is not JSON."
    end = 0
    for key, entry in described.items() if isinstance(described, dict) else [("", None)]:
        if key == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(each) is int for each in offsets)
            and 0 <= offsets[0] <= offsets[1]
        ):
            return f"{name} has a header that does not say where the tensor {str(key)[:100]!r} is."
        end = max(end, offsets[1])
    if 8 + length + end != size:
        return (
            f"{name} must be {8 + length + end} bytes long by its own header and is {size}: "
            f"{abs(8 + length + end - size)} bytes {'are missing' if size < 8 + length + end else 'too many'}."
        )
    return None
