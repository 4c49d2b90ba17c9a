# SPDX-License-Identifier: Apache-2.0
"""Every known failure is recognised in a log that was captured, quoted or rendered from its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import signatures as ps
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine

FIXTURES = Path(__file__).parents[2] / "fixtures" / "probe"
ORIGINS = ("captured", "quoted", "rendered")


@dataclass(frozen=True)
class Sample:
    """A log with its header: where it comes from, which log it stands for, what must be found in it."""

    name: str
    origin: str
    expect: str
    lines: tuple[LogLine, ...]


def load(path: Path) -> Sample:
    header: dict[str, str] = {}
    body: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, value = line.removeprefix("# ").partition(": ")
        if line.startswith("# ") and colon and name in ("origin", "source", "expect"):
            header[name] = value
        else:
            body.append(line)
    return Sample(
        name=path.stem,
        origin=header["origin"],
        expect=header["expect"],
        lines=tuple(
            LogLine(text, time_s=float(number), source=header["source"]) for number, text in enumerate(body, 1)
        ),
    )


SAMPLES = [load(path) for path in sorted(FIXTURES.glob("*.log"))]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_expected_failure_comes_first(sample: Sample) -> None:
    findings = ps.diagnose(sample.lines)
    assert [finding.name for finding in findings][:1] == [sample.expect]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_finding_says_what_why_and_what_to_do(sample: Sample) -> None:
    finding = ps.diagnose(sample.lines)[0]
    assert finding.line in {line.text[: ps.MAX_LINE_CHARS].rstrip() for line in sample.lines}
    assert finding.cause.endswith(".")
    assert finding.remedy.endswith(".")
    assert "{" not in finding.cause + finding.remedy


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_origin_of_each_log_is_stated(sample: Sample) -> None:
    assert sample.origin.startswith(ORIGINS)


def test_every_signature_has_a_log() -> None:
    shown = {sample.expect for sample in SAMPLES}
    assert sorted(set(ps.BY_NAME) - shown) == []


def test_names_are_unique() -> None:
    assert len(ps.BY_NAME) == len(ps.SIGNATURES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("unknown_option", "unrecognized arguments: --gpu-memory-utilization-gb 108"),
        ("parser_not_found", "parser named super_v3"),
        ("parser_not_found.tool", "parser named qwen9_coder"),
        ("tensor_parallel_indivisible", "4 attention heads cannot be split over 3 ranks"),
        ("unknown_architecture", "['NemotronNextForCausalLM']"),
        ("unknown_architecture.transformers", "nemotron_next"),
        ("oom_killer", "lmcache"),
        ("oom_killer.ray_worker", "ray::RayWorkerP"),
        ("earlyoom", "VLLM::EngineCore"),
        ("memory_taken", "88.2 of 119.7 GiB"),
        ("port_in_use.tcpstore", "29510"),
        ("interface_missing", "enp1s0f0np0"),
        ("peer_closed", "10.233.87.118"),
        ("nccl_peer_unreachable", "10.0.0.4"),
        ("container_name_taken", "vllm-mellum"),
        ("device_missing", "/dev/infiniband"),
        ("gpu_fault.xid", "Xid 79"),
        ("environment_missing", "VLLM_NVFP4_GEMM_BACKEND, VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
        ("start_refused", "port 8000 is held by python3 (pid 812)"),
        ("memory_floor", "5.2 GiB, below the floor of 10.0 GiB"),
    ],
)
def test_the_cause_names_the_thing(name: str, part: str) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == name)
    assert part in ps.diagnose(sample.lines)[0].cause


def test_a_line_that_ray_forwarded_names_its_node() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "gloo_mesh_failed")
    assert ps.diagnose(sample.lines)[0].address == "10.41.0.8"


def test_a_cause_comes_before_what_it_caused_even_when_it_was_logged_later() -> None:
    lines = [
        LogLine("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", 1.0),
        LogLine("Out of memory: Killed process 7 (ray::RayWorkerP) total-vm:1kB", 2.0, "kernel"),
    ]
    assert [finding.name for finding in ps.diagnose(lines)] == ["oom_killer", "engine_dead"]


def test_the_earlier_of_two_causes_comes_first() -> None:
    lines = [
        LogLine("ValueError: No available memory for the cache blocks.", 1.0),
        LogLine("OSError: [Errno 98] Address already in use", 2.0),
    ]
    assert [finding.name for finding in ps.diagnose(lines)] == ["kv_cache_too_small", "port_in_use"]


def test_repetitions_are_counted_and_the_first_line_is_kept() -> None:
    lines = [LogLine(f"ps-8 NCCL INFO Using network Socket {number}", float(number)) for number in range(3)]
    (finding,) = ps.diagnose(lines)
    assert (finding.count, finding.time_s) == (3, 0.0)


def test_a_full_shm_is_not_taken_for_a_full_disk() -> None:
    text = "OSError: [Errno 28] No space left on device: '/psm_5f3a9b21'"
    assert [finding.name for finding in ps.diagnose([LogLine(text)])] == ["shm_too_small"]


def test_kernel_words_count_in_the_kernel_log_only() -> None:
    text = "Out of memory: Killed process 48211 (python3) total-vm:1kB"
    assert ps.diagnose([LogLine(text, source="earlyoom")]) == []
    assert [finding.name for finding in ps.diagnose([LogLine(text, source="kernel")])] == ["oom_killer"]


def test_an_unknown_exception_stands_in_as_the_cause() -> None:
    lines = [
        LogLine("Traceback (most recent call last):"),
        LogLine('  File "x.py", line 1, in f'),
        LogLine("my.module.StrangeError: the moon is in the wrong house"),
        LogLine("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."),
    ]
    findings = ps.diagnose(lines)
    assert [finding.name for finding in findings] == ["unrecognised", "engine_dead"]
    assert findings[0].cause == "The engine ended with my.module.StrangeError: the moon is in the wrong house."


def test_an_exception_that_only_reports_another_death_is_no_cause() -> None:
    lines = [
        LogLine("(APIServer pid=1) Traceback (most recent call last):"),
        LogLine("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."),
    ]
    assert [finding.name for finding in ps.diagnose(lines)] == ["engine_start_failed"]


def test_of_a_validation_error_the_line_that_says_why_is_taken() -> None:
    lines = [
        LogLine("Traceback (most recent call last):"),
        LogLine("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"),
        LogLine("  Value error, the model is upside down [type=value_error, input_value=1, input_type=int]"),
    ]
    (finding,) = ps.diagnose(lines)
    assert "the model is upside down" in finding.cause


def test_an_exception_outside_a_traceback_is_no_cause() -> None:
    assert ps.diagnose([LogLine("WARNING: ignoring ImportError: no module named triton")]) == []
