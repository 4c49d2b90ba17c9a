# SPDX-License-Identifier: Apache-2.0
"""What a class of models is served with: options and variables, each with where it was published.  Data and its reader.

Brackets are those of docs/sources.md; ``docs`` is docs.vllm.ai. A class that is not here gets no parser: its model file
says so instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import parse

ARCHITECTURES = Path(__file__).parent / "architectures.json"

SERVE, ENV = "serve", "env"


@dataclass(frozen=True)
class Row:
    """One option or variable.

    :ivar key: option without dashes, or name of the variable.
    :ivar source: where it was published.
    :ivar template: text that the chat template must have for it to make sense; without it the row is left out.
    :ivar since: first release of vLLM that takes it, where the class is older.
    :ivar until: first release of vLLM that no longer takes it.
    """

    key: str
    value: Any
    source: str
    template: str = ""
    since: str = ""
    until: str = ""
    place: str = SERVE


def _parsers(reasoning: str, tools: str, source: str, think: str = "think", since: str = "") -> tuple[Row, ...]:
    rows = (Row("reasoning-parser", reasoning, source, think, since),) if reasoning else ()
    return (
        *rows,
        Row("tool-call-parser", tools, source, "tool", since),
        Row("enable-auto-tool-choice", True, "the tool parser is used only with it [V]", "tool", since),
    )


_FP8 = "halves the cache; no damage seen with"
_QWEN_GDN = (
    *_parsers("qwen3", "qwen3_coder", "vllm-project/recipes and eugr/spark-vllm-docker for this class [P]"),
    Row("kv-cache-dtype", "fp8", f"{_FP8} this class [S0]"),
)

#: Classes of config.json → their rows.
FAMILIES: tuple[tuple[tuple[str, ...], tuple[Row, ...]], ...] = (
    (
        ("NemotronHForCausalLM",),
        (
            Row("trust-remote-code", True, "every published launch of this class [S0] [S2] [S4]"),
            *_parsers("nemotron_v3", "qwen3_coder", "[S0]: this class writes Qwen3-style calls"),
            Row("kv-cache-dtype", "fp8", f"{_FP8} this class [S0] [S4]"),
        ),
    ),
    (
        (
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
        ),
        _QWEN_GDN,
    ),
    (
        ("Qwen4ExpForConditionalGeneration",),
        _parsers("qwen3", "qwen3_coder", "MiaAI-Lab's two-node launch [P]"),
    ),
    (
        ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM"),
        (
            *_parsers("qwen3", "hermes", "docs: reasoning outputs, and tool calling for the Qwen3 series [V 0.26.0]"),
            # Coders of the same classes write calls in another form, which their template shows.
            Row("tool-call-parser", "qwen3_coder", "docs: this parser reads <function=…> [V 0.22.1]", "<function="),
        ),
    ),
    (("Qwen2ForCausalLM", "Qwen2MoeForCausalLM"), _parsers("", "hermes", "docs: tool calling, Qwen2.5 [V 0.26.0]")),
    (
        ("MiniMaxM2ForCausalLM",),
        (
            Row("trust-remote-code", True, "spark-arena's recipe for this class [P]"),
            *_parsers("minimax_m2", "minimax_m2", "spark-arena's recipe for this class [P]"),
            Row("kv-cache-dtype", "fp8", "eugr/spark-vllm-docker#236 [P]"),
        ),
    ),
    (("GptOssForCausalLM",), _parsers("openai_gptoss", "openai", "the launches of eugr and capyctl [P]", "analysis")),
    (
        ("MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM"),
        _parsers("mimo", "mimo", "tonyd2wild's launch on two nodes [P]; in vLLM from 0.20.1 on [V]", since="0.20.1"),
    ),
    (("Glm4MoeForCausalLM",), _parsers("glm45", "glm45", "docs: reasoning outputs, and tool calling [V 0.26.0]")),
    (
        ("Glm5NextForConditionalGeneration",),
        _parsers("glm45", "glm47", "tonyd2wild's launches on two and four nodes [P]"),
    ),
    (
        ("DeepseekV4ForCausalLM",),
        (
            Row("tokenizer-mode", "deepseek_v4", "vllm-project/recipes, GB10 [P]"),
            Row("reasoning-parser", "deepseek_v4", "vllm-project/recipes, GB10 [P]"),
            Row("tool-call-parser", "deepseek_v4", "vllm-project/recipes, GB10 [P]"),
            Row("enable-auto-tool-choice", True, "the tool parser is used only with it [V]"),
        ),
    ),
    (
        ("DeepseekV41ForCausalLM",),
        (
            Row("tokenizer-mode", "deepseek_v41", "vllm-project/recipes [P]"),
            Row("reasoning-parser", "deepseek_v41", "tonyd2wild's launch on four nodes [P]"),
            Row("tool-call-parser", "deepseek_v41", "tonyd2wild's launch on four nodes [P]"),
            Row("enable-auto-tool-choice", True, "the tool parser is used only with it [V]"),
        ),
    ),
)

#: Quantisation, and whether the model has experts → rows.
QUANTISED: Mapping[tuple[str, bool], tuple[Row, ...]] = {
    ("nvfp4", True): (
        Row("moe-backend", "marlin", "FlashInfer's FP4 kernels do not run on sm_121 [S4]; as in [S2]"),
        Row("VLLM_NVFP4_GEMM_BACKEND", "marlin", "[S2] [S4]; gone in 0.24.0 [V]", until="0.24.0", place=ENV),
        Row("VLLM_USE_FLASHINFER_MOE_FP4", "0", "[S2] [S4]; gone in 0.24.0 [V]", until="0.24.0", place=ENV),
    ),
    ("nvfp4", False): (
        Row("VLLM_NVFP4_GEMM_BACKEND", "marlin", "[S2] [S4]; gone in 0.24.0 [V]", until="0.24.0", place=ENV),
    ),
}


def rows_for(architecture: str, quantisation: str, experts: bool, release: str) -> list[Row] | None:
    """Return what is published for a class on one release; None for a class of which nothing is.

    :param quantisation: as ``quantisation_of`` names it.
    :param experts: whether the model has any.
    :param release: of vLLM, such as ``0.30.0``.
    """
    found = next((rows for classes, rows in FAMILIES if architecture in classes), None)
    rows = [*(found or ()), *QUANTISED.get((quantisation, experts), ())]
    now = parse(release).release
    rows = [
        row
        for row in rows
        if (not row.since or now >= parse(row.since).release) and (not row.until or now < parse(row.until).release)
    ]
    return rows if found is not None or rows else None


def quantisation_of(config: Mapping[str, Any], modelopt: Mapping[str, Any]) -> str:
    """Return how the weights are quantised: nvfp4, or the method that the file names, or nothing.

    :param config: config.json.
    :param modelopt: hf_quant_config.json, or empty.
    """
    found = config.get("quantization_config")
    found = found if isinstance(found, Mapping) else {}
    own = modelopt.get("quantization")
    own = own if isinstance(own, Mapping) else {}
    texts = [json.dumps(each, default=str).lower() for each in (found, own)]
    if any("nvfp4" in text for text in texts):
        return "nvfp4"
    return str(found.get("quant_method") or own.get("quant_algo") or "").lower()


@dataclass(frozen=True)
class Architecture:
    """A class of vLLM's registry.

    :ivar kind: generate, pooling or draft.
    :ivar releases: those that were read and have it, oldest first.
    """

    name: str
    kind: str
    releases: tuple[str, ...]


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[str, ...], dict[str, Any]]:
    read = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))
    return tuple(read["releases"]), read["classes"]


def releases_read() -> tuple[str, ...]:
    """Return the releases of vLLM whose registry was read, oldest first."""
    return _table()[0]


def architecture(name: str) -> Architecture | None:
    """Return a class of vLLM's registry, or None when no release that was read has it."""
    releases, classes = _table()
    entry = classes.get(name)
    if entry is None:
        return None
    held = entry["in"]
    if isinstance(held, str):
        first, last = held.split("-")
        held = releases[releases.index(first) : releases.index(last) + 1]
    return Architecture(name, entry["kind"], tuple(held))


def has_class(found: Architecture, version: str) -> bool:
    """Tell whether a version of vLLM has a class: by the same release, or the nearest one below that was read."""
    wanted = parse(version).release
    below = [each for each in releases_read() if parse(each).release <= wanted]
    return bool(below) and below[-1] in found.releases


def names(found: Iterable[str]) -> str:
    """Return some names for a sentence."""
    return ", ".join(found) or "none"
