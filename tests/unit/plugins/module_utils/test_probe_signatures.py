# SPDX-License-Identifier: Apache-2.0
"""Every known failure is recognised in a log that was captured, quoted or rendered from its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import diagnosis as ps
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import parse_journal
from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import BY_NAME, SIGNATURES

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
    assert not re.search(r"\{[a-z][\w|]*\}", finding.cause + finding.remedy)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_origin_of_each_log_is_stated(sample: Sample) -> None:
    assert sample.origin.startswith(ORIGINS)


def test_every_signature_has_a_log() -> None:
    shown = {sample.expect for sample in SAMPLES}
    assert sorted(set(BY_NAME) - shown) == []


COUNTER_EXAMPLES = [
    tuple(line.split("|", 2))
    for line in (FIXTURES / "counter-examples.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("name", "source", "text"), COUNTER_EXAMPLES, ids=lambda value: value[:24])
def test_a_line_that_only_looks_like_it_is_not_taken_for_it(name: str, source: str, text: str) -> None:
    found = ps.diagnose([LogLine(text, 1.0, source)])
    assert name not in [finding.name for finding in found]


def test_every_signature_has_a_counter_example() -> None:
    assert {name for name, _source, _text in COUNTER_EXAMPLES} == set(BY_NAME)


HARMLESS = [
    LogLine(text, 1.0, source)
    for source, text in (
        line.split("|", 1)
        for line in (FIXTURES / "harmless-lines.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
]


@pytest.mark.parametrize("line", HARMLESS, ids=lambda line: line.text[:40])
def test_a_line_that_only_looks_bad_is_no_cause(line: LogLine) -> None:
    assert [finding.name for finding in ps.diagnose([line]) if finding.kind == "cause"] == []


def test_what_only_looks_bad_hides_no_cause() -> None:
    assert len(HARMLESS) > 40
    lines = [*HARMLESS, LogLine("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 2.0)]
    assert ps.diagnose(lines)[0].name == "cuda_out_of_memory"


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(SIGNATURES)


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
        ("gpu_fault", "Xid 79"),
        ("kernel_faulted.xid", "Xid (PCI:000f:01:00): 31"),
        ("environment_missing", "VLLM_NVFP4_GEMM_BACKEND, VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
        ("start_refused", "port 8000 is held by python3 (pid 812)"),
        ("memory_floor", "5.2 GiB, below the start floor of 10.0 GiB"),
        ("kernel_build_failed", "sampling.cuh:27:10: fatal error: cub/block/block_scan.cuh: No such file or directory"),
        ("kernel_build_failed.nvcc", 'gemm_sm121.cu(412): error: identifier "__nv_fp4_e2m1" is undefined'),
        ("no_attention_backend", "TRITON_ATTN: [kv_cache_dtype not supported]"),
        (
            "rdma_connect_failed",
            "roceP2p1s0f0:1 could not connect from GID ::ffff:10.213.1.11 (index 5) to ::ffff:10.213.2.12",
        ),
        ("rdma_peer_silent", "10.213.0.12 did not answer over RDMA (IBV_WC_RETRY_EXC_ERR(12)): device rocep1s0f0"),
        ("ray_memory_monitor", "114.02GB of 119.70GB, threshold 0.95"),
        ("ray_placement_wait", "for 70 s"),
        ("weights_missing.index", "model-00007-of-00031.safetensors"),
        ("package_missing", "humming"),
        ("unknown_option.conversion", "--max-num-seqs: Value many cannot be converted to <class 'int'>"),
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


@pytest.mark.parametrize(
    ("name", "node"),
    [("ray_memory_monitor", "10.41.0.7"), ("ray_memory_monitor.raylet", "10.41.0.8"), ("ray_memory_monitor.actor", "")],
)
def test_rays_memory_monitor_names_the_node(name: str, node: str) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == name)
    (finding,) = ps.diagnose(sample.lines)
    assert finding.address == node
    assert "RAY_memory_monitor_refresh_ms=0" in finding.remedy


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


# --- what is no cause -----------------------------------------------------------------------------------

ENGINE_LOGS = FIXTURES.parent / "engine-logs"
READY = "(APIServer pid=1) INFO:     Application startup complete."
CLIENT_ERROR = """\
(APIServer pid=1) INFO:     127.0.0.1:40432 - "POST /v1/completions HTTP/1.1" 400 Bad Request
(APIServer pid=1) ERROR:    Exception in ASGI application
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/usr/local/lib/python3.12/dist-packages/uvicorn/protocols/http/h11_impl.py", line 415, in run
(APIServer pid=1)     result = await app(  # type: ignore[func-returns-value]
(APIServer pid=1) vllm.exceptions.VLLMValidationError: max_tokens=9000 cannot be greater than max_model_len=4096."""
TOLERATED = """\
(EngineCore pid=2) WARNING 11-03 08:14:22 [gdn.py:1166] Traceback (most recent call last):
(EngineCore pid=2) WARNING 11-03 08:14:22 [gdn.py:1166] ModuleNotFoundError: No module named 'flashinfer'"""
CORE_DIED = (
    "(APIServer pid=1) ERROR 11-03 09:00:00 [async_llm.py:704] vllm.v1.engine.exceptions.EngineDeadError: "
    "EngineCore encountered an issue. See stack trace (above) for the root cause."
)


def from_text(text: str) -> list[LogLine]:
    return [LogLine(line, time_s=float(number)) for number, line in enumerate(text.splitlines(), 1)]


def healthy() -> dict[str, list[LogLine]]:
    """Starts of real engines that went well, as they are and with what such logs hold besides."""
    names = ("gpu-*.log", "kv-*.log", "native-serve-*.log", "ray-serve-*.log")
    files = sorted(path for name in names for path in ENGINE_LOGS.glob(name))
    logs = {path.stem: from_text(path.read_text(encoding="utf-8")) for path in files}
    logs |= {
        path.stem.removesuffix(".journal"): parse_journal(path.read_text(encoding="utf-8"))
        for path in FIXTURES.glob("native-start-*.journal.jsonl")
    }
    serving = "\n".join(line.text for line in logs["native-serve-rank0"])
    return logs | {
        "a client's error": from_text(f"{serving}\n{READY}\n{CLIENT_ERROR}"),
        "a tolerated import": from_text(f"{TOLERATED}\n{serving}"),
        "a prompt with bad words": from_text(
            f"{serving}\n{READY}\n(APIServer pid=1) ERROR 11-03 08:14:22 [serving.py:3] prompt: 'RuntimeError: "
            "CUDA out of memory. No space left on device'"
        ),
        "an error before it was ready": from_text(f"OSError: [Errno 28] No space left on device\n{serving}\n{READY}"),
    }


HEALTHY = healthy()


def test_twenty_healthy_logs_are_looked_at() -> None:
    assert len(HEALTHY) >= 20


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_log_gives_no_cause(name: str) -> None:
    assert [each.name for each in ps.diagnose(HEALTHY[name]) if each.kind == "cause"] == []


def test_a_killed_core_is_not_explained_by_a_clients_error() -> None:
    lines = from_text(f"{READY}\n{CLIENT_ERROR}\n{CORE_DIED}")
    lines.append(LogLine("vllm-x.service: Main process exited, code=exited, status=137/n/a", 99.0, "unit"))
    assert [each.name for each in ps.diagnose(lines)] == ["engine_dead", "killed"]


def test_what_the_core_itself_says_while_it_serves_is_a_cause() -> None:
    fault = "(EngineCore pid=2) ERROR 11-03 09:00:00 [core.py:9] RuntimeError: CUDA error: out of memory"
    found = ps.diagnose(from_text(f"{READY}\n{CLIENT_ERROR}\n{fault}\n{CORE_DIED}"))
    assert [each.name for each in found] == ["cuda_out_of_memory", "engine_dead"]


def test_an_incident_long_before_the_end_is_no_cause() -> None:
    kill = LogLine("Out of memory: Killed process 7 (lmcache) total-vm:1kB", 1000.0, "kernel")
    assert ps.diagnose([kill, LogLine(CORE_DIED, 5000.0)])[0].name == "engine_dead"
    assert ps.diagnose([kill, LogLine(CORE_DIED, 1300.0)])[0].name == "oom_killer"


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        ("triton.compiler.errors.CompileTimeAssertionFailure: at 12:4", "CompileTimeAssertionFailure: at 12:4"),
        ("torch._dynamo.exc.Unsupported: call_function", "torch._dynamo.exc.Unsupported: call_function"),
        ("StopIteration", "The engine ended with StopIteration in f (x.py:1)."),
    ],
)
def test_an_exception_of_any_class_stands_in(exception: str, cause: str) -> None:
    prefix = "(EngineCore pid=2) ERROR 11-03 08:14:22 [core.py:9] "
    text = f'{prefix}Traceback (most recent call last):\n{prefix}  File "x.py", line 1, in f\n{prefix}{exception}'
    (finding,) = ps.diagnose(from_text(text))
    assert (finding.name, cause in finding.cause) == ("unrecognised", True)


def test_of_chained_exceptions_the_last_counts_and_of_processes_the_first_that_ended() -> None:
    text = """\
(Worker_TP1 pid=7) Traceback (most recent call last):
(Worker_TP1 pid=7)   File "a.py", line 1, in f
(Worker_TP1 pid=7) OddThing: low level
(Worker_TP1 pid=7) During handling of the above exception, another exception occurred:
(Worker_TP1 pid=7) Traceback (most recent call last):
(Worker_TP1 pid=7) my.OuterThing: what it means
(EngineCore pid=2) Traceback (most recent call last):
(EngineCore pid=2) my.LaterThing: of another process"""
    (finding,) = ps.diagnose(from_text(text))
    assert finding.cause == "The engine ended with my.OuterThing: what it means."


def test_an_exception_after_which_the_start_went_on_does_not_stand_in() -> None:
    text = """\
(EngineCore pid=2) Traceback (most recent call last):
(EngineCore pid=2) my.Tolerated: never mind
(EngineCore pid=2) INFO 11-03 08:14:22 [gpu_worker.py:1] Starting to load model /models/x...
(EngineCore pid=3) Traceback (most recent call last):
(EngineCore pid=3) my.Fatal: this one"""
    (finding,) = ps.diagnose(from_text(text))
    assert finding.cause == "The engine ended with my.Fatal: this one."


def test_an_exception_of_a_process_that_is_being_ended_stands_in_for_want_of_another() -> None:
    text = "(Worker pid=7) Traceback (most recent call last):\n(Worker pid=7) KeyboardInterrupt"
    assert "KeyboardInterrupt" in ps.diagnose(from_text(text))[0].cause
    more = text + "\n(EngineCore pid=2) Traceback (most recent call last):\n(EngineCore pid=2) my.Fatal: this one"
    assert "my.Fatal" in ps.diagnose(from_text(more))[0].cause
