# SPDX-License-Identifier: Apache-2.0
"""The report: what failed is in it, what a model said cannot break it, and files are whole or not there."""

from __future__ import annotations

import copy
import re
from html import escape as escape_html
from typing import Any
from xml.etree import ElementTree as ET

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.compare import fingerprint
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.report import (
    client_sentence,
    history,
    render,
    verdict,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request, burst_figures
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import FAILURES

EVIL = "<script>alert(1)</script> | & \n next"


def good(number: int, first_s: float, end_s: float) -> Request:
    return Request(number, 0.0, end_s, first_s=first_s, input_tokens=100, output_tokens=11, gaps_s=(0.1,) * 10)


def result_of(run: str = "20260101T000000Z-abc", **changes: Any) -> dict[str, Any]:
    """Return results as the action keeps them: two answered and as many failed as there are kinds."""
    failed = [
        Request(number, 0.0, 2.0, failure=kind, detail=f"{kind} {EVIL}") for number, kind in enumerate(FAILURES, 2)
    ]
    requests = [good(0, 0.5, 1.5), good(1, 2.0, 3.0), *failed]
    point = {"concurrency": len(requests), **burst_figures([requests], 1), "server": {}, "warnings": ["counts differ"]}
    node = {"arch": "aarch64", "kernel": "6.14", "driver": "580", "memory_gib": 119}
    found: dict[str, Any] = {
        "format": 1,
        "run": run,
        "taken": "2026-01-01T00:00:00+00:00",
        "model": "m",
        "served_name": EVIL,
        "url": "http://head:8000",
        "fingerprint": fingerprint({"name": "m"}, image="i", vllm_version="0.22.1", nodes={"n1": node}),
        "decode_ceiling": {"value": 35, "source": "calculated"},
        "client": {"overhead": []},
        "sweep": {"shape": {"input_tokens": 100, "output_tokens": 11, "distinct_prompts": True}, "points": [point]},
        "needles": [
            {
                "asked_tokens": 900, "depth": 0.5, "input_tokens": 900, "measured_depth": 0.49, "verdict": "contained",
                "sentence": "among other words", "code": "A-B-1", "content": EVIL, "reasoning": EVIL,
                "output_tokens": None, "ttft_s": None, "wall_s": 1.0,
                "prefill_tokens_per_s": None, "decode_tokens_per_s": None,
            }
        ],
        "trace": None,
        "comparisons": [{"with": "an earlier run", "rows": [], "reason": "none", "changed": [], "judged": True}],
        "regressions": [],
        "warnings": [],
    }  # fmt: skip
    return {**found, **changes}


def test_every_failure_is_listed_with_its_meaning() -> None:
    html, words = render(result_of(), [], 0.1)

    for kind, meaning in FAILURES.items():
        assert escape_html(f"{kind}: {meaning}").replace("&#x27;", "&#39;") in html
        assert f"| {kind}: {kind} &lt;" in words or f"| {kind}: {kind} <script>" in words
    assert "2/11" in html
    assert "counts differ" in html
    assert "counts differ" in words


def test_what_a_model_says_cannot_break_the_page() -> None:
    html, words = render(result_of(), [], 0.1)

    assert "<script" not in html
    assert "&lt;script&gt;" in html
    for line in words.splitlines():
        if line.startswith("| 900 "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 11  # ten cells
    for plot in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(plot)


def test_a_trace_by_aiperf_and_one_by_this_client() -> None:
    about = {"trace": "t.jsonl", "requests": 2, "scheduled": False, "concurrency": 4, "shared_prefix_share": 0.25}
    theirs = {**about, "by": "aiperf", "figures": {"ttft": {"unit": "ms", "avg": 12.5, "p50": 11.0}}}
    html, words = render(result_of(trace=theirs, sweep=None, needles=[]), [], 0.1)
    assert "<td>ttft</td><td>12.5</td><td>11</td>" in html
    assert "| ttft | 12.5 | 11 |" in words
    assert "4 at once" in words

    figures = burst_figures([[good(0, 0.5, 1.5)]], None)
    own = {**about, "by": "this client", "because": "AIPerf is not installed", "figures": figures, "server": {}}
    html, words = render(result_of(trace=own, sweep=None), [], 0.1)
    assert "Replayed by this client because AIPerf is not installed" in html
    assert "| 1/1 | 0 |" in words


def test_regressions_and_problems_stand_first() -> None:
    html, words = render(result_of(regressions=["decode is worse"], warnings=["the trace could not be read"]), [], 0.1)
    for text in (html, words):
        assert text.index("decode is worse") < text.index("the trace could not be read") < text.index("Sweep")


def test_the_history_says_what_changed() -> None:
    old, now = result_of("1"), result_of("2")
    old["fingerprint"] = {**old["fingerprint"], "image": "before", "digest": "0000"}
    other = copy.deepcopy(old)
    other["sweep"]["shape"]["input_tokens"] = 5
    told = history([other, old], now)

    assert [row["run"] for row in told["rows"]] == ["1", "2"]
    assert told["rows"][1]["changed"] == ['image: "before" -> "i"']
    assert "01-01 0000" in told["plot"]
    assert history([], now)["plot"] == ""


def test_the_verdict_names_what_it_judged_by() -> None:
    row = {
        "concurrency": 1,
        "figure": "ttft_s",
        "before": 1.0,
        "now": 1.0,
        "change": 0.0,
        "worse_by": 0.0,
        "source": "x",
    }
    told = {"with": "run 1", "rows": [row], "reason": "", "changed": [], "judged": True}
    assert verdict(result_of(comparisons=[told]), 0.1) == "No regression of more than 10% against run 1."
    assert verdict(result_of(comparisons=[{**told, "judged": False}]), 0.1) == "No baseline."
    first = {**told, "rows": [], "reason": "there is no earlier run of this shape"}
    assert verdict(result_of(comparisons=[first]), 0.1) == "No baseline: there is no earlier run of this shape."


def test_the_clients_share_is_put_into_proportion() -> None:
    figures = {"p50": 0.002, "p99": 0.004}
    overhead = [
        {"concurrency": 1, "ttft_share_s": figures, "token_lag_s": figures, "chunks_per_s": 8000.0},
        {"concurrency": 64, "ttft_share_s": {"p50": 0.03}, "token_lag_s": {"p50": 0.005}, "chunks_per_s": 4000.0},
    ]
    result = result_of(client={"overhead": overhead})
    result["sweep"]["points"][0]["output_tokens_per_s"] = 40.0
    sentence = client_sentence(result)

    for words in (
        "at up to 64 requests",
        "30.0 ms to a first token (at 64)",
        "5.0 ms after",
        "4000 chunks/s",
        "1.0% of that",
    ):
        assert words in sentence
    assert "was not measured" in client_sentence(result_of())


def test_rounds_of_a_sweep_have_an_interval_and_one_round_has_none() -> None:
    result = result_of()
    sweep = result["sweep"]
    sweep["points"][0]["decode_by_round"] = [9.0, 10.0, 11.0, 10.0, 10.0]
    for text in render({**result, "sweep": {**sweep, "rounds": 5}}, [], 0.1):
        assert "N=11 10 ± 0.878 t/s" in text
        assert "over 5 repeats" in text
    for text in render({**result, "sweep": {**sweep, "rounds": 1}}, [], 0.1):
        assert "the mean over rounds" not in text


def test_gates_stand_in_both_forms_and_cannot_break_them() -> None:
    rows = [{"asked": EVIL, "expected": "x", "answer": EVIL, "right": False, "wrong": EVIL}]
    gate = {"gate": "answers", "status": "failed", "sentence": "0 of 1", "rows": rows}
    html, words = render(result_of(gates=[gate]), [], 0.1)
    assert "<script>" not in html
    for text in (html, words):
        assert "The quality gate answers failed: 0 of 1." in text
    assert "| <script>alert(1)</script> \\| & next | <script>" in words
