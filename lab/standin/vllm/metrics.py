# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` of the stand-in: the names, labels and buckets of vLLM 0.32.0, and what this API has really counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
#: What the log of the stand-in states as the size of its pool.
POOL_TOKENS = 65_536


@dataclass
class Histogram:
    """Observations in the buckets of one histogram."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    count: int = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts = self.counts or [0] * len(self.bounds)
        for index, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[index] += times
        self.total += value * times
        self.count += times

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the histogram in Prometheus' text form."""
        yield f"# TYPE {name} histogram"
        for bound, count in zip(self.bounds, self.counts or [0] * len(self.bounds), strict=True):
            yield f'{name}_bucket{{{labels},le="{float(bound)}"}} {float(count)}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {float(self.count)}'
        yield f"{name}_count{{{labels}}} {float(self.count)}"
        yield f"{name}_sum{{{labels}}} {self.total!r}"


@dataclass
class Metrics:
    """What the API has counted since its start."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    requests: int = 0
    held_tokens: int = 0
    running: int = 0
    first: Histogram = field(default_factory=lambda: Histogram(_FIRST))
    between: Histogram = field(default_factory=lambda: Histogram(_BETWEEN))
    whole: Histogram = field(default_factory=lambda: Histogram(_LATENCY))
    queue: Histogram = field(default_factory=lambda: Histogram(_LATENCY))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def request(self, prompt_tokens: int) -> Iterator[Request]:
        """Count a request as running while the context lasts."""
        with self.lock:
            self.running += 1
            self.held_tokens += prompt_tokens
            self.prompt_tokens += prompt_tokens
        asked = Request(self, prompt_tokens, time.monotonic())
        try:
            yield asked
        finally:
            with self.lock:
                self.running -= 1
                self.held_tokens -= prompt_tokens + asked.tokens

    def text(self, model: str) -> str:
        """Return all of it in Prometheus' text form."""
        labels = f'engine="0",model_name="{model}"'
        with self.lock:
            gauges = {
                "num_requests_running": self.running,
                "num_requests_waiting": 0,
                "kv_cache_usage_perc": min(1.0, self.held_tokens / POOL_TOKENS),
            }
            counters = {
                "generation_tokens_total": self.generated_tokens,
                "prompt_tokens_total": self.prompt_tokens,
                "num_preemptions_total": 0,
                "prefix_cache_queries_total": self.prompt_tokens,
                "prefix_cache_hits_total": 0,
            }
            lines = []
            for kind, figures in (("gauge", gauges), ("counter", counters)):
                for name, value in figures.items():
                    lines += [f"# TYPE vllm:{name} {kind}", f"vllm:{name}{{{labels}}} {float(value)}"]
            lines += ["# TYPE vllm:request_success_total counter"]
            lines += [f'vllm:request_success_total{{{labels},finished_reason="length"}} {float(self.requests)}']
            for name, histogram in (
                ("time_to_first_token_seconds", self.first),
                ("inter_token_latency_seconds", self.between),
                ("e2e_request_latency_seconds", self.whole),
                ("request_queue_time_seconds", self.queue),
            ):
                lines += histogram.lines(f"vllm:{name}", labels)
        return "\n".join(lines) + "\n"


@dataclass
class Request:
    """One completion that is being answered."""

    metrics: Metrics
    prompt_tokens: int
    start_s: float
    last_s: float = 0.0
    tokens: int = 0

    def token(self) -> None:
        """Count one token that goes out now."""
        now = time.monotonic()
        with self.metrics.lock:
            if self.tokens:
                self.metrics.between.observe(now - self.last_s)
            else:
                self.metrics.first.observe(now - self.start_s)
            self.tokens += 1
            self.metrics.generated_tokens += 1
            self.metrics.held_tokens += 1
        self.last_s = now

    def done(self) -> None:
        """Count the request as answered."""
        with self.metrics.lock:
            self.metrics.requests += 1
            self.metrics.whole.observe(time.monotonic() - self.start_s)
            self.metrics.queue.observe(0.0)
