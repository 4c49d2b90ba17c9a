# SPDX-License-Identifier: Apache-2.0
"""From a ``model_spec`` to the arguments of ``gb10.cluster.memory_budget``.  Pure.

The engine's own options say all that the memory model asks for, so that a catalogue file
states nothing twice: ``serve`` and ``env`` give the settings, ``size_gib`` the weights,
``geometry`` the shape; ``memory`` adds the limits that are not options of the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import kv, settings
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import nearest

#: Option of ``vllm serve`` -> argument of the module, taken as it is.
_SAME = {
    "kv-cache-dtype": "kv_cache_dtype",
    "mamba-ssm-cache-dtype": "ssm_dtype",
    "mamba-cache-mode": "mamba_cache_mode",
}
_WHOLE = {
    "decode-context-parallel-size": "decode_context_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size",
    "tensor-parallel-size": "tensor_parallel_size",
    "max-model-len": "max_model_len",
    "max-num-seqs": "max_num_seqs",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "block-size": "block_granularity",
}
_SWITCH = {
    "async-scheduling": "async_scheduling",
    "enable-expert-parallel": "expert_parallel",
    "enable-prefix-caching": "enable_prefix_caching",
    "enforce-eager": "enforce_eager",
}
_BUDGET = {
    "gpu-memory-utilization-gb": "budget_gib",
    "gpu-memory-utilization": "gpu_memory_utilization",
}
#: Methods that search the text so far: nothing of them has weights or a cache.
_SEARCHES = ("ngram", "ngram_gpu", "suffix")
_MEMORY_KEYS = ("budget_gib", "gpu_memory_utilization", "kv_cache_memory_gib", "floor_gib", "firm_cap_gib")
#: Key of ``memory`` for weights that the engine reads from the disk when it needs them (Engram tables).
_ON_DISK = "weights_on_disk_gib"

#: vLLM reads small letters as powers of 1000 and capitals as powers of 1024.
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")


def parse_number(value: object) -> float | None:
    """Return a number as vLLM's command line reads it (``256k`` is 256000), or None."""
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, int | float):
            number = float(value)
        elif match := _NUMBER.fullmatch(str(value).strip()):
            number = float(match[1]) * _SUFFIXES.get(match[2], 1)
        else:
            return None
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _fp4_backend(spec: Mapping[str, Any]) -> str:
    """Return the kernels that NVFP4 weights will run on.

    Left alone, vLLM takes FlashInfer on a GB10 [S4]; an option or a variable can name Marlin.
    """
    serve, env = spec.get("serve") or {}, spec.get("env") or {}
    named = [
        str(serve.get("moe-backend", "")),
        str(serve.get("linear-backend", "")),
        str(env.get("VLLM_NVFP4_GEMM_BACKEND", "")),
    ]
    if any("flashinfer" in name for name in named):
        return settings.FLASHINFER
    if any("marlin" in name for name in named) or "NVFP4" not in str(spec.get("repo", "")).upper():
        return settings.MARLIN
    return settings.FLASHINFER


def _numbers(spec: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the arguments that are numbers in ``serve``."""
    serve = spec.get("serve") or {}
    found: dict[str, Any] = {}
    for option, argument in {**_WHOLE, **_BUDGET, "kv-cache-memory-bytes": "kv_cache_memory_gib"}.items():
        if option not in serve:
            continue
        if option == "max-model-len" and str(serve[option]) in ("auto", str(settings.AUTO_LENGTH)):
            found[argument] = settings.AUTO_LENGTH
            continue
        number = parse_number(serve[option])
        if number is None or (option in _WHOLE and number != int(number)):
            problems.append(f"model_spec.serve.{option} is {serve[option]!r}, which is no number that vLLM reads.")
        elif option in _WHOLE:
            found[argument] = int(number)
        else:
            found[argument] = number / kv.GIB if option == "kv-cache-memory-bytes" else number
    return found


def _on_disk_gib(spec: Mapping[str, Any], problems: list[str]) -> float:
    """Return how much of the weights never gets into memory."""
    value = (spec.get("memory") or {}).get(_ON_DISK, 0)
    number = parse_number(value)
    if number is None or not 0 <= number <= float(spec["size_gib"]):
        most = f"{spec['size_gib']:g}"
        problems.append(
            f"model_spec.memory.{_ON_DISK} is {value!r}, but it must be a number from 0 to size_gib, {most}."
        )
        return 0.0
    return number


def _limits(spec: Mapping[str, Any], arguments: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return what ``memory`` says, held against ``serve``."""
    found: dict[str, Any] = {}
    for key, value in (spec.get("memory") or {}).items():
        if key == _ON_DISK:
            continue
        if key not in _MEMORY_KEYS:
            known = (*_MEMORY_KEYS, _ON_DISK)
            guess = nearest(str(key), known)
            hint = f"Did you mean {guess}?" if guess else f"Known: {', '.join(known)}."
            problems.append(f"model_spec.memory.{key} is not known. {hint}")
            continue
        number = parse_number(value)
        if number is None:
            problems.append(f"model_spec.memory.{key} is {value!r}, which is no number.")
        elif key in arguments and abs(arguments[key] - number) > 1e-6:
            problems.append(f"model_spec.memory.{key} is {number:g}, but model_spec.serve says {arguments[key]:g}.")
        else:
            found[key] = number
    return found


def _draft(spec: Mapping[str, Any], weights_root: str) -> dict[str, Any]:
    """Return the arguments about what drafts, beside the number of its tokens."""
    serve, drafter = spec.get("serve") or {}, spec.get("drafter") or {}
    speculation = serve.get("speculative-config")
    if not isinstance(speculation, Mapping):
        return {}
    if speculation.get("method") in _SEARCHES:
        return {"draft_has_layers": False}
    if not drafter:
        return {}
    # A draft model that runs on fewer ranks than the model weighs more on each of them.
    ranks = float(serve.get("tensor-parallel-size", 1))
    own = float(speculation.get("draft_tensor_parallel_size") or ranks)
    found: dict[str, Any] = {"draft_weights_gib": float(drafter["size_gib"]) * ranks / own}
    if drafter.get("geometry"):
        found["draft_geometry"] = dict(drafter["geometry"])
    elif weights_root:
        found["draft_config_json"] = f"{weights_root}/{drafter['repo']}"
    return found


def device_of(vllm_version: str) -> str:
    """Return the device of a build: vLLM's builds for other hardware say so in the local part of their version."""
    return settings.CPU if vllm_version.partition("+")[2].split(".")[0] == "cpu" else settings.CUDA


def build_of(vllm_version: str, image_says: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return (version, device) of the vLLM in an image.

    :param vllm_version: as the image's entry says it; may be empty
    :param image_says: the table that the image gave; empty before it was asked, None for an image that is built here
    """
    device = device_of(vllm_version)
    if image_says is None or device == settings.CPU:
        return vllm_version, device
    if not image_says:
        return vllm_version, settings.AUTO
    given = str(image_says.get("vllm", ""))
    # A fork's own version says nothing about the rules of its cache.
    known = (kv.parse_version(given) or kv.OLDEST_READ) > kv.OLDEST_READ
    return vllm_version or (given if known else ""), image_says.get("device") or device_of(given)


def measured_points(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the caches that a model's file says were measured, as M(gb10.cluster.memory_budget) takes them.

    They stand in ``expected.kv_cache``, or beside other figures in the rows of ``expected.memory``.
    """
    expected = spec.get("expected") or {}
    rows = [
        {
            "pool_gib": row["kv_cache_gb"],
            "tokens": row["kv_cache_tokens"],
            "source": str(row.get("source", "no source")),
        }
        for row in expected.get("memory") or []
        if isinstance(row, Mapping) and "kv_cache_gb" in row and "kv_cache_tokens" in row
    ]
    return [*(expected.get("kv_cache") or []), *rows]


def memory_arguments(
    spec: Mapping[str, Any], vllm_version: str, device: str = settings.CUDA, weights_root: str = ""
) -> dict[str, Any]:
    """Return the arguments of ``gb10.cluster.memory_budget`` for a model.

    :param spec: a validated ``model_spec``
    :param device: ``cuda``, ``cpu`` for vLLM's CPU build, or ``auto`` for what the node is made for
    :param weights_root: of the node, where config.json is read when the model's file has no geometry
    :raises MemoryModelError: with every problem at once, one sentence each
    """
    problems: list[str] = []
    serve, env = spec.get("serve") or {}, spec.get("env") or {}
    arguments: dict[str, Any] = {}
    if spec.get("geometry"):
        arguments["geometry"] = dict(spec["geometry"])
    elif weights_root:
        arguments["config_json"] = f"{weights_root}/{spec['repo']}"
    if weights_root and not spec["size_gib"]:
        arguments["weights_path"] = f"{weights_root}/{spec['repo']}"
    arguments |= {
        "weights_gib": float(spec["size_gib"]) - _on_disk_gib(spec, problems),
        # An image whose version nobody has written down counts as the newest release that was read.
        "vllm_version": vllm_version or kv.version_text(kv.NEWEST_READ),
        "device": device,
        "fp4_backend": _fp4_backend(spec),
        **_draft(spec, weights_root),
    }
    arguments.update({argument: str(serve[option]) for option, argument in _SAME.items() if option in serve})
    arguments.update({argument: bool(serve[option]) for option, argument in _SWITCH.items() if option in serve})
    arguments.update(_numbers(spec, problems))
    if serve.get("disable-hybrid-kv-cache-manager") is True:
        arguments["hybrid_kv_cache_manager"] = False
    if measured := measured_points(spec):
        arguments["measured"] = measured
    speculation = serve.get("speculative-config")
    if isinstance(speculation, Mapping):
        tokens = speculation.get("num_speculative_tokens")
        if isinstance(tokens, int) and not isinstance(tokens, bool):
            arguments["speculative_tokens"] = tokens
        else:
            problems.append(
                "model_spec.serve.speculative-config names no num_speculative_tokens, on which the size of the cache "
                "depends."
            )
    if "max_model_len" not in arguments and not problems:
        problems.append("model_spec.serve has no max-model-len: without it nothing can be sized.")
    pool = env.get("VLLM_CPU_KVCACHE_SPACE")
    if device in (settings.CPU, settings.AUTO) and pool is not None:
        # The CPU build takes its pool from here; the options for a GPU's memory do not reach it.
        arguments = {key: value for key, value in arguments.items() if key not in _MEMORY_KEYS} | {
            "device": settings.CPU
        }
        number = parse_number(pool)
        if number is None:
            problems.append(f"model_spec.env.VLLM_CPU_KVCACHE_SPACE is {pool!r}, which is no number of GiB.")
        else:
            arguments["kv_cache_memory_gib"] = number
    arguments.update(_limits(spec, arguments, problems))
    if problems:
        raise settings.MemoryModelError(problems)
    return arguments
