# SPDX-License-Identifier: Apache-2.0
"""Repositories of models for tests: the shapes of real ones, without weights."""

from __future__ import annotations

import json
from typing import Any

from tests.hub import Files

GIB = 2**30
TEMPLATE = "{% if tools %}tools{% endif %}<think>"

MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_size": 2048,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
#: A hybrid with a delta net, wrapped as a model for images.
HYBRID: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "quantization_config": {"quant_method": "fp8"},
    "text_config": {
        "dtype": "bfloat16",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_size": 4096,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 1024,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 60,
        "num_key_value_heads": 2,
        "vocab_size": 248320,
    },
}
#: A class of vLLM's whose cache the memory model cannot compute.
UNREAD: dict[str, Any] = {
    "architectures": ["LongcatFlashForCausalLM"],
    "max_position_embeddings": 262144,
    "num_attention_heads": 64,
    "num_hidden_layers": 32,
}


SHARDS = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def repository(config: dict[str, Any], gib: float, **more: Any) -> dict[str, bytes | int]:
    """Return the files of a repository with weights of a size in two shards.

    :param more: file name, dots as two underscores → JSON value; None leaves the file out.
    """
    size = int(gib * GIB)
    index = {"metadata": {"total_size": size}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    documents: dict[str, Any] = {
        "config.json": config,
        "model.safetensors.index.json": index,
        "tokenizer.json": {},
        "tokenizer_config.json": {"chat_template": TEMPLATE},
        "generation_config.json": {"temperature": 0.6},
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    files: dict[str, bytes | int] = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in documents.items()
        if value is not None
    }
    return {**files, SHARDS[0]: size // 2, SHARDS[1]: size - size // 2}


#: One of each kind on four boxes: fits one, needs four, does not fit.
THREE: dict[str, Files] = {
    "org/Fits.One": repository(MOE, 29),
    "org/needs-four": repository(HYBRID, 300),
    "org/too-large": repository(HYBRID, 700),
}
