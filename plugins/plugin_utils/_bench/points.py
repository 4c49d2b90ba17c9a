# SPDX-License-Identifier: Apache-2.0
"""The points of llama-benchy (pp, tg, at a depth, so many at once) and their figures by its definitions; pure.

Definitions, names and defaults are those of llama-benchy 0.4.0 (https://github.com/eugr/llama-benchy); the second
profile is Spark Arena's `benchmarking/spark-arena-v2.yaml` (https://github.com/spark-arena/recipe-registry).
docs/roles/bench.md has every figure in words.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.intervals import interval
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request

#: Usage is taken for the prompt's tokens where it differs from what was asked by less than this share.
USAGE_SHARE = 0.2
PEAK_WINDOW_S = 1.0
#: What stands in for the prompt while a context is loaded into the prefix cache.
PROBE = "."

#: Lists of each profile: prompt tokens, generated tokens, tokens of context before the prompt, requests at once.
PROFILES: dict[str, dict[str, tuple[int, ...]]] = {
    "llama-benchy": {"pp": (2048,), "tg": (128,), "depth": (0, 4096, 8192, 16384, 32768), "concurrency": (1,)},
    "spark-arena": {
        "pp": (2048,),
        "tg": (128,),
        "depth": (0, 4096, 8192, 16384, 32768, 65535, 100000),
        "concurrency": (1, 2, 5, 10),
    },
}


@dataclass(frozen=True)
class Point:
    """One measured combination; all but ``concurrency`` are tokens."""

    depth: int
    pp: int
    tg: int
    concurrency: int

    @property
    def total(self) -> int:
        """Tokens of context that one request takes."""
        return self.depth + self.pp + self.tg


@dataclass(frozen=True)
class Plan:
    """What is measured: each point ``runs`` times after one run that is not counted."""

    points: Sequence[Point]
    profile: str
    runs: int = 3
    prefix_caching: bool = False
    latency_mode: str = "api"
    seed: str = "0"


def grid(profile: str, asked: Mapping[str, Sequence[int]]) -> list[Point]:
    """Return the points of a profile in llama-benchy's order; a list of ``asked`` that is not empty replaces its."""
    lists = {key: asked.get(key) or values for key, values in PROFILES[profile].items()}
    return [
        Point(depth, pp, tg, count)
        for depth, pp, tg, count in itertools.product(lists["depth"], lists["pp"], lists["tg"], lists["concurrency"])
    ]


def within(points: Sequence[Point], limit: int | None) -> tuple[list[Point], str]:
    """Return the points that the served context length has room for, and a sentence on those left out."""
    kept = [point for point in points if not limit or point.total <= limit]
    out = sorted({point.depth for point in points if point not in kept})
    if not out:
        return kept, ""
    depths = ", ".join(str(depth) for depth in out)
    return kept, f"Left out, because the model serves {limit} tokens (max_model_len): the points at depth {depths}."


def chunk_times(request: Request) -> list[float]:
    """Return when each chunk with text arrived, in seconds after the start of the burst."""
    return [] if request.first_s is None else list(itertools.accumulate(request.gaps_s, initial=request.first_s))


def token_times(request: Request) -> list[float]:
    """Return when each token arrived.

    Where the chunks name their token ids, those of one chunk are spread over the time since the chunk before it;
    otherwise the tokens of the usage are spread evenly from the first chunk to the last.
    """
    times = chunk_times(request)
    if not times:
        return []
    if len(request.chunk_tokens) == len(times) and any(request.chunk_tokens):
        found: list[float] = []
        before = times[0]
        for at, count in zip(times, request.chunk_tokens, strict=True):
            found += [before + (at - before) * number / count for number in range(1, count + 1)]
            before = at if count else before
        return found
    count, span = request.output_tokens or len(times), times[-1] - times[0]
    return [times[0] + span * number / max(1, count - 1) for number in range(count)]


def peak(times: Sequence[float]) -> float:
    """Return the most tokens of any second; of less than a second, all of them by the time that they took."""
    ordered = sorted(times)
    span = ordered[-1] - ordered[0]
    if 0 < span < PEAK_WINDOW_S:
        return len(ordered) / span
    most = begin = 0
    for end, at in enumerate(ordered):
        while begin < end and ordered[begin] <= at - PEAK_WINDOW_S:
            begin += 1
        most = max(most, end - begin + 1)
    return most / PEAK_WINDOW_S


def after_first(times: Sequence[float]) -> int:
    """Return how many tokens came later than the first one: those of its own chunk have no time of their own."""
    return sum(at > times[0] for at in times)


def prompt_tokens(request: Request, expected: int) -> int:
    """Return the tokens of a prompt: the usage, or what was asked for where the two differ widely."""
    usage = request.input_tokens or 0
    return usage if usage and abs(usage - expected) < USAGE_SHARE * expected else expected


def _append(found: dict[str, list[float]], name: str, amount: float, seconds: float) -> None:
    if amount > 0 and seconds > 0:
        found.setdefault(name, []).append(amount / seconds)


def _one(found: dict[str, list[float]], request: Request, expected: int, latency_s: float) -> None:
    """Add the figures of one request."""
    response_s = request.response_s if request.response_s is not None else request.first_s
    if response_s is None or request.first_s is None:
        return
    ttfr_s = response_s - request.sent_s
    est_ppt_s = max(0.0, ttfr_s - latency_s)
    found.setdefault("ttfr", []).append(1000 * ttfr_s)
    found.setdefault("est_ppt", []).append(1000 * est_ppt_s)
    found.setdefault("e2e_ttft", []).append(1000 * (request.first_s - request.sent_s))
    _append(found, "pp_req_throughput", prompt_tokens(request, expected), est_ppt_s)
    times = token_times(request)
    _append(found, "tg_req_throughput", after_first(times), times[-1] - times[0])
    found.setdefault("peak_req_throughput", []).append(peak(times))


def _run(found: dict[str, list[float]], good: Sequence[Request], expected: int) -> None:
    """Add the figures of all requests of one run together."""
    firsts = [request.first_s for request in good if request.first_s is not None]
    if not firsts:
        return
    times = [token_times(request) for request in good if request.first_s is not None]
    asked = sum(prompt_tokens(request, expected) for request in good)
    _append(found, "pp_throughput", asked, max(firsts) - min(request.sent_s for request in good))
    last = max(each[-1] for each in times)
    _append(found, "tg_throughput", sum(after_first(each) for each in times), last - min(firsts))
    found.setdefault("peak_throughput", []).append(peak([at for each in times for at in each]))


def metric(values: Sequence[float]) -> dict[str, Any] | None:
    """Return mean, standard deviation (of the population, as llama-benchy has it) and the values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return {"mean": mean, "std": deviation, "values": list(values)}


METRICS = (
    "pp_throughput", "pp_req_throughput", "tg_throughput", "tg_req_throughput", "peak_throughput",
    "peak_req_throughput", "ttfr", "est_ppt", "e2e_ttft",
)  # fmt: skip


def figures(
    rounds: Sequence[Sequence[Request]], point: Point, latency_s: float, *, expected: int, context: bool = False
) -> dict[str, Any]:
    """Return an entry of llama-benchy's `benchmarks`, rates in tokens/s and times in ms, with what we add to it.

    Ours are ``failures`` by kind (a failed request adds no figure), ``requests``, and ``by_run`` with one value a run.

    :param expected: tokens of a prompt that are prefilled.
    :param context: whether this is the load of the context into the prefix cache.
    """
    found: dict[str, list[float]] = {}
    ttfr_by_run, failures = list[float](), Counter[str]()
    for requests in rounds:
        good = [request for request in requests if request.ok]
        failures.update(request.failure for request in requests if request.failure)
        before = len(found.get("ttfr", []))
        for request in good:
            _one(found, request, expected, latency_s)
        own = found.get("ttfr", [])[before:]
        ttfr_by_run += [math.fsum(own) / len(own)] if own else []
        _run(found, good, expected)
    if point.concurrency == 1:
        # With one request at once, its own figures are those of the run.
        found.update({f"{kind}_throughput": found.get(f"{kind}_req_throughput", []) for kind in ("pp", "tg")})
    return {
        "concurrency": point.concurrency,
        "context_size": point.depth,
        "prompt_size": point.pp,
        "response_size": point.tg,
        "is_context_prefill_phase": context,
        **{name: metric(found.get(name, [])) for name in METRICS},
        "requests": sum(len(requests) for requests in rounds),
        "failures": dict(sorted(failures.items())),
        "by_run": {"ttfr": ttfr_by_run},
    }


def rows(benchmarks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of llama-benchy's table: a test's name, the metrics beside it, and the entry it is of."""
    at_once = max((int(entry["concurrency"]) for entry in benchmarks), default=1)
    found = []
    for entry in benchmarks:
        depth, many = entry["context_size"], f" (c{entry['concurrency']})" if at_once > 1 else ""
        if entry["is_context_prefill_phase"]:
            names = {"pp": f"ctx_pp @ d{depth}{many}", "tg": f"ctx_tg @ d{depth}{many}"}
        else:
            tail = f"{f' @ d{depth}' if depth else ''}{many}"
            names = {"pp": f"pp{entry['prompt_size']}{tail}", "tg": f"tg{entry['response_size']}{tail}"}
        if entry["pp_throughput"]:
            line = {"t_s": entry["pp_throughput"], "t_s_req": entry["pp_req_throughput"]}
            times = {name: entry[name] for name in ("ttfr", "est_ppt", "e2e_ttft")}
            found.append(
                {"entry": entry, "test_name": names["pp"], **line, "peak_ts": None, "peak_ts_req": None, **times}
            )
        if entry["tg_throughput"] or entry["peak_throughput"]:
            line = {"t_s": entry["tg_throughput"], "t_s_req": entry["tg_req_throughput"]}
            peaks = {"peak_ts": entry["peak_throughput"], "peak_ts_req": entry["peak_req_throughput"]}
            times = dict.fromkeys(("ttfr", "est_ppt", "e2e_ttft"))
            found.append({"entry": entry, "test_name": names["tg"], **line, **peaks, **times})
    return found


def report_rows(benchmarks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of our own table: rates and TTFR as means over runs with their 95 % intervals."""
    return [
        {
            "test": row["test_name"],
            "rate": interval(row["t_s"]["values"]) if row["t_s"] else None,
            "rate_of_one": row["t_s_req"]["mean"] if row["t_s_req"] else None,
            "peak": row["peak_ts"]["mean"] if row["peak_ts"] else None,
            "ttfr_ms": interval(row["entry"]["by_run"]["ttfr"]) if row["ttfr"] else None,
            "failures": row["entry"]["failures"],
            "requests": row["entry"]["requests"],
            "cached": (row["entry"].get("server") or {}).get("prefix_cache_hit_share"),
        }
        for row in rows(benchmarks)
    ]
