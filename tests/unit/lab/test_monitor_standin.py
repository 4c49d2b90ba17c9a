# SPDX-License-Identifier: Apache-2.0
"""What the stand-in tells of itself at /metrics: vLLM's names, and what was really counted."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from lab.standin.vllm.metrics import POOL_TOKENS, Histogram, Metrics

SAMPLE = re.compile(r"^(vllm:\w+)\{(.*)\} ([0-9.e+-]+)$")


def samples(text: str) -> dict[str, float]:
    """Return name{labels} → value; every line is a comment or a sample."""
    found = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            continue
        match = SAMPLE.match(line)
        assert match, line
        found[f"{match[1]}{{{match[2]}}}"] = float(match[3])
    return found


def test_a_request_counts_while_it_runs_and_after() -> None:
    metrics = Metrics()
    label = 'engine="0",model_name="a/b"'
    with metrics.request(100) as request:
        for _token in range(4):
            request.token()
        running = samples(metrics.text("a/b"))
        request.done()
    after = samples(metrics.text("a/b"))
    assert running[f"vllm:num_requests_running{{{label}}}"] == 1
    assert running[f"vllm:kv_cache_usage_perc{{{label}}}"] == pytest.approx(104 / POOL_TOKENS)
    assert running[f'vllm:request_success_total{{{label},finished_reason="length"}}'] == 0
    assert after[f"vllm:num_requests_running{{{label}}}"] == 0
    assert after[f"vllm:kv_cache_usage_perc{{{label}}}"] == 0
    assert after[f"vllm:prompt_tokens_total{{{label}}}"] == 100
    assert after[f"vllm:generation_tokens_total{{{label}}}"] == 4
    assert after[f'vllm:request_success_total{{{label},finished_reason="length"}}'] == 1
    assert after[f"vllm:time_to_first_token_seconds_count{{{label}}}"] == 1
    assert after[f"vllm:inter_token_latency_seconds_count{{{label}}}"] == 3


def test_a_request_that_breaks_off_gives_its_memory_back() -> None:
    metrics = Metrics()
    with suppress(BrokenPipeError), metrics.request(7) as request:
        request.token()
        raise BrokenPipeError
    assert (metrics.running, metrics.held_tokens, metrics.requests) == (0, 0, 0)


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram((0.1, 1, 10))
    for value in (0.05, 0.1, 5, 50):
        histogram.observe(value)
    found = dict(line.rsplit(" ", 1) for line in histogram.lines("h", 'a="b"') if not line.startswith("#"))
    buckets = [float(found[f'h_bucket{{a="b",le="{le}"}}']) for le in ("0.1", "1.0", "10.0", "+Inf")]
    assert buckets == [2, 2, 3, 4]
    assert float(found['h_sum{a="b"}']) == pytest.approx(55.15)
