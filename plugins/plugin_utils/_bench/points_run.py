# SPDX-License-Identifier: Apache-2.0
"""Measures the points of plugin_utils/_bench/points.py: prompts behind a context, run after run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import points as defined
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import prompt as prompts
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import Asked, Client, Heard
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import Progress, Say, measured_burst, warm_up
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import merge_views

#: The server reports the ids of each chunk's tokens: with speculative decoding a chunk holds several.
MORE = {"return_token_ids": True}


async def make_prompt(client: Client, point: defined.Point, seed: str) -> tuple[str, str]:
    """Return a context (empty at depth 0) and a prompt that no earlier request shares a beginning with.

    Together, with the chat template, they have exactly ``depth + pp`` tokens.
    """
    context = ""
    if point.depth:
        fitted = await client.converse(
            prompts.fit(point.depth + 1, prompts.story(f"Record {seed}", "")),
            lambda text: client.count(defined.PROBE, text),
        )
        context = fitted.text
    fitted = await client.converse(
        prompts.fit(point.depth + point.pp, prompts.story(f"Account {seed}")), lambda text: client.count(text, context)
    )
    return context, fitted.text


async def _burst(
    client: Client, title: str, pairs: Sequence[tuple[str, str]], point: defined.Point, say: Say
) -> tuple[list[Heard], dict[str, float]]:
    asked = [
        # The model's own temperature, as llama-benchy leaves it: drafts are accepted by what is sampled.
        Asked(prompt, point.tg, system=context, temperature=None, more=MORE, request_id=f"{title}-{number}")
        for number, (context, prompt) in enumerate(pairs)
    ]
    return await measured_burst(client, asked, Progress(say, title, len(asked)))


def _entry(
    measured: Sequence[tuple[list[Heard], dict[str, float]]],
    point: defined.Point,
    latency_s: float,
    *,
    expected: int,
    context: bool = False,
) -> dict[str, Any]:
    rounds = [[each.request for each in heard] for heard, _view in measured]
    return {
        **defined.figures(rounds, point, latency_s, expected=expected, context=context),
        "server": merge_views([view for _heard, view in measured]),
    }


def describe(entry: Mapping[str, Any]) -> str:
    """Return one line of what a point gave."""
    shown = [
        f"{row['test_name']}: {row['t_s']['mean']:.1f} t/s" for row in defined.rows([entry]) if row["t_s"] is not None
    ]
    shown += [f"TTFR {entry['ttfr']['mean']:.0f} ms"] if entry["ttfr"] else []
    shown += [f"{count} {kind}" for kind, count in entry["failures"].items()]
    return f"{', '.join(shown)}, {entry['concurrency']} at once"


async def run_points(client: Client, plan: defined.Plan, say: Say) -> dict[str, Any]:
    """Measure every point of a plan and return the results, in the form of llama-benchy's JSON and ours beside it."""
    await warm_up(client, say)
    latency_s = await client.latency_s(plan.latency_mode)
    say(f"latency ({plan.latency_mode}): {1000 * latency_s:.2f} ms")
    benchmarks: list[dict[str, Any]] = []
    for point in plan.points:
        name = f"pp{point.pp} tg{point.tg} @ d{point.depth} (c{point.concurrency})"
        loads, runs = list[tuple[list[Heard], dict[str, float]]](), list[tuple[list[Heard], dict[str, float]]]()
        cached = plan.prefix_caching and point.depth > 0
        # The first run of a shape is not counted: kernels are compiled and graphs captured for it.
        for number in range(plan.runs + 1):
            title = f"{name}, {f'run {number} of {plan.runs}' if number else 'warm-up'}"
            seeds = [f"{plan.seed}-{len(benchmarks)}-{number}-{n}" for n in range(point.concurrency)]
            pairs = [await make_prompt(client, point, seed) for seed in seeds]
            if cached:
                loads.append(
                    await _burst(
                        client,
                        f"{title}, context",
                        [(context, defined.PROBE) for context, _prompt in pairs],
                        point,
                        say,
                    )
                )
            runs.append(await _burst(client, title, pairs, point, say))
        if cached:
            benchmarks.append(_entry(loads[1:], point, latency_s, expected=point.depth, context=True))
            say(describe(benchmarks[-1]))
        expected = point.pp if cached else point.depth + point.pp
        benchmarks.append(_entry(runs[1:], point, latency_s, expected=expected))
        say(describe(benchmarks[-1]))
    return {
        "profile": plan.profile,
        "runs": plan.runs,
        "prefix_caching": plan.prefix_caching,
        "latency_mode": plan.latency_mode,
        "latency_ms": 1000 * latency_s,
        "request": dict(client.endpoint.extra),
        "benchmarks": benchmarks,
    }
