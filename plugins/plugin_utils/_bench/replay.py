# SPDX-License-Identifier: Apache-2.0
"""The replay of a trace, with AIPerf where it is installed, else with this client."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import prompt as prompts
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import trace as traces
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import Asked, BenchError, Client, Endpoint
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import (
    HEARTBEAT_S,
    Progress,
    Say,
    beside,
    measured_burst,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import burst_figures, summary
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.tokens import REPOSITORY, hub_cache

#: How far a replayed prompt may be shorter than the trace says; each deviation is in the results.
TRACE_TOLERANCE = 0.02
CALIBRATION_WORDS = 2000
AIPERF_EXPORT = "profile_export_aiperf.json"


@dataclass(frozen=True)
class Replay:
    """How a trace is replayed: by its times (``speed`` times as fast), or by a number of concurrent requests."""

    path: Path
    concurrency: int
    scheduled: bool | None = None
    speed: float = 1.0
    limit: int = 0
    block_tokens: int = traces.BLOCK_TOKENS
    slots: int | None = None
    aiperf: str = "auto"
    tokenizer: str = ""


def _lines(path: Path, limit: int) -> list[str]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[:limit] if limit else lines


def read_trace(path: Path, limit: int) -> list[traces.TraceRow]:
    """Return a trace's requests, the first ``limit`` lines of it when that is not 0.

    Raises:
        BenchError: the file cannot be read, or is no trace.
    """
    try:
        return traces.parse_trace(_lines(path, limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BenchError(f"The trace {path} cannot be read: {error}") from error
    except traces.TraceError as error:
        raise BenchError(f"{path}: {error}") from error


async def run_replay(client: Client, replay: Replay, say: Say) -> dict[str, Any]:
    """Replay a trace with AIPerf where that is installed and may be used, else with this client."""
    rows = read_trace(replay.path, replay.limit)
    timed = rows[0].at_s is not None
    scheduled = timed if replay.scheduled is None else replay.scheduled
    if scheduled and not timed:
        raise BenchError(f"{replay.path} has no timestamps: it cannot be replayed by its schedule.")
    about: dict[str, Any] = {
        "trace": replay.path.name,
        "requests": len(rows),
        "scheduled": scheduled,
        "concurrency": None if scheduled else replay.concurrency,
        "speed": replay.speed if scheduled else None,
        "shared_prefix_share": traces.shared_share(rows),
    }
    program = shutil.which("aiperf")
    why_not = ""
    if replay.aiperf == "never":
        why_not = "bench_aiperf is never"
    elif program is None:
        why_not = "AIPerf is not installed on the control node"
    elif client.endpoint.api_key:
        why_not = "AIPerf takes an API key on its command line alone, where every user of this machine could read it"
    elif not replay.tokenizer:
        why_not = "AIPerf needs the model's tokenizer on the control node (bench_tokenizer)"
    elif scheduled and replay.speed != 1:
        why_not = "AIPerf replays a schedule at its own speed"
    if replay.aiperf == "require" and why_not:
        raise BenchError(f"bench_aiperf is require, but {why_not}.")
    if not why_not and program is not None:
        requests = len(rows) if not scheduled else None
        figures = await _replay_with_aiperf(client.endpoint, replay, program, requests, say)
        return {**about, "by": "aiperf", "figures": figures}
    say(f"the trace is replayed by this client: {why_not}")
    about.update(by="this client", because=why_not)
    return about | await _replay_here(client, replay, rows, scheduled, say)


async def _replay_here(
    client: Client, replay: Replay, rows: Sequence[traces.TraceRow], scheduled: bool, say: Say
) -> dict[str, Any]:
    asked, said_s = [], time.monotonic()
    # One ratio for all of the trace: blocks of other lengths would not be shared.
    ratio = CALIBRATION_WORDS / await client.count(" ".join(prompts.filler("calibration", CALIBRATION_WORDS)))
    for number, row in enumerate(rows):
        build = traces.trace_prompt(row, number, ratio, replay.block_tokens)
        tolerance = int(row.input_tokens * TRACE_TOLERANCE)
        try:
            fitted = await client.converse(
                prompts.fit(row.input_tokens, build, words_per_token=ratio, tolerance=tolerance)
            )
        except prompts.PromptError as error:
            raise BenchError(f"Request {number + 1} of {replay.path}: {error}") from error
        at_s = (row.at_s or 0.0) / replay.speed if scheduled else 0.0
        asked.append(Asked(fitted.text, row.output_tokens, at_s=at_s, request_id=f"trace-{number}"))
        if time.monotonic() - said_s > HEARTBEAT_S:
            said_s = time.monotonic()
            say(f"{len(asked)} of {len(rows)} prompts of the trace made")
    progress = Progress(say, f"trace of {len(rows)} requests", len(rows))
    heard, view = await measured_burst(client, asked, progress, None if scheduled else replay.concurrency)
    requests = [each.request for each in heard]
    figures = burst_figures([requests], replay.slots)
    deviations = [
        abs(request.input_tokens - row.input_tokens) / row.input_tokens
        for request, row in zip(requests, rows, strict=True)
        if request.input_tokens
    ]
    say(f"trace: {figures['succeeded']} of {figures['requests']} answered in {figures['wall_s']:.1f} s")
    return {"figures": figures, "server": view, "input_deviation": summary(deviations)}


async def _still(say: Say, what: str) -> None:
    begun_s = time.monotonic()
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        say(f"{what}, {time.monotonic() - begun_s:.0f} s")


async def _replay_with_aiperf(
    endpoint: Endpoint, replay: Replay, program: str, requests: int | None, say: Say
) -> dict[str, Any]:
    artifacts = Path(tempfile.mkdtemp(prefix="gb10-aiperf-"))
    trace = replay.path
    try:
        if replay.limit:
            trace = artifacts / "trace.jsonl"
            trace.write_text("\n".join(_lines(replay.path, replay.limit)) + "\n", encoding="utf-8")
        environment, tokenizer = dict(os.environ), replay.tokenizer
        if Path(tokenizer or "/nonexistent").is_dir():
            environment |= hub_cache(Path(tokenizer), artifacts / "hub-cache")
            tokenizer = REPOSITORY
        command = traces.aiperf_command(
            program=program,
            model=endpoint.model,
            tokenizer=tokenizer,
            trace=str(trace),
            url=endpoint.url,
            artifacts=str(artifacts),
            concurrency=replay.concurrency,
            requests=requests or 0,
            block_tokens=replay.block_tokens,
            scheduled=requests is None,
        )
        say("the trace is replayed by AIPerf")
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with beside(_still(say, "AIPerf runs")):
            output, _nothing = await process.communicate()
        exports = sorted(artifacts.rglob(AIPERF_EXPORT))
        if process.returncode != 0 or not exports:
            tail = " ".join(output.decode(errors="replace").split()[-60:])
            raise BenchError(f"AIPerf ended with {process.returncode} and {len(exports)} exports: {tail}")
        return traces.parse_aiperf(exports[-1].read_text(encoding="utf-8"))
    except traces.TraceError as error:
        raise BenchError(str(error)) from error
    finally:
        shutil.rmtree(artifacts, ignore_errors=True)
