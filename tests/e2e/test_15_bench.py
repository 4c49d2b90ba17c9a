# SPDX-License-Identifier: Apache-2.0
"""The served model measured: exact prompts, waiting told by both sides, and the same figures as vLLM's own client.

Runs on the model that the tests before left served, or else on the lab's first. `vllm bench serve` runs inside the
engine's container on the head, between two runs of ours of the same load (so many requests under way, each prompt and
answer as long), and its figures must lie within what the two runs of ours span, widened by what a few busy cores add.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import harness
from tests.e2e.harness import HEAD, NODES

#: A span of our own two runs is widened by this share: five processes share a few cores, and no run is like another.
NOISE = 0.35
REQUESTS = 16
#: How many requests the comparison keeps under way.
UNDER_WAY = 4
INPUT_TOKENS = 512
OUTPUT_TOKENS = 32
#: What the chat template of the lab's models adds to a prompt.
TEMPLATE_TOKENS = 22
#: More than the slots of the lab's models (max-num-seqs), so that some must wait.
BEYOND_THE_SLOTS = 20
SLOTS = 16


@pytest.fixture(scope="module")
def served() -> str:
    """Return the model that is served now, as the catalogue names it; serve the lab's first where none is."""
    models = harness.served_models()
    if not models:
        harness.run("site.yml")
        models = harness.served_models()
    assert len(models) == 1, f"a model must be served before it can be measured; the endpoint lists {models}"
    return models[0].removeprefix("lab/")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def bench(model: str, results: Path, **extravars: Any) -> dict[str, Any]:
    """Run the playbook, and return the results that it kept."""
    before = set(results.glob("*/*.json"))
    run = harness.run("playbooks/bench.yml", {"model": model, "bench_results_dir": str(results), **extravars})
    harness.assert_converged(run)
    (kept,) = set(results.glob("*/*.json")) - before
    for form in (".html", ".md"):
        assert f"lab/{model}" in kept.with_suffix(form).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def test_the_sweep_is_exact_and_tells_waiting_from_prefill(served: str, results: Path) -> None:
    found = bench(
        served,
        results,
        bench_concurrency=[1, BEYOND_THE_SLOTS],
        bench_input_tokens=INPUT_TOKENS,
        bench_output_tokens=OUTPUT_TOKENS,
        bench_needles=[{"tokens": 2000, "depth": 0.5}],
        bench_needle_output_tokens=24,
    )

    points = found["sweep"]["points"]
    for point in points:
        assert point["failures"] == {}
        assert point["warnings"] == []
        for row in point["per_request"]:
            assert (row["input_tokens"], row["output_tokens"]) == (INPUT_TOKENS, OUTPUT_TOKENS)
        assert point["queue_problem"] == ""
        assert point["queued"] == max(0, point["concurrency"] - SLOTS)
    many = points[-1]
    # The engine's own gauges say the same: all slots taken, the others waiting.
    assert many["server"]["running_most"] == SLOTS
    assert many["server"]["waiting_most"] >= 1
    waited = [row["queue_s"] for row in many["per_request"] if row["queue_s"]]
    told_s = many["server"]["queue_mean_s"] * BEYOND_THE_SLOTS
    assert sum(waited) == pytest.approx(told_s, rel=0.35, abs=0.5), "the engine's own histogram disagrees"
    (needle,) = found["needles"]
    assert needle["input_tokens"] == 2000
    assert needle["verdict"] == "absent"  # the lab's models know one sentence
    assert found["client"]["overhead"]


def test_points_and_gates_of_a_model_that_answers_nonsense(served: str, results: Path) -> None:
    """The figures of the points follow from each other, and gates report that the answers are wrong."""
    found = bench(
        served,
        results,
        bench_profile="llama-benchy",
        bench_concurrency=[2],
        bench_pp=[256],
        bench_tg=[8],
        bench_depth=[0, 512],
        bench_runs=1,
        bench_prefix_caching=True,
        bench_gates=["needle", "answers", "tool_call", "reasoning"],
        bench_gate_needle_tokens=1000,
        bench_gate_needle_depths=[0.5],
        bench_gate_output_tokens=16,
    )

    entries = found["points"]["benchmarks"]
    assert [(each["context_size"], each["is_context_prefill_phase"]) for each in entries] == [
        (0, False),
        (512, True),
        (512, False),
    ]
    for entry in entries:
        assert (entry["requests"], entry["failures"]) == (2, {})
        assert entry["e2e_ttft"]["mean"] >= entry["ttfr"]["mean"] >= entry["est_ppt"]["mean"] >= 0
        assert entry["peak_throughput"]["mean"] > 0
    (table,) = results.glob(f"*/export/{found['run']}.md")
    assert f"| gb10-lab/{served} |" in table.read_text(encoding="utf-8")
    judged = {gate["gate"]: gate for gate in found["gates"]}
    # The lab's models know one sentence, and their files name no parsers.
    assert {name: gate["status"] for name, gate in judged.items()} == {
        "needle": "failed",
        "answers": "failed",
        "tool_call": "skipped",
        "reasoning": "skipped",
    }
    assert judged["answers"]["sentence"] == "0 of 12 answers are right, 75% must be"
    assert not [row["wrong"] for row in judged["answers"]["rows"] if "http" in row["wrong"]]


def test_the_fingerprint_is_that_of_the_nodes(served: str, results: Path) -> None:
    kept = sorted(results.glob("*/*.json"))[0]
    found = json.loads(kept.read_text(encoding="utf-8"))["fingerprint"]

    container = f"vllm-{served}"
    args = json.loads(harness.node_exec(HEAD, f"docker inspect {container} --format '{{{{json .Args}}}}'").stdout)
    assert found["command"] == args
    assert [node["name"] for node in found["nodes"]] == list(NODES)
    assert {node["kernel"] for node in found["nodes"]} == {harness.node_exec(HEAD, "uname -r").stdout.strip()}
    assert found["vllm_version"].startswith("0.32.0")
    assert len(found["image"]) >= 12
    assert found["model_spec"]["name"] == served


def ours(model: str, results: Path, trace: Path) -> dict[str, float]:
    """Return the figures of a closed loop of requests, measured by our client."""
    found = bench(
        model,
        results,
        bench_sweep=False,
        bench_needles=[],
        bench_trace=str(trace),
        bench_trace_concurrency=UNDER_WAY,
        bench_aiperf="never",
    )["trace"]["figures"]
    assert (found["succeeded"], found["failures"]) == (REQUESTS, {})
    assert found["output_tokens"] == REQUESTS * OUTPUT_TOKENS
    return {
        "output tokens/s": found["output_tokens_per_s"],
        "TTFT p50 ms": found["ttft_s"]["p50"] * 1000,
        "TPOT p50 ms": found["tpot_s"]["p50"] * 1000,
        "input tokens": found["input_tokens"],
    }


def theirs(model: str) -> dict[str, float]:
    """Return the figures of the same load, measured by vLLM's own client in the head's container."""
    command = [
        *("docker", "exec", f"vllm-{model}", "/opt/vllm/bin/python", "-m", "vllm.entrypoints.cli.main"),
        *("bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--host", "127.0.0.1", "--port", "8000", "--model", f"lab/{model}"),
        *("--tokenizer", f"/root/.cache/huggingface/gb10-lab/{model}", "--dataset-name", "random"),
        *("--random-input-len", str(INPUT_TOKENS - TEMPLATE_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
        *(
            "--num-prompts",
            str(REQUESTS),
            "--max-concurrency",
            str(UNDER_WAY),
            "--ignore-eos",
            "--temperature",
            "0",
        ),
        *("--disable-tqdm", "--save-result", "--result-dir", "/tmp", "--result-filename", "bench.json"),
    ]
    harness.node_exec(HEAD, shlex.join(command))
    found = json.loads(harness.node_exec(HEAD, f"docker exec vllm-{model} cat /tmp/bench.json").stdout)
    assert (found["completed"], found["failed"]) == (REQUESTS, 0)
    assert found["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS
    return {
        "output tokens/s": found["output_throughput"],
        "TTFT p50 ms": found["median_ttft_ms"],
        "TPOT p50 ms": found["median_tpot_ms"],
        "input tokens": found["total_input_tokens"],
    }


def within(one: float, other: float, measured: float) -> bool:
    """Return whether a figure lies within what our two runs span, widened by what a busy machine adds."""
    low, high = sorted((one, other))
    return low * (1 - NOISE) <= measured <= high * (1 + NOISE)


@pytest.mark.soak
def test_the_figures_are_those_of_vllms_own_client(served: str, results: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = json.dumps({"input_length": INPUT_TOKENS, "output_length": OUTPUT_TOKENS})
    trace.write_text(f"{row}\n" * REQUESTS, encoding="utf-8")

    # Once more where the machine was busier in one of the three than in the others: a client that measures wrongly does
    # it every time.
    for _try in range(3):
        before = ours(served, results, trace)
        measured = theirs(served)
        after = ours(served, results, trace)

        table = "\n".join(
            f"{name:<16} ours {before[name]:9.1f} {after[name]:9.1f}   vllm bench serve {measured[name]:9.1f}"
            for name in before
        )
        print(table)
        # The same load first: prompts of the same length, within what /tokenize and a random text differ by.
        assert measured["input tokens"] == pytest.approx(before["input tokens"], rel=0.04), table
        outside = [
            name
            for name in ("output tokens/s", "TTFT p50 ms", "TPOT p50 ms")
            if not within(before[name], after[name], measured[name])
        ]
        if not outside:
            break
    assert not outside, f"{', '.join(outside)} outside of ours, three times:\n{table}"


@pytest.mark.soak
@pytest.mark.parametrize("model", ["tiny-qwen3", "tiny-nemotronh"])
def test_both_models_are_measured_with_the_labs_defaults(model: str, tmp_path: Path) -> None:
    """Twice each, so that the page has a comparison and a history."""
    harness.run("site.yml", {"model": model})
    first = bench(model, tmp_path)
    second = bench(model, tmp_path)

    assert second["fingerprint"]["digest"] == first["fingerprint"]["digest"]
    assert not [point for point in second["sweep"]["points"] if point["failures"]]
    assert [point["concurrency"] for point in second["sweep"]["points"]] == [1, 4]
    assert second["comparisons"][1]["with"] == f"run {first['run']}"
    assert second["comparisons"][1]["rows"]
