# SPDX-License-Identifier: Apache-2.0
"""Which files of a model vLLM reads, and whether they are whole.  Pure: no file is read here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Beside the weights; its presence with the right digest means that the tree was whole when it was put there.
STAMP = ".gb10-manifest.json"

_NEEDED = re.compile(
    r"^(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|preprocessor_config"
    r"|processor_config|video_preprocessor_config|chat_template|hf_quant_config|params|tekken"
    r"|configuration|model\.safetensors\.index)\.json$"
    r"|^(?:merges|vocab)\.txt$|^chat_template\.jinja$|^tokenizer\.model(?:\.v\d+)?$|\.tiktoken$|\.py$|\.jinja$"
)
_DUPLICATE = re.compile(r"\.(?:bin|pth|pt|gguf|ggml|msgpack|h5|onnx|ot|tflite|mlmodel)$")


def choose(names: Iterable[str], index: Mapping[str, Any] | None) -> tuple[list[str], dict[str, str], list[str]]:
    """Return (needed files, what is left out and why, sentences about what is missing).

    :param names: relative paths of all files in the source directory.
    :param index: the parsed ``model.safetensors.index.json``, or None when there is none.
    """
    present = sorted(names)
    shards = sorted(set((index or {}).get("weight_map", {}).values()))
    errors = [
        f"{shard} is named by model.safetensors.index.json and is not there."
        for shard in shards
        if shard not in present
    ]
    needed: list[str] = []
    left: dict[str, str] = {}
    for name in present:
        if name == STAMP:
            continue
        if "/" in name and not name.endswith((".py", ".jinja")):
            left[name] = "in a directory that vLLM does not read"
        elif name.endswith(".safetensors"):
            if not shards or name in shards:
                needed.append(name)
            else:
                left[name] = "a shard that the index does not name"
        elif _NEEDED.search(name):
            needed.append(name)
        elif _DUPLICATE.search(name):
            left[name] = "the same weights in another format"
        elif name.endswith((".incomplete", ".part", ".lock", ".tmp")):
            left[name] = "a partial download"
        else:
            left[name] = "nothing that vLLM reads"
    if not shards and not any(name.endswith(".safetensors") for name in needed):
        errors.append("there is neither a .safetensors file nor an index of such files.")
    if "config.json" not in needed:
        errors.append("config.json is not there.")
    if not any(name.startswith(("tokenizer", "tekken", "vocab")) or name.endswith(".tiktoken") for name in needed):
        errors.append("no tokenizer file is there (tokenizer.json, tokenizer.model, tekken.json or vocab.*).")
    return needed, left, errors


def safetensors_error(name: str, size: int, header: bytes) -> str | None:
    """Return what is wrong with a safetensors file, from its length and its first bytes, or None.

    :param size: length of the file in bytes.
    :param header: the first 8 bytes and as many more as they announce.
    """
    if len(header) < 8:
        return f"{name} is {size} bytes long, too short for a safetensors file."
    length = int.from_bytes(header[:8], "little")
    if length > 100 * 2**20 or 8 + length > size:
        return f"{name} announces a header of {length} bytes and is {size} bytes long: it is cut off or no safetensors."
    try:
        described = json.loads(header[8 : 8 + length])
    except ValueError:
        return f"{name} has a header that is no JSON."
    end = max((entry["data_offsets"][1] for key, entry in described.items() if key != "__metadata__"), default=0)
    if 8 + length + end != size:
        return (
            f"{name} must be {8 + length + end} bytes long by its own header and is {size}: "
            f"{abs(8 + length + end - size)} bytes {'are missing' if size < 8 + length + end else 'too many'}."
        )
    return None


def make_manifest(repo: str, revision: str, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest of a model.

    :param files: each with ``path``, ``size`` (bytes) and ``sha256`` (hex).
    """
    ordered = sorted(
        ({key: file[key] for key in ("path", "size", "sha256")} for file in files), key=lambda f: f["path"]
    )
    body = {"version": 1, "repo": repo, "revision": revision, "files": ordered}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return {**body, "bytes": sum(file["size"] for file in ordered), "digest": digest}


def lacking(manifest: Mapping[str, Any], sizes: Mapping[str, int], stamp: Mapping[str, Any] | None) -> list[str]:
    """Return the files that a node lacks.

    A file is there when the tree's stamp names it with the same hash and it has its length; without a stamp
    nothing is known about content, so every file is lacking.
    """
    stamped = {file["path"]: file["sha256"] for file in (stamp or {}).get("files", [])}
    return [
        file["path"]
        for file in manifest["files"]
        if stamped.get(file["path"]) != file["sha256"] or sizes.get(file["path"]) != file["size"]
    ]
