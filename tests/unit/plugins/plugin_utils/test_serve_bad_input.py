# SPDX-License-Identifier: Apache-2.0
"""Wrong options and variables, each with the whole sentence that it gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError

SUFFIXES = (
    "a whole number or one with a single suffix (256k = 256000, 8G = 8589934592; "
    "capitals are powers of 1024 and take no decimals)"
)
LATER = "(its parser lets it through and the engine dies later)"
YAML = "(unquoted yes, no, on and off are booleans in YAML; quote them if the word is meant)"
ROUNDING = "enable-mamba-cache-stochastic-rounding"
NODES = {"tensor-parallel-size": 4, "master-addr": "10.0.0.1"}


@dataclass(frozen=True)
class Bad:
    """One wrong input and every sentence that it gets, in order."""

    sentences: tuple[str, ...]
    serve: dict[Any, Any] = field(default_factory=dict)
    env: dict[Any, Any] = field(default_factory=dict)
    version: str = "0.22.1"
    mods: tuple[str, ...] = ()


def serve(options: dict[Any, Any], *sentences: str, version: str = "0.22.1", mods: tuple[str, ...] = ()) -> Bad:
    return Bad(sentences, serve=options, version=version, mods=mods)


def env(variables: dict[Any, Any], *sentences: str, version: str = "0.22.1") -> Bad:
    return Bad(sentences, env=variables, version=version)


NAMES = [
    serve(
        {"max-model-length": 1},
        "serve.max-model-length: vLLM 0.22.1 has no --max-model-length. Did you mean 'max-model-len'?",
    ),
    serve({"max-seqs": 4}, "serve.max-seqs: vLLM 0.22.1 has no --max-seqs. Did you mean 'max-num-seqs'?"),
    serve(
        {"zzz": 1},
        "serve.zzz: vLLM 0.22.1 has no --zzz. No version that is known here has it (0.18.1 to 0.33.0).",
    ),
    serve(
        {"max-num-active-seqs": 4},
        "serve.max-num-active-seqs: vLLM 0.22.1 has no --max-num-active-seqs. vLLM 0.31.0 to 0.33.0 have it. "
        "The nearest here is 'max-num-seqs'.",
    ),
    serve(
        {"watermark-confg": {}},
        "serve.watermark-confg: vLLM 0.22.1 has no --watermark-confg. The nearest is 'watermark-config', "
        "which vLLM 0.30.0 to 0.33.0 has.",
    ),
    serve(
        {"calculate-kv-scales": True},
        "serve.calculate-kv-scales: vLLM 0.33.0 has no --calculate-kv-scales. vLLM 0.18.1 to 0.27.1 have it.",
        version="0.33.0",
    ),
    serve(
        {"disable-prefix-caching": True},
        "serve.disable-prefix-caching: vLLM 0.22.1 has no --disable-prefix-caching. vLLM 0.33.0 has it. "
        "The nearest here is 'enable-prefix-caching'.",
    ),
    # argparse takes prefixes
    serve(
        {"gpu-memory-util": 0.9},
        "serve.gpu-memory-util is an abbreviation that vLLM's parser would take for --gpu-memory-utilization; "
        "write 'gpu-memory-utilization', in full.",
    ),
    serve(
        {"max-num": 1},
        "serve.max-num is an abbreviation of max-num-batched-tokens, max-num-partial-prefills, max-num-seqs; "
        "write one of them, in full.",
    ),
    serve({"tp": 4}, "serve.tp is short for --tensor-parallel-size; write 'tensor-parallel-size', in full."),
    serve({"-tp": 4}, "serve.-tp is short for --tensor-parallel-size; write 'tensor-parallel-size', in full."),
    serve(
        {"max_model_len": 1},
        "serve.max_model_len must be written 'max-model-len': the long name, without dashes before it.",
    ),
    serve(
        {"--max-model-len": 1},
        "serve.--max-model-len must be written 'max-model-len': the long name, without dashes before it.",
    ),
    serve(
        {"speculative-config.method": "mtp"},
        "serve.speculative-config.method must be a dictionary: 'speculative-config: {method: ...}'.",
    ),
    serve(
        {"compilation-config.cudagraph-mode": "none"},
        "serve.compilation-config.cudagraph-mode must be a dictionary: 'compilation-config: {cudagraph_mode: ...}'.",
    ),
    serve(
        {"default-chat-template-kwargs.reasoning-effort": "low"},
        "serve.default-chat-template-kwargs.reasoning-effort must be a dictionary: "
        "'default-chat-template-kwargs: {reasoning_effort: ...}'.",
    ),
    serve(
        {"compilation-config.pass-config.fuse-allreduce-rms": False},
        "serve.compilation-config.pass-config.fuse-allreduce-rms must be a dictionary: "
        "'compilation-config: {pass_config: {fuse_allreduce_rms: ...}}'.",
    ),
    serve(
        {"speculative_config.num_speculative_tokens": 3},
        "serve.speculative_config.num_speculative_tokens must be a dictionary: "
        "'speculative-config: {num_speculative_tokens: ...}'.",
    ),
    serve(
        {"hf-overrides.rope-x": 1},
        "serve.hf-overrides.rope-x must be a dictionary: 'hf-overrides: {rope-x: ...}'.",
    ),
    # removed
    serve(
        {"swap-space": 0},
        "serve.swap-space: vLLM 0.22.1 has no --swap-space, it is gone since 0.18.1: "
        "vLLM no longer swaps to the host; leave it out.",
    ),
    serve({"task": "generate"}, "serve.task: vLLM 0.22.1 has no --task, it is gone: use runner and convert."),
    serve(
        {"worker-use-ray": True},
        "serve.worker-use-ray: vLLM 0.22.1 has no --worker-use-ray, it is gone: use distributed-executor-backend: ray.",
    ),
    serve(
        {"disable-log-requests": True},
        "serve.disable-log-requests: vLLM 0.22.1 has no --disable-log-requests, it is gone: "
        "write enable-log-requests: false.",
    ),
    serve(
        {"num-scheduler-steps": 8},
        "serve.num-scheduler-steps: vLLM 0.22.1 has no --num-scheduler-steps, it is gone: "
        "vLLM no longer schedules several steps at once; leave it out.",
    ),
    serve(
        {"device": "cuda"},
        "serve.device: vLLM 0.22.1 has no --device, it is gone: vLLM finds the GPU itself; leave it out.",
    ),
    # of another program
    serve(
        {"mem-fraction-static": 0.8},
        "serve.mem-fraction-static: vLLM 0.22.1 has no --mem-fraction-static. In vLLM it is 'gpu-memory-utilization'.",
    ),
    serve({"tp_size": 2}, "serve.tp_size: vLLM 0.22.1 has no --tp_size. In vLLM it is 'tensor-parallel-size'."),
    # set elsewhere
    serve({"model": "a/b"}, "serve.model: the model is model_spec.repo; leave it out here."),
    serve(
        {"api-key": "sesame"},
        "serve.api-key would show a secret on the command line of every node; "
        "give VLLM_API_KEY as a vaulted variable instead.",
    ),
    serve(
        {"hf-token": "sesame"},
        "serve.hf-token would show a secret on the command line of every node; "
        "give HF_TOKEN as a vaulted variable instead.",
    ),
    # of a mod
    serve(
        {"gpu-memory-utilization-gb": 108},
        "serve.gpu-memory-utilization-gb: --gpu-memory-utilization-gb is in no release of vLLM, "
        "the mod 'gpu-mem-util-gb' adds it; put that into model_spec.mods, so that the image is built with it.",
    ),
    serve(
        {"gpu-memory-utilization-gbs": 108},
        "serve.gpu-memory-utilization-gbs: vLLM 0.22.1 has no --gpu-memory-utilization-gbs. "
        "Did you mean 'gpu-memory-utilization-gb'?",
        mods=("gpu-mem-util-gb",),
    ),
]

VALUES = [
    serve({"max-model-len": None}, "serve.max-model-len has no value; give one, or leave the option out altogether."),
    serve({"max-model-len": True}, f"serve.max-model-len needs a value, found true {YAML}."),
    serve({"kv-cache-dtype": False}, f"serve.kv-cache-dtype needs a value, found false {YAML}."),
    serve({"served-model-name": " "}, "serve.served-model-name is empty; give a value or leave the option out."),
    serve({"served-model-name": []}, "serve.served-model-name is an empty list; give a value or leave it out."),
    serve({"max-model-len": [1, 2]}, "serve.max-model-len takes one value, found a list: [1, 2]."),
    serve({"max-model-len": {"a": 1}}, 'serve.max-model-len takes plain values, found {"a": 1}.'),
    serve({"revision": "--help"}, "serve.revision is '--help': vLLM's parser would take it for an option."),
    # switches
    serve(
        {"enforce-eager": "true"},
        "serve.enforce-eager is a switch: write true or false without quotes, found 'true'.",
    ),
    serve({"enforce-eager": 1}, "serve.enforce-eager is a switch: write true or false without quotes, found 1."),
    serve({"enforce-eager": "maybe"}, "serve.enforce-eager is a switch: write true or false, found 'maybe'."),
    serve(
        {"no-enforce-eager": False},
        "serve.no-enforce-eager: false is a double negative; write 'enforce-eager: true'.",
    ),
    # numbers
    serve({"max-num-seqs": "many"}, "serve.max-num-seqs takes a whole number, found 'many'."),
    serve({"max-num-seqs": 6.5}, "serve.max-num-seqs takes a whole number, found 6.5."),
    serve(
        {"max-num-seqs": "1k"},
        "serve.max-num-seqs takes a whole number, found '1k'; write 1000 (this option takes no suffix).",
    ),
    serve({"max-num-seqs": 0}, "serve.max-num-seqs must be at least 1, found 0."),
    serve({"tensor-parallel-size": -1}, "serve.tensor-parallel-size must be at least 1, found -1."),
    serve({"port": 70000}, "serve.port must be at least 1 and at most 65535, found 70000."),
    serve({"cudagraph-capture-sizes": [1, "x"]}, "serve.cudagraph-capture-sizes takes a whole number, found 'x'."),
    serve({"cpu-offload-gb": "lots"}, "serve.cpu-offload-gb takes a number, found 'lots'."),
    serve({"cpu-offload-gb": float("nan")}, "serve.cpu-offload-gb takes a number, found nan."),
    serve({"block-size": 0}, "serve.block-size must be above 0, found 0.", version="0.33.0"),
    serve(
        {"gpu-memory-utilization": 90},
        "serve.gpu-memory-utilization must be above 0 and at most 1, found 90; it is a fraction of the memory. "
        "For GiB take the mod 'gpu-mem-util-gb' (gpu-memory-utilization-gb) or kv-cache-memory-bytes.",
    ),
    serve({"gpu-memory-utilization": 0}, "serve.gpu-memory-utilization must be above 0 and at most 1, found 0."),
    serve(
        {"kv-cache-memory-bytes": "8GiB"},
        f"serve.kv-cache-memory-bytes takes {SUFFIXES}, found '8GiB'; write 8G (8589934592).",
    ),
    serve(
        {"kv-cache-memory-bytes": "8 GB"},
        f"serve.kv-cache-memory-bytes takes {SUFFIXES}, found '8 GB'; write 8G (8589934592) or 8g (8000000000).",
    ),
    serve({"kv-cache-memory-bytes": 0}, "serve.kv-cache-memory-bytes must be above 0, found 0."),
    serve({"max-model-len": "1.5K"}, f"serve.max-model-len takes {SUFFIXES}, found '1.5K'."),
    serve({"max-model-len": 8e3}, f"serve.max-model-len takes {SUFFIXES}, found 8000.0."),
    serve({"max-model-len": 0}, "serve.max-model-len must be at least 1, found 0."),
    serve(
        {"gpu-memory-utilization-gb": 0},
        "serve.gpu-memory-utilization-gb must be above 0, found 0.",
        mods=("gpu-mem-util-gb",),
    ),
    serve(
        {"gpu-memory-utilization-gb": "108GiB"},
        "serve.gpu-memory-utilization-gb takes a number, found '108GiB'.",
        mods=("gpu-mem-util-gb",),
    ),
    # choices
    serve(
        {"moe-backend": "flashinfer_trtlm"},
        "serve.moe-backend: vLLM 0.22.1 knows no 'flashinfer_trtlm'. Did you mean 'flashinfer_trtllm'?",
    ),
    serve(
        {"moe-backend": "b12x"},
        "serve.moe-backend: vLLM 0.22.1 knows no 'b12x'. vLLM 0.29.0 to 0.33.0 have it. Known: aiter, auto, "
        "cutlass, deep_gemm, deep_gemm_mega_moe, emulation, flashinfer_b12x, flashinfer_cutedsl, "
        "flashinfer_cutlass, flashinfer_trtllm, humming, marlin, triton, triton_unfused.",
    ),
    serve(
        {"mamba-ssm-cache-dtype": "int4"},
        "serve.mamba-ssm-cache-dtype: vLLM 0.22.1 knows no 'int4'. Known: auto, bfloat16, float16, float32.",
    ),
    # choices that argparse lets through
    serve(
        {"load-format": "gguf"},
        "serve.load-format gguf reads one .gguf file by its path, but what is served here is the model's directory; "
        "vLLM 0.24 and later read no GGUF at all. Take a repository with safetensors (quantised: AWQ, GPTQ, FP8 or "
        "NVFP4) and leave load-format out.",
    ),
    serve(
        {"load-format": "fasttensors"},
        f"serve.load-format: vLLM 0.22.1 knows no 'fasttensors' {LATER}. Did you mean 'fastsafetensors'?",
    ),
    serve(
        {"attention-backend": "FLASHINFR"},
        f"serve.attention-backend: vLLM 0.22.1 knows no 'FLASHINFR' {LATER}. Did you mean 'FLASHINFER'?",
    ),
    serve(
        {"mamba-backend": "cuda"},
        f"serve.mamba-backend: vLLM 0.22.1 knows no 'cuda' {LATER}. Known: flashinfer, triton.",
    ),
    serve(
        {"mamba-backend": "cpu"},
        f"serve.mamba-backend: vLLM 0.22.1 knows no 'cpu' {LATER}. vLLM 0.27.1 to 0.33.0 have it. "
        "Known: flashinfer, triton.",
    ),
    serve(
        {"distributed-executor-backend": "rai"},
        f"serve.distributed-executor-backend: vLLM 0.22.1 knows no 'rai' {LATER}. Did you mean 'ray'?",
    ),
    serve(
        {"quantization": "nvfp4"},
        f"serve.quantization: vLLM 0.22.1 knows no 'nvfp4' {LATER}. Leave it out: vLLM reads the format from the "
        "checkpoint's own configuration (modelopt_fp4 or compressed-tensors).",
    ),
    serve(
        {"quantization": "w4a16"},
        f"serve.quantization: vLLM 0.22.1 knows no 'w4a16' {LATER}. Leave it out: vLLM reads the format from the "
        "checkpoint's own configuration.",
    ),
    serve(
        {"quantization": "modelopt-fp4"},
        f"serve.quantization: vLLM 0.22.1 knows no 'modelopt-fp4' {LATER}. Did you mean 'modelopt_fp4'?",
    ),
    serve(
        {"kv-cache-dtype": "fp9"},
        f"serve.kv-cache-dtype: vLLM 0.33.0 knows no 'fp9' {LATER}. Did you mean 'fp8'?",
        version="0.33.0",
    ),
    serve(
        {"reasoning-parser": "nemotron_v4"},
        f"serve.reasoning-parser: vLLM 0.22.1 knows no 'nemotron_v4' {LATER}. Did you mean 'nemotron_v3'?",
    ),
    serve(
        {"reasoning-parser": "super_v3"},
        f"serve.reasoning-parser: vLLM 0.22.1 knows no 'super_v3' {LATER}. Where the model's "
        "repository ships the parser, set reasoning-parser-plugin to that file. Known: cohere_command3, "
        "cohere_command4, deepseek_r1, deepseek_v3, deepseek_v4, ernie45, gemma4, glm45, granite, holo2, hunyuan_a13b, "
        "hy_v3, kimi_k2, mimo, minimax_m2, minimax_m2_append_think, mistral, nemotron_v3, olmo3, openai_gptoss "
        "and 5 more.",
    ),
    serve(
        {"tool-call-parser": "qwen3coder"},
        f"serve.tool-call-parser: vLLM 0.22.1 knows no 'qwen3coder' {LATER}. Did you mean 'qwen3_coder'?",
    ),
    # JSON
    serve(
        {"speculative-config": "{method: mtp}"},
        "serve.speculative-config takes a dictionary or JSON, found '{method: mtp}' "
        "(Expecting property name enclosed in double quotes at column 2).",
    ),
    serve({"speculative-config": ["mtp"]}, 'serve.speculative-config takes a dictionary, found ["mtp"].'),
    serve(
        {"override-generation-config": 3},
        "serve.override-generation-config takes a dictionary, a list or JSON, found 3.",
    ),
    serve({"hf-overrides": [1]}, "serve.hf-overrides takes a dictionary, found [1]."),
    serve(
        {"hf-overrides": {"a": float("inf")}},
        "serve.hf-overrides holds an infinite number or no number at all, which JSON does not have.",
    ),
    serve(
        {"speculative-config": {"methd": "mtp", "num_speculative_tokens": 3}},
        "serve.speculative-config.methd is no key of --speculative-config in vLLM 0.22.1. Did you mean 'method'?",
    ),
    serve(
        {"compilation-config": {"pass_config": {"fuse_allreduce": False}}},
        "serve.compilation-config.pass_config.fuse_allreduce is no key of --compilation-config in vLLM 0.22.1. "
        "Did you mean 'fuse_allreduce_rms'?",
    ),
]

PAIRS = [
    serve(
        {"gpu-memory-utilization": 0.9, "gpu-memory-utilization-gb": 108},
        "serve.gpu-memory-utilization-gb and serve.gpu-memory-utilization are two answers to one question; "
        "keep one of them.",
        mods=("gpu-mem-util-gb",),
    ),
    serve(
        {"gpu-memory-utilization-gb": 108, "kv-cache-memory-bytes": "8G"},
        "serve.gpu-memory-utilization-gb and serve.kv-cache-memory-bytes are two answers to one question; "
        "keep one of them.",
        mods=("gpu-mem-util-gb",),
    ),
    serve(
        {"enable-prefix-caching": True, "no-enable-prefix-caching": True},
        "serve.no-enable-prefix-caching and serve.enable-prefix-caching set the same thing "
        "(--enable-prefix-caching); keep one of them.",
    ),
    serve(
        {"gpu-memory-utilization": 0.5, "device-memory-utilization": 0.6},
        "serve.device-memory-utilization and serve.gpu-memory-utilization set the same thing "
        "(--gpu-memory-utilization); keep one of them.",
        version="0.33.0",
    ),
    serve(
        {"max-cudagraph-capture-size": 4, "compilation-config": {"max_cudagraph_capture_size": 8}},
        "serve.max-cudagraph-capture-size and serve.compilation-config.max_cudagraph_capture_size "
        "set the same thing; keep one of them.",
    ),
    serve(
        {"spec-method": "mtp", "speculative-config": {"method": "mtp", "num_speculative_tokens": 1}},
        "serve.spec-method and serve.speculative-config.method set the same thing; keep one of them.",
        version="0.33.0",
    ),
    serve(
        {"enable-auto-tool-choice": True},
        "serve.enable-auto-tool-choice does nothing without tool-call-parser; set that too.",
    ),
    serve(
        {"reasoning-parser-plugin": "/p.py"},
        "serve.reasoning-parser-plugin does nothing without reasoning-parser; set that too.",
    ),
    serve(
        {"enable-log-outputs": True},
        "serve.enable-log-outputs does nothing without enable-log-requests; set that too.",
    ),
    serve(
        {"enable-eplb": True},
        "serve.enable-eplb does nothing without enable-expert-parallel; set that too.",
        "serve.enable-eplb balances experts between ranks, but there is only one.",
    ),
    serve(
        {"max-num-batched-tokens": 4, "max-num-seqs": 6},
        "serve.max-num-batched-tokens is 4, below max-num-seqs (6): each sequence needs a token in every step.",
    ),
    serve(
        {"enable-chunked-prefill": False, "max-num-batched-tokens": 8192, "max-model-len": "16K"},
        "serve.max-num-batched-tokens is 8192, below max-model-len (16384); "
        "without enable-chunked-prefill a prompt must fit into one step.",
    ),
    serve(
        {ROUNDING: True, "mamba-backend": "flashinfer"},
        f"serve.{ROUNDING} rounds a float16 cache, but mamba-ssm-cache-dtype is not set; set it to float16.",
    ),
    serve(
        {ROUNDING: True, "mamba-ssm-cache-dtype": "float16"},
        f"serve.{ROUNDING} needs mamba-backend: flashinfer on GB10.",
    ),
    serve({"mamba-cache-philox-rounds": 5}, f"serve.mamba-cache-philox-rounds does nothing without {ROUNDING}."),
    serve(
        {"mamba-block-size": 1024, "enable-prefix-caching": False},
        "serve.mamba-block-size needs enable-prefix-caching.",
    ),
    serve(
        {"speculative-config": {"method": "nemotron_h_mtp"}},
        "serve.speculative-config: method nemotron_h_mtp needs num_speculative_tokens.",
    ),
    serve(
        {"speculative-config": {"method": "mtp", "num_speculative_tokens": 0}},
        "serve.speculative-config.num_speculative_tokens must be a whole number of 1 or more, found 0.",
    ),
    serve(
        {"speculative-config": {"num_speculative_tokens": 3}},
        "serve.speculative-config names neither a method nor a draft model.",
    ),
    serve(
        {"speculative-config": {"method": "eagle3", "num_speculative_tokens": 3}},
        "serve.speculative-config: method eagle3 needs a draft model under 'model'.",
    ),
    serve(
        {
            "tensor-parallel-size": 4,
            "speculative-config": {"method": "mtp", "num_speculative_tokens": 1, "draft_tensor_parallel_size": 2},
        },
        "serve.speculative-config.draft_tensor_parallel_size is 2; it can be 1 or tensor-parallel-size (4).",
    ),
    serve(
        {"speculative-config": {"method": "mtp", "num_speculative_tokens": 1, "tensor_parallel_size": 1}},
        "serve.speculative-config.tensor_parallel_size is refused; the key is draft_tensor_parallel_size.",
    ),
    # native launcher
    serve({"headless": True}, "serve.headless is set on rank 0, so the model would have no API at all."),
    serve(
        {"nnodes": 4, "node-rank": 1, "headless": True, "api-server-count": 2, **NODES},
        "serve.headless and serve.api-server-count contradict each other.",
    ),
    serve(
        {"nnodes": 4, "node-rank": 4, "headless": True, **NODES},
        "serve.node-rank is 4, but nnodes is 4: ranks go from 0 to 3.",
    ),
    serve(
        {"nnodes": 4, "node-rank": 1, **NODES},
        "serve.node-rank is 1, but headless is not set: only rank 0 has an API.",
    ),
    serve(
        {"nnodes": 3, **NODES},
        "serve.nnodes is 3, but tensor-parallel-size x pipeline-parallel-size is 4, which cannot be shared out evenly.",
    ),
    serve(
        {"nnodes": 2, "tensor-parallel-size": 2},
        "serve.nnodes is 2, but master-addr is not set: every rank would look for the head on itself (127.0.0.1).",
    ),
    serve(
        {"nnodes": 4, "distributed-executor-backend": "ray", **NODES},
        "serve.nnodes is 4, which is for the native launcher, but distributed-executor-backend is ray; "
        "keep one of them.",
    ),
    serve(
        {"data-parallel-external-lb": True, "data-parallel-hybrid-lb": True},
        "serve.data-parallel-external-lb and serve.data-parallel-hybrid-lb exclude each other; keep one of them.",
    ),
]

VARIABLES = [
    env(
        {"VLLM_NVFP4_GEMM_BACKEND": "marlin"},
        "env.VLLM_NVFP4_GEMM_BACKEND: vLLM 0.27.1 ignores it, it is gone since 0.24.0: "
        "use the option linear-backend instead.",
        version="0.27.1",
    ),
    # The nearest table below still has it, yet it is gone.
    env(
        {"VLLM_USE_FLASHINFER_MOE_FP4": "0"},
        "env.VLLM_USE_FLASHINFER_MOE_FP4: vLLM 0.25.0 ignores it, it is gone since 0.24.0: "
        "use the option moe-backend instead.",
        version="0.25.0",
    ),
    env(
        {"VLLM_FLASHINFER_ALLREDUCE_BACKED": "trtllm"},
        "env.VLLM_FLASHINFER_ALLREDUCE_BACKED: vLLM 0.22.1 does not know it and would only warn. "
        "Did you mean 'VLLM_FLASHINFER_ALLREDUCE_BACKEND'?",
    ),
    env(
        {"VLLM_MOE_SKIP_PADDING": "1"},
        "env.VLLM_MOE_SKIP_PADDING: vLLM 0.22.1 does not know it and would only warn. vLLM 0.25.0 to 0.33.0 have it.",
    ),
    env(
        {"VLLM_TEST_FORCE_FP8_MARLIN": "1"},
        "env.VLLM_TEST_FORCE_FP8_MARLIN: vLLM 0.33.0 does not know it and would only warn. "
        "vLLM 0.18.1 to 0.28.0 have it. It is gone: use the option linear-backend instead (marlin).",
        version="0.33.0",
    ),
    env(
        {"VLLM_ATTENTION_BACKEND": "FLASHINFER"},
        "env.VLLM_ATTENTION_BACKEND: vLLM 0.22.1 does not know it and would only warn. "
        "It is gone: use the option attention-backend instead.",
    ),
    env({"vllm_host_ip": "x"}, "env.vllm_host_ip is no variable of vLLM. Did you mean 'VLLM_HOST_IP'?"),
    env({"VLM_HOST_IP": "x"}, "env.VLM_HOST_IP is no variable of vLLM. Did you mean 'VLLM_HOST_IP'?"),
    env(
        {"VLLM_NVFP4_GEMM_BACKEND": "marlni"},
        "env.VLLM_NVFP4_GEMM_BACKEND is 'marlni'; vLLM 0.22.1 takes cutlass, emulation, flashinfer-b12x, "
        "flashinfer-cudnn, flashinfer-cutlass, flashinfer-trtllm, marlin.",
    ),
    env(
        {"VLLM_RPC_TIMEOUT": "ten"},
        "env.VLLM_RPC_TIMEOUT takes a whole number (0 and 1 for off and on), found 'ten'.",
    ),
    env({"VLLM_LOG_STATS_INTERVAL": "often"}, "env.VLLM_LOG_STATS_INTERVAL takes a number, found 'often'."),
    env({"VLLM_HUMMING_INPUT_QUANT_CONFIG": "fp8"}, "env.VLLM_HUMMING_INPUT_QUANT_CONFIG takes JSON, found 'fp8'."),
    env(
        {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "yes"},
        "env.VLLM_ALLOW_LONG_MAX_MODEL_LEN is 'yes'; vLLM 0.22.1 reads it as off. Write '1' or '0'.",
    ),
    env(
        {"VLLM_NO_USAGE_STATS": "2"},
        "env.VLLM_NO_USAGE_STATS is '2'; vLLM 0.22.1 knows only on and off. Write '1' or '0'.",
    ),
    env(
        {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": True},
        "env.VLLM_ALLOW_LONG_MAX_MODEL_LEN must be text, found true; quote what the variable is to hold, e.g. '1'.",
    ),
    env({"NCCL_DEBUG": None}, "env.NCCL_DEBUG must be text, found None; quote what the variable is to hold, e.g. '1'."),
]

VERSIONS_AND_MODS = [
    Bad(
        (
            "No table of options is as old as vLLM 0.17.1: there are 0.18.1 to 0.33.0. "
            "Take a newer image, or put a table of this version beside them with scripts/vllm_flags.py.",
        ),
        version="0.17.1",
    ),
    Bad(
        (
            "'26.05.post1-py3' is no vLLM version; expected something like 0.22.1, 0.32.0+cpu or "
            "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132.",
        ),
        version="26.05.post1-py3",
    ),
    Bad(
        (
            "Mod 'gpu-mem-util-gb' has no patch for vLLM 0.24.0: it covers ==0.22.1; ==0.27.1; ==0.32.0; ==0.33.0. "
            "Rebase the nearest one on that version, save it as mods/gpu-mem-util-gb/patches/0.24.0.patch and list "
            "it in its manifest.",
        ),
        version="0.24.0",
        mods=("gpu-mem-util-gb",),
    ),
    # A broken mod does not hide a broken option.
    Bad(
        (
            "Mod 'gpu-mem-util-gb' is listed twice; each patch goes in once.",
            "serve.max-seqs: vLLM 0.22.1 has no --max-seqs. Did you mean 'max-num-seqs'?",
        ),
        serve={"max-seqs": 4},
        mods=("gpu-mem-util-gb", "gpu-mem-util-gb"),
    ),
]

ALL = [*NAMES, *VALUES, *PAIRS, *VARIABLES, *VERSIONS_AND_MODS]


def name_of(bad: Bad) -> str:
    return "-".join(str(each) for each in (*bad.serve, *bad.env, *bad.mods, bad.version))


@pytest.mark.parametrize("bad", ALL, ids=name_of)
def test_each_gets_its_sentence(bad: Bad) -> None:
    with pytest.raises(ServeError) as caught:
        serve_files.render(bad.serve, bad.version, bad.env, bad.mods)
    assert tuple(caught.value.errors) == bad.sentences


@pytest.mark.parametrize("option", ["hf-overrides", "compilation-config", "speculative-config"])
def test_values_that_json_cannot_hold_get_a_sentence(option: str) -> None:
    circle: dict[str, Any] = {}
    circle["method"] = circle
    deep: dict[str, Any] = {}
    for _level in range(2000):
        deep = {"method": deep}
    for value, said in (
        (circle, "contains itself, which JSON cannot"),
        (deep, "cannot be written as JSON"),
        ("[" * 50_000, "takes a dictionary or JSON"),
    ):
        with pytest.raises(ServeError) as caught:
            serve_files.render({option: value}, "0.30.0", {}, [])
        assert said in str(caught.value)


def test_there_are_enough_of_them() -> None:
    assert len(ALL) >= 45
    assert len({bad.sentences for bad in ALL}) == len(ALL)


def test_all_errors_come_at_once() -> None:
    """Every wrong option that contradicts no other, together: each still gets its sentence."""
    together: dict[Any, Any] = {}
    expected: list[str] = []
    for bad in NAMES:
        if bad.version == "0.22.1" and not bad.mods:
            together.update(bad.serve)
            expected.extend(bad.sentences)
    variables = {key: value for bad in VARIABLES[2:4] for key, value in bad.env.items()}
    expected.extend(sentence for bad in VARIABLES[2:4] for sentence in bad.sentences)
    with pytest.raises(ServeError) as caught:
        serve_files.render(together, "0.22.1", variables, [])
    assert caught.value.errors == expected
    assert len(expected) > 20
    assert str(caught.value) == "\n".join(expected)


def test_secrets_are_never_repeated() -> None:
    with pytest.raises(ServeError) as caught:
        serve_files.render({"api-key": "sesame", "hf-token": "sesame"}, "0.22.1", {}, [])
    assert "sesame" not in str(caught.value)
