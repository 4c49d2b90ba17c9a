# SPDX-License-Identifier: Apache-2.0
"""The table of known failures: which line of a log means what, and the remedy. Data; `diagnosis.py` reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

CAUSE = "cause"
CONTEXT = "context"
CONSEQUENCE = "consequence"

START_REFUSED = "start_refused"
"""The pre-start check of this collection's unit refused: no container was started."""
GAVE_UP = "gave_up"
"""The unit was started too often and is left alone; the run before holds the reason."""

SPECIFIC, USUAL, BROAD = 0, 1, 2
"""Ranks of causes: a line that names the thing itself, a line that names a failure, a line that many failures end
in."""


@dataclass(frozen=True)
class Signature:
    """One known failure.

    name: stable identifier; kind: cause (explains a death by itself), context (explains one when nothing better is
    found, and is harmless in an engine that lives) or consequence (something else failed first);
    pattern: searched in the cleaned line, its named groups may be used as {group} or {first|second} in cause and
    remedy, and a group `node` holds the fabric address of the node concerned; origin: where the wording of the line
    comes from; rank: of causes, the lower one comes first; sources: of LogLine.source; after: must be found in one of
    the lines before, of the same process and traceback; newest: the last such line is reported instead of the first;
    unless: not reported beside these, which it follows from.
    """

    name: str
    kind: str
    pattern: re.Pattern[str]
    cause: str
    remedy: str
    origin: str
    rank: int = USUAL
    sources: tuple[str, ...] = ("engine",)
    after: re.Pattern[str] | None = None
    newest: bool = False
    unless: tuple[str, ...] = ()


def _signature(name: str, kind: str, pattern: str, *, after: str = "", **more: Any) -> Signature:
    compiled = re.compile(after) if after else None
    return Signature(name, kind, re.compile(pattern), after=compiled, **more)


SIGNATURES: tuple[Signature, ...] = (
    # --- the image -----------------------------------------------------------------------------
    _signature(
        "torch_without_cuda",
        CAUSE,
        r"libtorch_cuda\w*\.so: cannot open shared object file|Torch not compiled with CUDA enabled",
        cause="The image holds a CPU build of torch: vLLM's kernels do not find its CUDA library.",
        remedy="Rebuild the image with the pinned CUDA torch forced in a last layer of its own (--no-deps), "
        "check `python3 -c 'import torch; print(torch.__version__, torch.version.cuda)'` inside it, "
        "distribute it again.",
        origin="[S0] pitfalls; vllm-project/vllm#23910",
    ),
    _signature(
        "library_missing",
        CAUSE,
        # Without libcuda and libnvidia-*: these come from the node, with the GPU.
        r"ImportError: (?P<library>lib(?!torch_cuda|cuda\.so|nvidia-)[\w.+-]+\.so[\w.]*): cannot open shared "
        r"object file",
        cause="The shared library is missing from the image: {library}.",
        remedy="Rebuild the image so that torch, vLLM and CUDA are of the same major version.",
        origin="vllm-project/vllm#52300",
    ),
    _signature(
        "binary_mismatch",
        CAUSE,
        r"(?:ImportError|OSError): .*(?:undefined symbol: (?P<symbol>\w+)|"
        r"version `(?P<version>\w+[\d.]+)' not found)",
        cause="A compiled extension was built against another torch or C library: {symbol|version} is missing.",
        remedy="Rebuild the image with the torch version that the vLLM wheel was built against; "
        "compare image identities on all nodes.",
        origin="dynamic linker",
    ),
    _signature(
        "driver_library_mismatch",
        CAUSE,
        r"(?i:driver/library version mismatch)",
        cause="The loaded GPU driver and its libraries on this node are of different versions: the driver was updated "
        "and the node not rebooted.",
        remedy="Reboot the node. Hold the driver's packages against unattended upgrades (`apt-mark hold`).",
        origin="NVIDIA/nvidia-container-toolkit#394; NVML",
        rank=SPECIFIC,
    ),
    _signature(
        "cdi_device_missing",
        CAUSE,
        r"(?:failed to inject CDI devices: )?unresolvable CDI devices (?P<device>[^\s:]+)",
        cause="Docker knows no description (CDI) of the device {device}: the container gets no GPU.",
        remedy="Check that `nvidia-smi` works on the node, then run `nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml` and start again.",
        origin="NVIDIA/nvidia-container-toolkit#1537",
        rank=SPECIFIC,
    ),
    _signature(
        "driver_too_old",
        CAUSE,
        r"requirement error: unsatisfied condition: (?P<wanted>cuda ?>= ?[\d.]+)|"
        r"(?P<words>CUDA driver version is insufficient for CUDA runtime version|"
        r"The NVIDIA driver on your system is too old \(found version \d+\)|"
        r"system has unsupported display driver / cuda driver combination|"
        r"the provided PTX was compiled with an unsupported toolchain)",
        cause="The image needs a newer GPU driver than this node has: {wanted|words}.",
        remedy="Compare the CUDA version at the top of `nvidia-smi` with the image's: update the driver of every node, "
        "or use an image for that version. An LD_LIBRARY_PATH that puts the image's cuda/compat first shows this too.",
        origin="libnvidia-container; CUDA runtime, errors 35, 222 and 803; torch 2.13 _C/_cuda",
        rank=SPECIFIC,
    ),
    _signature(
        "gpu_hook_refused",
        CAUSE,
        r"invoking the NVIDIA Container Runtime Hook directly .* is not supported",
        cause="The NVIDIA container toolkit is set to CDI mode and takes no GPU request by `--gpus`.",
        remedy="Leave engine_gpu_args at its default (`--runtime nvidia`), or set the toolkit back: `nvidia-ctk config "
        "--in-place --set nvidia-container-runtime.mode=auto`, then restart Docker.",
        origin="nvidia-container-toolkit cmd/nvidia-container-runtime-hook; eugr/spark-vllm-docker#129",
        rank=SPECIFIC,
    ),
    _signature(
        "docker_not_running",
        CAUSE,
        r"Cannot connect to the Docker daemon at (?P<socket>\S+?)\. Is the docker daemon running",
        cause="Docker does not run on this node: nothing answers at {socket}.",
        remedy="See `systemctl status docker` and `journalctl -u docker`; an error in /etc/docker/daemon.json keeps it "
        "from starting.",
        origin="Docker Engine",
        rank=SPECIFIC,
    ),
    _signature(
        "image_other_platform",
        CAUSE,
        r"image's platform \((?P<platform>[\w/]+)\) does not match the detected host platform|"
        r"(?P<words>no matching manifest for [\w/]+ in the manifest list|exec \S+: exec format error|"
        r"exec user process caused:? \"?exec format error)",
        cause="The image is built for another processor than the GB10's (aarch64): {platform|words}.",
        remedy="Use an image that has linux/arm64 (`docker manifest inspect IMAGE`), or build it on a node.",
        origin="Docker Engine; Linux ENOEXEC",
        rank=SPECIFIC,
    ),
    _signature(
        "program_missing",
        CAUSE,
        r"exec: \\?\"(?P<program>[^\"\\]+)\\?\": (?:executable file not found in \$PATH|stat \S+: no such file or "
        r"directory)",
        cause="The image has no program {program}.",
        remedy="Use an image that has vLLM on its PATH; compare the image's identity on the nodes.",
        origin="runc",
        rank=SPECIFIC,
    ),
    _signature(
        "no_accelerator",
        CAUSE,
        r"Failed to infer device type|lib(?:cuda|nvidia-\w+)\.so\.1: cannot open shared object file|"
        r"No CUDA GPUs are available|no CUDA-capable device is detected|"
        r"CUDA unknown error - this may be due to|CUDA driver initialization failed|"
        r"nvidia-container-cli: .*(?:driver not loaded|no devices)|could not select device driver|"
        r"unknown or invalid runtime name: nvidia|Unknown runtime specified nvidia|"
        r"AssertionError: DP adjusted local rank 0 is out of bounds|Found no NVIDIA driver on your system|"
        r"Failed to initialize NVML: (?!Driver/library)",
        cause="The container sees no GPU.",
        remedy="Check `nvidia-smi` on the node, the NVIDIA container toolkit, and that the container is given the GPU.",
        origin="vLLM 0.22.1 and 0.32.0 config/device.py, v1/worker/gpu_worker.py; torch; Docker Engine",
    ),
    _signature(
        "more_ranks_than_gpus",
        CAUSE,
        r"AssertionError: DP adjusted local rank (?P<rank>[1-9]\d*) is out of bounds|"
        r"NCCL WARN Duplicate GPU detected : rank (?P<rank2>\d+) and rank \d+ both on|"
        r"CUDA error: invalid device ordinal|local_world_size \((?P<wanted>\d+)\) (?:>|must be)|"
        r"World size \((?P<wanted2>\d+)\) is larger than the number of available GPUs \((?P<have>\d+)\)",
        cause="More ranks were started on this node than it has GPUs (rank {rank|rank2}, ranks {wanted|wanted2}, GPUs "
        "{have}).",
        remedy="A GB10 node has one GPU: set tensor-parallel-size times pipeline-parallel-size to the number of nodes.",
        origin="vLLM 0.22.1 v1/worker/gpu_worker.py; CUDA runtime; vLLM config/parallel.py",
    ),
    _signature(
        "kernel_image_missing",
        CAUSE,
        r"(?P<words>no kernel image is available for execution on the device|This kernel only supports sm\w+|"
        r"only supports SM\d+ (?:and|or|GPUs).*|No compiled \w+ (?:kernel )?for .*|"
        r"No supported CUDA architectures found for .*|FlashInfer kernels unavailable for .*|"
        r"nvrtc: error: invalid value for --gpu-architecture.*|Assertion error \(\S+\): Unsupported architecture.*|"
        r"expects arch to be one of .*|only supported on Hopper.*|FlashAttention only supports \w+ GPUs.*|"
        r"type \w+ not supported in this architecture.*|"
        r"Failed to open: \S*sm_?12\d\w*\.cuh?)",
        cause="A CUDA kernel in the image is not built for the GB10's architecture (SM121): {words}.",
        remedy="Use an image whose wheels are built for sm_121 and CUDA 13, or choose another backend "
        "(attention-backend, "
        "moe-backend, linear-backend). The hardware is not at fault.",
        origin="CUDA runtime; eugr/spark-vllm-docker#143; vllm-project/vllm#30163, #31740; spark-arena/sparkrun#220",
        rank=SPECIFIC,
    ),
    _signature(
        "ptxas_too_old",
        CAUSE,
        r"ptxas fatal\s*: Value '(?P<arch>sm_\w+)' is not defined for option 'gpu-name'|"
        r"ptxas .*fatal\s*: Unsupported \.version (?P<version>[\d.]+); current version is '(?P<known>[\d.]+)'",
        cause="The assembler that Triton brings (ptxas) does not know what it is given: {arch|version}.",
        remedy="Set TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas in model_spec.env: the image's CUDA 13 has one that "
        "does.",
        origin="ptxas; triton-lang/triton#8539, #9181",
        rank=SPECIFIC,
    ),
    _signature(
        "cutlass_failed",
        CAUSE,
        # FlashInfer's autotuner tries tactics that fail and says so; that is no failure.
        r"^(?!.*Skipping tactic)(?:.*?(?P<where>cutlass_\w+), .*\bError Internal\b|"
        r".*?(?P<where2>Failed to (?:initialize|run) cutlass [\w ]+)|"
        r".*(?i:cutlass)\S* (?:gemm|GEMM|kernel).*(?:failed|Error Internal|not implemented))",
        cause="A CUTLASS kernel for quantised weights failed ({where|where2}): builds for sm_120a do not run on SM121.",
        remedy="Use an image whose vLLM is built for sm_121a, or another backend (linear-backend, moe-backend).",
        origin="vllm-project/vllm#40758, #43367, #30163",
        rank=SPECIFIC,
    ),
    _signature(
        "no_attention_backend",
        CAUSE,
        r"No valid attention backend found for \w+ with AttentionSelectorConfig\((?P<config>.*?)\)\. "
        r"Reasons: \{(?P<reasons>.*)\}|"
        r"Selected backend (?:\w+\.)?(?P<named>\w+) is not valid for this configuration\. Reason: \[(?P<reasons2>.*)\]",
        cause="No attention backend takes this model: {reasons|reasons2}. Asked for: {config|named}.",
        remedy="Where the reason is a kv_cache_dtype, change kv-cache-dtype; where it is the block size, block-size. "
        "Where "
        "each reason names the compute capability, this vLLM has no kernel for SM121: use a newer image. "
        "attention-backend names one backend.",
        origin="vLLM 0.22.1 platforms/cuda.py; vllm-project/vllm#48406, #38476",
        rank=SPECIFIC,
    ),
    _signature(
        "no_quantised_backend",
        CAUSE,
        r"(?P<what>(?:No \w+ MoE backend supports|\w+ MoE backend '?\w+'? does not support) the deployment "
        r"configuration.*|Failed to find a kernel that can implement the .*)",
        cause="No kernel takes the weights of this model on this node: {what}.",
        remedy="Leave moe-backend and linear-backend to vLLM, or name another one; where the reason is the device, "
        "this vLLM has no kernel for SM121: use a newer image.",
        origin="vLLM 0.32.0 model_executor/layers/fused_moe/oracle, model_executor/kernels/linear",
        rank=SPECIFIC,
    ),
    _signature(
        "triton_out_of_resources",
        CAUSE,
        r"OutOfResources: out of resource: (?P<what>[\w ]+), Required: (?P<need>\d+), Hardware limit: (?P<limit>\d+)",
        cause="A Triton kernel needs {need} bytes of {what}, and the GB10 has {limit}.",
        remedy="Choose another backend (attention-backend, moe-backend), or a vLLM whose kernel is tuned for SM121.",
        origin="triton-lang/triton#8182",
        rank=SPECIFIC,
    ),
    _signature(
        "compiler_killed",
        CAUSE,
        r"nvcc error\s*: '(?P<what>\w+)' died due to signal (?P<signal>\d+)|"
        r"fatal error: Killed signal terminated program (?P<what2>\w+)",
        cause="A compiler ({what|what2}) was killed while kernels were built: most often the memory ran out.",
        remedy="Set MAX_JOBS=2 in model_spec.env so that fewer compilers run at once.",
        origin="nvcc; gcc",
        rank=SPECIFIC,
    ),
    _signature(
        "kernel_build_failed",
        CAUSE,
        r"(?P<error>[^\s:]+\.(?:cuh?|hp?p?|c|cc|cpp|cxx)(?::\d+(?::\d+)?|\(\d+\)): (?:fatal )?error:? .*)|"
        r"(?P<error2>nvcc fatal\s*: .*)|(?P<error3>FileNotFoundError: \[Errno 2\] No such file or directory: "
        r"'(?:ninja|nvcc|\S*/nvcc)')|(?P<error4>RuntimeError: Could not find nvcc.*)|"
        r"(?P<error5>/bin/sh: \d+: \S*nvcc: not found)|(?P<error6>(?:/usr/bin/)?ld: cannot find -l\S+)|"
        r"(?P<error7>LLVM ERROR: .*)",
        cause="A kernel could not be compiled in the container: {error|error2|error3|error4|error5|error6|error7}.",
        remedy="Install in the image what the line names (CUDA headers or libraries, ninja, nvcc), or use an image "
        "with "
        "the kernels built in (flashinfer-cubin, flashinfer-jit-cache).",
        origin="gcc; nvcc; flashinfer-ai/flashinfer#4410; vllm-project/vllm#36077",
        rank=SPECIFIC,
    ),
    _signature(
        "image_missing",
        CAUSE,
        r"Unable to find image '(?P<image>[^']+)' locally|No such image: (?P<image2>\S+)|pull access denied for ",
        cause="The image {image|image2} is not on this node.",
        remedy="Distribute the image again (`ansible-playbook playbooks/image.yml`); never run `docker "
        "image prune -a` while a model is stopped.",
        origin="Docker Engine 20.10; [S1]",
    ),
    _signature(
        "compiler_missing",
        CAUSE,
        r"InvalidCxxCompiler: No working C\+\+ compiler found|Failed to find C compiler",
        cause="The image has no compiler, and torch wants to compile a kernel at run time.",
        remedy="Build the image with g++, or prevent torch from compiling (enforce-eager, TORCHDYNAMO_DISABLE=1).",
        origin="torch 2.13 _inductor; triton",
    ),
    # --- command line and model ---------------------------------------------------------------
    _signature(
        "unknown_option",
        CAUSE,
        r"(?:vllm|api_server\.py).*: error: (?P<what>unrecognized arguments: .*|"
        r"argument .*: (?:invalid|not allowed with argument|expected|Value) .*|ambiguous option: .*|"
        r"the following arguments are required: .*)",
        cause="This vLLM does not take the command line: {what}.",
        remedy="Correct the model's `serve` options for the vLLM version of the image, or add the mod "
        "that brings the option.",
        origin="argparse; [S2]",
    ),
    _signature(
        "options_exclude_each_other",
        CAUSE,
        r"(?P<what>\w+ and \w+ are two answers to one question; set only one of them)",
        cause="Two options contradict each other: {what}.",
        remedy="Remove one of them from the model's `serve` options.",
        origin="the mod gpu-mem-util-gb",
    ),
    _signature(
        "package_missing",
        CAUSE,
        r"(?:^|\] |\) )(?:ModuleNotFoundError|ImportError): No module named '(?P<module>[^']+)'|"
        r"Unable to load Ray: \w+\(\"No module named '(?P<module2>[^']+)'\"\)|"
        r"ImportError: (?P<module3>Ray) is not installed",
        cause="The Python package {module|module2|module3} is missing from the image.",
        remedy="Add it to the image, or switch off what needs it; the frames before the line name that part of vLLM "
        "(flashinfer: VLLM_USE_FLASHINFER_SAMPLER=0 for the sampler; Ray: the native engine needs none).",
        origin="Python; vLLM 0.22.1",
    ),
    _signature(
        "unknown_tokenizer",
        CAUSE,
        r"Tokenizer class (?P<class>\w+) does not exist or is not currently imported",
        cause="The checkpoint's tokenizer class {class} is unknown to the image's Transformers: it was saved with a "
        "newer "
        "version.",
        remedy="Use an image with Transformers 5 or newer, as for an unknown architecture.",
        origin="eugr/spark-vllm-docker#170; huggingface/transformers#47553",
    ),
    _signature(
        "tokenizer_missing",
        CAUSE,
        r"Couldn't instantiate the backend tokenizer from one of|"
        r"Found 0 files matching the pattern: `\^tokenizer",
        cause="The tokenizer's files are missing or the image's Transformers cannot read them.",
        remedy="Verify the weights on this node (`ansible-playbook playbooks/weights.yml`); a tokenizer.model alone "
        "needs sentencepiece or tiktoken in the image.",
        origin="Transformers 4 and 5 tokenization_utils_fast.py",
        rank=SPECIFIC,
    ),
    _signature(
        "unknown_architecture",
        CAUSE,
        r"Model architectures (?P<what>\[[^\]]*\]) are not supported for now|"
        r"model type `(?P<type>[^`]+)` but Transformers does not recognize this architecture",
        cause="vLLM or Transformers in this image does not know the model's architecture {what|type}.",
        remedy="Use an image with a newer vLLM and Transformers, or add the mod that registers the architecture.",
        origin="vLLM 0.32.0 model_executor/models/registry.py; Transformers 5.19 configuration_auto.py; [S0]",
    ),
    _signature(
        "trust_remote_code",
        CAUSE,
        r"contains custom code which must be executed|option `trust_remote_code=True`|"
        r"setting `trust_remote_code=True`",
        cause="The model brings its own code, and trust-remote-code is not set.",
        remedy="Read that code, then set `trust-remote-code: true` in the model's `serve`.",
        origin="Transformers; vLLM 0.32.0 transformers_utils/config.py",
    ),
    _signature(
        "parser_not_found",
        CAUSE,
        r"invalid (?:reasoning|tool call) parser: (?P<name>\S+)|"
        r"(?:Reasoning|Tool) parser '(?P<name2>[^']+)' not found",
        cause="vLLM knows no parser named {name|name2}, which the model's `serve` asks for.",
        remedy="Correct the name, or hand the plugin file from the model's repository over with "
        "--reasoning-parser-plugin "
        "or --tool-parser-plugin and see that every node has it.",
        origin="vLLM 0.32.0 entrypoints/launchers/launcher.py; [S2]",
    ),
    _signature(
        "speculation_refused",
        CAUSE,
        r"num_speculative_tokens\b.*must be divisible by|Unsupported speculative method: '(?P<method>[^']*)'",
        cause="The engine refuses the speculative-config: the method or the number of tokens does not suit the model.",
        remedy="Use the method that this model's architecture has, and set num_speculative_tokens to "
        "the figure that the model's card names, or drop MTP.",
        origin="vLLM 0.32.0 config/speculative.py; [S0]",
    ),
    _signature(
        "tensor_parallel_indivisible",
        CAUSE,
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel "
        r"size \((?P<tp>\d+)\)",
        cause="{heads} attention heads cannot be split over {tp} ranks.",
        remedy="Choose a number of nodes that divides the number of heads.",
        origin="vLLM 0.32.0 config/model.py",
    ),
    _signature(
        "context_too_long",
        CAUSE,
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\([^0-9]*(?P<limit>[\d.]+)",
        cause="The context of {asked} tokens is longer than the model's own {limit}.",
        remedy="Lower max-model-len; set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 only for a model that is "
        "documented to extrapolate.",
        origin="vLLM 0.32.0 config/model.py; [S0], [S2]",
    ),
    # --- weights --------------------------------------------------------------------------------
    _signature(
        "weights_missing",
        CAUSE,
        r"Cannot find any model weights with `(?P<path>[^`]+)|"
        r"No such file or directory:? .*?(?P<path2>[^\s'\"]+\.(?:safetensors|bin)|"
        r"[^\s'\"]*(?:config|tokenizer|index)\.json)|"
        r"Invalid repository ID or local directory specified: *'?(?P<path3>[^'\s]*)|"
        r"Weight files referenced in index but missing: \{?'?(?P<path4>[^'}]+)|"
        r"HFValidationError: Repo id must be [^:]*: '(?P<path5>[^']+)'|"
        r"does not appear to have (?:a file|files) named \(?'?(?P<path6>[^\s',)]+?)\.?['\s,)]|"
        r"OfflineModeIsEnabled: Cannot reach https?://[^/]+/(?:api/models/)?(?P<path7>[^/\s]+/[^/\s:]+)|"
        r"LocalEntryNotFoundError|couldn't find (?:it|them) in the cached files",
        cause="A weights file is missing on this node, or is a link that leads nowhere: "
        "{path|path2|path3|path4|path5|path6|path7}.",
        remedy="Verify the weights on every node against the manifest (`ansible-playbook playbooks/weights.yml`); "
        "a copied hub cache holds links instead of files, and a model that is named by its repository (a drafter, a "
        "tokenizer) has to be a directory there.",
        origin="vLLM 0.32.0 model_executor/model_loader/default_loader.py; safetensors 0.8; huggingface_hub 2.4",
    ),
    _signature(
        "weights_damaged",
        CAUSE,
        r"SafetensorError: (?P<what>Error while deserializing header.*|.*InvalidHeader.*|.*HeaderTooLarge.*|"
        r".*MetadataIncomplete.*)",
        cause="A weights file is truncated or is not a safetensors file: {what}.",
        remedy="Verify the weights on this node against the manifest and stage the file again.",
        origin="safetensors 0.8",
    ),
    # --- memory ---------------------------------------------------------------------------------
    _signature(
        "kv_cache_too_small",
        CAUSE,
        r"max seq len \(\d+\), \(?(?P<figures>[\d.]+ GiB KV cache is needed, which is larger than the available KV "
        r"cache memory \([\d.]+ GiB\)(?:\. Based on the available memory, the estimated maximum model length is \d+)?)|"
        r"(?P<figures2>No available memory for the cache blocks)|(?P<figures3>max seq len \(\d+\) is larger than the "
        r"maximum number of tokens that can be stored in KV cache(?: \(\d+\))?)",
        cause="The KV cache does not hold one sequence of full length: {figures|figures2|figures3}.",
        remedy="Drop MTP first, then lower max-num-seqs or max-model-len, and only then change the memory budget.",
        origin="vLLM 0.32.0 v1/core/kv_cache_utils.py; [S0]",
    ),
    _signature(
        "mamba_cache_too_small",
        CAUSE,
        r"max_num_seqs \((?P<asked>\d+)\) exceeds available Mamba cache blocks \((?P<most>\d+)\)",
        cause="The cache holds the Mamba state of {most} sequences, and max-num-seqs asks for {asked}.",
        remedy="Set max-num-seqs to {most} or less.",
        origin="vLLM config/compilation.py; vllm-project/vllm#49064",
        rank=SPECIFIC,
    ),
    _signature(
        "batched_tokens_too_few",
        CAUSE,
        r"block_size \((?P<least>\d+)\) must be <= max_num_batched_tokens \((?P<asked>\d+)\)|"
        r"max_num_batched_tokens \((?P<asked2>\d+)\) (?:is smaller than max_model_len|must be greater than or equal to "
        r"max_num_seqs) \((?P<least2>\d+)\)",
        cause="max-num-batched-tokens is {asked|asked2}, and this model's settings need {least|least2} or more.",
        remedy="Set max-num-batched-tokens to {least|least2} or more; with enable-chunked-prefill a context may be "
        "longer than it.",
        origin="vLLM config/scheduler.py, config/vllm.py; vllm-project/vllm#36734",
        rank=SPECIFIC,
    ),
    _signature(
        "memory_freed_while_profiling",
        CAUSE,
        r"Error in memory profiling\. Initial free memory (?P<first>[\d.]+) GiB, "
        r"current free memory (?P<now>[\d.]+) GiB",
        cause="Something else on this node released memory while vLLM measured its own ({first} GiB free before, {now} "
        "GiB after), and vLLM stops then.",
        remedy="Start again: the next start finds that memory free. Let no other engine, build or download run on the "
        "node meanwhile.",
        origin="vLLM v1/worker/gpu_worker.py; vllm-project/vllm#56830",
        rank=SPECIFIC,
    ),
    _signature(
        "memory_taken",
        CAUSE,
        r"(?:Free|Available) memory on (?:device|node) \S* ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) "
        r"on (?:startup is less than desired|kv cache)(?:.*?\([\d.]+, (?P<wanted>[\d.]+) GiB\))?",
        cause="Only {free} of {total} GiB are free on this node, and the engine wants more (GiB: {wanted}).",
        remedy="Find what holds the memory (a stale container, a desktop session), drop the page "
        "cache, or lower the budget.",
        origin="vLLM 0.32.0 v1/worker/utils.py, cpu_worker.py",
    ),
    _signature(
        "budget_not_free",
        CAUSE,
        r"--gpu-memory-utilization-gb (?P<wanted>[\d.]+) does not fit \S+ of (?P<host>\S+): it wants .* of "
        r"(?P<total>[\d.]+) GiB in all (?P<free>[\d.]+) GiB are free now, (?P<short>[\d.]+) GiB too few",
        cause="The budget of {wanted} GiB is not free on {host}: {free} of {total} GiB are, {short} too few.",
        remedy="Find what holds the memory (a stale container, a desktop session), drop the page cache, or lower the "
        "budget.",
        origin="the mod gpu-mem-util-gb",
        rank=SPECIFIC,
    ),
    _signature(
        "memory_gone_before_start",
        CAUSE,
        r"CUDA error: out of memory|cudaErrorMemoryAllocation",
        after=r"mem_get_info|MemorySnapshot|in (?:init_device|_cuda_init)\b",
        cause="The unified memory was in use before the engine had loaded anything: even asking how much is free "
        "failed.",
        remedy="Free the node's memory: a stale container, another process, the page cache (`sync; echo 3 > "
        "/proc/sys/vm/drop_caches`). The model's options do not help.",
        origin="vllm-project/vllm#48140; NVIDIA/xr-ai PR#440",
        rank=SPECIFIC,
    ),
    _signature(
        "cuda_out_of_memory",
        CAUSE,
        r"(?:torch\.OutOfMemoryError|OutOfMemoryError|RuntimeError): .*CUDA out of memory|"
        r"CUDA error: out of memory|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|"
        r"NCCL WARN Cuda failure (?:\d+ )?'out of memory'",
        cause="The GPU's share of the unified memory ran out.",
        remedy="Drop MTP first, then lower max-num-seqs and max-num-batched-tokens, and only then the memory budget.",
        origin="torch; [S0]",
    ),
    _signature(
        "oom_killer",
        CAUSE,
        r"Out of memory: Killed process (?P<pid>\d+) \((?P<process>[^)]*)\)|"
        r"Memory cgroup out of memory: Killed process (?P<pid2>\d+) \((?P<process2>[^)]*)\)|"
        r"oom-kill:constraint=\S*task=(?P<process3>[^,]+)|A process of this unit has been killed by the OOM killer",
        cause="The kernel's OOM killer ended a process of this node: {process|process2|process3}.",
        remedy="Lower the memory budget or max-num-batched-tokens for this model, and free what else runs on the node.",
        origin="Linux mm/oom_kill.c; systemd; [S0]",
        sources=("kernel", "unit", "engine"),
    ),
    _signature(
        "systemd_oomd",
        CAUSE,
        r"systemd-oomd killed (?P<what>(?:\d+|some) process\S*)|"
        r"^Killed \S*?(?P<what2>[^/\s]+) due to memory (?:pressure|used)",
        cause="systemd-oomd killed {what|what2} of this node because of memory pressure.",
        remedy="Switch it off on inference nodes (`systemctl disable --now systemd-oomd`): earlyoom protects the node. "
        "Then "
        "lower the memory budget for this model.",
        origin="systemd 252 core/unit.c; systemd/systemd#19142, #32687",
        rank=SPECIFIC,
        sources=("unit", "kernel", "earlyoom"),
    ),
    _signature(
        "ray_memory_monitor",
        CAUSE,
        r"Memory on the node \(IP: (?P<node>[\d.a-fA-F:]+), .*?was (?P<used>[\d.]+ ?[GMT]i?B) / (?P<total>[\d.]+ "
        r"?[GMT]i?B) "
        r"\([\d.]+\), which exceeds the memory usage threshold of (?P<threshold>[\d.]+)|"
        r"(?:[1-9]\d*) Workers \(tasks / actors\) killed due to memory pressure \(OOM\), .*"
        r"at node \(ID: \w+, IP: (?P<node2>[\d.a-fA-F:]+)\)|"
        r"ray\.exceptions\.OutOfMemoryError: (?:Task|Actor|The actor).* due to the node running low on memory",
        cause="Ray's memory monitor killed a worker because the memory of the node ran low ({used} of {total}, "
        "threshold "
        "{threshold}): neither the GPU nor the kernel did.",
        remedy="Set RAY_memory_monitor_refresh_ms=0 in model_spec.env: unified memory is meant to be used up. With "
        "less "
        "headroom than the start floor, lower the memory budget.",
        origin="Ray 2.60.0 raylet; vllm-project/vllm#2669",
        rank=SPECIFIC,
    ),
    _signature(
        "earlyoom",
        CAUSE,
        r"sending SIG(?:TERM|KILL) to process (?P<pid>\d+) .*\"(?P<process>[^\"]*)\"",
        cause="earlyoom ended {process} (pid {pid}) because the node ran short of memory.",
        remedy="Lower the memory budget for this model, and free what else runs on the node.",
        origin="earlyoom 1.7",
        sources=("earlyoom",),
    ),
    _signature(
        "memory_floor",
        CAUSE,
        r"^gb10: stopped: MemAvailable (?P<have>[\d.]+) GiB is below the (?:start )?floor of (?P<floor>[\d.]+) GiB",
        cause="The start was stopped: MemAvailable fell to {have} GiB, below the start floor of {floor} GiB.",
        remedy="Lower the memory budget for this model, or free what else runs on the node.",
        origin="this collection's engine unit",
        sources=("engine", "unit"),
    ),
    _signature(
        "driver_no_memory",
        CONTEXT,
        r"NV_ERR_NO_MEMORY",
        cause="The NVIDIA driver could not allocate memory; alone this also shows on healthy starts.",
        remedy="With a dead engine: lower max-num-batched-tokens or the budget; on kernel 7.0.0-1019 "
        "boot with kho=off "
        "(CmaFree above CmaTotal in /proc/meminfo shows the fault).",
        origin="NVIDIA/open-gpu-kernel-modules#1358; vllm-project/vllm#56824; [S0]",
        sources=("kernel", "engine"),
    ),
    _signature(
        "shm_too_small",
        CAUSE,
        r"insufficient shared memory \(shm\)|Error while creating shared memory segment|"
        r"No space left on device.*(?:/dev/shm|'/?psm_|'/?nccl-|shm)|"
        r"unable to (?:open|mmap|allocate) shared memory|"
        r"(?:/dev/shm|/?psm_\w+).*No space left on device|exit code:? (?:-7|135)\b|"
        r"\*\*\* SIGBUS received|Fatal Python error: Bus error|Bus error \(core dumped\)",
        cause="/dev/shm of the container is too small.",
        remedy="Raise the engine's shared memory size.",
        origin="torch; NCCL; Python multiprocessing.shared_memory; vllm-project/vllm#1091",
    ),
    _signature(
        "cpu_shm_across_nodes",
        CAUSE,
        r"open shm in SHMManager failed\. errno: 2\b",
        cause="vLLM's CPU build wants to share memory between ranks, and one of them runs on another node.",
        remedy="Build the image with the mod `ray-on-cpu` in its present form, or serve with the native engine.",
        origin="vLLM 0.32.0 (CPU build) with the Ray executor over four nodes",
    ),
    _signature(
        "ray_object_store_on_disk",
        CONTEXT,
        r"The object store is using \S+ instead of /dev/shm because /dev/shm has only (?P<bytes>\d+) bytes",
        cause="/dev/shm holds only {bytes} bytes, so Ray keeps its object store on disk.",
        remedy="Raise the engine's shared memory size.",
        origin="Ray 2.60.0 _private/services.py",
    ),
    _signature(
        "disk_full",
        CAUSE,
        r"No space left on device",
        rank=BROAD,
        cause="A disk is full.",
        remedy="Free space: `docker system df`, the log volume, weights of models that are not served.",
        origin="errno ENOSPC",
        sources=("engine", "unit"),
    ),
    _signature(
        "too_many_open_files",
        CAUSE,
        r"\[Errno 24\] Too many open files|Too many open files \(os error 24\)",
        cause="The engine may not open more files.",
        remedy="Leave nofile in engine_ulimits at its default (1048576).",
        origin="errno EMFILE",
    ),
    # --- Ray ------------------------------------------------------------------------------------
    _signature(
        "ray_session_mismatch",
        CAUSE,
        r"Session name \S+ does not match persisted value",
        cause="A Ray head of an earlier run still holds its state on this node's Ray port.",
        remedy="Stop the container of the earlier run by its exact name on every node and start again.",
        origin="Ray 2.60.0 _private/node.py; [S2]",
    ),
    _signature(
        "ray_already_running",
        CAUSE,
        r"Ray is trying to start at (?P<address>\S+?), but is already running at",
        cause="Another Ray head already listens at {address}.",
        remedy="Stop the container of the earlier run by its exact name on the head and start again.",
        origin="Ray 2.60.0 scripts/scripts.py; [S2]",
    ),
    _signature(
        "ray_version_mismatch",
        CAUSE,
        r"RuntimeError: Version mismatch: The cluster was started with",
        cause="Ray or Python differs between the nodes' images.",
        remedy="Distribute the same image to every node; compare image identities.",
        origin="Ray 2.60.0 _private/utils.py",
    ),
    _signature(
        "ray_unsupported_platform",
        CAUSE,
        r"current platform (?P<platform>\S+) does not support ray",
        cause="vLLM refuses Ray on the platform {platform}.",
        remedy="Serve with the native engine, or build the image with the mod that allows Ray on it.",
        origin="vLLM 0.32.0 v1/executor/ray_utils.py",
    ),
    _signature(
        "ray_placement_wait",
        CONTEXT,
        r"Waiting for creating a placement group of specs for (?P<seconds>\d+) seconds\. specs=(?P<specs>\[.*?\])\.",
        cause="Ray has had no free GPU for every rank for {seconds} s; wanted: {specs}.",
        remedy="See which node did not join Ray: on each, VLLM_HOST_IP and the raylet's address (node:<address>) must "
        "be the "
        "same; another engine or actor may hold the GPU.",
        origin="vLLM 0.32.0 v1/executor/ray_utils.py; vllm-project/vllm#13909",
        newest=True,
    ),
    _signature(
        "ray_nodes_missing",
        CAUSE,
        r"Cannot provide a placement group|Every node should have a unique IP address|"
        r"Current node has no \S+ available|gb10: only \d+ of \d+ Ray nodes joined",
        cause="Ray has fewer nodes than the model wants ranks.",
        remedy="See which node did not join: its unit, its fabric address (VLLM_HOST_IP and the "
        "raylet's address must be the same), port 6379 of the head.",
        origin="vLLM 0.32.0 v1/executor/ray_utils.py; vllm-project/vllm#13909",
    ),
    _signature(
        "ray_nodes_short",
        CONTEXT,
        r"The number of required \S+s exceeds the total number of available \S+s in the placement group",
        cause="When vLLM started, Ray had fewer nodes than the model wants ranks.",
        remedy="See which node did not join: its unit, its fabric address, port 6379 of the head.",
        origin="vLLM 0.32.0 v1/executor/ray_utils.py",
    ),
    _signature(
        "ray_head_unreachable",
        CAUSE,
        # Ray says it of each try, too (below); as an exception it has given up.
        r"Unable to connect to GCS \(ray head\) at (?P<address>\S+?)\.(?: |$)|Failed to connect to GCS(?! at address)",
        cause="This node cannot reach the Ray head.",
        remedy="Check the head's unit, the fabric link, and that no firewall closes the Ray port on the fabric.",
        origin="Ray 2.60.0 _private/utils.py",
    ),
    _signature(
        "ray_head_wait",
        CONTEXT,
        r"Failed to connect to GCS at address (?P<address>\S+) within (?P<seconds>\d+) seconds",
        cause="This node tried to reach the Ray head at {address}, {seconds} s at a time.",
        remedy="Where it did not join later: check the head's unit, the fabric link, and that no firewall closes the "
        "Ray port on the fabric.",
        origin="Ray 2.60.0 gcs_rpc_client.h; vllm-project/vllm#15385",
        newest=True,
        unless=("ray_head_unreachable",),
    ),
    # --- network --------------------------------------------------------------------------------
    _signature(
        "port_in_use",
        CAUSE,
        r"bind on address \('(?P<host>[^']*)', (?P<port>\d+)\).*address already in use|"
        r"failed to listen on any local network address\. port: (?P<port2>\d+).*EADDRINUSE|"
        r"(?:OSError|RuntimeError): .*\[?Errno 98\]?.*[Aa]ddress already in use|"
        r"zmq\.error\.ZMQError: Address already in use(?: \(addr='[^']*:(?P<port3>\d+)')?",
        cause="Another process holds a port of the engine: {port|port2|port3}.",
        remedy="Name the holder with `ss -ltnp`; stop a stale container by its exact name, or move the "
        "model to another port.",
        origin="uvicorn; torch c10d; zmq",
    ),
    _signature(
        "interface_missing",
        CAUSE,
        r"Unable to find address for:? (?P<interface>\S+)|Bootstrap : no socket interface found|"
        r"no socket interface found|Cannot assign requested address(?: \(addr='tcp://(?P<address>[^':]+))?",
        cause="An interface or address that the ranks use is not on this node: {interface|address}.",
        remedy="Compare the fabric's interface names on this node with the unit's environment; names "
        "differ between GB10 boxes.",
        origin="gloo; NCCL bootstrap",
    ),
    _signature(
        "rendezvous_timeout",
        CAUSE,
        r"Timed out after (?P<seconds>\d+) seconds waiting for clients\. "
        r"(?P<joined>\d+)/(?P<total>\d+) clients joined|"
        r"DistStoreError: wait timeout after (?P<wait_ms>\d+)ms|"
        r"client socket has timed out after \S+ while trying to connect to \((?P<address>[^)]+)\)|"
        r"DistNetworkError: .*(?:failed to connect|timed out)",
        cause="The ranks did not find one another in time.",
        remedy="See which node's unit did not start, then the fabric link and the master port between it and the head.",
        origin="torch 2.13 c10d TCPStore",
    ),
    _signature(
        "gloo_mesh_failed",
        CAUSE,
        r"Gloo connectFullMesh failed with",
        cause="The ranks could not connect to each other's addresses.",
        remedy="Set GLOO_SOCKET_IFNAME and VLLM_HOST_IP to the fabric on every node; a node that "
        "resolves its name to 127.0.0.1 shows this too.",
        origin="torch 2.13 gloo; vllm-project/vllm#7074",
    ),
    _signature(
        "rdma_connect_failed",
        CAUSE,
        # NCCL prints it as a warning, and torch as NCCL's last error; as information it is a try that is repeated.
        r"^(?!.*NCCL INFO).*?Call to ibv_modify_qp failed with (?:error )?(?:\d+ )?(?P<error>[A-Za-z][\w ]*)"
        r"(?:, on dev (?P<device>[^,\s]+), .*?"
        r"local GID index (?P<index>\d+), local GID (?P<local>\S+), remote GID (?P<remote>[^\s,]+))?",
        cause="RDMA device {device} could not connect from GID {local} (index {index}) to {remote}: {error}.",
        remedy="Check that both addresses are in one subnet (on a ring of three or more, "
        "NCCL_IB_SUBNET_AWARE_ROUTING=1 and "
        "NCCL_IB_MERGE_NICS=0), that the cable joins these two ports, and the GIDs of both ends.",
        origin="NCCL src/misc/ibvwrap.cc; eugr/spark-vllm-docker#252; NVIDIA/nccl#2013",
        rank=SPECIFIC,
    ),
    _signature(
        "rdma_peer_silent",
        CAUSE,
        # 12: retries exhausted, 13: the receiver was never ready.
        r"NET/IB ?: .*?Got completion (?:from peer (?P<peer>[^\s<]+)\S* )?with (?:status=|error )"
        r"(?P<status>IBV_WC_\w+\(1[23]\)|1[23]\b).*?(?:localGid (?P<local>\S+) remoteGids?\s?(?P<remote>\S+))?(?: hca "
        r"(?P<device>\S+))?$",
        cause="The peer {peer} did not answer over RDMA ({status}): device {device}, from GID {local} to {remote}.",
        remedy="Compare the MTU of both ends of this link (`playbooks/doctor.yml`), then the cable and the GIDs; the "
        "peer's "
        "own log says whether its rank ended first.",
        origin="NCCL src/transport/net_ib.cc; NVIDIA/nccl#426",
    ),
    _signature(
        "rdma_failed",
        CAUSE,
        # Not 5 (flushed): what comes after another error of the same queue, or the end of the peer.
        r"NET/IB ?: .*?Got completion (?:from peer (?P<peer>[^\s<]+)\S* )?with (?:status=|error )"
        r"(?P<status>(?!IBV_WC_WR_FLUSH_ERR)IBV_WC_\w+\((?!1[23]\))\d+\)|(?!(?:5|12|13)\b)\d+).*?"
        r"(?:localGid (?P<local>\S+) remoteGids?\s?(?P<remote>\S+))?(?: hca (?P<device>\S+))?$",
        cause="An RDMA transfer with the peer {peer} was refused ({status}): device {device}, from GID {local} to "
        "{remote}.",
        remedy="Compare NCCL's version and environment on all nodes (one image identity), then the firmware of the "
        "ports (`playbooks/doctor.yml`).",
        origin="NCCL src/transport/net_ib/p2p.cc; NVIDIA/nccl#1710",
    ),
    _signature(
        "nccl_version_mismatch",
        CAUSE,
        r"NCCL WARN Mismatched NCCL version detected : rank (?P<rank>\d+) version (?P<version>\d+) rank (?P<rank2>\d+) "
        r"version (?P<version2>\d+)",
        cause="NCCL is of two versions: {version} at rank {rank}, {version2} at rank {rank2}.",
        remedy="Distribute the same image to every node; compare image identities, and VLLM_NCCL_SO_PATH.",
        origin="NCCL src/init.cc",
        rank=SPECIFIC,
    ),
    _signature(
        "rdma_memory_lock",
        CAUSE,
        r"NCCL WARN Call to ibv_(?:reg_mr|create_cq|create_qp)\w* failed with error Cannot allocate memory",
        cause="NCCL may not lock memory for RDMA.",
        remedy="Give the container IPC_LOCK and an unlimited memlock; on kernel 7.0.0-1019 boot with kho=off.",
        origin="NVIDIA/nccl-tests#206",
    ),
    _signature(
        "rdma_required_but_absent",
        CAUSE,
        r"NCCL WARN Error: network IB not found|Failed to initialize any NET plugin|"
        r"NCCL WARN .*NET/IB.*(?:No device|not found)",
        cause="NCCL must use RDMA and found no RDMA device.",
        remedy="Check /dev/infiniband in the container, NCCL_IB_HCA against `ibv_devinfo`, and the link.",
        origin="NCCL src/net.cc",
    ),
    _signature(
        "nccl_on_sockets",
        CONTEXT,
        r"NCCL INFO (?:.*Using network Socket|NET/IB : No device found|.*Failed to open libibverbs)",
        cause="NCCL fell back to TCP sockets: the collectives do not use RDMA.",
        remedy="Give the container /dev/infiniband, IPC_LOCK and an unlimited memlock, and set "
        "NCCL_NET=IB so that it fails instead.",
        origin="NVIDIA/nccl#226; [S2]",
    ),
    _signature(
        "nccl_peer_unreachable",
        CAUSE,
        r"NCCL WARN .*(?:[Cc]onnect|SocketPollConnect) to (?P<peer>[^\s<]+)\S* (?:failed|returned)",
        cause="NCCL could not reach the peer address {peer}.",
        remedy="Check NCCL_SOCKET_IFNAME on every node and the fabric link of the peer in the line.",
        origin="NCCL src/misc/socket.cc",
    ),
    _signature(
        "collective_timeout",
        CAUSE,
        r"Watchdog caught collective operation timeout|RPC call to (?P<method>\w+) timed out|"
        r"RayChannelTimeoutError: |ProcessGroupNCCL watchdog hang",
        cause="A collective never finished: a rank hangs or is gone.",
        remedy="See which rank fell silent first; check its fabric link and the node's free memory.",
        origin="torch ProcessGroupNCCL; vLLM 0.32.0 v1/executor/multiproc_executor.py; Ray 2.60.0",
    ),
    # --- GPU ------------------------------------------------------------------------------------
    _signature(
        "gpu_fault",
        CAUSE,
        # Without what a program causes (below), and without 45 and 154, which follow from another or from a kill.
        r"NVRM: Xid \([^)]*\): (?!(?:13|31|32|43|45|69|154)\b)(?P<xid>\d+)",
        cause="The GPU reported a fault (Xid {xid}).",
        remedy="Power the node off for a minute; when it comes back, compare driver and firmware with the other nodes.",
        origin="NVIDIA driver; NVIDIA's catalogue of Xid errors",
        sources=("engine", "kernel"),
    ),
    _signature(
        "kernel_faulted",
        CAUSE,
        r"(?P<words>an illegal memory access was encountered|unspecified launch failure|"
        r"an illegal instruction was encountered|misaligned address|device-side assert triggered)|"
        r"NVRM: (?P<words2>Xid \([^)]*\): (?:13|31|32|43|69)\b)",
        cause="A CUDA kernel of the engine failed ({words|words2}): a fault of the program far more often than of the "
        "GPU.",
        remedy="Try another backend (attention-backend, moe-backend, linear-backend), then without speculative-config, "
        "then an image of another version. Only when it comes with every image, power the node off for a minute.",
        origin="CUDA runtime; flashinfer-ai/flashinfer#2065, #2884; vllm-project/vllm#39761, #50934; NVIDIA driver",
        rank=BROAD,
        sources=("engine", "kernel"),
        unless=("kernel_image_missing", "cutlass_failed", "gpu_fault"),
    ),
    _signature(
        "process_crashed",
        CAUSE,
        r"(?P<words>Fatal Python error: (?:Segmentation fault|Illegal instruction)|Segfault encountered|"
        r"(?:Segmentation fault|Illegal instruction) \(core dumped\)|exit code:? (?:-11|-4|139|132)\b)",
        cause="A process of the engine crashed in compiled code ({words}).",
        remedy="The frames below that line name the part; try another backend, and compare image identities on the "
        "nodes.",
        origin="Python faulthandler; signals 11 and 4",
        rank=BROAD,
        unless=("kernel_build_failed",),
    ),
    # --- container and environment --------------------------------------------------------------
    _signature(
        START_REFUSED,
        CAUSE,
        r"^gb10: start refused: (?P<why>.*)",
        cause="This node refused the start: {why}.",
        remedy="Remove that reason and start again.",
        origin="this collection's engine role",
    ),
    _signature(
        GAVE_UP,
        CONTEXT,
        r"^gb10: gave up: (?P<why>.*)",
        cause="The unit gave up: {why}.",
        remedy="The log of the run before and last_failure.json on this node have the reason.",
        origin="this collection's engine role",
    ),
    _signature(
        "rank_lost",
        CONSEQUENCE,
        r"^gb10: restarting with the others: (?P<why>.*)",
        cause="This rank ended because another one did: {why}.",
        remedy="Look at the log of that rank; all are restarted together.",
        origin="this collection's engine role",
    ),
    _signature(
        "engine_ended",
        CONSEQUENCE,
        r"^gb10: the engine exited unexpectedly: (?P<how>.*)",
        cause="The engine's process exited unexpectedly ({how}).",
        remedy="See the lines before; after signal 9 look at earlyoom and the node's memory.",
        origin="this collection's engine role",
    ),
    _signature(
        "container_name_taken",
        CAUSE,
        r"The container name \"/?(?P<name>[^\"]+)\" is already in use",
        cause="A container named {name} of an earlier run still exists.",
        remedy="Remove it by its exact name: `docker rm -f {name}`.",
        origin="Docker Engine 20.10",
    ),
    _signature(
        "mount_missing",
        CAUSE,
        r"bind source path does not exist: (?P<path>\S+)|"
        r"error mounting \\?\"(?P<path2>[^\"\\]+)\\?\" to rootfs",
        cause="The node has no {path|path2}, or not as the file or directory that the container is to see.",
        remedy="Stage the weights on this node, or render the units again.",
        origin="Docker Engine 20.10",
    ),
    _signature(
        "device_missing",
        CAUSE,
        r"error gathering device information while adding custom device \"(?P<device>[^\"]+)\"",
        cause="The node has no {device}.",
        remedy="Load the RDMA drivers, or turn RDMA off by its variable where the platform has none.",
        origin="Docker Engine 20.10",
    ),
    _signature(
        "limit_refused",
        CAUSE,
        r"error setting rlimits?.*operation not permitted|unable to apply caps|"
        r"could not apply required modification to OCI specification(?!.*CDI)",
        cause="The platform refuses a limit or a capability that the container asks for.",
        remedy="Turn that requirement off by its variable on this platform (memlock, capabilities).",
        origin="runc",
    ),
    _signature(
        "environment_missing",
        CAUSE,
        r"^gb10: missing environment: (?P<names>.*?) must be set|"
        r"env vars are not set inside .*?: *(?P<names2>.*)|open (?P<file>\S+\.env): no such file or directory",
        cause="Environment variables that the model requires are missing from a rank's container: {names|names2|file}.",
        remedy="Set them in model_spec.env and render the units again, so that every node has them: "
        "Ray passes none across nodes.",
        origin="[S2]; Docker Engine 20.10; this collection's engine unit",
        sources=("engine", "unit"),
    ),
    _signature(
        "unknown_environment",
        CONTEXT,
        r"Unknown vLLM environment variable detected: (?P<name>\w+)",
        cause="This vLLM ignores the environment variable {name}.",
        remedy="Remove it, or replace it by the option that took its place in this version.",
        origin="vLLM 0.32.0 platforms/interface.py",
    ),
    # --- consequences ---------------------------------------------------------------------------
    _signature(
        "worker_died",
        CONSEQUENCE,
        r"Worker proc (?P<process>\S+) died unexpectedly(?: \(exit code: (?P<code>-?\w+)\))?|"
        r"RayWorkerProc rank=(?P<rank>\S+) died unexpectedly|"
        r"ActorDiedError|The actor died unexpectedly|A worker died or was killed while executing a task|"
        r"has been marked dead because the detector has missed",
        cause="A worker process of the engine died.",
        remedy="Look at the rank that died first: its own log, its kernel log, its power.",
        origin="vLLM 0.32.0 v1/executor; Ray 2.60.0",
    ),
    _signature(
        "peer_closed",
        CONSEQUENCE,
        r"Connection closed by peer \[(?P<address>[\d.a-fA-F:]+)\]:\d+|"
        r"Connection reset by peer \[(?P<address2>[\d.a-fA-F:]+)\]|"
        r"Read error \[(?P<address3>[\d.a-fA-F:]+)\]:\d+: Connection reset by peer|"
        r"NCCL WARN .*Connection closed by remote peer (?P<address4>[^\s<]+)|"
        r"recvValue failed on SocketImpl\(.*remote=\[(?P<address5>[^\]]+)\]|"
        r"DistNetworkError: failed to recv, got 0 bytes",
        cause="The peer rank at {address|address2|address3|address4|address5} closed its connection.",
        remedy="Look at the log of the node at the address in the line.",
        origin="torch gloo transport/tcp/pair.cc; NCCL src/misc/socket.cc",
    ),
    _signature(
        "nccl_peer_gone",
        CONSEQUENCE,
        r"NCCL error(?: in)?: .*remote process exited or there was a network error|"
        r"NET/IB ?: .*Got completion .*with (?:status=|error )(?:IBV_WC_WR_FLUSH_ERR|5\b)",
        cause="NCCL lost another rank: its process ended, or the network failed.",
        remedy="Look at the logs of the other ranks; where none ended before this one, compare the nodes' fabric "
        "(`playbooks/doctor.yml`).",
        origin="torch/csrc/distributed/c10d/NCCLUtils.cpp",
    ),
    _signature(
        "ray_processes_exited",
        CONSEQUENCE,
        r"Some Ray subprocesses exited unexpectedly",
        cause="A process of Ray itself ended.",
        remedy="See which one the lines after it name, and whether the head's Ray is alive.",
        origin="Ray 2.60.0 scripts/scripts.py",
    ),
    _signature(
        "engine_dead",
        CONSEQUENCE,
        r"EngineDeadError|EngineCore encountered (?:a fatal error|an issue)|RuntimeError: Executor failed\.",
        cause="The engine's core died while it served.",
        remedy="The reason stands earlier in this log or in another rank's.",
        origin="vLLM 0.32.0 v1/engine/exceptions.py, core.py; [S0]",
    ),
    _signature(
        "engine_start_failed",
        CONSEQUENCE,
        r"Model architectures \[[^\]]*\] failed to be inspected|"
        r"EngineCore failed to start|Engine core initialization failed|WorkerProc failed to start|"
        r"Ray workers have not started successfully",
        cause="The engine's core did not come up.",
        remedy="The reason stands earlier in this log or in another rank's.",
        origin="vLLM 0.32.0 v1/engine/core.py, utils.py",
    ),
    _signature(
        "killed",
        CONSEQUENCE,
        r"Main process exited, code=killed, status=9|Main process exited, code=exited, status=137",
        cause="The engine got SIGKILL, and no log names an OOM kill.",
        remedy="If nobody killed it by hand, look at earlyoom and at the node's memory; "
        "where the journal holds no kernel log, look at `dmesg`.",
        origin="systemd",
        sources=("unit",),
        unless=("systemd_oomd", "oom_killer", "earlyoom"),
    ),
)

BY_NAME: dict[str, Signature] = {signature.name: signature for signature in SIGNATURES}
