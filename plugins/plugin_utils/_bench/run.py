# SPDX-License-Identifier: Apache-2.0
"""The measurements themselves: the client's own share, the sweep, the needles and the replay of a trace.

Each returns plain dictionaries as they stand in the results; `say` is called with what a person who waits wants to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import prompt as prompts
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import server as bench_server
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import trace as traces
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (
    PAUSE_S,
    Asked,
    BenchError,
    Client,
    Endpoint,
    Heard,
    connect,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import (
    burst_figures,
    merge_views,
    parse_samples,
    server_view,
    summary,
)

Say = Callable[[str], None]

HEARTBEAT_S = 10.0
#: What is sent to the server without work: long enough to have gaps, short enough for 256 at once.
OVERHEAD_PROMPT = "x" * 400
OVERHEAD_TOKENS = 20
OVERHEAD_GAP_S = 0.05
OVERHEAD_LEAD_S = 0.5
WARM_UP = "Good morning."
WARM_UP_TOKENS = 8
#: How far a replayed prompt may be shorter than the trace says; each deviation is in the results.
TRACE_TOLERANCE = 0.02
CALIBRATION_WORDS = 2000
AIPERF_EXPORT = "profile_export_aiperf.json"


@dataclass(frozen=True)
class Sweep:
    """What a sweep asks for. ``distinct`` gives each request a prompt of its own; otherwise all share one."""

    concurrency: Sequence[int]
    input_tokens: int
    output_tokens: int
    rounds: int = 1
    distinct: bool = True
    slots: int | None = None
    seed: str = "0"

    @property
    def shape(self) -> dict[str, Any]:
        """What must be equal for two sweeps to be comparable."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "distinct_prompts": self.distinct,
        }


@dataclass(frozen=True)
class Replay:
    """How a trace is replayed: by its times (``speed`` times as fast), or so many requests at once."""

    path: Path
    concurrency: int
    scheduled: bool | None = None
    speed: float = 1.0
    limit: int = 0
    block_tokens: int = traces.BLOCK_TOKENS
    slots: int | None = None
    aiperf: str = "auto"
    tokenizer: str = ""


@dataclass
class Progress:
    """Counts what arrives, and says where a burst is every HEARTBEAT_S."""

    say: Say
    title: str
    requests: int
    chunks: int = 0
    ended: int = 0
    failed: int = 0
    begun_s: float = field(default_factory=time.monotonic)

    def tokens(self, chunks: int) -> None:
        """Count chunks that carry tokens."""
        self.chunks += chunks

    def end(self, heard: Heard) -> None:
        """Count a request that is over."""
        self.ended += 1
        self.failed += not heard.request.ok

    async def watch(self) -> None:
        """Say where the burst is, until cancelled."""
        before, since = 0, time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            now = time.monotonic()
            speed = (self.chunks - before) / (now - since)
            before, since = self.chunks, now
            failed = f", {self.failed} failed" if self.failed else ""
            self.say(
                f"{self.title}: {self.ended} of {self.requests} requests over{failed}, {self.chunks} chunks "
                f"({speed:.1f}/s), {now - self.begun_s:.0f} s"
            )


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    """Run a coroutine beside the body, and end it with it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- the client's own share ---------------------------------------------------------------------


@asynccontextmanager
async def zero_work_server(behaviour: bench_server.Behaviour) -> AsyncIterator[str]:
    """Run the server without work as a process of its own; yield its URL.

    Raises:
        BenchError: it did not start.
    """
    command = [sys.executable, str(Path(bench_server.__file__).resolve())]
    command += ["--ttft", str(behaviour.ttft_s), "--gap", str(behaviour.gap_s), "--slots", str(behaviour.slots)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise BenchError("The local server that measures the client has no pipes.")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        try:
            port = int(json.loads(line)["port"])
        except (ValueError, KeyError) as error:
            process.stdin.close()
            words = (await process.stderr.read()).decode(errors="replace").strip()
            raise BenchError(f"The local server that measures the client did not start: {words or line!r}") from error
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()


def _lags(heard: Sequence[Heard], handled: Mapping[str, Mapping[str, Any]], begun_s: float) -> list[float]:
    """Return how long after it was sent each token was seen: both on the machine's one clock."""
    found = []
    for each in heard:
        request = each.request
        sent = handled[str(request.number)]["sent_s"]
        if request.first_s is None or len(sent) != len(request.gaps_s) + 1:
            continue
        at_s = begun_s + request.first_s
        found.append(at_s - sent[0])
        for gap, sent_s in zip(request.gaps_s, sent[1:], strict=True):
            at_s += gap
            found.append(at_s - sent_s)
    return found


async def client_overhead(concurrency: Sequence[int], say: Say) -> list[dict[str, Any]]:
    """Measure the client against the server without work, at each concurrency.

    ``token_lag_s`` is how long after the server sent a token the client saw it, with tokens every 50 ms;
    ``ttft_share_s`` what client and connection add to a time to first token; ``chunks_per_s`` how many chunks
    the client takes when they come as fast as the server can send them.
    """
    found = []
    for count in concurrency:
        paced = bench_server.Behaviour(ttft_s=OVERHEAD_LEAD_S, gap_s=OVERHEAD_GAP_S)
        async with zero_work_server(paced) as url, connect(Endpoint(url, bench_server.MODEL, stall_s=60)) as client:
            asked = [Asked(OVERHEAD_PROMPT, OVERHEAD_TOKENS, request_id=str(number)) for number in range(count)]
            await client.burst([Asked(WARM_UP, 2, request_id="warm-up")])
            heard = await client.burst(asked)
            handled = {each["request_id"]: each for each in await client.log()}
            begun_s = client.started_s
        failed = [each.request for each in heard if not each.request.ok]
        if failed:
            raise BenchError(
                f"The client lost {len(failed)} of {count} requests to its own local server "
                f"({failed[0].failure}: {failed[0].detail}): this machine cannot measure {count} requests at once."
            )
        lags = _lags(heard, handled, begun_s)
        shares = [
            (each.request.ttft_s or 0.0)
            - (handled[str(each.request.number)]["sent_s"][0] - handled[str(each.request.number)]["received_s"])
            for each in heard
        ]
        async with (
            zero_work_server(bench_server.Behaviour()) as url,
            connect(Endpoint(url, bench_server.MODEL, stall_s=60)) as client,
        ):
            flat_out = await client.burst(
                [Asked(OVERHEAD_PROMPT, 4 * OVERHEAD_TOKENS, request_id=str(n)) for n in range(count)]
            )
        wall_s = max(each.request.ended_s for each in flat_out) - min(each.request.sent_s for each in flat_out)
        row = {
            "concurrency": count,
            "token_lag_s": summary(lags),
            "ttft_share_s": summary(shares),
            "chunks_per_s": 4 * OVERHEAD_TOKENS * count / wall_s,
        }
        found.append(row)
        say(
            f"the client at {count}: sees a token {statistics.median(lags) * 1000:.1f} ms after it was sent, adds "
            f"{statistics.median(shares) * 1000:.1f} ms to a first token, takes {row['chunks_per_s']:.0f} chunks/s"
        )
    return found


# --- the sweep ------------------------------------------------------------------------------------


async def _look(client: Client, looks: list[Mapping[str, float]]) -> None:
    while True:
        await asyncio.sleep(PAUSE_S)
        looks.append(parse_samples(await client.metrics()))


async def _measured_burst(
    client: Client, asked: Sequence[Asked], progress: Progress, at_most: int | None = None
) -> tuple[list[Heard], dict[str, float]]:
    """Run a burst with the engine's own figures before, during and after it."""
    before = parse_samples(await client.metrics())
    looks: list[Mapping[str, float]] = []
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(beside(progress.watch()))
        if before:
            await stack.enter_async_context(beside(_look(client, looks)))
        heard = await client.burst(asked, at_most=at_most, on_tokens=progress.tokens, on_end=progress.end)
    after = parse_samples(await client.metrics())
    return heard, server_view(before, after, looks)


async def make_prompts(client: Client, sweep: Sweep, say: Say) -> list[str]:
    """Return as many prompts of the exact length as the sweep needs at once."""
    wanted = sum(sweep.concurrency) * sweep.rounds if sweep.distinct else 1
    ratio, made, said_s = prompts.WORDS_PER_TOKEN_GUESS, list[str](), time.monotonic()
    for number in range(wanted):
        seed = f"Account {sweep.seed}-{number}"
        found = await client.converse(prompts.fit(sweep.input_tokens, prompts.story(seed), words_per_token=ratio))
        ratio = max(0.05, found.words / found.tokens)
        made.append(found.text)
        if time.monotonic() - said_s > HEARTBEAT_S:
            said_s = time.monotonic()
            say(f"{len(made)} of {wanted} prompts made")
    say(f"{len(made)} prompts of exactly {sweep.input_tokens} tokens made")
    return made


def _input_differs(heard: Sequence[Heard], wanted: int) -> list[str]:
    counts = sorted({each.request.input_tokens for each in heard if each.request.input_tokens not in (None, wanted)})
    if not counts:
        return []
    shown = ", ".join(str(count) for count in counts)
    return [f"the server counted {shown} input tokens where /tokenize had counted {wanted}"]


async def run_sweep(client: Client, sweep: Sweep, say: Say) -> dict[str, Any]:
    """Run every concurrency of a sweep and return its figures."""
    made = await make_prompts(client, sweep, say)
    say("warming up with one request")
    (warm,) = await client.burst([Asked(WARM_UP, WARM_UP_TOKENS, request_id="warm-up")])
    if not warm.request.ok:
        raise BenchError(
            f"The first request failed, so nothing is measured: {warm.request.failure}, {warm.request.detail}"
        )
    points = []
    for place, count in enumerate(sweep.concurrency, 1):
        rounds: list[list[Heard]] = []
        views: list[dict[str, float]] = []
        for number in range(1, sweep.rounds + 1):
            texts = [made.pop() if sweep.distinct else made[0] for _each in range(count)]
            again = f", round {number} of {sweep.rounds}" if sweep.rounds > 1 else ""
            progress = Progress(say, f"N={count} ({place} of {len(sweep.concurrency)}{again})", count)
            asked = [
                Asked(text, sweep.output_tokens, request_id=f"n{count}-{number}-{n}") for n, text in enumerate(texts)
            ]
            heard, view = await _measured_burst(client, asked, progress)
            rounds.append(heard)
            views.append(view)
        point = {
            "concurrency": count,
            **burst_figures([[each.request for each in heard] for heard in rounds], sweep.slots),
            "server": merge_views(views),
            "warnings": _input_differs([each for heard in rounds for each in heard], sweep.input_tokens),
        }
        points.append(point)
        say(describe_point(point))
    shape = {**sweep.shape, "api": "chat" if client.endpoint.chat else "completions", "request": client.endpoint.extra}
    return {"shape": shape, "rounds": sweep.rounds, "slots": sweep.slots, "points": points}


def describe_point(point: Mapping[str, Any]) -> str:
    """Return one line of what a concurrency gave."""
    parts = [
        f"N={point['concurrency']}: {point['succeeded']} of {point['requests']} answered in {point['wall_s']:.1f} s"
    ]
    if point["decode_tokens_per_s"]:
        parts.append(f"decode {point['decode_tokens_per_s']:.1f} t/s")
    if point["prefill_tokens_per_s"]:
        parts.append(f"prefill {point['prefill_tokens_per_s']:.0f} t/s")
    if point["ttft_s"]:
        parts.append(f"TTFT p50 {point['ttft_s']['p50']:.2f} s")
    if point["queued"]:
        parts.append(f"{point['queued']} waited for a slot")
    parts += [f"{count} {kind}" for kind, count in point["failures"].items()]
    return ", ".join(parts)


# --- the needle -----------------------------------------------------------------------------------


async def run_needles(
    client: Client, places: Sequence[tuple[int, float]], output_tokens: int, seed: str, say: Say
) -> list[dict[str, Any]]:
    """Hide a pass phrase at each (length, depth), ask for it, and judge the answer."""
    found = []
    ratio = prompts.WORDS_PER_TOKEN_GUESS
    for tokens, depth in places:
        name = f"Ledger {seed}-{tokens}-{depth:g}"
        code = prompts.needle_code(name)
        fitted = await client.converse(prompts.fit(tokens, prompts.haystack(name, code, depth), words_per_token=ratio))
        ratio = max(0.05, fitted.words / fitted.tokens)
        before = await client.count(prompts.before_needle(fitted.text, code))
        progress = Progress(say, f"needle at {tokens} tokens, depth {depth:g}", 1)
        asked = Asked(fitted.text, output_tokens, ignore_eos=False, request_id=f"needle-{tokens}-{depth:g}")
        (heard,), view = await _measured_burst(client, [asked], progress)
        request = heard.request
        verdict, sentence = prompts.judge_needle(code, heard.reasoning, heard.content, heard.finish)
        if not request.ok:
            verdict, sentence = "failed", f"{request.failure}: {request.detail}"
        row = {
            "asked_tokens": tokens,
            "depth": depth,
            "input_tokens": request.input_tokens or fitted.tokens,
            "measured_depth": before / fitted.tokens,
            "verdict": verdict,
            "sentence": sentence,
            "code": code,
            "content": heard.content,
            "reasoning": heard.reasoning,
            "finish_reason": heard.finish,
            "output_tokens": request.output_tokens,
            "ttft_s": request.ttft_s,
            "wall_s": request.duration_s,
            "prefill_tokens_per_s": (request.input_tokens or 0) / request.ttft_s
            if request.ok and request.ttft_s
            else None,
            "decode_tokens_per_s": (
                (request.output_tokens - 1) / request.decode_s
                if request.ok and request.output_tokens and request.decode_s
                else None
            ),
            "server": view,
        }
        found.append(row)
        say(f"needle at {tokens} tokens, depth {depth:g}: {verdict} ({sentence}), {request.duration_s:.1f} s")
    return found


# --- the trace ------------------------------------------------------------------------------------


def read_trace(path: Path, limit: int) -> list[traces.TraceRow]:
    """Return a trace's requests, the first ``limit`` lines of it when that is not 0.

    Raises:
        BenchError: the file cannot be read, or is no trace.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        return traces.parse_trace(lines[:limit] if limit else lines)
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
    about = {
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
        return {
            **about,
            "by": "aiperf",
            "figures": await _replay_with_aiperf(
                client.endpoint, replay, program, len(rows) if not scheduled else None, say
            ),
        }
    say(f"the trace is replayed by this client: {why_not}")
    return {
        **about,
        "by": "this client",
        "because": why_not,
        **await _replay_here(client, replay, rows, scheduled, say),
    }


async def _replay_here(
    client: Client, replay: Replay, rows: Sequence[traces.TraceRow], scheduled: bool, say: Say
) -> dict[str, Any]:
    asked, said_s = [], time.monotonic()
    # One ratio for the whole trace: blocks of other lengths would not be shared.
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
    heard, view = await _measured_burst(client, asked, progress, None if scheduled else replay.concurrency)
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
            raw = replay.path.read_bytes()
            text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
            lines = [line for line in text.splitlines() if line.strip()][: replay.limit]
            trace.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = traces.aiperf_command(
            program=program,
            model=endpoint.model,
            tokenizer=replay.tokenizer,
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
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with beside(_still(say, "AIPerf runs")):
            told, _nothing = await process.communicate()
        exports = sorted(artifacts.rglob(AIPERF_EXPORT))
        if process.returncode != 0 or not exports:
            tail = " ".join(told.decode(errors="replace").split()[-60:])
            raise BenchError(f"AIPerf ended with {process.returncode} and {len(exports)} exports: {tail}")
        return traces.parse_aiperf(exports[-1].read_text(encoding="utf-8"))
    except traces.TraceError as error:
        raise BenchError(str(error)) from error
    finally:
        shutil.rmtree(artifacts, ignore_errors=True)
