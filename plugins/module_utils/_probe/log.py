# SPDX-License-Identifier: Apache-2.0
"""Reads the log of a vLLM engine: which phase of its start it is in, how far, and the figures it printed.

Pure functions over lines of text; where the lines come from (the journal of a unit, a file) is
the caller's affair. The patterns were read from vLLM 0.32.0 and hold for 0.22.1 too where the
wording has not changed between them; each marker names its origin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

PHASES: tuple[str, ...] = (
    "none",
    "prepare",
    "image_start",
    "gather",
    "ray_join",
    "configure",
    "rendezvous",
    "load",
    "profile",
    "graph_capture",
    "api_start",
    "ready",
)
"""Phases of a start in their order; a phase is only ever left for a later one."""

PHASE_WORDS: dict[str, str] = {
    "none": "nothing started",
    "prepare": "preparing the node",
    "image_start": "starting the image",
    "gather": "gathering the ranks",
    "ray_join": "waiting for Ray nodes",
    "configure": "reading the configuration",
    "rendezvous": "joining the ranks",
    "load": "loading weights",
    "profile": "profiling and compiling",
    "graph_capture": "capturing graphs",
    "api_start": "starting the API",
    "ready": "serving",
}

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_STAMP = re.compile(r"\b\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?\b")
#: How far a progress bar is; vLLM's own have no bar, only the numbers.
_PERCENT = re.compile(r"(\d+)%(?: Completed)? ?\|")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?", re.IGNORECASE)
_RAY_PREFIX = re.compile(r"\(\w[\w.:]* pid=\d+, ip=(?P<ip>[0-9a-fA-F.:]+)\)")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b|(?<=['\"]api_key['\"]: )(?:\[[^\]]*\]|'[^']*'|\"[^\"]*\")")


@dataclass(frozen=True)
class LogLine:
    """One line of a log.

    text: the line, without escapes, as the last state of a progress bar that overwrote itself;
    time_s: seconds since the epoch, 0.0 when unknown; source: engine, unit (systemd's own words
    about the unit), kernel or earlyoom; invocation: systemd's id of the run that wrote it.
    """

    text: str
    time_s: float = 0.0
    source: str = "engine"
    invocation: str = ""


@dataclass(frozen=True)
class Marker:
    """A line that shows that a phase was reached; groups `done` and `total`, or `percent`, carry progress."""

    phase: str
    pattern: re.Pattern[str]


def _marker(phase: str, pattern: str) -> Marker:
    return Marker(phase, re.compile(pattern))


MARKERS: tuple[Marker, ...] = (
    # What this collection's engine role prints: its pre-start check, then the container's first process.
    _marker("prepare", r"^gb10: \S+ starts as rank "),
    _marker("gather", r"^gb10: ranks gathered (?P<done>\d+) of (?P<total>\d+)"),
    _marker("gather", r"^gb10: (?:waiting for rank 0 at |all \d+ ranks are here)"),
    _marker("image_start", r"^gb10: exec "),
    _marker("ray_join", r"^gb10: (?:waiting for the Ray head|joining Ray) at "),
    _marker("ray_join", r"(?i)\bray nodes joined:? (?P<done>\d+) (?:of|/) (?P<total>\d+)"),
    # ray/scripts/scripts.py, `ray start`.
    _marker("ray_join", r"\bRay runtime started\."),
    _marker("ray_join", r"Local node IP: "),
    # vLLM entrypoints/serve/utils/api_utils.py and config/model.py.
    _marker("configure", r"vLLM (?:API )?server version |(?<!NCCL )\bversion +\d+\.\d+\.\d+\S*$"),
    _marker("configure", r"\bnon-default args: |Resolved architecture: |Using max model len "),
    # vLLM entrypoints/cli/serve.py, run_headless.
    _marker("configure", r"Launching vLLM \(v[^)]*\) headless "),
    # vLLM v1/engine/core.py; from here on the workers are started and look for one another.
    _marker("rendezvous", r"Initializing a V1 LLM engine "),
    # vLLM distributed/parallel_state.py.
    _marker("rendezvous", r"\bworld_size=\d+ rank=\d+ .*distributed_init_method="),
    _marker("rendezvous", r"\bWaiting for creating a placement group of specs "),
    # vLLM v1/worker/*_model_runner.py.
    _marker("load", r"Starting to load model |Loading drafter model|Loading model from scratch"),
    # vLLM model_executor/model_loader/weight_utils.py and its streaming loaders.
    _marker(
        "load",
        r"(?:Loading (?:safetensors|pt) (?:checkpoint shards|using [\w ]+?)|Multi-thread loading shards)[^:]*:\s+\d+% "
        r"(?:Completed )?\|.*?(?P<done>\d+)/(?P<total>\d+) \[",
    ),
    # InstantTensor counts bytes (13.3G/155G).
    _marker("load", r"Loading safetensors using [\w ]+?[^:]*:\s+(?P<percent>\d+)% (?:Completed )?\|.*?\d[kMGT]B?/"),
    _marker("load", r"Loading weights took "),
    _marker("profile", r"Model loading took "),
    # vLLM compilation/backends.py, compilation/monitor.py.
    _marker(
        "profile", r"Dynamo bytecode transform time|Compiling a graph for |torch\.compile took |torch\.compile takes "
    ),
    # vLLM v1/worker/gpu_worker.py, cpu_worker.py; v1/core/kv_cache_utils.py.
    _marker("profile", r"Initial profiling/warmup run took "),
    _marker("profile", r"Available KV cache memory: |(?:Explicitly|Auto) set \(.*for KV cache"),
    _marker("profile", r"KV cache size: [\d,]+ tokens"),
    _marker("graph_capture", r"Capturing (?:[\w-]+ )*CUDA graphs?[^:]*:\s+\d+%\|.*?(?P<done>\d+)/(?P<total>\d+) \["),
    _marker("graph_capture", r"Capturing (?:[\w-]+ )*CUDA graphs?|Graph capturing finished in "),
    # vLLM v1/engine/core.py; entrypoints/launchers/api_server/entry.py; uvicorn.
    _marker("api_start", r"init engine \(profile, create kv cache, warmup model\) took "),
    _marker("api_start", r"Starting vLLM (?:API )?server (?:\d+ )?on |\bStarted server process \["),
    _marker("ready", r"\bApplication startup complete\b"),
    # Lines of a serving engine, for a log whose beginning is too long ago to be read:
    # uvicorn's access log and vLLM v1/metrics/loggers.py.
    _marker("ready", r'"(?:GET|POST) /\S* HTTP/1\.\d" \d{3}\b|Engine \d+: Avg prompt throughput: '),
)

#: Figures, their types and the lines that hold them.
_FACTS: tuple[tuple[str, Callable[[str], Any], re.Pattern[str]], ...] = (
    ("vllm_version", str, re.compile(r"\(v(\d+\.\d+\.\d+[\w.+-]*)\)")),
    ("kv_cache_tokens", int, re.compile(r"KV cache size: ([\d,]+) tokens")),
    ("max_concurrency", float, re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x")),
    ("max_model_len", int, re.compile(r"Using max model len (\d+)")),
    ("kv_cache_gib", float, re.compile(r"Available KV cache memory: ([\d.]+) GiB")),
    ("model_gib", float, re.compile(r"Model loading took ([\d.]+) GiB")),
    ("load_seconds", float, re.compile(r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds")),
    ("init_engine_seconds", float, re.compile(r"init engine \([^)]*\) took ([\d.]+) ?s")),
    ("graph_gib", float, re.compile(r"Graph capturing finished in [\d.]+ secs, took ([\d.]+) GiB")),
    ("world_size", int, re.compile(r"\bworld_size=(\d+) rank=\d+ ")),
    ("architecture", str, re.compile(r"Resolved architecture: (\w+)")),
)

# vLLM config/speculative.py (repr of SpeculativeConfig) and v1/spec_decode/llm_base_proposer.py.
_MTP_CONFIG = re.compile(
    r"SpeculativeConfig\(method='(?P<method>\w+)', (?:model=.*?)?num_spec_tokens=(?P<tokens>\d+)\)"
)
_MTP_DETECTED = re.compile(r"Detected MTP model\b")
# NCCL INFO lines, seen with NCCL_DEBUG=INFO: "NET/IB : Using [0]rocep1s0f0:1/RoCE", "Using network IB".
_NCCL_NETWORK = re.compile(r"NCCL INFO (?:.*\bUsing network (?P<used>\w+)|NET/(?P<net>IB|Socket) : Using )")


@dataclass(frozen=True)
class MtpWiring:
    """What the log says of multi-token prediction.

    method, num_spec_tokens: of the engine's SpeculativeConfig, empty and 0 when none was logged;
    detected: the drafter said that it shares the target model's embedding.
    """

    method: str = ""
    num_spec_tokens: int = 0
    detected: bool = False


@dataclass(frozen=True)
class EngineLog:
    """What one run of an engine has said so far.

    phase: of PHASES; done, total: progress within the phase, 0 of 0 when it counts nothing;
    detail: the line that set the phase or its count, phase_time_s: when the phase was entered,
    seconds since the epoch; distinct_lines: how many lines differ from one another
    in more than their numbers; last_line, last_time_s: the newest line; facts: figures that
    the engine printed, named with their unit; nccl_network: IB, Socket or empty.
    """

    phase: str = "none"
    done: int = 0
    total: int = 0
    detail: str = ""
    phase_time_s: float = 0.0
    lines: int = 0
    distinct_lines: int = 0
    last_line: str = ""
    last_time_s: float = 0.0
    mtp: MtpWiring = field(default_factory=MtpWiring)
    nccl_network: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def token(self) -> tuple[int, int, int, int]:
        """Changes exactly when the start has moved on; repeated heartbeats leave it alone."""
        return (PHASES.index(self.phase), self.total, self.done, self.distinct_lines)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data for a module's result."""
        return asdict(self)


def clean(text: str) -> str:
    """The text as a reader would see it: no escapes, a progress bar in its last state, no secret.

    A Hugging Face token and the value of an `api_key` that vLLM prints among its arguments are
    replaced by asterisks.
    """
    text = _ANSI.sub("", text).rstrip("\r\n")
    if "\r" in text:
        text = next((part for part in reversed(text.split("\r")) if part.strip()), "")
    text = "".join(char if char.isprintable() or char == "\t" else " " for char in text)
    return _SECRET.sub("********", text).rstrip()


def fingerprint(text: str) -> str:
    """The line without what changes from one repetition to the next: times and numbers, but for a progress bar's."""
    percent = _PERCENT.search(text)
    return _NUMBER.sub("#", _STAMP.sub("", text)).strip() + (f" {percent[1]} %" if percent else "")


def origin_address(text: str) -> str:
    """The address of the node that wrote a line which Ray forwarded to the head, or an empty string."""
    found = _RAY_PREFIX.search(text)
    return found.group("ip") if found else ""


def read_engine_log(lines: Iterable[LogLine]) -> EngineLog:
    """Reads the lines of ONE run of an engine, oldest first, into its phase, progress and figures."""
    order = 0
    done = total = count = 0
    detail = last_line = nccl_network = method = ""
    last_time_s = phase_time_s = 0.0
    spec_tokens = 0
    detected = False
    seen: set[str] = set()
    facts: dict[str, Any] = {}
    for line in lines:
        text = clean(line.text)
        if not text or line.source != "engine":
            continue
        count += 1
        seen.add(fingerprint(text))
        last_line, last_time_s = text, line.time_s
        for marker in MARKERS:
            found = marker.pattern.search(text)
            if not found:
                continue
            position = PHASES.index(marker.phase)
            if position < order:
                continue
            groups = found.groupdict()
            if position > order:
                order, done, total, detail, phase_time_s = position, 0, 0, text, line.time_s
            if groups.get("total") or groups.get("percent"):
                done, total = int(groups.get("done") or groups["percent"]), int(groups.get("total") or 100)
                detail = text
        for name, kind, pattern in _FACTS:
            if match := pattern.search(text):
                facts[name] = kind(match[1].replace(",", ""))
        if config := _MTP_CONFIG.search(text):
            method, spec_tokens = config.group("method"), int(config.group("tokens"))
        detected = detected or bool(_MTP_DETECTED.search(text))
        if network := _NCCL_NETWORK.search(text):
            nccl_network = network.group("used") or network.group("net")
    if count and not order:
        order = PHASES.index("image_start")
        detail, phase_time_s = last_line, last_time_s
    return EngineLog(
        phase=PHASES[order],
        done=done,
        total=total,
        detail=detail,
        phase_time_s=phase_time_s,
        lines=count,
        distinct_lines=len(seen),
        last_line=last_line,
        last_time_s=last_time_s,
        mtp=MtpWiring(method, spec_tokens, detected),
        nccl_network=nccl_network,
        facts=facts,
    )


def describe_progress(phase: str, done: int, total: int) -> str:
    """One phrase for a screen, such as `loading weights, 3 of 10`."""
    words = PHASE_WORDS.get(phase, phase)
    if phase == "ray_join" and total:
        return f"{words}, {done} of {total} joined"
    return f"{words}, {done} of {total}" if total else words
