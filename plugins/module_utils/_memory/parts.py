# SPDX-License-Identifier: Apache-2.0
"""Parts of a shape that a model's class always has; without them its cache would be sized as plain attention.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DELTA = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM")
#: The same with an indexer, which chooses what attention reads.
INDEXED = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
BLOCK_SPARSE = ("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration")
#: Windows with heads of their own, values narrower than keys.
TWO_WIDTHS = ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM")
_STATES = ("FalconH1ForCausalLM", "JambaForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM")
_GLM, _KIMI, _QWEN = "Glm5NextForConditionalGeneration", "KimiLinearForCausalLM", "Qwen4ExpForConditionalGeneration"

#: Section of a geometry, and a key of it where that alone decides -> (what the class keeps, the classes in vLLM).
ALWAYS: Mapping[tuple[str, ...], tuple[str, tuple[str, ...]]] = {
    ("compressed",): ("a compressed cache", ("DeepseekV4ForCausalLM", "DeepseekV41ForCausalLM")),
    ("attention", "latent_dim"): (
        "one latent vector of a token instead of keys and values",
        (*LATENT, *INDEXED, _GLM, _KIMI),
    ),
    ("indexer",): ("an indexer's keys", (*INDEXED, *BLOCK_SPARSE, _GLM, _QWEN)),
    ("recurrent",): ("recurrent states", (*DELTA, _GLM, _QWEN, _KIMI, *_STATES)),
    ("windows",): ("windows", ("GptOssForCausalLM", *TWO_WIDTHS)),
}


def missing_parts(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part that a described shape lacks and its class always has."""
    found = []
    for path, (what, classes) in ALWAYS.items():
        part: Any = values
        for key in path:
            part = part.get(key)
        if values["architecture"] in classes and not part:
            found.append(
                f"geometry.{'.'.join(path)} is missing: {values['architecture']} keeps {what}, so its cache is not "
                "that of the attention described. Add it (docs/memory.md), or leave geometry out: config.json is read."
            )
    return found
