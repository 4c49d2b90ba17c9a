# SPDX-License-Identifier: Apache-2.0
"""The sweep of a pooling model: texts a second, read as embeddings or scored, instead of generated tokens.

Each request brings one text of an exact length; for a reranking model it is the document beside a short query.  A point
keeps its number of requests under way until all of them are answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe import pooling
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError, Client
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import Say, Sweep, describe_point, make_prompts
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request, burst_figures

#: So many requests for each one that is under way at once, and at least so many in all.
REQUESTS_EACH, REQUESTS_LEAST = 4, 16
QUERY = "What does the account say?"


def body_for(path: str, model: str, text: str) -> dict[str, Any]:
    """Return a request with one text for one of the paths of `_probe.pooling`."""
    if path == "/v1/rerank":
        return {"model": model, "query": QUERY, "documents": [text]}
    return {"model": model, "input": [text]}


async def choose_path(client: Client) -> str:
    """Return the path that this model answers in the right shape.

    :raises BenchError: it answers none, or one in another shape.
    """
    for question in pooling.questions(client.endpoint.model):
        status, text, words = await client.post(question.path, question.payload)
        if pooling.not_offered(status, text):
            continue
        if status != 200:
            raise BenchError(f"{client.endpoint.url}{question.path} answered {status}: {words or text[:300]}")
        try:
            pooling.read_answer(question, text)
        except pooling.ShapeError as problem:
            raise BenchError(f"{client.endpoint.url}{question.path}: {problem}") from problem
        return question.path
    raise BenchError(f"{client.endpoint.url} offers neither embeddings nor scores nor classes.")


async def _one(client: Client, path: str, number: int, text: str, started_s: float) -> Request:
    sent_s = time.monotonic() - started_s
    status, answer, words = await client.post(path, body_for(path, client.endpoint.model, text))
    ended_s = time.monotonic() - started_s
    if status == 200 and (tokens := pooling.prompt_tokens(answer)):
        return Request(number, sent_s, ended_s, first_s=ended_s, input_tokens=tokens, output_tokens=0)
    kind = "http" if status else "unreachable"
    return Request(number, sent_s, ended_s, failure=kind, detail=f"{status}: {words or answer[:200]}")


async def _burst(client: Client, path: str, texts: Sequence[str], at_once: int) -> list[Request]:
    """Send all texts, with so many under way at once."""
    gate, started_s = asyncio.Semaphore(at_once), time.monotonic()

    async def one(number: int, text: str) -> Request:
        async with gate:
            return await _one(client, path, number, text, started_s)

    return list(await asyncio.gather(*(one(number, text) for number, text in enumerate(texts))))


def point_of(concurrency: int, rounds: Sequence[Sequence[Request]]) -> dict[str, Any]:
    """Return the figures of one concurrency: those of every burst, and the two of a pooling model."""
    figures = burst_figures(rounds, None)
    per_s = {
        name: figures[count] / figures["wall_s"] if figures["wall_s"] else None
        for name, count in (("embeddings_per_s", "succeeded"), ("input_tokens_per_s", "input_tokens"))
    }
    return {"concurrency": concurrency, **figures, **per_s, "server": {}, "warnings": []}


async def run_pooling(client: Client, sweep: Sweep, say: Say) -> dict[str, Any]:
    """Run every concurrency of a sweep of a pooling model and return its figures."""
    path = await choose_path(client)
    sizes = [max(REQUESTS_LEAST, REQUESTS_EACH * count) for count in sweep.concurrency]
    wanted = replace(sweep, concurrency=[sum(sizes)], distinct=True)
    made = await make_prompts(client, wanted, say)
    say(f"{path}: warming up with one request")
    warm = await _one(client, path, 0, made[0], time.monotonic())
    if not warm.ok:
        raise BenchError(f"The first request failed, so nothing is measured: {warm.failure}, {warm.detail}")
    points = []
    for count, size in zip(sweep.concurrency, sizes, strict=True):
        rounds = [
            await _burst(client, path, [made.pop() for _each in range(size)], count) for _round in range(sweep.rounds)
        ]
        points.append(point_of(count, rounds))
        say(describe_point(points[-1]))
    shape: Mapping[str, Any] = {**wanted.shape, "output_tokens": 0, "api": path, "request": {}}
    return {"shape": dict(shape), "rounds": sweep.rounds, "slots": None, "points": points}
