# SPDX-License-Identifier: Apache-2.0
"""The points: figures and files equal llama-benchy's own over the same arrival times, what fits, and a measured run.

The fixtures `llama_benchy_*` are what llama-benchy 0.4.0 itself wrote (its three formats) for the arrivals beside them.
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import export
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError, Endpoint, connect
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.points import (
    PROFILES,
    Plan,
    Point,
    figures,
    grid,
    peak,
    report_rows,
    rows,
    token_times,
    within,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.points_run import run_points
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.server import MODEL, Behaviour, ZeroWorkServer
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request

FIXTURES = Path(__file__).parents[2] / "fixtures" / "bench"
TAKEN = "2026-11-28T00:00:00+00:00"


def request(number: int, seen: Mapping[str, Any]) -> Request:
    """Return what our client keeps of these arrivals."""
    times = seen["chunk_times"]
    return Request(
        number=number,
        sent_s=seen["sent"],
        ended_s=times[-1],
        first_s=times[0],
        input_tokens=seen["prompt"],
        output_tokens=seen["usage_out"],
        gaps_s=tuple(after - before for before, after in itertools.pairwise(times)),
        response_s=seen["sent"] + seen["ttfr"],
        chunk_tokens=tuple(seen["counts"] or ()),
    )


def benchmarks(name: str) -> list[dict[str, Any]]:
    given = json.loads((FIXTURES / f"{name}_arrivals.json").read_text(encoding="utf-8"))
    return [
        figures(
            [[request(number, seen) for number, seen in enumerate(run)] for run in case["rounds"]],
            Point(**case["point"]),
            given["latency_s"],
            expected=case["expected"],
            context=case["context"],
        )
        for case in given["cases"]
    ]


@pytest.mark.parametrize(("name", "cached"), [("llama_benchy_one", False), ("llama_benchy_many", True)])
def test_figures_and_files_are_those_of_llama_benchy(name: str, cached: bool) -> None:
    measured = benchmarks(name)
    points = {"benchmarks": measured, "latency_mode": "api", "latency_ms": 12.5, "prefix_caching": cached}
    ours = export.files("org/model", TAKEN, points)

    theirs = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(ours["json"])
    assert found.keys() == theirs.keys()
    assert found.pop("version") != theirs.pop("version")  # nobody else's name on our figures
    entries, expected = found.pop("benchmarks"), theirs.pop("benchmarks")
    assert found == theirs
    for entry, other in zip(entries, expected, strict=True):
        assert entry.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, dict):
                for part, number in value.items():
                    assert entry[key][part] == pytest.approx(number, rel=1e-6, abs=1e-6), (key, part)
            else:
                assert entry[key] == value

    table = (FIXTURES / f"{name}.md").read_text(encoding="utf-8")
    assert ours["md"].startswith(f"{table}\n\n{export.TOOL}\ndate: 2026-11-28 00:00:00Z | latency mode: api")

    lines = list(csv.reader(io.StringIO((FIXTURES / f"{name}.csv").read_text(encoding="utf-8"))))
    for line, other_line in zip(csv.reader(io.StringIO(ours["csv"])), lines, strict=True):
        assert line[:2] == other_line[:2]
        for cell, other_cell in zip(line[2:], other_line[2:], strict=True):
            if other_line is lines[0] or not other_cell:
                assert cell == other_cell
            else:
                assert float(cell) == pytest.approx(float(other_cell), rel=1e-6)


def test_our_own_rows_have_an_interval_for_each_run_and_count_failures() -> None:
    good = [Request(0, 0.0, 1.4, first_s=0.4, input_tokens=64, output_tokens=11, gaps_s=(0.1,) * 10)] * 2
    bad = Request(1, 0.0, 0.2, failure="http", detail="500")
    entry = figures([[good[0], bad], [good[1], bad]], Point(0, 64, 11, 2), 0.0, expected=64)
    entry["server"] = {"prefix_cache_hit_share": 0.25}
    assert (entry["requests"], entry["failures"]) == (4, {"http": 2})
    prefill, decode = report_rows([entry])
    assert prefill["rate"] is not None
    assert prefill["rate"].count == 2
    assert (prefill["rate"].mean, prefill["rate"].half) == (pytest.approx(160), pytest.approx(0))
    assert prefill["ttfr_ms"].mean == pytest.approx(400)
    assert (prefill["cached"], prefill["failures"]) == (0.25, {"http": 2})
    assert decode["rate"].mean == pytest.approx(10)
    assert decode["ttfr_ms"] is None


def test_a_burst_without_answers_has_no_rows_and_no_figures() -> None:
    bad = Request(0, 0.0, 0.2, failure="stalled")
    entry = figures([[bad], [bad]], Point(0, 64, 11, 1), 0.0, expected=64)
    assert entry["pp_throughput"] is None
    assert entry["tg_throughput"] is None
    assert rows([entry]) == []


def test_an_answer_in_one_chunk_has_no_generation_rate() -> None:
    one = Request(0, 0.0, 3.0, first_s=3.0, input_tokens=64, output_tokens=130, chunk_tokens=(130,))
    entry = figures([[one]], Point(0, 64, 130, 1), 0.0, expected=64)
    assert entry["tg_throughput"] is None
    assert entry["peak_throughput"]["mean"] == 130
    assert [row["test_name"] for row in rows([entry])] == ["pp64", "tg130"]


def test_tokens_of_a_chunk_are_spread_over_the_time_before_it() -> None:
    seen = Request(0, 0.0, 2.0, first_s=1.0, gaps_s=(0.4, 0.6), output_tokens=9, chunk_tokens=(2, 1, 3))
    assert token_times(seen) == pytest.approx([1.0, 1.0, 1.4, 1.6, 1.8, 2.0])
    counted = Request(0, 0.0, 2.0, first_s=1.0, gaps_s=(0.4, 0.6), output_tokens=5)
    assert token_times(counted) == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])
    assert token_times(Request(0, 0.0, 2.0)) == []


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([0.0, 0.1, 0.2], 15.0),  # shorter than a second: by its own time
        ([0.0, 0.5, 1.0, 1.1, 1.2, 3.0], 4.0),  # 0.5 to 1.2
        ([2.0, 2.0], 2.0),
    ],
)
def test_the_peak_is_that_of_the_best_second(times: list[float], rate: float) -> None:
    assert peak(times) == pytest.approx(rate)


def test_the_grid_of_a_profile_and_what_is_asked_instead() -> None:
    assert grid("llama-benchy", {})[:2] == [Point(0, 2048, 128, 1), Point(4096, 2048, 128, 1)]
    assert len(grid("spark-arena", {})) == 28
    asked = {"pp": [128, 256], "tg": [], "depth": [0, 64], "concurrency": [1, 2]}
    found = grid("llama-benchy", asked)
    assert found[:5] == [
        Point(0, 128, 128, 1), Point(0, 128, 128, 2), Point(0, 256, 128, 1), Point(0, 256, 128, 2),
        Point(64, 128, 128, 1),
    ]  # fmt: skip
    assert all(set(lists) == {"pp", "tg", "depth", "concurrency"} for lists in PROFILES.values())


def test_points_that_the_model_has_no_room_for_are_named() -> None:
    points = grid("llama-benchy", {})
    assert within(points, None) == (points, "")
    assert within(points, 40_000) == (points, "")
    kept, words = within(points, 16384)
    assert [point.depth for point in kept] == [0, 4096, 8192]
    assert words == "Left out, because the model serves 16384 tokens (max_model_len): the points at depth 16384, 32768."


class Recorder(ZeroWorkServer):
    """Keeps the bodies of the completions."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(behaviour)
        self.bodies: list[dict[str, Any]] = []

    async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
        self.bodies.append(asked)
        await super().complete(asked, request_id, writer)


def measured(plan: Plan, *, stop_first: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    server, said = Recorder(Behaviour(0.05, 0.004)), list[str]()

    async def work() -> dict[str, Any]:
        url = f"http://127.0.0.1:{await server.start()}"
        if stop_first:
            await server.stop()
        async with connect(Endpoint(url, MODEL, stall_s=20)) as client:
            found = await run_points(client, plan, said.append)
        await server.stop()
        return found

    return asyncio.run(asyncio.wait_for(work(), 120)), server.bodies, said


def test_points_are_measured_with_exact_prompts_that_share_no_beginning() -> None:
    plan = Plan([Point(0, 300, 6, 1), Point(400, 300, 6, 2)], "llama-benchy", runs=2, latency_mode="none", seed="s")
    found, bodies, said = measured(plan)
    assert [row["test_name"] for row in rows(found["benchmarks"])] == [
        "pp300 (c1)", "tg6 (c1)", "pp300 @ d400 (c2)", "tg6 @ d400 (c2)",
    ]  # fmt: skip
    assert [len(entry["pp_throughput"]["values"]) for entry in found["benchmarks"]] == [2, 2]  # no warm-up among them
    assert [entry["requests"] for entry in found["benchmarks"]] == [2, 4]
    _warm, *asked = bodies
    assert len(asked) == 3 * 1 + 3 * 2
    assert all("temperature" not in body and body["return_token_ids"] for body in asked)
    assert {ZeroWorkServer.count(body) for body in asked[:3]} == {300}
    assert {ZeroWorkServer.count(body) for body in asked[3:]} == {700}
    assert {len(body["messages"]) for body in asked[3:]} == {2}
    texts = [message["content"] for body in asked for message in body["messages"]]
    assert len({text[:40] for text in texts}) == len(texts)
    assert any("pp300 @ d400 (c2)" not in line and "TTFR" in line for line in said)


def test_with_prefix_caching_the_context_is_loaded_first_and_counted_apart() -> None:
    plan = Plan(
        [Point(0, 300, 6, 1), Point(400, 300, 6, 1)], "spark-arena", runs=1, prefix_caching=True, latency_mode="none"
    )
    found, bodies, _said = measured(plan)
    assert [row["test_name"] for row in rows(found["benchmarks"])] == [
        "pp300", "tg6", "ctx_pp @ d400", "ctx_tg @ d400", "pp300 @ d400", "tg6 @ d400",
    ]  # fmt: skip
    load, asked = bodies[-2:]
    assert load["messages"][0] == asked["messages"][0]
    assert (load["messages"][1]["content"], ZeroWorkServer.count(load)) == (".", 401)
    context, after = found["benchmarks"][1:]
    # 401 and 300 tokens are counted, not the 700 of the second request's usage.
    assert context["pp_throughput"]["mean"] * context["est_ppt"]["mean"] / 1000 == pytest.approx(401)
    assert after["pp_throughput"]["mean"] * after["est_ppt"]["mean"] / 1000 == pytest.approx(300)


@pytest.mark.parametrize("mode", ["none", "api", "generation"])
def test_the_latency_is_subtracted_from_the_first_response(mode: str) -> None:
    found, _bodies, _said = measured(Plan([Point(0, 100, 3, 1)], "llama-benchy", runs=1, latency_mode=mode))
    assert (found["latency_ms"] == 0) == (mode == "none")
    (entry,) = found["benchmarks"]
    expected = max(0.0, entry["ttfr"]["mean"] - found["latency_ms"])
    assert entry["est_ppt"]["mean"] == pytest.approx(expected, abs=1e-6)


def test_an_endpoint_that_is_gone_is_not_measured() -> None:
    with pytest.raises(BenchError, match="The first request failed"):
        measured(Plan([Point(0, 100, 3, 1)], "llama-benchy"), stop_first=True)
