# SPDX-License-Identifier: Apache-2.0
"""What may be compared, and what counts as worse."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.compare import (
    changed_between,
    compare_expected,
    compare_runs,
    fingerprint,
    lost_needles,
    new_failures,
    node_marks,
    pick_baseline,
    regressions,
    shape_of,
    without_answers,
)

SPEC: dict[str, Any] = {
    "name": "m",
    "mods": ["a"],
    "serve": {"max-num-seqs": 6},
    "expected": {"sweep": []},
    "notes": ["x"],
}
NODE = {"arch": "aarch64", "kernel": "6.14", "driver": "580.95", "memory_gib": 119}


def print_of(spec: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "image": "i",
        "vllm_version": "0.22.1",
        "nodes": {"n1": NODE, "n2": NODE},
        "command": ["serve"],
    }
    return fingerprint(SPEC if spec is None else spec, **{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {**SPEC, "serve": {"max-num-seqs": 4}}},
        {"spec": {**SPEC, "mods": []}},
        {"image": "j"},
        {"vllm_version": "0.22.2"},
        {"nodes": {"n1": NODE}},
        {"nodes": {"n1": NODE, "n3": NODE}},
        {"nodes": {"n1": NODE, "n2": {**NODE, "driver": "581"}}},
        {"nodes": {"n1": NODE, "n2": {**NODE, "kernel": "6.15"}}},
        {"command": ["serve", "--max-num-seqs", "4"]},
    ],
)
def test_all_that_matters_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert print_of(**changes)["digest"] != print_of()["digest"]
    assert changed_between(print_of(), print_of(**changes))


def test_words_about_the_model_do_not() -> None:
    other = {**SPEC, "expected": {"sweep": [1]}, "notes": [], "steps": [{"name": "x"}]}
    assert print_of(other)["digest"] == print_of()["digest"]
    assert changed_between(print_of(), print_of(other)) == []


def test_each_change_is_a_line() -> None:
    after = print_of({**SPEC, "serve": {"max-num-seqs": 4}}, vllm_version="0.33.0")
    assert changed_between(print_of(), after) == [
        "model_spec.serve.max-num-seqs: 6 -> 4",
        'vllm_version: "0.22.1" -> "0.33.0"',
    ]


def test_marks_of_a_node() -> None:
    told = {
        "os": {"arch": "aarch64", "kernel": "6.14", "id": "ubuntu"},
        "gpu": {"driver": "580.95", "present": True},
        "memory_gib": {"total": 119.24, "available": 3},
    }
    assert node_marks(told) == NODE


def point(concurrency: int, **figures: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "concurrency": concurrency,
        "requests": concurrency,
        "failures": {},
        "decode_tokens_per_s": 50.0,
        "prefill_tokens_per_s": 1000.0,
        "prefill_with_queue_tokens_per_s": 900.0,
        "output_tokens_per_s": 40.0,
        "wall_s": 60.0,
        "ttft_s": {"p50": 2.0},
        "tpot_s": {"p50": 0.05},
    }
    return {**usual, **figures}


def run_of(*points: dict[str, Any], name: str = "r1", **more: Any) -> dict[str, Any]:
    shape = {"input_tokens": 10006, "output_tokens": 1024, "distinct_prompts": True}
    return {
        "run": name,
        "fingerprint": {"digest": f"d{name}"},
        "sweep": {"shape": shape, "points": list(points)},
        **more,
    }


def test_a_figure_that_is_worse_by_more_than_the_share_is_a_regression() -> None:
    slow = point(4, decode_tokens_per_s=44.0, ttft_s={"p50": 2.5}, output_tokens_per_s=1.0)
    rows, reason = compare_runs(run_of(point(4)), run_of(slow, name="r2"))

    assert reason == ""
    assert regressions(rows, 0.1) == [
        "At 4 requests decode_tokens_per_s is 44, 12% worse than 50 (r1).",
        "At 4 requests ttft_s is 2.5, 25% worse than 2 (r1).",
    ]
    assert regressions(rows, 0.2) == ["At 4 requests ttft_s is 2.5, 25% worse than 2 (r1)."]
    assert regressions(rows, 0.3) == []


def test_better_is_never_a_regression() -> None:
    fast = point(4, decode_tokens_per_s=500.0, ttft_s={"p50": 0.2}, tpot_s={"p50": 0.001})
    rows, _reason = compare_runs(run_of(point(4)), run_of(fast))

    assert regressions(rows, 0.0) == []
    assert {row["figure"]: round(row["change"], 3) for row in rows}["ttft_s"] == -0.9


def test_runs_of_other_shapes_are_not_compared() -> None:
    other = run_of(point(4))
    other["sweep"]["shape"] = {**other["sweep"]["shape"], "input_tokens": 512}

    assert compare_runs(other, run_of(point(4)))[0] == []
    assert '"input_tokens":512' in compare_runs(other, run_of(point(4)))[1]
    assert compare_runs({}, run_of(point(4))) == ([], "the two runs have neither a sweep nor a point in common")
    assert compare_runs(run_of(point(1)), run_of(point(4))) == ([], "the two runs have no concurrency in common")


def test_published_figures_are_compared_by_their_own_definition() -> None:
    expected = {
        "sweep": [{"concurrency": 4, "decode_tokens_per_s": 52.6, "prefill_tokens_per_s": 1000, "source": "[S0]"}]
    }
    sweep = run_of(point(4))["sweep"]
    rows, reason = compare_expected(sweep, expected)

    assert reason == ""
    assert [(row["figure"], row["now"]) for row in rows] == [
        ("decode_tokens_per_s", 50.0),
        ("prefill_tokens_per_s", 900.0),  # waiting counted in, as in the published tables
    ]
    assert rows[0]["worse_by"] == pytest.approx(1 - 50 / 52.6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_tokens": 64}, "the published sweep has 10006 tokens in and 1024 out, this one 10006 and 64"),
        ({"input_tokens": 512}, "this one 512 and 1024"),
    ],
)
def test_another_shape_is_not_compared_with_published_figures(change: dict[str, int], words: str) -> None:
    sweep = copy.deepcopy(run_of(point(4))["sweep"])
    sweep["shape"].update(change)
    rows, reason = compare_expected(sweep, {"sweep": [{"concurrency": 4, "decode_tokens_per_s": 1}]})
    assert (rows, words in reason) == ([], True), reason


def test_a_model_may_name_its_own_published_shape() -> None:
    expected = {"sweep": [{"concurrency": 4, "wall_s": 50}], "shape": {"input_tokens": 10000, "output_tokens": 1024}}
    assert compare_expected(run_of(point(4))["sweep"], expected)[0][0]["change"] == pytest.approx(0.2)
    assert compare_expected(None, expected) == ([], "no sweep was run")
    assert compare_expected(run_of(point(8))["sweep"], expected)[1] == "no concurrency of this sweep was published"
    assert compare_expected(run_of(point(8))["sweep"], {})[1] == "nothing is published for this model"


def test_a_lost_needle_is_named() -> None:
    needle = {"asked_tokens": 200000, "depth": 0.5, "verdict": "exact", "sentence": "x"}
    lost = {**needle, "verdict": "absent", "sentence": "the pass phrase was not given"}

    assert lost_needles({"needles": [needle]}, {"needles": [lost]}) == [
        "The needle at 200000 tokens and depth 0.5 was found before, and now is not: the pass phrase was not given."
    ]
    assert lost_needles({"needles": [lost]}, {"needles": [lost]}) == []
    assert lost_needles({"needles": [needle]}, {"needles": [needle]}) == []


def test_new_failures_are_named_with_their_kinds() -> None:
    bad = run_of(point(4, failures={"http": 1, "cut": 2}))

    assert new_failures(run_of(point(4)), bad) == ["At 4 requests 3 of 4 failed (http 1, cut 2)."]
    assert new_failures(None, bad) == new_failures(run_of(point(4)), bad)
    assert new_failures(bad, bad) == []


def test_a_part_without_one_answer_is_named() -> None:
    dead = run_of(point(4, succeeded=0, failures={"error": 4}), point(1, succeeded=1))
    dead["trace"] = {"by": "this client", "figures": {"succeeded": 0, "failures": {"http": 8, "unreachable": 4}}}

    assert without_answers(dead) == [
        "Not one of the 4 requests of the sweep was answered: error 4.",
        "Not one of the requests of the trace was answered: http 8, unreachable 4.",
    ]
    assert without_answers(run_of(point(4, succeeded=1, failures={"cut": 3}))) == []
    assert without_answers({"sweep": None, "trace": {"by": "aiperf", "figures": {"ttft": {}}}}) == []


def test_the_baseline() -> None:
    old, new = run_of(point(1), name="2026a"), run_of(point(1), name="2026b")
    other = run_of(point(1), name="2026c")
    other["sweep"]["shape"] = {"input_tokens": 1}
    runs, shape = [old, new, other], old["sweep"]["shape"]

    assert pick_baseline(runs, "last", shape) == (new, "")
    assert pick_baseline(runs, "2026a", shape) == (old, "")
    assert pick_baseline(runs, "d2026a", shape) == (old, "")
    assert pick_baseline([other], "last", shape) == (None, "there is no earlier run of this shape")
    assert pick_baseline(runs, "last", None)[0] is None
    for word in ("none", "expected"):
        assert pick_baseline(runs, word, shape)[0] is None
    found, words = pick_baseline(runs, "2025", shape)
    assert (found, words) == (
        None,
        "No earlier run is named '2025', nor is a fingerprint. The newest runs: 2026a, 2026b, 2026c.",
    )


# --- points ---------------------------------------------------------------------------------------


def run_of_points(*rates: float, **changes: Any) -> dict[str, Any]:
    """Return a run with a point at depth 0, 4096, ... for each rate of generation."""
    entries = [
        {
            "is_context_prefill_phase": False, "context_size": 4096 * number, "prompt_size": 2048, "response_size": 128,
            "concurrency": 1, "pp_throughput": {"mean": 1000.0}, "tg_throughput": {"mean": rate}, "ttfr": None,
        }
        for number, rate in enumerate(rates)
    ]  # fmt: skip
    points = {"prefix_caching": False, "latency_mode": "api", "request": {}, "benchmarks": entries, **changes}
    return {"run": "r1", "fingerprint": {"digest": "d1"}, "sweep": None, "points": points}


def test_points_in_common_are_compared_and_judged() -> None:
    fast, slow = run_of_points(24.0, 20.0), run_of_points(24.0, 16.0, 12.0)
    rows, reason = compare_runs(fast, slow)
    assert reason == ""
    assert [row["figure"] for row in rows] == [
        "pp2048 t/s @ d0", "tg128 t/s @ d0", "pp2048 t/s @ d4096", "tg128 t/s @ d4096",
    ]  # fmt: skip
    assert regressions(rows, 0.1) == ["At 1 requests tg128 t/s @ d4096 is 16, 20% worse than 20 (r1)."]
    assert regressions(compare_runs(slow, fast)[0], 0.1) == []


@pytest.mark.parametrize("change", [{"prefix_caching": True}, {"latency_mode": "none"}, {"request": {"top_k": 1}}])
def test_points_measured_otherwise_are_not_compared(change: dict[str, Any]) -> None:
    before, now = run_of_points(24.0), run_of_points(12.0, **change)
    assert compare_runs(before, now) == ([], "the two runs have neither a sweep nor a point in common")
    assert pick_baseline([before], "last", shape_of(now))[0] is None
    assert pick_baseline([before], "last", shape_of(run_of_points(1.0)))[0] is before


def test_points_without_an_answer_are_named() -> None:
    run = run_of_points(24.0)
    run["points"]["benchmarks"][0].update(e2e_ttft=None, failures={"http": 3})
    assert without_answers(run) == ["Not one of the requests of the point at depth 0, 1 at once, was answered: http 3."]
