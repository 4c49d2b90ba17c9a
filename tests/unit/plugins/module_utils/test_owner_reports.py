# SPDX-License-Identifier: Apache-2.0
"""What owners of such boxes report, in one table: a log, its cause, what the report must name and advise.

A further wording of each kind beside the complete logs in tests/unit/fixtures/probe, as the program in the comment
prints it. The table in docs/runbook.md says the same to owners.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine
from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import SIGNATURES
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_files import load_tables
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import matches, parse

TRACE = "Traceback (most recent call last):"
CORE = "(EngineCore pid=77) ERROR 10-30 21:14:05 [core.py:1165] "
NCCL = "gx10-2:411:502 [0] "


class Report(NamedTuple):
    """A log of one process, its first finding, and words of the cause and of the remedy; source: of the lines."""

    log: str
    name: str
    cause: str
    remedy: str
    source: str = "engine"


def traceback(*lines: str) -> str:
    return "\n".join(CORE + line for line in (TRACE, *lines))


REPORTS = {
    # ray/_private/memory_monitor.py
    "Ray's memory monitor kills a rank": Report(
        traceback(
            "ray.exceptions.OutOfMemoryError: Memory on the node (IP: 10.77.0.3, ID: 9f) where the task (actor ID: 3c, "
            "name=RayWorkerProc.__init__, pid=901, memory used=1.80GB) was running was 116.02GB / 121.69GB (0.953406), "
            "which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: 5e)"
        ),
        "ray_memory_monitor", "116.02GB of 121.69GB", "RAY_memory_monitor_refresh_ms=0",
    ),
    # nccl src/misc/ibvwrap.cc
    "two HCAs that do not reach each other": Report(
        f"{NCCL}misc/ibvwrap.cc:301 NCCL WARN Call to ibv_modify_qp failed with 22 Invalid argument, on dev "
        "roceP2p1s0f0:1, curr state INIT, next state RTR, local GID index 5, local GID ::ffff:10.77.1.2, remote GID "
        "::ffff:10.77.4.3\n" + traceback("RuntimeError: NCCL error: unhandled system error"),
        "rdma_connect_failed", "roceP2p1s0f0:1 could not connect from GID ::ffff:10.77.1.2", "one subnet",
    ),
    # nccl 2.18 to 2.20 src/misc/ibvwrap.cc
    "the same of an older NCCL": Report(
        f"{NCCL}misc/ibvwrap.cc:252 NCCL WARN Call to ibv_modify_qp failed with error Connection timed out\n"
        + traceback("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690"),
        "rdma_connect_failed", "Connection timed out", "one subnet",
    ),
    # nccl src/transport/net_ib.cc; any other warning of NCCL's before its error
    "NCCL's own words for an error of its": Report(
        f"{NCCL}transport/net_ib.cc:411 NCCL WARN NET/IB : rocep1s0f1:1 Got async event : port error\n"
        + traceback("RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"),
        "nccl_failed", "rocep1s0f1:1 Got async event : port error", "playbooks/doctor.yml",
    ),
    # torch/csrc/distributed/c10d/NCCLUtils.cpp, where NCCL itself prints nothing
    "a silent peer in torch's words": Report(
        traceback(
            "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a "
            "network error, NCCL version 2.28.9",
            "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
            "Last error:",
            "NET/IB: Got completion from peer 10.77.0.4<50212> with status=IBV_WC_RETRY_EXC_ERR(12) opcode=129 "
            "vendor_err=129 localGid ::ffff:10.77.0.2 remoteGids ::ffff:10.77.0.4 hca rocep1s0f1",
        ),
        "rdma_peer_silent", "10.77.0.4 did not answer over RDMA (IBV_WC_RETRY_EXC_ERR(12))", "MTU of both ends",
    ),
    "another failure of NCCL's in torch's words": Report(
        traceback(
            "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error, NCCL version "
            "2.28.9",
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
            "Last error:",
            "Call to ibv_create_ah failed with error No such device",
        ),
        "nccl_failed", "Call to ibv_create_ah failed with error No such device", "playbooks/doctor.yml",
    ),
    # nccl src/misc/socket.cc
    "a peer that ended": Report(
        f"{NCCL}misc/socket.cc:881 NCCL WARN socketProgress: Connection closed by remote peer gx10-3<41234>\n"
        + traceback(
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or "
            "there was a network error, NCCL version 2.28.9"
        ),
        "peer_closed", "gx10-3", "log of the node",
    ),
    # vllm/model_executor/layers/fused_moe/oracle/nvfp4.py
    "a backend that does not take the weights": Report(
        traceback(
            "ValueError: NvFp4 MoE backend 'FLASHINFER_TRTLLM' does not support the deployment configuration since "
            "kernel does not support current device cuda."
        ),
        "no_quantised_backend", "does not support current device", "moe-backend",
    ),
    # nccl src/transport/net_ib.cc, 2.19 to 2.26
    "a peer that is silent on RDMA": Report(
        f"{NCCL}transport/net_ib.cc:1748 NCCL WARN NET/IB : Got completion from peer 10.77.0.4<50212> with status=12 "
        "opcode=129 len=0 vendor err 129 (Recv) localGid ::ffff:10.77.0.2 remoteGids::ffff:10.77.0.4 hca rocep1s0f1",
        "rdma_peer_silent", "10.77.0.4 did not answer over RDMA (12): device rocep1s0f1", "MTU of both ends",
    ),
    # vllm/csrc, _custom_ops
    "a kernel that is not built for SM121": Report(
        traceback(
            "NotImplementedError: No compiled cutlass_scaled_mm for a compute capability less than CUDA device "
            "capability: 121"
        ),
        "kernel_image_missing", "No compiled cutlass_scaled_mm", "hardware is not at fault",
    ),
    # flashinfer/compilation_context.py
    "kernels of another GPU's": Report(
        traceback("RuntimeError: No supported CUDA architectures found for major versions [10]."),
        "kernel_image_missing", "major versions [10]", "hardware is not at fault",
    ),
    # DeepGEMM csrc/jit/include_parser.hpp
    "a kernel whose source is not there": Report(
        traceback(
            "RuntimeError: Assertion error (include_parser.hpp:69): Failed to open: /opt/vllm/third_party/deep_gemm/"
            "include/deep_gemm/impls/sm121_fp8_mqa_logits.cuh"
        ),
        "kernel_image_missing", "sm121_fp8_mqa_logits.cuh", "another backend",
    ),
    # vllm-project/vllm#30163
    "an FP4 kernel that fails": Report(
        traceback("RuntimeError: [FP4 gemm Runner] Failed to run cutlass FP4 gemm on sm120. Error: Error Internal"),
        "cutlass_failed", "Failed to run cutlass FP4 gemm", "linear-backend",
    ),
    # tensorrt_llm kernels in FlashInfer, moe_gemm_tma_warp_specialized_input.cu
    "a CUTLASS kernel that does not start": Report(
        traceback(
            "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: Failed to initialize cutlass TMA WS grouped gemm. "
            "Error: Error Internal (/src/cutlass_kernels/moe_gemm_tma_warp_specialized.inl:193)"
        ),
        "cutlass_failed", "TMA WS grouped gemm", "moe-backend",
    ),
    # vllm/platforms/cuda.py
    "an attention backend that was named and does not fit": Report(
        traceback(
            "ValueError: Selected backend AttentionBackendEnum.FLASHINFER_MLA is not valid for this configuration. "
            "Reason: ['compute capability not supported', 'kv_cache_dtype not supported']"
        ),
        "no_attention_backend", "Asked for: FLASHINFER_MLA", "kv-cache-dtype",
    ),
    # triton/runtime/errors.py
    "a Triton kernel that needs more than the GPU has": Report(
        traceback(
            "torch._inductor.exc.InductorError: OutOfResources: out of resource: shared memory, Required: 147456, "
            "Hardware limit: 101376. Reducing block sizes or `num_stages` may help."
        ),
        "triton_out_of_resources", "147456 bytes of shared memory", "another backend",
    ),
    # GNU ld, gcc
    "a kernel that cannot be linked": Report(
        traceback(
            "RuntimeError: Ninja build failed. Ninja output:",
            "/usr/bin/ld: cannot find -lnvrtc: No such file or directory",
            "collect2: error: ld returned 1 exit status",
        ),
        "kernel_build_failed", "cannot find -lnvrtc", "Install in the image",
    ),
    # nvidia-container-toolkit, pkg/nvcdi
    "driver and libraries of two versions": Report(
        "docker: Error response from daemon: nvidia-container-cli: initialization error: nvml error: driver/library "
        "version mismatch: unknown",
        "driver_library_mismatch", "not rebooted", "Reboot",
    ),
    # moby daemon/cdi.go
    "no CDI description": Report(
        "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all",
        "cdi_device_missing", "nvidia.com/gpu=all", "nvidia-ctk cdi generate",
    ),
    # vllm/v1/executor/ray_utils.py
    "Ray without a free GPU": Report(
        "(EngineCore pid=77) INFO 10-30 21:14:05 [ray_utils.py:345] Waiting for creating a placement group of specs "
        "for 1270 seconds. specs=[{'GPU': 1.0, 'node:10.77.0.1': 0.001}, {'GPU': 1.0}]. Check `ray status`",
        "ray_placement_wait", "for 1270 s; wanted: [{'GPU': 1.0, 'node:10.77.0.1'", "VLLM_HOST_IP",
    ),
    # torch/csrc/distributed/c10d/TCPStore.cpp
    "ranks that do not find one another": Report(
        traceback("torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /worker_ready/2"),
        "rendezvous_timeout", "did not find one another", "which node's unit did not start",
    ),
    # nccl src/misc/shmutils.cc
    "too little shared memory": Report(
        f"{NCCL}misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-Qk3x2v to 9637892 bytes, error: No "
        "space left on device (28)",
        "shm_too_small", "/dev/shm", "shared memory size",
    ),
    # systemd src/oom/oomd-manager.c: a container's group is Docker's and not the unit's
    "systemd-oomd kills the container": Report(
        "Killed /system.slice/docker-4be1c07d2b.scope due to memory pressure for /system.slice being 81.77% > 60.00% "
        "for > 20s with reclaim activity",
        "systemd_oomd", "docker-4be1c07d2b.scope", "systemctl disable --now systemd-oomd", "earlyoom",
    ),
    # systemd src/core/unit.c, 257 and newer
    "the same, as newer systemd says it of the unit": Report(
        "vllm-x.service: systemd-oomd killed some process(es) in this unit.",
        "systemd_oomd", "systemd-oomd killed", "systemctl disable --now systemd-oomd", "unit",
    ),
    # transformers/models/auto/tokenization_auto.py
    "a checkpoint newer than the image": Report(
        traceback("ValueError: Tokenizer class Qwen9TokenizerFast does not exist or is not currently imported."),
        "unknown_tokenizer", "Qwen9TokenizerFast", "Transformers",
    ),
    # transformers/utils/hub.py
    "a weights file that is missing": Report(
        traceback(
            "OSError: /models/org/name does not appear to have a file named model-00002-of-00009.safetensors. Checkout "
            "'https://huggingface.co//models/org/name/tree/main' for available files."
        ),
        "weights_missing", "model-00002-of-00009.safetensors", "playbooks/weights.yml",
    ),
    # vllm/v1/worker/gpu_worker.py
    "memory that is gone before the start": Report(
        traceback(
            '  File "/opt/vllm/v1/worker/gpu_worker.py", line 299, in init_device',
            "    self.init_snapshot = init_snapshot = MemorySnapshot(device=self.device)",
            "torch.AcceleratorError: CUDA error: out of memory",
        ),
        "memory_gone_before_start", "before the engine had loaded anything", "page cache",
    ),
    # nvrtc
    "a compiler that does not know the GPU": Report(
        traceback("RuntimeError: nvrtc: error: invalid value for --gpu-architecture (-arch)"),
        "kernel_image_missing", "--gpu-architecture", "hardware is not at fault",
    ),
    # CuTe DSL of CUTLASS
    "a kernel generator that admits other GPUs only": Report(
        traceback("cutlass.base_dsl.common.DSLRuntimeError: expects arch to be one of [<Arch.sm_100a>], "
                  "but got Arch.sm_121a"),
        "kernel_image_missing", "got Arch.sm_121a", "another backend",
    ),
    # DeepGEMM csrc/apis
    "a kernel library that names no GPU": Report(
        traceback("RuntimeError: Assertion error (csrc/apis/attention.hpp:229): Unsupported architecture"),
        "kernel_image_missing", "Unsupported architecture", "another backend",
    ),
    "a kernel of another generation": Report(
        traceback("ValueError: FlashMLA Sparse is only supported on Hopper and Blackwell devices."),
        "kernel_image_missing", "only supported on Hopper", "another backend",
    ),
    # triton/compiler/code_generator.py
    "a number format that the GPU's target has not": Report(
        traceback("ValueError: type fp8e4nv not supported in this architecture."),
        "kernel_image_missing", "fp8e4nv", "another backend",
    ),
    # LLVM, through Triton; no traceback
    "a compiler that gives up": Report(
        "LLVM ERROR: Cannot select: intrinsic %llvm.nvvm.shfl.sync.bfly.i32\nAborted (core dumped)",
        "kernel_build_failed", "Cannot select: intrinsic", "kernels built in",
    ),
    # ptxas 12.4 given PTX of 13
    "an assembler that is older than its input": Report(
        traceback("triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error",
                  "ptxas /tmp/tmpk2.ptx, line 5; fatal   : Unsupported .version 9.0; current version is '8.4'"),
        "ptxas_too_old", "9.0", "TRITON_PTXAS_PATH=",
    ),
    # vLLM v1/worker/gpu_model_runner.py through Triton
    "a kernel that goes out of bounds": Report(
        traceback("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered"),
        "kernel_faulted", "illegal memory access", "moe-backend",
    ),
    "a kernel that is not aligned": Report(
        traceback("torch.AcceleratorError: CUDA error: misaligned address"),
        "kernel_faulted", "misaligned address", "speculative-config",
    ),
    # vllm/v1/core/kv_cache_utils.py
    "a context that does not fit, with the one that does": Report(
        traceback("ValueError: To serve at least one request with the models's max seq len (262144), (24.0 GiB KV "
                  "cache is needed, which is larger than the available KV cache memory (4.08 GiB). Based on the "
                  "available memory, the estimated maximum model length is 44544."),
        "kv_cache_too_small", "estimated maximum model length is 44544", "max-model-len",
    ),
    # cuBLAS through torch
    "no memory for a library's workspace": Report(
        traceback("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "cuda_out_of_memory", "unified memory ran out", "max-num-seqs",
    ),
    # nccl src/include/cudawrap.h
    "no memory for NCCL's buffers": Report(
        f"{NCCL}enqueue.cc:1556 NCCL WARN Cuda failure 2 'out of memory'\n"
        + traceback("RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
        "cuda_out_of_memory", "unified memory ran out", "max-num-seqs",
    ),
    # nccl src/misc/ibvwrap.cc
    "queues that may not be locked": Report(
        f"{NCCL}misc/ibvwrap.cc:176 NCCL WARN Call to ibv_create_cq failed with error Cannot allocate memory\n"
        + traceback("RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"),
        "rdma_memory_lock", "lock memory", "memlock",
    ),
    # nccl src/misc/socket.cc, src/os/linux.cc
    "a peer without a route": Report(
        f"{NCCL}os/linux.cc:288 NCCL WARN ncclOsSocketPollConnect: connect to 10.77.9.4<41523> returned No route to "
        "host, exceeded error retry count\n" + traceback("RuntimeError: NCCL error: remote process exited"),
        "nccl_peer_unreachable", "10.77.9.4", "NCCL_SOCKET_IFNAME",
    ),
    # nccl src/init.cc
    "two ranks on one GPU": Report(
        f"{NCCL}init.cc:943 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device f01000\n"
        + traceback("RuntimeError: NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)"),
        "more_ranks_than_gpus", "rank 1", "one GPU",
    ),
    # vllm/config/parallel.py
    "an image without Ray": Report(
        traceback("ValueError: Unable to load Ray: ModuleNotFoundError(\"No module named 'ray'\"). Ray is required for "
                  "multi-node inference, please install Ray with `pip install ray`."),
        "package_missing", "package ray", "native engine",
    ),
    # ray/python/ray/experimental/channel
    "a rank that Ray waits for in vain": Report(
        traceback("ray.exceptions.RayChannelTimeoutError: System error: Timed out waiting for object."),
        "collective_timeout", "a rank hangs", "which rank fell silent",
    ),
    # huggingface_hub
    "a drafter that is named by its repository": Report(
        traceback("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/org/"
                  "drafter: offline mode is enabled. To disable it, please unset `HF_HUB_OFFLINE`."),
        "weights_missing", "org/drafter", "a directory",
    ),
    # runc
    "a mount of another kind": Report(
        "docker: Error response from daemon: failed to create task for container: error mounting "
        "\"/etc/gb10/chat.jinja\" to rootfs at \"/chat.jinja\": not a directory",
        "mount_missing", "/etc/gb10/chat.jinja", "render the units",
    ),
    # torch/csrc/cuda/Module.cpp, after the device nodes of a running container were taken away
    "a GPU that is gone from the container": Report(
        traceback("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. "
                  "changing env variable CUDA_VISIBLE_DEVICES after program start."),
        "no_accelerator", "sees no GPU", "nvidia-smi",
    ),
    # Python's faulthandler
    "a crash in compiled code": Report(
        "(EngineCore pid=97) Fatal Python error: Segmentation fault\nSegmentation fault (core dumped)",
        "process_crashed", "Segmentation fault", "frames below",
    ),
    # CUDA runtime, error 222
    "kernels that are newer than the driver": Report(
        traceback("torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported toolchain."),
        "driver_too_old", "unsupported toolchain", "driver of every node",
    ),
    # dynamic linker, in a container that was given no driver
    "a container without the driver's library": Report(
        traceback("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"),
        "no_accelerator", "sees no GPU", "container toolkit",
    ),
    "an extension of a newer system": Report(
        traceback("ImportError: /lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by _C.so)"),
        "binary_mismatch", "GLIBC_2.38", "Rebuild the image",
    ),
    # mistral_common
    "a tokenizer that is not Mistral's": Report(
        traceback("OSError: Found 0 files matching the pattern: `^tokenizer\\.model\\.v.*$|^tekken\\.json$`."),
        "tokenizer_missing", "tokenizer's files", "playbooks/weights.yml",
    ),
    # zmq
    "an address of another node": Report(
        traceback("zmq.error.ZMQError: Cannot assign requested address (addr='tcp://10.77.0.99:29550')"),
        "interface_missing", "10.77.0.99", "unit's environment",
    ),
    "a port that is held": Report(
        traceback("zmq.error.ZMQError: Address already in use (addr='tcp://10.77.0.2:29550')"),
        "port_in_use", "29550", "ss -ltnp",
    ),
    # vllm/config/scheduler.py
    "a batch shorter than the context": Report(
        traceback("pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig",
                  "  Value error, max_num_batched_tokens (2048) is smaller than max_model_len (131072). [type=x]"),
        "batched_tokens_too_few", "need 131072 or more", "enable-chunked-prefill",
    ),
    # torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp
    "a watchdog that hangs": Report(
        "[rank0]:[F1030 21:14:05.743 ProcessGroupNCCL.cpp:1523] [PG ID 0 Rank 0] Terminating the process after "
        "attempting to dump debug info, due to ProcessGroupNCCL watchdog hang.",
        "collective_timeout", "never finished", "which rank",
    ),
    # vllm/model_executor/models/registry.py
    "a model that cannot be inspected, and why": Report(
        traceback("RuntimeError: Error raised in subprocess:", TRACE, "ImportError: cannot import name 'X' from 'y'")
        + "\n" + traceback(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, Model architectures ['XForCausalLM'] failed to be inspected. Please check the logs."
        ),
        "unrecognised", "cannot import name 'X' from 'y'", "full log",
    ),
    # triton/backends/nvidia/compiler.py
    "an assembler that does not know the GPU": Report(
        traceback(
            "triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error",
            "ptxas fatal   : Value 'sm_121' is not defined for option 'gpu-name'",
        ),
        "ptxas_too_old", "sm_121", "TRITON_PTXAS_PATH=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_what_a_report_must_name(report: Report) -> None:
    lines = [LogLine(text, float(number), report.source) for number, text in enumerate(report.log.splitlines(), 1)]
    first = diagnose(lines)[0]
    assert first.name == report.name
    assert report.cause in first.cause
    assert report.remedy in first.remedy
    assert first.line in report.log


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        # A trap in a kernel that is not built for the GPU ends in a launch failure: the hardware is not at fault.
        (
            [
                ("This kernel only supports sm120.", "engine"),
                ("torch.AcceleratorError: CUDA error: unspecified launch failure", "engine"),
            ],
            ["kernel_image_missing"],
        ),
        ([("torch.AcceleratorError: CUDA error: unspecified launch failure", "engine")], ["kernel_faulted"]),
        (
            [
                ("torch.AcceleratorError: CUDA error: unspecified launch failure", "engine"),
                ("NVRM: Xid (PCI:000f:01:00): 119, pid=90211, Timeout after 45s of waiting for RPC response", "kernel"),
            ],
            ["gpu_fault"],
        ),
        # The driver's clean-up after a kill says nothing of the GPU.
        (
            [
                ("NVRM: Xid (PCI:000f:01:00): 45, pid=90211, name=VLLM::EngineCor, Ch 00000008", "kernel"),
                ("vllm-x.service: Main process exited, code=killed, status=9/KILL", "unit"),
            ],
            ["killed"],
        ),
        # What follows a lost peer is not the loss.
        (
            [
                (
                    f"{NCCL}transport/net_ib.cc:1909 NCCL WARN NET/IB : Got completion from peer 10.77.0.4<50212> with "
                    "status=5 opcode=0 len=0 vendor err 249 (Send)",
                    "engine",
                ),
                ("NVRM: Xid (PCI:000f:01:00): 79, GPU has fallen off the bus.", "kernel"),
            ],
            ["gpu_fault", "nccl_peer_gone"],
        ),
        (
            [
                ("vllm-x.service: systemd-oomd killed 42 process(es) in this unit.", "unit"),
                ("vllm-x.service: Main process exited, code=killed, status=9/KILL", "unit"),
            ],
            ["systemd_oomd"],
        ),
        ([("vllm-x.service: Main process exited, code=killed, status=9/KILL", "unit")], ["killed"]),
    ],
)
def test_what_follows_from_a_cause_is_not_reported_beside_it(lines: list[tuple[str, str]], names: list[str]) -> None:
    found = diagnose([LogLine(text, float(number), source) for number, (text, source) in enumerate(lines, 1)])
    assert [each.name for each in found] == names


#: Words with a dash in the remedies that are no options of vLLM's.
OTHER_WORDS = {
    "in-place",
    "nvidia-container",
    "flashinfer-cubin",
    "flashinfer-jit-cache",
    "no-deps",
    "power-cycle",
    "systemd-oomd",
}


def test_each_option_that_a_remedy_names_is_one_of_every_release_in_use() -> None:
    words = {
        word
        for each in SIGNATURES
        for word in re.findall(r"(?<![\w/.`-])-{0,2}([a-z]+(?:-[a-z]+)+)\b(?![/.])", each.remedy)
    }
    options = {version: table["options"] for version, table in load_tables().items()}
    in_use = {version: known for version, known in options.items() if matches(">=0.22.1", parse(version))}
    assert len(in_use) > 5
    named = words - OTHER_WORDS
    assert {"attention-backend", "moe-backend", "kv-cache-dtype"} <= named
    assert [(word, version) for word in sorted(named) for version, known in in_use.items() if word not in known] == []
