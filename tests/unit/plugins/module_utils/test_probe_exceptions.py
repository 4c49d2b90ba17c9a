# SPDX-License-Identifier: Apache-2.0
"""Which exception of a log is reported: inside another one's message, without a message, of C++, of a peer's end."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.explain import rank_diagnoses
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine
from ansible_collections.gb10.cluster.plugins.module_utils._probe.state import DEAD, STARTING, state_with_restarts

TRACE = "Traceback (most recent call last):"
CORE = "(EngineCore pid=77) ERROR 10-30 21:14:05 [core.py:1165] "


def traceback(*lines: str) -> str:
    return "\n".join(CORE + line for line in (TRACE, *lines))


def ray_task(process: str = CORE) -> list[str]:
    """An exception of a rank on another node, as Ray prints it where the head gets it."""
    lines = (
        TRACE,
        '  File "/opt/vllm/v1/executor/ray_executor.py", line 466, in execute_model',
        "ray.exceptions.RayTaskError(KeyError): ray::RayWorkerWrapper.execute_method() (pid=1672, ip=10.77.0.3, "
        "actor_id=978db54f, repr=<vllm.v1.executor.ray_utils.RayWorkerWrapper object at 0x7f68cc454ef0>)",
        '  File "/opt/vllm/model_executor/models/granite.py", line 371, in load_weights',
        "    param = params_dict[name]",
        "            ~~~~~~~~~~~^^^^^^",
    )
    return [process + line for line in lines]


@pytest.mark.parametrize(
    ("exception", "name", "cause"),
    [
        ("KeyError: 'layers.0.moe.input_linear.weight_scale'", "unrecognised", "weight_scale'"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "cuda_out_of_memory", "ran out"),
    ],
)
def test_the_exception_inside_rays_own_is_the_cause_and_its_node_is_named(
    exception: str, name: str, cause: str
) -> None:
    lines = [LogLine(text, float(number)) for number, text in enumerate([*ray_task(), CORE + exception], 1)]
    (first,) = diagnose(lines)
    assert (first.name, first.address) == (name, "10.77.0.3")
    assert cause in first.cause


def test_a_closed_channel_is_no_cause_beside_the_exception_that_closed_it() -> None:
    closed = traceback("ray.exceptions.RayChannelError: System error: Channel closed.")
    rank = "\n".join(f"(RayWorkerProc pid=5) {line}" for line in (TRACE, "my.Fatal: this one"))
    lines = [LogLine(text, float(number)) for number, text in enumerate(f"{closed}\n{rank}".splitlines(), 1)]
    assert diagnose(lines)[0].cause == "The engine ended with my.Fatal: this one."


def test_an_assertion_without_a_message_is_reported_with_its_line() -> None:
    frames = (
        '  File "/opt/vllm/v1/worker/gpu/model_runner.py", line 901, in capture_model',
        "    self.capture()",
        '  File "/opt/vllm/v1/worker/gpu/cudagraph_utils.py", line 326, in capture',
        "    assert prev_last_scheduled_idx is not None",
        "           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
    )
    (first,) = diagnose([LogLine(line) for line in traceback(*frames, "AssertionError").splitlines()])
    assert first.cause == (
        "The engine ended with AssertionError in capture (cudagraph_utils.py:326): assert prev_last_scheduled_idx is "
        "not None."
    )


@pytest.mark.parametrize(
    "line",
    [
        "torch.distributed.DistNetworkError: failed to recv, got 0 bytes",
        "RuntimeError: NCCL error: remote process exited or there was a network error",
        "[rank1]:[W1030 21:14:05.74 TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=84, addr=[gx10-2]:4192, "
        "remote=[gx10-1]:29501): Connection reset by peer",
    ],
)
def test_what_the_end_of_a_peer_leaves_behind_is_no_cause(line: str) -> None:
    found = diagnose([LogLine(text) for text in traceback(line).splitlines()])
    assert [each.kind for each in found] == ["consequence"]


def test_an_exception_of_cpp_stands_in() -> None:
    text = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc"
    (first,) = diagnose([LogLine(line) for line in text.splitlines()])
    assert first.cause == "The engine ended with std::bad_alloc: std::bad_alloc."
    assert diagnose([LogLine("  what():  nothing was thrown")]) == []


def test_a_failure_that_the_start_outlived_does_not_come_first() -> None:
    lines = [
        "gx10-2:411:502 [0] misc/ibvwrap.cc:301 NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out",
        "(Worker pid=31) INFO 11-20 20:24:19 [gpu_model_runner.py:5039] Starting to load model /models/x...",
        "(Worker pid=31) ERROR 11-20 20:25:19 [x.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
    ]
    found = diagnose([LogLine(text, float(number)) for number, text in enumerate(lines, 1)])
    assert [each.name for each in found] == ["cuda_out_of_memory", "rdma_connect_failed"]
    ranked = rank_diagnoses([{"node": "n1", "state": DEAD, "findings": [each.as_dict() for each in found]}], {})
    assert [each.name for each in ranked] == ["cuda_out_of_memory", "rdma_connect_failed"]
    found = diagnose([LogLine(text, float(number)) for number, text in enumerate([lines[0], lines[2]], 1)])
    assert found[0].name == "rdma_connect_failed"


def test_waiting_for_the_head_does_not_explain_a_node_that_joined() -> None:
    lines = [
        LogLine(
            "[2026-10-30 21:14:05 E 1 1] x.h:1: Failed to connect to GCS at address 10.77.0.1:6379 within 5 seconds."
        ),
        LogLine("Ray runtime started."),
        LogLine("Out of memory: Killed process 7 (ray::RayWorkerP) total-vm:1kB", 2.0, "kernel"),
    ]
    assert diagnose(lines)[0].name == "oom_killer"
    ended = LogLine("RuntimeError: Failed to connect to GCS.")
    assert [each.name for each in diagnose([lines[0], ended])] == ["ray_head_unreachable"]


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (
            "AssertionError: Error in memory profiling. Initial free memory 91.4 GiB, current free memory 97.0 GiB.",
            STARTING,
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB", DEAD),
    ],
)
def test_a_restart_is_allowed_where_it_helps(line: str, state: str) -> None:
    findings = [each.as_dict() for each in diagnose([LogLine(line)])]
    report = {"state": DEAD, "unit": {"active_state": "activating"}, "findings": findings}
    assert state_with_restarts(report, 0, allowed=1) == state
