# SPDX-License-Identifier: Apache-2.0
"""Engines that this project does not start, by what model files, images and recipes call them.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ENGINES = {
    "SGLang": re.compile(r"(?<![a-z0-9_])sglang(?![a-z])", re.IGNORECASE),
    "TensorRT-LLM": re.compile(r"(?<![a-z0-9_])(?:tensor-?rt|trt)[-_]?llm(?![a-z])", re.IGNORECASE),
    "ExLlamaV3 (EXL3)": re.compile(r"(?<![a-z0-9_])(?:exl[23]|exllama(?:v[23])?|tabbyapi)(?![a-z])", re.IGNORECASE),
    # An organisation may have this name, so only an image or an engine of it counts.
    "Atlas": re.compile(r"(?:^|/)atlas(?:[-_:@][^/]*)?$", re.IGNORECASE),
}
#: Keys with which other projects' files name the engine.
_KEYS = ("engine", "runtime", "backend", "launcher", "image")


def other_engine(text: str) -> str:
    """Return the engine that a text names and that is not vLLM, or an empty string."""
    return next((name for name, pattern in _ENGINES.items() if pattern.search(text)), "")


def refusal(where: str, text: str) -> str:
    """Return the sentence for a key whose text names another engine, or an empty string."""
    engine = other_engine(text)
    return f"{where} is '{text}': this project starts vLLM, and {engine} is another engine." if engine else ""


def refusals(spec: Mapping[str, Any], where: str) -> list[str]:
    """Return a sentence for each key of a model, as written, that asks for another engine.

    :param spec: the model's dictionary before it is validated; any value may have any type.
    """
    named = {f"{where}.{key}": spec.get(key) for key in (*_KEYS, "repo")}
    serve = spec.get("serve")
    if isinstance(serve, Mapping):
        named[f"{where}.serve.quantization"] = serve.get("quantization")
    found = (refusal(key, value) for key, value in named.items() if isinstance(value, str))
    return [sentence for sentence in found if sentence]
