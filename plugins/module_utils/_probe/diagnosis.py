# SPDX-License-Identifier: Apache-2.0
"""Which known failure a log shows, and its likeliest cause. Pure: lines in, findings out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import (
    MARKERS,
    PHASES,
    LogLine,
    clean,
    origin_address,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import (
    CAUSE,
    CONSEQUENCE,
    CONTEXT,
    SIGNATURES,
    Signature,
)

UNRECOGNISED = "unrecognised"
#: Of an exception of NCCL's, its own warning says what happened, and it is printed by another part of the process.
NCCL_FAILED = "nccl_failed"
MAX_LINE_CHARS = 400
#: A cause may name more than its line shows, such as why each of ten backends was refused.
MAX_CAUSE_CHARS = 1500
#: How many lines of the same process are looked back at for `Signature.after`.
TRACEBACK_LINES = 25
#: What happened longer than this before the last line of the log did not end the engine: NCCL's own limit on a hanging
#: collective is 600 s, and what follows it takes some more.
FATAL_WITHIN_S = 900.0

_RANK_OF_KIND = {CAUSE: 0, CONTEXT: 1, CONSEQUENCE: 2}
_READY = re.compile(r"\bApplication startup complete\b")
_API_PROCESS = re.compile(r"^\(Api_?[Ss]erver\w* ", re.IGNORECASE)
#: Who wrote a line, as vLLM and Ray put it before the text; Ray's may stand before vLLM's.
_PROCESS = re.compile(r"^(?P<process>(?:\([\w:.]+(?: [\w:.]+)* pid=\d+(?:, ip=[^)]*)?\) ?)*)(?P<body>.*)$")
_LOGGER = re.compile(r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \[[^\]]*\] ?")
_TRACEBACK = "Traceback (most recent call last)"
_EXCEPTION = re.compile(r"^(?P<class>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:: (?P<words>.*)|:?)$")
_NCCL_ERROR = re.compile(r"NCCL [Ee]rror")
_NCCL_WARNING = re.compile(r"NCCL WARN (?P<words>.+)")
#: What Ray says of an exception of a task: its message is the task's own traceback, of the node with that address.
_RAY_TASK = re.compile(r"\bRayTaskError(?:\(\w+\))?: ray::.*?\bip=(?P<ip>[\da-fA-F.:]+)")
_TERMINATE = re.compile(r"^terminate called after throwing an instance of '(?P<class>[^']+)'")
_WHAT = re.compile(r"^\s*what\(\):\s+(?P<words>\S.*)$")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<number>\d+), in (?P<function>\S+)')
_VALIDATION = re.compile(r"\d+ validation errors? for \w+$")
#: Exceptions of a process that is being ended.
_AFTERMATH = frozenset(
    """
    BrokenPipeError CancelledError ConnectionAbortedError ConnectionResetError ContextTerminated EOFError GeneratorExit
    KeyboardInterrupt RayChannelError SystemExit
    """.split()
)


@dataclass(frozen=True)
class Finding:
    """One known failure found in a log.

    line: the line that shows it; count: how many lines do; time_s: of that line, seconds since the epoch; address: of
    the node concerned where the line names one, else empty; passed: whether the start went on to a later phase after
    it, so that it is not what ended it.
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
    passed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data for a module's result."""
        return asdict(self)


@dataclass(frozen=True)
class _Line:
    """A line with who wrote it; index: its place in the log; level: of vLLM's logger, or empty; body: without both.

    node: the address of the node whose traceback Ray printed here, or empty.
    """

    index: int
    text: str
    process: str
    level: str
    body: str
    source: str
    time_s: float
    node: str


class _Groups(dict[str, str]):
    """Values for a sentence's {names}; {a|b} is the first of them that the line filled."""

    def __missing__(self, names: str) -> str:
        return next((self[name] for name in names.split("|") if name in self), "not shown")


def _parsed(lines: Iterable[LogLine]) -> list[_Line]:
    parsed = []
    nodes: dict[str, str] = {}
    for index, line in enumerate(lines):
        text = clean(line.text)
        if not text:
            continue
        found = _PROCESS.match(text)
        process, body = (found.group("process").strip(), found.group("body")) if found else ("", text)
        logger = _LOGGER.match(body)
        level, body = (logger.group("level"), body[logger.end() :]) if logger else ("", body)
        task = _RAY_TASK.search(body)
        if task:
            nodes[process] = task.group("ip")
        node = nodes.get(process, "")
        if not task and body[:1] not in (" ", "\t", ""):
            nodes.pop(process, None)
        parsed.append(_Line(index, text, process, level, body, line.source, line.time_s, node))
    return parsed


def _harmless(lines: Sequence[_Line]) -> set[int]:
    """Return the indices of lines that cannot hold a cause.

    What an engine printed before it was ready did not keep it from getting ready; what its API server prints later
    concerns the requests of clients; what happened long before the end did not cause it; and a warning is none.
    """
    ready = [place for place, line in enumerate(lines) if line.source == "engine" and _READY.search(line.text)]
    end_s = max((line.time_s for line in lines if line.source in ("engine", "unit")), default=0.0)
    found = set()
    for place, line in enumerate(lines):
        engine = line.source == "engine"
        refuted = bool(ready) and engine and (place < ready[-1] or bool(_API_PROCESS.match(line.process)))
        long_ago = (bool(ready) or not engine) and 0 < line.time_s < end_s - FATAL_WITHIN_S
        if refuted or long_ago or line.level in ("DEBUG", "INFO", "WARNING"):
            found.add(line.index)
    return found


def relevant(texts: Iterable[str]) -> list[str]:
    """Return the lines of an engine's log that can hold a cause: no client error, no warning, nothing before ready."""
    parsed = _parsed(LogLine(text) for text in texts)
    harmless = _harmless(parsed)
    return [line.text for line in parsed if line.index not in harmless]


def _finding(signature: Signature, found: re.Match[str], line: _Line) -> Finding:
    groups = _Groups({name: value.rstrip(". ") for name, value in found.groupdict().items() if value})
    return Finding(
        name=signature.name,
        kind=signature.kind,
        cause=signature.cause.format_map(groups)[:MAX_CAUSE_CHARS],
        remedy=signature.remedy.format_map(groups),
        line=line.text[:MAX_LINE_CHARS].rstrip(),
        source=line.source,
        time_s=line.time_s,
        address=groups.get("node") or groups.get("node2") or line.node or origin_address(line.text),
    )


def _is_consequence(text: str) -> bool:
    return any(each.kind == CONSEQUENCE and each.pattern.search(text) for each in SIGNATURES)


@dataclass
class _Thrown:
    """The last exception of one process; phase: of the start, when it was printed."""

    line: _Line
    words: str
    phase: int


def _exceptions(lines: Sequence[_Line]) -> Iterator[tuple[str, _Line, str]]:
    """Yield (process, line, exception with its message) for each exception that ends a traceback.

    Pydantic says in the line below `1 validation error for X` what is wrong; a message that ends with a colon goes on
    in the line below, too. C++ prints no traceback, and Ray puts that of a task into the message of its own exception.
    """
    inside: set[str] = set()
    terminated: dict[str, str] = {}
    frames: dict[str, list[str]] = {}
    pending: dict[str, tuple[_Line, str]] = {}
    for line in lines:
        if line.process in pending and _TRACEBACK in line.body:
            del pending[line.process]  # its message is the traceback of another process
        if line.process in pending:
            _first, words = pending.pop(line.process)
            more = line.body.strip()
            yield line.process, line, more if _VALIDATION.search(words) else f"{words} {more}"
            continue
        if _TRACEBACK in line.body or _RAY_TASK.search(line.body):
            inside.add(line.process)
            continue
        if thrown := _TERMINATE.match(line.body):
            terminated[line.process] = thrown["class"]
            continue
        if (said := _WHAT.match(line.body)) and line.process in terminated:
            yield line.process, line, f"{terminated.pop(line.process)}: {said['words']}"
            continue
        if line.process not in inside or line.body[:1] in (" ", "\t", "|", "+", ""):
            frame = _FRAME.match(line.body)
            if frame:
                frames[line.process] = [f"{frame['function']} ({frame['file'].rsplit('/', 1)[-1]}:{frame['number']})"]
            elif line.process in frames and line.body.strip(" ~^|+\t"):
                frames[line.process].append(line.body.strip())
            continue
        inside.discard(line.process)
        found = _EXCEPTION.match(line.body)
        if not found:
            continue
        if not found["words"] and line.body[-1:] != ":" and line.process in frames:
            # An assertion without a message says nothing; the line that failed does.
            yield line.process, line, f"{line.body} in {': '.join(frames[line.process][:2])}"
        elif _VALIDATION.search(line.body) or line.body.endswith(":"):
            pending[line.process] = (line, line.body)
        else:
            yield line.process, line, line.body
    for process, (line, words) in pending.items():
        yield process, line, words


def _unrecognised(lines: Sequence[_Line], harmless: set[int]) -> Finding | None:
    """Return the exception that ended the engine, for a death that no signature explains.

    Of each process the last exception counts, and of the processes the one that ended first: the others' end followed.
    An exception that only reports another's end, one of a process that is being ended, and one after which the start
    went on to a later phase count only where there is no other.
    """
    phases = _phases(lines)
    last: dict[str, _Thrown] = {}
    aftermath: list[_Thrown] = []
    for process, line, words in _exceptions([line for line in lines if line.index not in harmless]):
        if _is_consequence(line.text) or _is_consequence(words):
            continue
        thrown = _Thrown(line, words, phases[line.index])
        if words.split(":", 1)[0].rsplit(".", 1)[-1] in _AFTERMATH:
            aftermath.append(thrown)
        else:
            last[process] = thrown
    final = max(phases.values(), default=0)
    fatal = [each for each in last.values() if each.phase == final]
    candidates = sorted(fatal or last.values(), key=lambda each: each.line.index) or aftermath
    if not candidates:
        return None
    thrown = candidates[0] if fatal or not last else candidates[-1]
    if _NCCL_ERROR.search(thrown.words) and (warned := _nccl_warning(lines, harmless)):
        return warned
    return Finding(
        name=UNRECOGNISED,
        kind=CAUSE,
        cause=f"The engine ended with {thrown.words[:MAX_LINE_CHARS].rstrip('. ')}.",
        remedy="This failure is not in the table of known ones; read the lines before it in the full log.",
        line=thrown.line.text[:MAX_LINE_CHARS].rstrip(),
        source=thrown.line.source,
        time_s=thrown.line.time_s,
        address=thrown.line.node or origin_address(thrown.line.text),
    )


def _nccl_warning(lines: Sequence[_Line], harmless: set[int]) -> Finding | None:
    """Return NCCL's first warning, or what torch calls its last error, that does not only report another's end."""
    last_error = ""
    for line in lines:
        found = _NCCL_WARNING.search(line.text)
        words = found["words"] if found else line.body if last_error == line.process != "" else ""
        last_error = line.process if line.body.strip() == "Last error:" else ""
        if words and line.index not in harmless and not _is_consequence(line.text):
            return Finding(
                name=NCCL_FAILED,
                kind=CAUSE,
                cause=f"NCCL failed: {words[:MAX_LINE_CHARS].rstrip('. ')}.",
                remedy="Compare the nodes' fabric (`playbooks/doctor.yml`); NCCL_DEBUG=INFO in model_spec.env shows "
                "more.",
                line=line.text[:MAX_LINE_CHARS].rstrip(),
                source=line.source,
                time_s=line.time_s,
            )
    return None


def _phases(lines: Sequence[_Line]) -> dict[int, int]:
    """Return by index how far the start was when a line was printed."""
    reached, found = 0, {}
    for line in lines:
        for marker in MARKERS:
            position = PHASES.index(marker.phase)
            if position > reached and marker.pattern.search(line.text):
                reached = position
        found[line.index] = reached
    return found


@dataclass
class _Hit:
    """A finding, the place of its signature in the table, the number of filled groups, and how often it was seen.

    passed: whether the start went on to a later phase after it.
    """

    finding: Finding
    index: int
    place: int
    filled: int
    passed: bool
    count: int = 1


def _fuller(hit: _Hit, other: _Hit, signature: Signature) -> _Hit:
    """Return the better of two hits of one signature, with both counts; the first unless the later one says more."""
    better = other if signature.newest or other.filled > hit.filled else hit
    count = hit.count + other.count
    return _Hit(better.finding, hit.index, hit.place, better.filled, hit.passed and other.passed, count)


def diagnose(lines: Iterable[LogLine]) -> list[Finding]:
    """Return every known failure in the lines, the likeliest cause first.

    Lines are given oldest first, of one run of the engine plus the kernel's and earlyoom's of the same time. Causes
    are ordered by rank and then by time: of two of one rank the first usually caused the other; one after which the
    start went on to a later phase comes after all others. When the lines show no
    known cause, the exception that ended the engine stands in.
    """
    parsed = _parsed(lines)
    harmless = _harmless(parsed)
    phases = _phases(parsed)
    final = max(phases.values(), default=0)
    hits: dict[tuple[str, str], _Hit] = {}
    before: dict[str, list[str]] = {}
    for line in parsed:
        earlier = before.setdefault(line.process, [])
        claimed = line.index in harmless
        for place, signature in enumerate(SIGNATURES):
            if line.source not in signature.sources or (claimed and signature.kind == CAUSE):
                continue
            match = signature.pattern.search(line.text)
            if not match or (signature.after and not any(map(signature.after.search, earlier))):
                continue
            claimed = claimed or signature.kind == CAUSE
            filled = sum(map(bool, match.groupdict().values()))
            passed = signature.kind == CAUSE and line.source == "engine" and phases[line.index] < final
            hit = _Hit(_finding(signature, match, line), line.index, place, filled, passed)
            key = (signature.name, hit.finding.address)
            bare = (signature.name, "")
            if key not in hits and bare in hits and key != bare:
                hits[key] = _fuller(hits.pop(bare), hit, signature)
            else:
                hits[key] = _fuller(hits[key], hit, signature) if key in hits else hit
        earlier.append(line.body)
        del earlier[:-TRACEBACK_LINES]
    found = sorted(
        hits.values(),
        key=lambda hit: (
            _RANK_OF_KIND[hit.finding.kind],
            hit.passed,
            SIGNATURES[hit.place].rank,
            hit.index,
            hit.place,
        ),
    )
    names = {hit.finding.name for hit in found}
    findings = [
        replace(hit.finding, count=hit.count, passed=hit.passed)
        for hit in found
        if names.isdisjoint(SIGNATURES[hit.place].unless)
    ]
    if not any(finding.kind == CAUSE for finding in findings):
        stand_in = _unrecognised([line for line in parsed if line.source == "engine"], harmless)
        findings = [stand_in, *findings] if stand_in else findings
    return findings
