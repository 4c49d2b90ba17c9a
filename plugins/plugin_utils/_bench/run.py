# SPDX-License-Identifier: Apache-2.0
"""The measurements themselves: the sweep, the needles and the quality gates.

Each returns plain dictionaries as they stand in the results; `say` is called with what a person who waits wants to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import parse_samples
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import gates
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import prompt as prompts
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (
    PAUSE_S,
    Asked,
    BenchError,
    Client,
    Heard,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import (
    burst_figures,
    merge_views,
    rate,
    server_view,
)

Say = Callable[[str], None]

HEARTBEAT_S = 10.0
WARM_UP = "Good morning."
WARM_UP_TOKENS = 8
#: Questions of a gate that are under way together.
GATE_AT_ONCE = 4


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


async def _look(client: Client, looks: list[Mapping[str, float]]) -> None:
    while True:
        await asyncio.sleep(PAUSE_S)
        looks.append(parse_samples(await client.metrics()))


async def measured_burst(
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
    counts = sorted({each.request.input_tokens or wanted for each in heard} - {wanted})
    shown = ", ".join(map(str, counts))
    return [f"the server counted {shown} input tokens where /tokenize had counted {wanted}"] if counts else []


async def warm_up(client: Client, say: Say) -> None:
    """Send one short request.

    :raises BenchError: it fails.
    """
    say("warming up with one request")
    (warm,) = await client.burst([Asked(WARM_UP, WARM_UP_TOKENS, request_id="warm-up")])
    if not warm.request.ok:
        raise BenchError(
            f"The first request failed, so nothing is measured: {warm.request.failure}, {warm.request.detail}"
        )


async def run_sweep(client: Client, sweep: Sweep, say: Say) -> dict[str, Any]:
    """Run every concurrency of a sweep and return its figures."""
    made = await make_prompts(client, sweep, say)
    await warm_up(client, say)
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
            heard, view = await measured_burst(client, asked, progress)
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
    if point.get("embeddings_per_s"):
        parts.append(f"{point['embeddings_per_s']:.1f} texts/s, {point['input_tokens_per_s']:.0f} t/s")
    elif point["decode_tokens_per_s"]:
        parts.append(f"decode {point['decode_tokens_per_s']:.1f} t/s")
    if point["prefill_tokens_per_s"]:
        parts.append(f"prefill {point['prefill_tokens_per_s']:.0f} t/s")
    if point["ttft_s"]:
        parts.append(f"TTFT p50 {point['ttft_s']['p50']:.2f} s")
    if point["queued"]:
        parts.append(f"{point['queued']} waited for a slot")
    parts += [f"{count} {kind}" for kind, count in point["failures"].items()]
    return ", ".join(parts)


async def run_needles(
    client: Client,
    places: Sequence[tuple[int, float]],
    output_tokens: int,
    seed: str,
    say: Say,
    setting: str = "bench_needle_output_tokens",
) -> list[dict[str, Any]]:
    """Hide a pass phrase at each (length, depth), ask for it, and judge the answer.

    :param setting: the variable that ``output_tokens`` is from, for the message on an answer that was cut.
    """
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
        (heard,), view = await measured_burst(client, [asked], progress)
        request = heard.request
        verdict, sentence = prompts.judge_needle(code, heard.reasoning, heard.content, heard.finish, setting)
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
            "prefill_tokens_per_s": rate(request.input_tokens, request.ttft_s) if request.ok else None,
            "decode_tokens_per_s": rate(request.generated, request.decode_s) if request.ok else None,
            "server": view,
        }
        found.append(row)
        say(f"needle at {tokens} tokens, depth {depth:g}: {verdict} ({sentence}), {request.duration_s:.1f} s")
    return found


async def run_gates(
    client: Client, wanted: Sequence[str], serve: Mapping[str, Any], how: Mapping[str, Any], say: Say
) -> list[dict[str, Any]]:
    """Run the quality gates and return their results.

    :param how: ``limit`` (the served context length, or None), ``needle_tokens``, ``needle_depths``,
        ``output_tokens``, ``answers_share``, ``at_once`` (0: four) and ``seed``.
    """
    room = gates.room(how["limit"], how["needle_tokens"], how["output_tokens"])
    found = []
    for gate in wanted:
        reason = gates.not_for(gate, serve, chat=client.endpoint.chat)
        if reason:
            result = gates.verdict(gate, gates.SKIPPED, reason)
        elif gate == "needle":
            places = [(room.needle_tokens, depth) for depth in how["needle_depths"]]
            needles = await run_needles(client, places, room.output_tokens, how["seed"], say, gates.OUTPUT_SETTING)
            result = gates.judge_needles(needles)
        else:
            asked = gates.requests(gate, room.output_tokens)
            progress = Progress(say, f"gate {gate}", len(asked))
            heard, _view = await measured_burst(client, asked, progress, at_most=how["at_once"] or GATE_AT_ONCE)
            if gate == "answers":
                result = gates.judge_answers(heard, how["answers_share"])
            else:
                result = (gates.judge_tool_call if gate == "tool_call" else gates.judge_reasoning)(heard[0])
        found.append(result)
        say(f"gate {gate}: {result['status']}, {result['sentence']}")
    return found
