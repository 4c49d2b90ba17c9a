# SPDX-License-Identifier: Apache-2.0
"""What vLLM itself logged about its cache, held against the model within one percent.

Three sources: lines captured from starts of vLLM 0.32.0 (CPU build) with the lab's two tiny models, kept below;
whole logs in tests/unit/fixtures/engine-logs/kv-*.log; and what 0.22.1 logged on one H200 of hybrid models of true
shape with dummy weights and a pool of a given size (docs/sources.md, [H]).
"""

from __future__ import annotations

import ast
import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import geometry_from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import GIB, rules_for
from ansible_collections.gb10.cluster.plugins.module_utils._memory.layout import Asked, plan_layout
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import Settings
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate

REPO = Path(__file__).resolve().parents[4]
LAB = REPO / "inventories" / "lab" / "group_vars"
FIXTURES = REPO / "tests" / "unit" / "fixtures" / "engine-logs"

_NON_DEFAULT = re.compile(r"non-default args: (\{.*\})")
_VERSION = re.compile(r"Initializing a V1 LLM engine \(v([^)]+)\)")
_POOL = re.compile(r"(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache")
_BLOCK = re.compile(r"Setting attention block size to (\d+) tokens")
_PADDING = re.compile(r"Padding mamba page size by ([\d.]+)%")
_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")


@dataclass(frozen=True)
class Log:
    """The facts of one start, as vLLM printed them."""

    model: str
    version: str
    tensor_parallel_size: int
    max_model_len: int
    prefix_caching: bool | None
    pool_gib: float
    block_tokens: int | None
    padding_percent: float | None
    cache_tokens: int
    max_concurrency: float


def read(text: str) -> Log:
    """Return the facts of a log; a line that is not there fails the test that wanted it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)

    def found(pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.search(text)
        assert match is not None, f"the log has no line that matches {pattern.pattern}"
        return match

    arguments: dict[str, Any] = ast.literal_eval(found(_NON_DEFAULT)[1])
    size, block, padding = found(_SIZE), _BLOCK.search(text), _PADDING.search(text)
    pool_bytes = arguments.get("kv_cache_memory_bytes")
    return Log(
        model=Path(arguments["model"]).name,
        version=found(_VERSION)[1],
        tensor_parallel_size=arguments.get("tensor_parallel_size", 1),
        max_model_len=int(size[2].replace(",", "")),
        prefix_caching=arguments.get("enable_prefix_caching"),
        pool_gib=pool_bytes / GIB if pool_bytes else float(found(_POOL)[1]),
        block_tokens=int(block[1]) if block else None,
        padding_percent=float(padding[1]) if padding else None,
        cache_tokens=int(size[1].replace(",", "")),
        max_concurrency=float(size[3]),
    )


def engine(model: str, arguments: str, rest: str) -> str:
    """Return the lines of one start, which differ in what is given."""
    return (
        f"INFO [api_utils.py:286] non-default args: {{'model': '/models/gb10-lab/{model}', 'dtype': 'bfloat16', "
        f"'max_model_len': 1024, 'enforce_eager': True{arguments}}}\n"
        f"INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/models/gb10-lab/{model}'\n"
        f"{rest}"
    )


_HYBRID = (
    "INFO [interface.py:1096] Setting attention block size to 384 tokens to ensure that attention page size is >= "
    "mamba page size.\n"
    "INFO [interface.py:1120] Padding mamba page size by 43.28% to ensure that mamba page size and attention page size "
    "are exactly equal.\n"
)

#: Captured on 2026-11-20; prefix caching at its default, which is on.
CAPTURED = {
    "tiny-qwen3, one rank, 64 MiB": engine(
        "tiny-qwen3",
        ", 'kv_cache_memory_bytes': 67108864",
        "INFO [cpu_worker.py:260] Explicitly set (0.06/14.46) GiB for KV cache on node 0.\n"
        "INFO [kv_cache_utils.py:2327] CPU KV cache size: 32,768 tokens, Maximum concurrency for 1,024 tokens per "
        "request: 32.00x\n",
    ),
    "tiny-qwen3, one rank, 1 GiB": engine(
        "tiny-qwen3",
        "",
        "INFO [cpu_worker.py:260] Explicitly set (1.0/12.34) GiB for KV cache on node 0.\n"
        "INFO [kv_cache_utils.py:2327] CPU KV cache size: 524,288 tokens, Maximum concurrency for 1,024 tokens per "
        "request: 512.00x\n",
    ),
    "tiny-qwen3, four ranks on four nodes, 64 MiB": engine(
        "tiny-qwen3",
        ", 'nnodes': 4, 'tensor_parallel_size': 4, 'kv_cache_memory_bytes': 67108864",
        "(Worker_TP0 pid=30) INFO [cpu_worker.py:260] Explicitly set (0.06/17.59) GiB for KV cache on node 0.\n"
        "INFO [kv_cache_utils.py:2327] CPU KV cache size: 131,072 tokens, Maximum concurrency for 1,024 tokens per "
        "request: 128.00x\n",
    ),
    "tiny-nemotronh, one rank, 64 MiB": engine(
        "tiny-nemotronh",
        ", 'kv_cache_memory_bytes': 67108864",
        _HYBRID + "INFO [cpu_worker.py:260] Explicitly set (0.06/14.46) GiB for KV cache on node 0.\n"
        "INFO [kv_cache_utils.py:2327] CPU KV cache size: 14,506 tokens, Maximum concurrency for 1,024 tokens per "
        "request: 14.17x\n",
    ),
    "tiny-nemotronh, one rank, 1 GiB": engine(
        "tiny-nemotronh",
        "",
        _HYBRID + "INFO [cpu_worker.py:260] Explicitly set (1.0/12.34) GiB for KV cache on node 0.\n"
        "INFO [kv_cache_utils.py:2327] CPU KV cache size: 232,960 tokens, Maximum concurrency for 1,024 tokens per "
        "request: 227.50x\n",
    ),
}

LOGS = CAPTURED | {path.name: path.read_text(encoding="utf-8") for path in sorted(FIXTURES.glob("kv-*.log"))}


@pytest.mark.parametrize("name", LOGS)
def test_what_vllm_logged(name: str) -> None:
    log = read(LOGS[name])
    file = LAB / f"model_{log.model.replace('-', '_')}.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"]
    budget = evaluate(
        Settings(
            geometry=geometry_from_dict(spec["geometry"]),
            weights_gib=spec["size_gib"],
            vllm_version=log.version,
            device="cpu",
            tensor_parallel_size=log.tensor_parallel_size,
            max_model_len=log.max_model_len,
            enable_prefix_caching=log.prefix_caching,
            kv_cache_memory_gib=log.pool_gib,
            enforce_eager=True,
            mem_total_gib=24,
            mem_available_gib=12,
        )
    )
    figures = budget.figures
    assert figures is not None
    assert budget.verdict == "fits"
    if log.block_tokens is not None:
        assert figures.attn_block_tokens == log.block_tokens
        assert figures.padding_percent == pytest.approx(log.padding_percent or 0.0, abs=0.005)
    # vLLM prints two decimals, so a small figure cannot be closer than half of the last one.
    assert figures.max_concurrency == pytest.approx(log.max_concurrency, rel=0.01, abs=0.005)
    assert figures.kv_cache_tokens == pytest.approx(log.cache_tokens, rel=0.01)


def test_the_captured_lines_are_of_both_models_and_both_layouts() -> None:
    read_logs = [read(text) for text in CAPTURED.values()]
    assert {log.model for log in read_logs} == {"tiny-qwen3", "tiny-nemotronh"}
    assert {log.tensor_parallel_size for log in read_logs} == {1, 4}
    assert {log.block_tokens for log in read_logs} == {None, 384}


def test_a_log_without_its_line_is_no_evidence() -> None:
    with pytest.raises(AssertionError, match="the log has no line that matches"):
        read(CAPTURED["tiny-qwen3, one rank, 1 GiB"].replace("KV cache size", "something else"))


MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]
ON_A_GPU = list(csv.DictReader((FIXTURES.parent / "memory" / "gpu-layouts-0.22.1.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("row", ON_A_GPU, ids=lambda row: "-".join(list(row.values())[:7]))
def test_what_vllm_logged_on_a_gpu(row: dict[str, str]) -> None:
    length = int(row["max_model_len"])
    layout = plan_layout(
        geometry_from_dict(MODELS[row["model"]]["geometry"]),
        Asked(
            tensor_parallel_size=int(row["ranks"]),
            kv_cache_dtype=row["kv_cache_dtype"],
            ssm_dtype=row["ssm_dtype"],
            speculative_tokens=int(row["draft_tokens"]),
            block_granularity=16,
            prefix_caching=row["prefix_caching"] != "off",
            cache_mode="align" if row["prefix_caching"] == "align" else None,
            rules=rules_for((0, 22, 1)),
        ),
    )
    assert (layout.cache_mode, layout.block_tokens) == (row["cache_mode"], int(row["block_tokens"]))
    assert layout.padding_percent == pytest.approx(float(row["padding_percent"]), abs=0.005)
    assert int(int(row["blocks"]) / layout.blocks_per_sequence(length) * length) == int(row["tokens"])
