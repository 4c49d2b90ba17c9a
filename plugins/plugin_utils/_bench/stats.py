# SPDX-License-Identifier: Apache-2.0
"""What a burst of requests shows: times, rates, and waiting for a slot separated from prefill; pure.

All times are seconds after the start of the burst. docs/roles/bench.md defines every figure in words.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds by which a first token may precede the end of the request that it waited for: networks are not exact.
SLOT_SLACK_S = 0.05


@dataclass(frozen=True)
class Request:
    """What one request did. ``failure`` names its kind, and is empty when the answer is complete.

    ``first_s`` is the arrival of the first token, ``ended_s`` that of the last one (or of the failure),
    ``gaps_s`` the times between chunks that carry tokens, ``response_s`` the arrival of the first chunk of any kind.
    ``chunk_tokens`` is the number of token ids of each chunk, empty unless every chunk named them.
    """

    number: int
    sent_s: float
    ended_s: float
    first_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    gaps_s: tuple[float, ...] = ()
    failure: str = ""
    detail: str = ""
    notes: tuple[str, ...] = ()
    response_s: float | None = None
    chunk_tokens: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the answer is complete and its tokens are known."""
        return not self.failure

    @property
    def ttft_s(self) -> float | None:
        """Time from sending the request to its first token, waiting included."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def duration_s(self) -> float:
        """Time from sending the request to its last token, or to its failure."""
        return self.ended_s - self.sent_s

    @property
    def generated(self) -> int | None:
        """Tokens that were decoded: all but the first, which the prefill gives."""
        return None if self.output_tokens is None else self.output_tokens - 1

    @property
    def decode_s(self) -> float | None:
        """Time from the first token to the last one."""
        return None if self.first_s is None else self.ended_s - self.first_s


@dataclass(frozen=True)
class Queueing:
    """Seconds that each request waited for a slot, by its number; ``problem`` when that is unknown."""

    waited_s: Mapping[int, float]
    problem: str = ""


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of values, with straight lines between neighbours.

    Raises:
        ValueError: there are no values, or the percentage is none.
    """
    if not values:
        raise ValueError("no values, so no percentile")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Iterable[float]) -> dict[str, float] | None:
    """Return count, mean, least, greatest and the percentiles 50, 90 and 99; None without values."""
    known = list(values)
    if not known:
        return None
    return {
        "count": len(known),
        "mean": math.fsum(known) / len(known),
        "min": min(known),
        "p50": percentile(known, 50),
        "p90": percentile(known, 90),
        "p99": percentile(known, 99),
        "max": max(known),
    }


def covered_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that lie in at least one of the intervals."""
    total = 0.0
    end = -math.inf
    for begin, finish in sorted(intervals):
        if finish > end:
            total += finish - max(begin, end)
            end = finish
    return total


def queueing(requests: Sequence[Request], slots: int | None) -> Queueing:
    """Return how long each request waited until one of the engine's slots was free.

    The engine runs at most ``slots`` requests at once (max-num-seqs) and admits the next one when another ends. So,
    in the order of first tokens, the first ones that fit were admitted as they came, and each later one at
    the earliest end of those before it. A request without a first token took no slot that can be seen.
    """
    if slots is None:
        return Queueing({}, "the number of slots (max-num-seqs) is not known")
    waited: dict[int, float] = {}
    ends: list[float] = []
    started = [(each.first_s, each.sent_s, each) for each in requests if each.first_s is not None]
    for first_s, _sent_s, each in sorted(started, key=lambda entry: entry[:2]):
        admitted = each.sent_s
        if len(ends) >= slots:
            free = heapq.heappop(ends)
            admitted = max(each.sent_s, free)
        if admitted > first_s + SLOT_SLACK_S:
            return Queueing(
                {},
                f"request {each.number} had its first token {admitted - first_s:.2f} s before one of {slots} "
                "slots was free: the engine has more slots than that",
            )
        admitted = min(admitted, first_s)
        waited[each.number] = admitted - each.sent_s
        heapq.heappush(ends, each.ended_s)
    return Queueing(waited)


def rate(amount: float | None, seconds: float | None) -> float | None:
    """Return amount per second, or None when either is not known or no time has passed."""
    if amount is None or seconds is None or seconds <= 0:
        return None
    return amount / seconds


def request_row(each: Request, waited: Queueing, round_number: int) -> dict[str, Any]:
    """Return the figures of one request, as they stand in the results."""
    queue_s = waited.waited_s.get(each.number)
    prefill_s = None if each.ttft_s is None or queue_s is None else each.ttft_s - queue_s
    return {
        "round": round_number,
        "request": each.number,
        "sent_s": each.sent_s,
        "ttft_s": each.ttft_s,
        "queue_s": queue_s,
        "prefill_s": prefill_s,
        "duration_s": each.duration_s,
        "input_tokens": each.input_tokens,
        "output_tokens": each.output_tokens,
        "prefill_tokens_per_s": rate(each.input_tokens, prefill_s if prefill_s is not None else each.ttft_s),
        "decode_tokens_per_s": rate(each.generated, each.decode_s) if each.ok else None,
        "chunks": len(each.gaps_s) + (each.first_s is not None),
        "failure": each.failure,
        "detail": each.detail,
        "notes": list(each.notes),
    }


def _known(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name] is not None]


def _busy(good: Sequence[Request], waited: Queueing) -> tuple[float, float, float]:
    """Return the seconds with a prefill under way, with a decode under way, and up to the last first token."""
    begun = [(each, each.first_s) for each in good if each.first_s is not None]
    if not begun:
        return 0.0, 0.0, 0.0
    prefill = covered_s((each.sent_s + waited.waited_s.get(each.number, 0.0), first_s) for each, first_s in begun)
    decode = covered_s((first_s, each.ended_s) for each, first_s in begun)
    return prefill, decode, max(first_s for _each, first_s in begun) - min(each.sent_s for each, _first_s in begun)


def burst_figures(rounds: Sequence[Sequence[Request]], slots: int | None) -> dict[str, Any]:
    """Return the figures of one concurrency: each request, and all rounds together.

    A request that failed is counted under ``failures`` and in the wall time; it adds no tokens, because how
    many the engine made for it is not known.
    """
    rows: list[dict[str, Any]] = []
    gaps: list[float] = []
    problems: list[str] = []
    seconds = {"wall": 0.0, "prefill": 0.0, "decode": 0.0, "first": 0.0}
    tokens = {"in": 0, "out": 0, "decoded": 0}
    by_round: list[float] = []
    for number, requests in enumerate(rounds, 1):
        waited = queueing(requests, slots)
        if waited.problem and waited.problem not in problems:
            problems.append(waited.problem)
        rows += [request_row(each, waited, number) for each in requests]
        good = [each for each in requests if each.ok]
        gaps += [gap for each in good for gap in each.gaps_s]
        if requests:
            seconds["wall"] += max(each.ended_s for each in requests) - min(each.sent_s for each in requests)
        prefill, decode, first = _busy(good, waited)
        seconds["prefill"] += prefill
        seconds["decode"] += decode
        seconds["first"] += first
        tokens["in"] += sum(each.input_tokens or 0 for each in good)
        tokens["out"] += sum(each.output_tokens or 0 for each in good)
        decoded = sum(max(0, (each.output_tokens or 0) - 1) for each in good)
        tokens["decoded"] += decoded
        by_round += [decoded / decode] if decoded and decode > 0 else []
    good_rows = [row for row in rows if not row["failure"]]
    failures = Counter(row["failure"] for row in rows if row["failure"])
    chunks = sum(row["chunks"] for row in good_rows)
    return {
        "rounds": len(rounds),
        "requests": len(rows),
        "succeeded": len(good_rows),
        "failures": dict(sorted(failures.items())),
        "queued": sum(1 for row in good_rows if (row["queue_s"] or 0) > SLOT_SLACK_S),
        "queue_problem": "; ".join(problems),
        "wall_s": seconds["wall"],
        "input_tokens": tokens["in"],
        "output_tokens": tokens["out"],
        "output_tokens_per_s": rate(tokens["out"], seconds["wall"]),
        "prefill_tokens_per_s": rate(tokens["in"], seconds["prefill"]),
        "decode_tokens_per_s": rate(tokens["decoded"], seconds["decode"]),
        "decode_by_round": by_round,
        "prefill_with_queue_tokens_per_s": rate(tokens["in"], seconds["first"]),
        "tokens_per_chunk": rate(tokens["out"], chunks),
        "ttft_s": summary(_known(good_rows, "ttft_s")),
        "queue_s": summary(_known(good_rows, "queue_s")),
        "prefill_s": summary(_known(good_rows, "prefill_s")),
        "duration_s": summary(_known(good_rows, "duration_s")),
        "gap_s": summary(gaps),
        "tpot_s": summary(1 / value for value in _known(good_rows, "decode_tokens_per_s")),
        "request_prefill_tokens_per_s": summary(_known(good_rows, "prefill_tokens_per_s")),
        "request_decode_tokens_per_s": summary(_known(good_rows, "decode_tokens_per_s")),
        "per_request": rows,
    }


def _grown(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    if name not in before or name not in after:
        return None
    return after[name] - before[name]


def merge_views(views: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what the engine says of several rounds: the most of what is a most, the sum of counts, else the mean."""
    found: dict[str, float] = {}
    for name in sorted({key for view in views for key in view}):
        values = [view[name] for view in views if name in view]
        if name.endswith("_most"):
            found[name] = max(values)
        elif name == "preemptions":
            found[name] = math.fsum(values)
        else:
            found[name] = math.fsum(values) / len(values)
    return found


def server_view(
    before: Mapping[str, float], after: Mapping[str, float], looks: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return what the engine's own figures say of a burst; what it does not tell is left out.

    ``looks`` are the figures while the burst ran. Means of histograms are over the requests that ended in between.
    """
    found: dict[str, float] = {}
    for name in ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"):
        mean = rate(_grown(before, after, f"{name}_sum"), _grown(before, after, f"{name}_count"))
        if mean is not None:
            found[name.removeprefix("request_").replace("_time_seconds", "_mean_s")] = mean
    shares = {
        "prefix_cache_hit_share": ("prefix_cache_hits_total", "prefix_cache_queries_total"),
        "draft_tokens_accepted_share": ("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"),
    }
    for ours, (part, whole) in shares.items():
        share = rate(_grown(before, after, part), _grown(before, after, whole))
        if share is not None:
            found[ours] = share
    preemptions = _grown(before, after, "num_preemptions_total")
    if preemptions is not None:
        found["preemptions"] = preemptions
    for ours, name in (("running_most", "num_requests_running"), ("waiting_most", "num_requests_waiting")):
        seen = [look[name] for look in looks if name in look]
        if seen:
            found[ours] = max(seen)
    return found
