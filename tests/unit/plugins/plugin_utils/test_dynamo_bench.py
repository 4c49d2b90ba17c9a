# SPDX-License-Identifier: Apache-2.0
"""The benchmark's objects, its deadline, and the comparison with the published row."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import bench
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import DynamoError, Target, chosen
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

GROUP_VARS = Path(__file__).resolve().parents[4] / "playbooks" / "group_vars"
SPECS = [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in GROUP_VARS.glob("model_*.yml")]
TABLES = serve_files.load_tables()
#: The whole 15 % slice of the agentic trace makes 8 694 196 tokens [S3r].
AGENTIC_TOKENS = 8_694_196


def target(name: str = "agg-b200-chat-mtp", **settings: Any) -> Target:
    return chosen(SPECS, name, {"namespace": "ultra", **settings}, TABLES)


def trace(*outputs: int) -> str:
    return "".join(
        json.dumps({"input_length": 600, "output_length": each, "hash_ids": [number, number + 1]}) + "\n"
        for number, each in enumerate(outputs)
    )


def planned(text: str, name: str = "agg-b200-chat-mtp", **wanted: Any) -> dict[str, Any]:
    asked = bench.Bench(**wanted)
    rows, lines = bench.rows_of(text, asked)
    return bench.bench_job(target(name), rows, lines, asked)


def test_the_deadline_is_that_of_the_trace_at_the_published_rate() -> None:
    rows, _lines = bench.rows_of(trace(AGENTIC_TOKENS), bench.Bench(requests=0))
    assert bench.deadline_seconds(target("agg-h200-agentic-mtp"), rows, bench.Bench()) == int(
        1.2 * AGENTIC_TOKENS / 219.2
    )
    assert bench.deadline_seconds(target("disagg-b200-agentic"), rows, bench.Bench()) == int(
        1.2 * AGENTIC_TOKENS / 1848.8
    )
    few, _lines = bench.rows_of(trace(10), bench.Bench())
    assert bench.deadline_seconds(target(), few, bench.Bench()) == 3600
    with pytest.raises(DynamoError, match=r"makes 8694196 tokens: 11\.0 h at 219 tokens/s\. Set dynamo_bench_requests"):
        bench.deadline_seconds(target("agg-h200-agentic-mtp"), rows, bench.Bench(deadline_seconds=7200))


def test_a_trace_is_staged_in_parts_that_give_the_same_bytes() -> None:
    text = trace(*range(1, 60000))
    rows, lines = bench.rows_of(text, bench.Bench(requests=0))
    maps = bench.config_maps(target(), lines)
    assert len(rows) == 59999
    assert len(maps) == len({each["metadata"]["name"] for each in maps})
    parts = [base64.b64decode(value) for each in maps for _key, value in sorted(each["binaryData"].items())]
    assert max(map(len, parts)) <= bench.PART_BYTES
    assert gzip.decompress(b"".join(parts)).decode() == lines
    assert bench.config_maps(target("agg-h200-chat-mtp"), lines) == maps
    for each in maps:
        kubernetes_validate.validate(each, "1.30", strict=True)


def test_the_job_is_valid_and_replays_the_first_requests() -> None:
    made = planned(trace(*[5] * 50), requests=20)
    kubernetes_validate.validate(made, "1.30", strict=True)
    script = made["spec"]["template"]["spec"]["containers"][0]["command"][2]
    replay = next(line for line in script.splitlines() if "--input-file" in line)
    assert "--request-count 20" in replay
    assert "--concurrency 18 --random-seed 42" in replay
    assert "--tokenizer /opt/models/patched/" in replay
    assert "--url http://ultra-agg-b200-chat-mtp-frontend:8000" in replay
    assert "aiperf==0.8.0 " in script
    assert made["spec"]["activeDeadlineSeconds"] == 3600


def test_the_job_has_the_recipes_limits_and_its_place() -> None:
    made = planned(trace(5))["spec"]["template"]["spec"]
    script = made["containers"][0]["command"][2]
    assert "--request-timeout-seconds 1200 --workers-max 18" in script
    assert "--isl 8000 --osl 1000 --concurrency 1 --request-count 5" in script
    (term,) = made["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {
        "nvidia.com/dynamo-component-type": "frontend",
        "nvidia.com/dynamo-graph-deployment-name": "ultra-agg-b200-chat-mtp",
    }


def test_only_workers_that_served_a_measurement_are_used_ones() -> None:
    def pod(name: str, kind: str, **meta: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": {"nvidia.com/dynamo-component-type": kind}, **meta}}

    marked = {"annotations": {bench.MEASURED: "job"}}
    pods = [
        pod("f", "frontend", **marked),
        pod("a", "prefill", **marked),
        pod("b", "decode"),
        pod("c", "worker", deletionTimestamp="now", **marked),
    ]
    assert bench.used_workers(pods) == ["a"]


def test_a_newer_aiperf_finds_the_tokenizer_in_a_cache_of_the_hub() -> None:
    script = planned(trace(5), aiperf="0.13.0")["spec"]["template"]["spec"]["containers"][0]["command"][2]
    assert "--tokenizer gb10/tokenizer" in script
    assert "/tmp/hf/hub/models--gb10--tokenizer/refs/main" in script
    assert "export HF_HUB_OFFLINE=1" in script


def test_the_script_of_the_job_runs(tmp_path: Path) -> None:
    """The real script with stand-ins for pip and AIPerf: the digest is checked and the export comes out of the log."""
    asked = bench.Bench()
    rows, lines = bench.rows_of(trace(5, 6), asked)
    maps = bench.config_maps(target(), lines)
    script = bench.bench_job(target(), rows, lines, asked)["spec"]["template"]["spec"]["containers"][0]["command"][2]
    for number, each in enumerate(maps):
        folder = tmp_path / "trace" / f"{number:03}"
        folder.mkdir(parents=True)
        for key, value in each["binaryData"].items():
            (folder / key).write_bytes(base64.b64decode(value))
    export = {
        "time_to_first_token": {"unit": "ms", "avg": 5.0},
        "output_token_throughput": {"unit": "tokens/s", "avg": 8.0},
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    for name, body in (
        ("pip", "exit 0"),
        (
            "aiperf",
            (
                f"mkdir -p {tmp_path}/tmp/replay; echo '{json.dumps(export)}' "
                f">{tmp_path}/tmp/replay/profile_export_aiperf.json"
            ),
        ),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = (
        script.replace("/trace/*", f"{tmp_path}/trace/*")
        .replace("/tmp/", f"{tmp_path}/tmp/")
        .replace(f"{tmp_path}{tmp_path}", str(tmp_path))
    )
    script = re.sub(r"find /\S*/replay|find /tmp/replay", f"find {tmp_path}/tmp/replay", script)
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert bench.export_of(f"noise\n{done.stdout}")["output_tokens_per_s"] == {"unit": "tokens/s", "avg": 8.0}
    (tmp_path / "trace" / "000" / "part-000").write_bytes(gzip.compress(b"other"))
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env).returncode != 0


FIGURES: dict[str, dict[str, Any]] = {
    "user_tokens_per_s": {"p50": 50.0},
    "output_tokens_per_s": {"avg": 4 * 150.0},
    "failed": {"avg": 2},
}


def test_figures_stand_beside_the_published_row() -> None:
    found = bench.compare(target(), FIGURES, bench.Bench(requests=0), 0.1)
    assert [(row["name"], row["measured"], row["published"], row["verdict"]) for row in found["rows"]] == [
        ("user_tokens_per_s", 50.0, 52.0, "within"), ("tokens_per_s_per_gpu", 150.0, 201.4, "worse")
    ]  # fmt: skip
    assert found["unlike"] == []
    assert found["lines"][-1] == "2 requests failed; they are counted as evidence, not left out."
    halves = bench.compare(
        target("disagg-b200-agentic"), {"output_tokens_per_s": {"avg": 800.0}}, bench.Bench(requests=0), 0.1
    )
    assert halves["rows"][1]["measured"] == 100.0
    assert halves["rows"][0]["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("name", "wanted", "settings", "words"),
    [
        ("agg-b200-chat-mtp", {"requests": 400}, {}, "400 requests, not the published 15 % of the trace"),
        ("agg-h200-chat-mtp", {"requests": 0}, {}, "the published row rests on 300 samples"),
        ("agg-b200-chat-mtp", {"requests": 0, "aiperf": "0.13.0"}, {}, "AIPerf 0.13.0, not 0.8.0"),
        ("agg-b200-chat-mtp", {"requests": 0, "concurrency": 4}, {}, "4 requests at once, not 18"),
        ("agg-b200-chat-mtp", {"requests": 0}, {"replicas": 2}, "2 replicas, not 1"),
    ],
)
def test_a_run_that_is_not_the_published_one_is_not_judged(
    name: str, wanted: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    found = bench.compare(target(name, **settings), FIGURES, bench.Bench(**wanted), 0.1)
    assert found["unlike"] == [words]
    assert {row["verdict"] for row in found["rows"]} == {"not the same run"}


@pytest.mark.parametrize(
    ("text", "wanted", "words"),
    [
        ("", {}, "The trace has no request."),
        ("{}\n", {}, "Line 1 of the trace has input_length None"),
        (trace(1), {"aiperf": "0.10.0"}, "AIPerf 0.10.0 refuses the published command's block size"),
        (trace(1), {"aiperf": "0.12.0"}, "set dynamo_bench_aiperf to 0.8.0."),
        (trace(1), {"requests": -1}, "dynamo_bench_requests is -1, but it must be 0 or more."),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(text: str, wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(DynamoError) as caught:
        bench.rows_of(text, bench.Bench(**wanted))
    assert words in str(caught.value)


def test_a_log_without_figures_says_so() -> None:
    for log in ("", f"{bench.BEGIN}\n!!\n{bench.END}\n", f"{bench.BEGIN}\n"):
        with pytest.raises(DynamoError, match="holds no export of AIPerf"):
            bench.export_of(log)


def test_a_record_names_the_run() -> None:
    compared = bench.compare(target(), FIGURES, bench.Bench(), 0.1)
    kept = json.loads(bench.record(target(), "x\n", bench.Bench(), FIGURES, compared))
    assert kept["target"] == "agg-b200-chat-mtp"
    assert kept["concurrency"] == 18
    assert len(kept["trace_sha256"]) == 64
