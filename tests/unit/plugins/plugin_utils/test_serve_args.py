# SPDX-License-Identifier: Apache-2.0
"""What serve_args accepts, and that it renders it exactly."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import (
    serve_args,
    serve_check,
    serve_files,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError, in_order

PINNED = "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132"
TABLES = serve_files.load_tables()
VERSIONS = in_order(TABLES)


def render(
    serve: dict[str, Any], version: str = "0.22.1", env: dict[str, Any] | None = None, mods: tuple[str, ...] = ()
) -> serve_args.ServeArgs:
    return serve_files.render(serve, version, env or {}, mods)


# --- the published commands -------------------------------------------------------------------

# As printed in [S0], after the model; JSON as printed, too.
ULTRA_COMMAND = r"""
--served-model-name nvidia/nemotron-3-ultra --host 0.0.0.0 --port 8000 --trust-remote-code
--tensor-parallel-size 4 --enable-expert-parallel --distributed-executor-backend ray
--kv-cache-dtype fp8 --gpu-memory-utilization-gb 108 --max-model-len 262144 --max-num-seqs 6
--max-num-batched-tokens 8192 --enable-chunked-prefill --enable-prefix-caching
--enable-auto-tool-choice --reasoning-parser nemotron_v3 --tool-call-parser qwen3_coder
--mamba-ssm-cache-dtype float16 --mamba-backend flashinfer
--enable-mamba-cache-stochastic-rounding --mamba-cache-philox-rounds 5
--moe-backend flashinfer_cutlass
--speculative-config '{"method":"nemotron_h_mtp","num_speculative_tokens":3}'
--model-loader-extra-config '{"enable_multithread_load": true, "num_threads": 16}'
--compilation-config '{"pass_config": {"fuse_allreduce_rms": false}}'
--distributed-timeout-seconds 3600
"""
ULTRA = {
    "served-model-name": "nvidia/nemotron-3-ultra",
    "host": "0.0.0.0",
    "port": 8000,
    "trust-remote-code": True,
    "tensor-parallel-size": 4,
    "enable-expert-parallel": True,
    "distributed-executor-backend": "ray",
    "kv-cache-dtype": "fp8",
    "gpu-memory-utilization-gb": 108,
    "max-model-len": 262144,
    "max-num-seqs": 6,
    "max-num-batched-tokens": 8192,
    "enable-chunked-prefill": True,
    "enable-prefix-caching": True,
    "enable-auto-tool-choice": True,
    "reasoning-parser": "nemotron_v3",
    "tool-call-parser": "qwen3_coder",
    "mamba-ssm-cache-dtype": "float16",
    "mamba-backend": "flashinfer",
    "enable-mamba-cache-stochastic-rounding": True,
    "mamba-cache-philox-rounds": 5,
    "moe-backend": "flashinfer_cutlass",
    "speculative-config": {"method": "nemotron_h_mtp", "num_speculative_tokens": 3},
    "model-loader-extra-config": {"enable_multithread_load": True, "num_threads": 16},
    "compilation-config": {"pass_config": {"fuse_allreduce_rms": False}},
    "distributed-timeout-seconds": 3600,
}
ULTRA_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
ULTRA_MODS = ("gpu-mem-util-gb", "nemotron-ultra")

# [S2], with the defaults of its variables filled in.
SUPER_COMMAND = r"""
--tensor-parallel-size 2 --pipeline-parallel-size 1 --data-parallel-size 1
--quantization fp4 --moe-backend marlin
--dtype auto --kv-cache-dtype fp8 --mamba-ssm-cache-dtype auto
--max-model-len 262144 --gpu-memory-utilization 0.75 --max-cudagraph-capture-size 128
--enable-chunked-prefill --async-scheduling --trust-remote-code
--reasoning-parser-plugin /root/.cache/huggingface/super_v3_reasoning_parser.py
--reasoning-parser super_v3 --enable-auto-tool-choice --tool-call-parser qwen3_coder
"""
SUPER = {
    "tensor-parallel-size": 2,
    "pipeline-parallel-size": 1,
    "data-parallel-size": 1,
    "quantization": "fp4",
    "moe-backend": "marlin",
    "dtype": "auto",
    "kv-cache-dtype": "fp8",
    "mamba-ssm-cache-dtype": "auto",
    "max-model-len": 262144,
    "gpu-memory-utilization": 0.75,
    "max-cudagraph-capture-size": 128,
    "enable-chunked-prefill": True,
    "async-scheduling": True,
    "trust-remote-code": True,
    "reasoning-parser-plugin": "/root/.cache/huggingface/super_v3_reasoning_parser.py",
    "reasoning-parser": "super_v3",
    "enable-auto-tool-choice": True,
    "tool-call-parser": "qwen3_coder",
}
SUPER_ENV = {
    "VLLM_NVFP4_GEMM_BACKEND": "marlin",
    "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm",
    "VLLM_USE_FLASHINFER_MOE_FP4": "0",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}

# [S4]; it starts the API server's module and names the model by --model.
NANO_COMMAND = r"""
--host 0.0.0.0 --port 8000 --enforce-eager --max-num-seqs 1 --max-model-len 8192
--gpu-memory-utilization 0.2 --kv-cache-dtype fp8 --trust-remote-code
"""
NANO = {
    "host": "0.0.0.0",
    "port": 8000,
    "enforce-eager": True,
    "max-num-seqs": 1,
    "max-model-len": 8192,
    "gpu-memory-utilization": 0.2,
    "kv-cache-dtype": "fp8",
    "trust-remote-code": True,
}
NANO_ENV = {
    "VLLM_USE_FLASHINFER_MOE_FP4": "0",
    "VLLM_NVFP4_GEMM_BACKEND": "marlin",
    "VLLM_TEST_FORCE_FP8_MARLIN": "1",
}


def normal(arguments: list[str]) -> list[Any]:
    """Return the arguments with JSON parsed, so that its spaces do not count."""
    return [json.loads(each) if each.startswith("{") else each for each in arguments]


@pytest.mark.parametrize("version", ["0.22.1", PINNED])
@pytest.mark.parametrize(
    ("serve", "env", "mods", "command"),
    [
        pytest.param(ULTRA, ULTRA_ENV, ULTRA_MODS, ULTRA_COMMAND, id="ultra"),
        pytest.param(SUPER, SUPER_ENV, (), SUPER_COMMAND, id="super"),
        pytest.param(NANO, NANO_ENV, (), NANO_COMMAND, id="nano"),
    ],
)
def test_published_commands(
    serve: dict[str, Any], env: dict[str, str], mods: tuple[str, ...], command: str, version: str
) -> None:
    found = render(serve, version, env, mods)
    assert normal(found.args) == normal(shlex.split(command))
    assert found.env == env
    assert found.table == "0.22.1"


def test_json_is_compact_and_survives_a_shell() -> None:
    found = render(ULTRA, mods=ULTRA_MODS)
    assert '{"method":"nemotron_h_mtp","num_speculative_tokens":3}' in found.args
    command = serve_args.shell_command("/models/a b", found.args)
    assert shlex.split(command) == ["vllm", "serve", "/models/a b", *found.args]


def test_order_is_that_of_the_dictionary() -> None:
    forward = render({"max-num-seqs": 1, "port": 8000}).args
    backward = render({"port": 8000, "max-num-seqs": 1}).args
    assert forward == ["--max-num-seqs", "1", "--port", "8000"]
    assert backward == ["--port", "8000", "--max-num-seqs", "1"]


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serve", "version", "args"),
    [
        ({"enable-prefix-caching": False}, "0.22.1", ["--no-enable-prefix-caching"]),
        # 0.33.0 shows --disable-x in its help; --no-enable-x still works there.
        ({"enable-prefix-caching": False}, "0.33.0", ["--disable-prefix-caching"]),
        ({"disable-prefix-caching": True}, "0.33.0", ["--disable-prefix-caching"]),
        ({"no-enable-prefix-caching": True}, "0.33.0", ["--no-enable-prefix-caching"]),
        ({"enforce-eager": False}, "0.33.0", ["--no-enforce-eager"]),
        ({"disable-custom-all-reduce": False}, "0.33.0", ["--enable-custom-all-reduce"]),
        # A switch without an opposite is off when it is absent.
        ({"disable-log-stats": False}, "0.22.1", []),
        ({"disable-log-stats": True}, "0.22.1", ["--disable-log-stats"]),
        ({"device-memory-utilization": 0.5}, "0.33.0", ["--device-memory-utilization", "0.5"]),
        ({"max-model-len": "256K"}, "0.22.1", ["--max-model-len", "256K"]),
        ({"max-model-len": "25.6k"}, "0.22.1", ["--max-model-len", "25.6k"]),
        ({"max-model-len": -1}, "0.22.1", ["--max-model-len", "-1"]),
        ({"max-model-len": "auto"}, "0.22.1", ["--max-model-len", "auto"]),
        ({"max-num-seqs": "6"}, "0.22.1", ["--max-num-seqs", "6"]),
        ({"kv-cache-memory-bytes": "8G"}, "0.22.1", ["--kv-cache-memory-bytes", "8G"]),
        ({"served-model-name": ["a", "b"]}, "0.22.1", ["--served-model-name", "a", "b"]),
        ({"middleware": ["a.B", "c.D"]}, "0.22.1", ["--middleware", "a.B", "--middleware", "c.D"]),
        ({"cudagraph-capture-sizes": [1, 2]}, "0.22.1", ["--cudagraph-capture-sizes", "1", "2"]),
        ({"allowed-origins": ["*"]}, "0.22.1", ["--allowed-origins", '["*"]']),
        ({"hf-overrides": {"a": {"b": [1]}}}, "0.22.1", ["--hf-overrides", '{"a":{"b":[1]}}']),
        ({"hf-overrides": "my.function"}, "0.22.1", ["--hf-overrides", "my.function"]),
        (
            {"speculative-config": '{"method": "mtp", "num_speculative_tokens": 1}'},
            "0.22.1",
            ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}'],
        ),
        ({"attention-backend": "flashinfer"}, "0.22.1", ["--attention-backend", "flashinfer"]),
        (
            {"distributed-executor-backend": "my.pkg.Executor"},
            "0.22.1",
            ["--distributed-executor-backend", "my.pkg.Executor"],
        ),
        (
            {"nnodes": 4, "node-rank": 2, "tensor-parallel-size": 4, "master-addr": "10.0.0.1", "headless": True},
            "0.22.1",
            shlex.split("--nnodes 4 --node-rank 2 --tensor-parallel-size 4 --master-addr 10.0.0.1 --headless"),
        ),
    ],
)
def test_values(serve: dict[str, Any], version: str, args: list[str]) -> None:
    assert render(serve, version).args == args


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("256k", 256000), ("256K", 262144), ("8G", 2**33), ("8g", 8 * 10**9), ("1.5k", 1500)],
        *[("2T", 2**41), ("12", 12), ("1.5K", None), ("8GiB", None), ("8 G", None), ("", None), ("k", None)],
    ],
)
def test_human_int(text: str, number: int | None) -> None:
    assert serve_check.human_int(text) == number


def sample(entry: dict[str, Any]) -> Any:
    """Return a value that this option takes, by its table entry alone."""
    if entry["kind"] == "flag":
        return True
    values = entry.get("choices") or entry.get("known")
    if values:
        return values[0]
    if entry["kind"] in ("json", "str_or_json"):
        return {}
    bounds = entry.get("bounds", {})
    if entry["kind"] == "float":
        return bounds.get("le", bounds.get("lt", 2) / 2)
    if entry["kind"] in ("int", "human_int", "human_int_or_auto"):
        return max(1, bounds.get("ge", 1))
    return "word"


# What an option needs beside it.
ROUNDING = "enable-mamba-cache-stochastic-rounding"
FLASHINFER = {"mamba-backend": "flashinfer"}
PARTNERS: dict[str, dict[str, Any]] = {
    "enable-auto-tool-choice": {"tool-call-parser": "hermes"},
    "enable-eplb": {"enable-expert-parallel": True, "tensor-parallel-size": 2},
    "enable-log-outputs": {"enable-log-requests": True},
    "headless": {"nnodes": 2, "node-rank": 1, "tensor-parallel-size": 2, "master-addr": "a"},
    "mamba-cache-philox-rounds": {ROUNDING: True, "mamba-ssm-cache-dtype": "float16", **FLASHINFER},
    "mamba-ssu-algorithm": FLASHINFER,
    "node-rank": {"nnodes": 2, "tensor-parallel-size": 2, "master-addr": "a", "headless": True},
    "numa-bind-cpus": {"numa-bind": True},
    "numa-bind-nodes": {"numa-bind": True},
    "reasoning-parser-plugin": {"reasoning-parser": "mine"},
    "speculative-config": {"spec-method": "mtp", "spec-tokens": 1},
    "tool-parser-plugin": {"tool-call-parser": "mine"},
    ROUNDING: {"mamba-ssm-cache-dtype": "float16", **FLASHINFER},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_of_every_table_can_be_written(version: str) -> None:
    """Nothing that vLLM's own parser has is refused, unless it would show a secret."""
    options = TABLES[version]["options"]
    assert len(options) > 220
    for name, entry in options.items():
        if name in ("model", "api-key", "hf-token"):
            continue
        value: Any = sample(entry)
        if name == "speculative-config" and "spec-method" not in options:
            value = {"method": "mtp", "num_speculative_tokens": 1}
        partners = {key: each for key, each in PARTNERS.get(name, {}).items() if key in options}
        args = serve_args.render_serve({name: value, **partners}, version, TABLES).args
        assert args[0] == f"--{name}"


def refused(serve: dict[str, Any], version: str) -> list[str]:
    """Return the sentences about a model's options, none when they are accepted."""
    try:
        serve_args.render_serve(serve, version, TABLES)
    except ServeError as problem:
        return problem.errors
    return []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_hint_for_a_dotted_option_is_accepted_when_it_is_followed(version: str) -> None:
    """Each known key of each structured option, written dotted and with dashes as on a command line."""
    checked = 0
    for name, entry in TABLES[version]["options"].items():
        for key in entry.get("keys", {}):
            dotted = f"{name}.{key.replace('_', '-')}"
            (sentence,) = refused({dotted: 1}, version)
            hint = sentence.partition("must be a dictionary: '")[2].removesuffix("'.").replace("...", "{}")
            assert not [each for each in refused(yaml.safe_load(hint), version) if "is no key of" in each], hint
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("version", ["0.27.1", "0.32.0+cpu", "0.33.0"])
def test_ultra_moves_to_newer_versions_as_it_is(version: str) -> None:
    assert normal(render(ULTRA, version, ULTRA_ENV, ULTRA_MODS).args) == normal(shlex.split(ULTRA_COMMAND))


# --- notes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serve", "env", "note"),
    [
        (
            {"max-model-len": "256k"},
            {},
            "serve.max-model-len: vLLM reads 256k as 256000; 256K would be 262144.",
        ),
        (
            {"quantization": "fp4"},
            {},
            "serve.quantization: 'fp4' is no quantization of vLLM 0.22.1; an NVFP4 checkpoint of ModelOpt "
            "overrides it with 'modelopt_fp4', any other is refused. Write 'modelopt_fp4'.",
        ),
        (
            {"gpu-memory-utilization": 0.8, "kv-cache-memory-bytes": "8G"},
            {},
            "serve.kv-cache-memory-bytes decides the pool; gpu-memory-utilization is then only how much must be "
            "free when the engine starts.",
        ),
        (
            {"gpu-memory-utilization": 0.9, "load-format": "fastsafetensors"},
            {},
            "serve.load-format fastsafetensors at gpu-memory-utilization 0.9 froze a GB10 host while loading; "
            "0.76 was the highest that did not [S4].",
        ),
        (
            {},
            {"VLLM_NVFP4_GEMM_BACKEND": "marlin"},
            "env.VLLM_NVFP4_GEMM_BACKEND is deprecated and gone in 0.24.0: use the option linear-backend instead.",
        ),
    ],
)
def test_notes(serve: dict[str, Any], env: dict[str, str], note: str) -> None:
    assert render(serve, env=env).notes == [note]


# --- the environment of another machine ---------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NCCL_IB_HCA": "mlx5_0,mlx5_2"}, "each node sets it from its own fabric"),
        ({"VLLM_HOST_IP": "192.168.177.11"}, "each node sets it from its own fabric"),
        ({"NCCL_IB_GID_INDEX": "3"}, "is another one on each node"),
        ({"NCCL_IB_DISABLE": "1"}, "switches RDMA off"),
        ({"NCCL_NET": "Socket"}, "switches RDMA off"),
        ({"HF_TOKEN": "hf_x"}, "is a secret"),
        ({"RAY_memory_monitor_refresh_ms": "250"}, "memory monitor on"),
        ({"NCCL_IB_DISABLE": "0", "NCCL_NET": "IB", "RAY_memory_monitor_refresh_ms": 0, "NCCL_DEBUG": "INFO"}, ""),
    ],
)
def test_what_another_machines_recipe_sets_gets_a_note(env: dict[str, Any], words: str) -> None:
    notes = render({}, env=env).notes
    assert len(notes) == bool(words)
    assert words in "".join(notes)
    assert "hf_x" not in "".join(notes)
