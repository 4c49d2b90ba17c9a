# SPDX-License-Identifier: Apache-2.0
"""The table of known failures: which line of a log means what, and what to do about it.

`diagnose` is pure: lines in, findings out. A finding of kind `cause` explains a death by itself;
`context` explains one when nothing better is found, and is harmless in an engine that lives;
`consequence` only says that something else went wrong first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import (
    LogLine,
    clean,
    origin_address,
)

CAUSE = "cause"
CONTEXT = "context"
CONSEQUENCE = "consequence"
_RANK_OF_KIND = {CAUSE: 0, CONTEXT: 1, CONSEQUENCE: 2}

UNRECOGNISED = "unrecognised"
START_REFUSED = "start_refused"
"""The pre-start check of this collection's unit said no: no container was started."""
GAVE_UP = "gave_up"
"""The unit was started too often and is left alone; the run before holds the reason."""
MAX_LINE_CHARS = 400


@dataclass(frozen=True)
class Signature:
    """One known failure.

    name: stable identifier; kind: cause, context or consequence; pattern: searched in the cleaned
    line, its named groups may be used as {group} in cause and remedy; origin: where the wording of
    the line comes from; sources: of LogLine.source.
    """

    name: str
    kind: str
    pattern: re.Pattern[str]
    cause: str
    remedy: str
    origin: str
    sources: tuple[str, ...] = ("engine",)


@dataclass(frozen=True)
class Finding:
    """One known failure found in a log.

    line: the first line that shows it; count: how many lines do; time_s: of the first line,
    seconds since the epoch; address: of the node that wrote it where Ray names one, else empty.
    """

    name: str
    kind: str
    cause: str
    remedy: str
    line: str
    source: str
    time_s: float = 0.0
    count: int = 1
    address: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data for a module's result."""
        return asdict(self)


def _signature(
    name: str,
    kind: str,
    pattern: str,
    *,
    cause: str,
    remedy: str,
    origin: str,
    sources: tuple[str, ...] = ("engine",),
) -> Signature:
    return Signature(name, kind, re.compile(pattern), cause, remedy, origin, sources)


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
        r"ImportError: (?P<library>lib(?!torch_cuda)[\w.+-]+\.so[\w.]*): cannot open shared object file",
        cause="The shared library is missing from the image: {library}.",
        remedy="Rebuild the image so that torch, vLLM and CUDA are of the same major version.",
        origin="vllm-project/vllm#52300",
    ),
    _signature(
        "binary_mismatch",
        CAUSE,
        r"(?:ImportError|OSError): .*undefined symbol: (?P<symbol>\w+)",
        cause="A compiled extension was built against another torch: symbol {symbol} is missing.",
        remedy="Rebuild the image with the torch version that the vLLM wheel was built against; "
        "compare image identities on all nodes.",
        origin="dynamic linker",
    ),
    _signature(
        "no_accelerator",
        CAUSE,
        r"Failed to infer device type|No CUDA GPUs are available|CUDA driver version is insufficient|"
        r"nvidia-container-cli: .*(?:driver not loaded|no devices)|could not select device driver|"
        r"unknown or invalid runtime name: nvidia|Unknown runtime specified nvidia",
        cause="The container sees no GPU.",
        remedy="Check `nvidia-smi` on the node, the NVIDIA container toolkit, and that the container is given the GPU.",
        origin="vLLM 0.32.0 config/device.py; torch; Docker Engine",
    ),
    _signature(
        "kernel_image_missing",
        CAUSE,
        r"no kernel image is available for execution on the device|"
        r"Value 'sm_\w+' is not defined for option 'gpu-name'",
        cause="A CUDA kernel or the compiler in the image does not know the GB10's architecture (SM121).",
        remedy="Use wheels built for sm_121 and CUDA 13.",
        origin="CUDA runtime; ptxas",
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
        r"argument .*: invalid .*|ambiguous option: .*)",
        cause="This vLLM does not take the command line: {what}.",
        remedy="Correct the model's `serve` options for the vLLM version of the image, or add the mod "
        "that brings the option.",
        origin="argparse; [S2]",
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
        r"Cannot find any model weights with `(?P<path>[^`]+)`|"
        r"No such file or directory:? .*?(?P<path2>[^\s'\"]+\.(?:safetensors|bin)|"
        r"[^\s'\"]*(?:config|tokenizer|index)\.json)|"
        r"Invalid repository ID or local directory specified: *'?(?P<path3>[^'\s]*)|"
        r"HFValidationError: Repo id must be|LocalEntryNotFoundError|couldn't find (?:it|them) in the cached files",
        cause="A weights file is missing on this node, or is a link that leads nowhere: {path|path2|path3}.",
        remedy="Verify the weights on every node against the manifest (`ansible-playbook playbooks/weights.yml`); "
        "a copied hub cache holds links instead of files.",
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
        r"max seq len \((?P<len>\d+)\), \((?P<need>[\d.]+) GiB KV cache is needed, which is larger "
        r"than the available KV cache memory "
        r"\((?P<have>[\d.]+) GiB\)|No available memory for the cache blocks|"
        r"is larger than the maximum number of tokens that can be stored in KV cache",
        cause="The KV cache does not hold one sequence of full length.",
        remedy="Drop MTP first, then lower max-num-seqs or max-model-len, and only then change the memory budget.",
        origin="vLLM 0.32.0 v1/core/kv_cache_utils.py; [S0]",
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
        "cuda_out_of_memory",
        CAUSE,
        r"(?:torch\.OutOfMemoryError|OutOfMemoryError|RuntimeError): .*CUDA out of memory|"
        r"CUDA error: out of memory|cudaErrorMemoryAllocation",
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
        r"^gb10: stopped: MemAvailable (?P<have>[\d.]+) GiB is below the floor of (?P<floor>[\d.]+) GiB",
        cause="The start was stopped: MemAvailable fell to {have} GiB, below the floor of {floor} GiB.",
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
        r"(?:/dev/shm|/?psm_\w+).*No space left on device|exit code:? (?:-7|135)\b",
        cause="/dev/shm of the container is too small.",
        remedy="Raise the engine's shared memory size.",
        origin="torch; NCCL; Python multiprocessing.shared_memory",
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
        cause="A disk is full.",
        remedy="Free space: `docker system df`, the log volume, weights of models that are not served.",
        origin="errno ENOSPC",
        sources=("engine", "unit"),
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
        r"Unable to connect to GCS \(ray head\) at (?P<address>\S+?)\.(?: |$)|Failed to connect to GCS",
        cause="This node cannot reach the Ray head.",
        remedy="Check the head's unit, the fabric link, and that no firewall closes the Ray port on the fabric.",
        origin="Ray 2.60.0 _private/utils.py",
    ),
    # --- network --------------------------------------------------------------------------------
    _signature(
        "port_in_use",
        CAUSE,
        r"bind on address \('(?P<host>[^']*)', (?P<port>\d+)\).*address already in use|"
        r"failed to listen on any local network address\. port: (?P<port2>\d+).*EADDRINUSE|"
        r"(?:OSError|RuntimeError): .*\[?Errno 98\]?.*[Aa]ddress already in use|"
        r"zmq\.error\.ZMQError: Address already in use",
        cause="Another process holds a port of the engine: {port|port2}.",
        remedy="Name the holder with `ss -ltnp`; stop a stale container by its exact name, or move the "
        "model to another port.",
        origin="uvicorn; torch c10d; zmq",
    ),
    _signature(
        "interface_missing",
        CAUSE,
        r"Unable to find address for:? (?P<interface>\S+)|Bootstrap : no socket interface found|"
        r"no socket interface found",
        cause="The network interface that the ranks use has no address on this node: {interface}.",
        remedy="Compare the fabric's interface names on this node with the unit's environment; names "
        "differ between GB10 boxes.",
        origin="gloo; NCCL bootstrap",
    ),
    _signature(
        "rendezvous_timeout",
        CAUSE,
        r"Timed out after (?P<seconds>\d+) seconds waiting for clients\. "
        r"(?P<joined>\d+)/(?P<total>\d+) clients joined|"
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
        "rdma_memory_lock",
        CAUSE,
        r"NCCL WARN Call to ibv_reg_mr\w* failed with error Cannot allocate memory",
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
        r"NCCL WARN .*Connect to (?P<peer>[^\s<]+)\S* (?:failed|returned)",
        cause="NCCL could not reach the peer address {peer}.",
        remedy="Check NCCL_SOCKET_IFNAME on every node and the fabric link of the peer in the line.",
        origin="NCCL src/misc/socket.cc",
    ),
    _signature(
        "collective_timeout",
        CAUSE,
        r"Watchdog caught collective operation timeout|RPC call to (?P<method>\w+) timed out",
        cause="A collective never finished: a rank hangs or is gone.",
        remedy="See which rank fell silent first; check its fabric link and the node's free memory.",
        origin="torch ProcessGroupNCCL; vLLM 0.32.0 v1/executor/multiproc_executor.py",
    ),
    # --- GPU ------------------------------------------------------------------------------------
    _signature(
        "gpu_fault",
        CAUSE,
        r"an illegal memory access was encountered|unspecified launch failure|NVRM: Xid \([^)]*\): (?P<xid>\d+)",
        cause="The GPU reported a fault (Xid {xid}).",
        remedy="See the kernel log for Xid; try without MTP and with the pinned image; power-cycle the "
        "node when it comes back.",
        origin="CUDA runtime; NVIDIA driver",
        sources=("engine", "kernel"),
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
        r"bind source path does not exist: (?P<path>\S+)",
        cause="The node has no {path}, which the container is to see.",
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
        r"could not apply required modification to OCI specification",
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
        r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: (?P<code>-?\w+)\)|"
        r"RayWorkerProc rank=(?P<rank>\S+) died unexpectedly|"
        r"ActorDiedError|The actor died unexpectedly|has been marked dead because the detector has missed",
        cause="A worker process of the engine died.",
        remedy="Look at the rank that died first: its own log, its kernel log, its power.",
        origin="vLLM 0.32.0 v1/executor; Ray 2.60.0",
    ),
    _signature(
        "peer_closed",
        CONSEQUENCE,
        r"Connection closed by peer \[(?P<address>[\d.a-fA-F:]+)\]:\d+|"
        r"Connection reset by peer \[(?P<address2>[\d.a-fA-F:]+)\]|"
        r"Read error \[(?P<address3>[\d.a-fA-F:]+)\]:\d+: Connection reset by peer",
        cause="The peer rank at {address|address2|address3} closed its connection.",
        remedy="Look at the log of the node at the address in the line.",
        origin="torch gloo transport/tcp/pair.cc",
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
    ),
)

BY_NAME: dict[str, Signature] = {signature.name: signature for signature in SIGNATURES}

_VALIDATION = re.compile(r"\d+ validation errors? for \w+$")
_TRACEBACK = "Traceback (most recent call last)"
_EXCEPTION = re.compile(
    r"(?:^|\] |\) )(?P<error>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)(?::.*)?)$"
)


class _Groups(dict[str, str]):
    """Values for a sentence's {names}; {a|b} is the first of them that the line filled."""

    def __missing__(self, names: str) -> str:
        return next((self[name] for name in names.split("|") if name in self), "not shown")


def _finding(signature: Signature, found: re.Match[str], text: str, line: LogLine, count: int) -> Finding:
    groups = _Groups({name: value for name, value in found.groupdict().items() if value})
    address = origin_address(text)
    return Finding(
        name=signature.name,
        kind=signature.kind,
        cause=signature.cause.format_map(groups),
        remedy=signature.remedy.format_map(groups),
        line=text[:MAX_LINE_CHARS].rstrip(),
        source=line.source,
        time_s=line.time_s,
        count=count,
        address=address,
    )


def _is_consequence(text: str) -> bool:
    return any(each.kind == CONSEQUENCE and each.pattern.search(text) for each in SIGNATURES)


def unrecognised(lines: Sequence[LogLine]) -> Finding | None:
    """The first exception of a traceback, for a death that no signature explains.

    An exception that only reports that something else failed is passed over; for pydantic's
    `1 validation error for X` the next line, which says what is wrong, is taken.
    """
    in_traceback = validation = False
    for line in lines:
        if line.source != "engine":
            continue
        text = clean(line.text)
        if _TRACEBACK in text:
            in_traceback = True
            continue
        found = _EXCEPTION.search(text) if in_traceback else None
        said = found.group("error") if found else ""
        if validation and text:
            said = text.strip()
        if not said or _is_consequence(text):
            continue
        if _VALIDATION.search(said):
            validation = True
            continue
        return Finding(
            name=UNRECOGNISED,
            kind=CAUSE,
            cause=f"The engine ended with {said[:MAX_LINE_CHARS].rstrip('.')}.",
            remedy="This failure is not in the table of known ones; read the lines before it in the full log.",
            line=text[:MAX_LINE_CHARS].rstrip(),
            source=line.source,
            time_s=line.time_s,
            address=origin_address(text),
        )
    return None


def diagnose(lines: Iterable[LogLine]) -> list[Finding]:
    """Every known failure in the lines, the likeliest cause first.

    Lines are given oldest first, of one run of the engine plus the kernel's and earlyoom's of
    the same time. Within a kind the order is that of the table for the same line, otherwise that
    of time: what failed first usually caused the rest. When lines show a traceback and no known
    cause, its exception stands in as the cause.
    """
    ordered = list(lines)
    found: dict[tuple[str, str], tuple[int, int, Finding]] = {}
    counts: dict[tuple[str, str], int] = {}
    for position, line in enumerate(ordered):
        text = clean(line.text)
        if not text:
            continue
        claimed = False
        for place, signature in enumerate(SIGNATURES):
            if line.source not in signature.sources:
                continue
            match = signature.pattern.search(text)
            if not match or (claimed and signature.kind == CAUSE):
                continue
            claimed = claimed or signature.kind == CAUSE
            key = (signature.name, origin_address(text))
            counts[key] = counts.get(key, 0) + 1
            if key not in found:
                found[key] = (position, place, _finding(signature, match, text, line, 1))
    findings = [
        (position, place, Finding(**{**finding.as_dict(), "count": counts[key]}))
        for key, (position, place, finding) in found.items()
    ]
    if not any(finding.kind == CAUSE for _position, _place, finding in findings):
        stand_in = unrecognised(ordered)
        if stand_in:
            findings.append((-1, -1, stand_in))
    findings.sort(key=lambda entry: (_RANK_OF_KIND[entry[2].kind], entry[0], entry[1]))
    return [finding for _position, _place, finding in findings]
