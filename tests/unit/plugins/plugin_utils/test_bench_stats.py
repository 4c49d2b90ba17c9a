# SPDX-License-Identifier: Apache-2.0
"""Figures of a burst: held against the published sweep and against bursts whose answers can be worked out by hand."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import parse_samples
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import (
    Request,
    burst_figures,
    covered_s,
    merge_views,
    percentile,
    queueing,
    rate,
    server_view,
    summary,
)

#: N=8 of the published sweep with six slots: (TTFT, duration) of each request, 10 006 tokens in, 1 024 out [S0].
PUBLISHED_8 = [
    (7.97, 104.76), (92.46, 163.09), (7.97, 103.90), (7.97, 90.22),
    (7.98, 96.68), (7.97, 105.84), (7.97, 96.67), (98.86, 169.14),
]  # fmt: skip


def published(pairs: list[tuple[float, float]]) -> list[Request]:
    return [
        Request(number, 0.0, end, first_s=first, input_tokens=10006, output_tokens=1024)
        for number, (first, end) in enumerate(pairs)
    ]


def burst(count: int, ttft_s: float, gap_s: float, tokens: int, slots: int) -> list[Request]:
    """Return what `count` requests do on an engine with so many slots and exact times."""
    whole_s = ttft_s + gap_s * (tokens - 1)
    found = []
    for number in range(count):
        admitted = whole_s * (number // slots)
        found.append(
            Request(
                number, 0.0, admitted + whole_s, first_s=admitted + ttft_s, input_tokens=1000, output_tokens=tokens,
                gaps_s=(gap_s,) * (tokens - 1),
            )
        )  # fmt: skip
    return found


def test_the_published_burst_beyond_the_slots_keeps_its_prefill_rate() -> None:
    figures = burst_figures([published(PUBLISHED_8)], slots=6)

    assert figures["prefill_with_queue_tokens_per_s"] == pytest.approx(810, rel=0.002)  # as it was published
    assert figures["decode_tokens_per_s"] == pytest.approx(50.8, rel=0.002)
    assert figures["wall_s"] == pytest.approx(169.14)
    waited = {row["request"]: row["queue_s"] for row in figures["per_request"] if row["queue_s"]}
    assert waited == {1: pytest.approx(90.22), 7: pytest.approx(96.67)}
    for row in figures["per_request"]:
        assert row["prefill_s"] < 8
        assert row["prefill_tokens_per_s"] > 1250
    # Prefill was under way for 7.98 + 2.24 + 2.19 s.
    assert figures["prefill_tokens_per_s"] == pytest.approx(8 * 10006 / 12.41, rel=0.001)
    assert figures["queued"] == 2
    assert figures["queue_problem"] == ""


@pytest.mark.parametrize(
    ("pairs", "prefill", "decode"),
    [
        ([(14.28, 67.33)], 701, 19.3),
        ([(5.14, 71.75), (1.98, 72.92)], 3889, 28.8),
        ([(4.67, 82.44), (4.67, 80.44), (4.67, 74.77), (4.67, 80.44)], 8568, 52.6),
        ([(6.33, 96.21), (6.33, 93.80), (6.33, 94.90), (6.33, 87.11), (6.33, 96.20), (6.33, 94.09)], 9477, 68.3),
    ],
)
def test_the_published_bursts_within_the_slots(pairs: list[tuple[float, float]], prefill: float, decode: float) -> None:
    figures = burst_figures([published(pairs)], slots=6)

    assert figures["prefill_with_queue_tokens_per_s"] == pytest.approx(prefill, rel=0.002)
    assert figures["prefill_tokens_per_s"] == pytest.approx(prefill, rel=0.002)
    assert figures["decode_tokens_per_s"] == pytest.approx(decode, rel=0.003)
    assert figures["queued"] == 0


@pytest.mark.parametrize(("count", "slots"), [(1, 4), (4, 4), (8, 4), (10, 3)])
def test_exact_times_give_exact_rates(count: int, slots: int) -> None:
    figures = burst_figures([burst(count, 0.5, 0.02, 11, slots)], slots)

    together = min(count, slots)
    assert figures["request_decode_tokens_per_s"]["p50"] == pytest.approx(50)
    assert figures["tpot_s"]["p99"] == pytest.approx(0.02)
    assert figures["gap_s"]["max"] == pytest.approx(0.02)
    assert figures["prefill_s"]["min"] == pytest.approx(0.5)
    assert figures["prefill_s"]["max"] == pytest.approx(0.5)
    assert figures["queue_s"]["max"] == pytest.approx(0.7 * ((count - 1) // slots))
    assert figures["queued"] == max(0, count - slots)
    if count % slots == 0 or count < slots:
        assert figures["prefill_tokens_per_s"] == pytest.approx(together * 1000 / 0.5)
        assert figures["decode_tokens_per_s"] == pytest.approx(together / 0.02)
    assert figures["tokens_per_chunk"] == pytest.approx(1)


def test_rounds_are_added_up() -> None:
    one = burst(2, 0.5, 0.02, 11, 2)
    figures = burst_figures([one, one, one], 2)

    assert (figures["rounds"], figures["requests"], figures["succeeded"]) == (3, 6, 6)
    assert figures["wall_s"] == pytest.approx(3 * 0.7)
    assert figures["output_tokens_per_s"] == pytest.approx(22 / 0.7)
    assert [row["round"] for row in figures["per_request"]] == [1, 1, 2, 2, 3, 3]
    assert figures["decode_by_round"] == [pytest.approx(figures["decode_tokens_per_s"])] * 3


def test_failures_are_counted_and_take_their_time() -> None:
    good = burst(1, 0.5, 0.02, 11, 4)
    bad = [
        Request(1, 0.0, 3.0, failure="http", detail="500: no"),
        Request(2, 0.0, 5.0, first_s=0.6, input_tokens=1000, failure="cut", detail="after 3 chunks"),
    ]
    figures = burst_figures([[*good, *bad]], 4)

    assert (figures["requests"], figures["succeeded"]) == (3, 1)
    assert figures["failures"] == {"cut": 1, "http": 1}
    assert figures["wall_s"] == 5.0
    assert figures["output_tokens"] == 11
    assert figures["request_decode_tokens_per_s"]["count"] == 1
    rows = {row["request"]: row for row in figures["per_request"]}
    assert rows[2]["decode_tokens_per_s"] is None
    assert rows[1]["detail"] == "500: no"


def test_a_burst_that_failed_wholly_has_no_rates() -> None:
    figures = burst_figures([[Request(0, 0.0, 1.0, failure="unreachable")]], 4)

    assert figures["failures"] == {"unreachable": 1}
    for name in ("output_tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "gap_s", "tpot_s"):
        assert not figures[name]


def test_more_slots_than_believed_are_noticed() -> None:
    """Eight are answered at once where two slots are believed: waiting cannot be told, and is not made up."""
    found = queueing(burst(8, 0.5, 0.02, 11, 8), slots=2)

    assert found.waited_s == {}
    assert "before one of 2 slots was free: the engine has more slots than that" in found.problem


def test_without_slots_waiting_is_not_told() -> None:
    figures = burst_figures([burst(4, 0.5, 0.02, 11, 2)], None)

    assert figures["queue_s"] is None
    assert figures["queue_problem"] == "the number of slots (max-num-seqs) is not known"
    assert figures["per_request"][3]["queue_s"] is None


def test_requests_that_arrive_over_time_wait_for_those_before_them() -> None:
    first = Request(0, 0.0, 10.0, first_s=1.0, output_tokens=2)
    late = Request(1, 4.0, 15.0, first_s=11.5, output_tokens=2)
    later = Request(2, 20.0, 22.0, first_s=21.0, output_tokens=2)

    assert queueing([first, late, later], 1).waited_s == {0: 0.0, 1: pytest.approx(6.0), 2: 0.0}


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (25, 1.75), (50, 2.5), (90, 3.7), (100, 4.0)]
)  # fmt: skip
def test_percentile(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_percentile_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101 is no percentage"):
        percentile([1.0], 101)


def test_summary_and_rate() -> None:
    assert summary([]) is None
    assert summary([2.0, 4.0]) == {"count": 2, "mean": 3.0, "min": 2.0, "p50": 3.0, "p90": 3.8, "p99": 3.98, "max": 4.0}
    assert rate(10, 4) == 2.5
    assert rate(None, 4) is None
    assert rate(1, 0) is None


def test_covered_time_counts_overlaps_once() -> None:
    assert covered_s([(0, 2), (1, 3), (1.5, 1.7), (5, 6)]) == pytest.approx(4.0)
    assert covered_s([]) == 0


def test_the_engines_own_figures() -> None:
    labels = '{engine="0",model_name="m"}'
    before = parse_samples(
        f"# HELP vllm:num_requests_running x\nvllm:request_queue_time_seconds_sum{labels} 1.0\n"
        f"vllm:request_queue_time_seconds_count{labels} 2.0\nvllm:prefix_cache_queries_total{labels} 100\n"
        f"vllm:prefix_cache_hits_total{labels} 10\nvllm:num_preemptions_total{labels} 0\npython_gc_objects 3\n"
        "vllm:broken x\n"
    )
    after = {
        **before,
        "request_queue_time_seconds_sum": 5.0,
        "request_queue_time_seconds_count": 4.0,
        "prefix_cache_queries_total": 300.0,
        "prefix_cache_hits_total": 60.0,
    }
    looks = [
        {"num_requests_running": 3.0, "num_requests_waiting": 0.0},
        {"num_requests_running": 6.0, "num_requests_waiting": 2.0},
    ]

    assert "python_gc_objects" not in before
    assert server_view(before, after, looks) == {
        "queue_mean_s": 2.0,
        "prefix_cache_hit_share": 0.25,
        "preemptions": 0.0,
        "running_most": 6.0,
        "waiting_most": 2.0,
    }
    assert server_view({}, {}, []) == {}


def test_rounds_of_the_engines_own_figures() -> None:
    one = {"queue_mean_s": 1.0, "running_most": 4.0, "preemptions": 1.0}
    two = {"queue_mean_s": 3.0, "running_most": 6.0, "preemptions": 2.0, "waiting_most": 2.0}
    assert merge_views([one, two]) == {
        "queue_mean_s": 2.0,
        "running_most": 6.0,
        "preemptions": 3.0,
        "waiting_most": 2.0,
    }
    assert merge_views([]) == {}


def test_figures_are_summed_over_engines() -> None:
    text = 'vllm:x_bucket{le="1"} 7\n'
    text += 'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3.5\n'
    assert parse_samples(text) == {"num_requests_running": 5.5}
