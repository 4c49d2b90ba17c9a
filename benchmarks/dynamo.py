# SPDX-License-Identifier: Apache-2.0
"""Measure this project's replay and AIPerf side by side against Dynamo's real frontend with its mocker.

    make bench-dynamo                  # installs frontend and AIPerf once (1.3 GB); then a quarter of an hour
    make bench-dynamo ARGS='--rounds 5'
    make bench-dynamo ARGS='--smoke'   # only the published request and the one that must be refused

In each round both replay the same trace, each against a frontend and a worker that were just started, so that neither
finds a cache of the other. Prints the medians and their differences, and exits 1 where one is beyond its bound. Before
it, the script of the benchmark's job runs once as a cluster runs it, with the AIPerf of the published rows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (  # noqa: E402
    BenchError,
    Endpoint,
    connect,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.replay import Replay, run_replay  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import bench, smoke  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import DynamoError, Target, chosen  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files  # noqa: E402
from lab.kube import frontend  # noqa: E402
from lab.kube.server import KubeError  # noqa: E402

TARGET = "agg-b200-chat-mtp"
CONCURRENCY = 4
REQUESTS = 24
CONVERSATIONS = 6
BLOCK_TOKENS = 512
#: A twentieth of a GPU's pace: what the clients themselves take of a busy machine is small beside it.
PACE = 0.05


@dataclass(frozen=True)
class Figure:
    """One figure of both: its name, the unit, and how far the medians may be apart (a share of AIPerf's)."""

    name: str
    unit: str
    bound: float


FIGURES = (
    Figure("output tokens/s", "tokens/s", 0.05),
    Figure("request duration", "s", 0.05),
    Figure("time per output token", "ms", 0.08),
    Figure("time to first token", "ms", 0.15),
)


def ours(figures: Mapping[str, Any]) -> list[float]:
    """Return FIGURES of a replay by this project; means, as AIPerf's are."""
    return [
        float(figures["output_tokens_per_s"]),
        float(figures["duration_s"]["mean"]),
        float(figures["tpot_s"]["mean"]) * 1000,
        float(figures["ttft_s"]["mean"]) * 1000,
    ]


def theirs(figures: Mapping[str, Any]) -> list[float]:
    """Return FIGURES of a replay by AIPerf."""
    return [
        float(figures["output_tokens_per_s"]["avg"]),
        float(figures["latency"]["avg"]) / 1000,
        float(figures["inter_token_latency"]["avg"]),
        float(figures["ttft"]["avg"]),
    ]


def verdicts(
    mine: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> list[tuple[float, float, float, bool]]:
    """Return for each figure: this project's median, AIPerf's, the difference as a share, whether it is in bounds."""
    rows = []
    for at, figure in enumerate(FIGURES):
        a, b = (statistics.median(each[at] for each in runs) for runs in (mine, other))
        rows.append((a, b, a / b - 1, abs(a / b - 1) <= figure.bound))
    return rows


def trace() -> str:
    """Return a trace of conversations that grow: each request repeats the blocks of the one before it."""
    chance, lines = random.Random(3), []
    held = [[1000 * number + block for block in range(3)] for number in range(CONVERSATIONS)]
    for number in range(REQUESTS):
        blocks = held[number % CONVERSATIONS]
        length = BLOCK_TOKENS * len(blocks) + chance.randint(100, 400)
        row = {"input_length": length, "output_length": chance.randint(40, 120), "hash_ids": [*blocks, 50000 + number]}
        lines.append(json.dumps(row))
        blocks.append(70000 + number)
    return "\n".join(lines) + "\n"


def target(namespace: str = "bench") -> Target:
    """Return the target whose request and job are used."""
    files = sorted((REPO / "playbooks" / "group_vars").glob("model_*.yml"))
    specs = [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in files]
    return chosen(specs, TARGET, {"namespace": namespace}, serve_files.load_tables())


def smoke_problems(url: str, wanted: Target) -> list[str]:
    """Return what is wrong with the answers to the published request and to the one that must be refused."""
    found = [
        smoke.wrong_models(*frontend.models(url), wanted.model),
        smoke.wrong_answer(*frontend.post(url, smoke.request_body(wanted.smoke, wanted.model))),
        smoke.wrong_refusal(wanted.smoke, *frontend.post(url, smoke.refused_body(wanted.smoke, wanted.model))),
    ]
    return [each for each in found if each]


def job_script(wanted: Target, text: str, url: str, at: Path, model: Path) -> str:
    """Return the script of the benchmark's job with the paths and the URL of this machine in place of the cluster's."""
    asked = bench.Bench(requests=0, concurrency=CONCURRENCY)
    rows, lines = bench.rows_of(text, asked)
    container = bench.bench_job(wanted, rows, lines, asked)["spec"]["template"]["spec"]["containers"][0]
    script = str(container["command"][2])
    view = f"{wanted.cache['path']}/{wanted.cache['view']}"
    there = f"http://{wanted.graph}-frontend:{wanted.frontend['port']}"
    here = {view: str(model), there: url, "/trace/*": f"{at}/trace/*", "/tmp/": f"{at}/"}
    missing = [old for old in here if old not in script]
    if missing:
        raise KubeError(f"The job's script has no {', '.join(missing)}: this benchmark has to be changed with it.")
    # In one pass: a replacement may hold what another one replaces.
    script = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], script)
    for number, each in enumerate(bench.config_maps(wanted, lines)):
        folder = at / "trace" / f"{number:03}"
        folder.mkdir(parents=True)
        for key, value in each["binaryData"].items():
            (folder / key).write_bytes(base64.b64decode(value))
    return script


def run_job(wanted: Target, text: str, work: Path) -> list[str]:
    """Run the job's script against a frontend at a GPU's pace; return the lines that a benchmark prints."""
    with frontend.serving(work / "served", wanted.model) as url:
        at = work / "job"
        (at / "bin").mkdir(parents=True)
        # The environment has what the job installs.
        (at / "bin" / "pip").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
        (at / "bin" / "pip").chmod(0o755)
        script = job_script(wanted, text, url, at, work / "served" / "model")
        env = {**os.environ, "PATH": f"{at / 'bin'}{os.pathsep}{frontend.on_path('aiperf')}", "HF_HOME": str(at / "hf")}
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL
        )
    if done.returncode != 0:
        raise KubeError(f"The job's script ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    asked = bench.Bench(requests=0, concurrency=CONCURRENCY)
    found = bench.compare(wanted, bench.export_of(done.stdout), asked, 0.1)
    if any(row["verdict"] == "not measured" for row in found["rows"]) or found["failed"]:
        raise KubeError(f"The job measured nothing, or requests failed: {found['lines']}")
    return [str(line) for line in found["lines"]]


def replay(wanted: Target, file: Path, work: Path, by_aiperf: bool) -> list[float]:
    """Replay the trace once against a frontend and a worker that were just started."""
    with frontend.serving(work, wanted.model, PACE) as url:
        model = str(work / "model")
        asked = Replay(file, CONCURRENCY, aiperf="require" if by_aiperf else "never", tokenizer=model)

        async def once() -> dict[str, Any]:
            async with connect(Endpoint(url, wanted.model, tokenizer=model)) as client:
                return await run_replay(client, asked, lambda _words: None)

        found = asyncio.run(once())["figures"]
    return theirs(found) if by_aiperf else ours(found)


def measure(wanted: Target, rounds: int, work: Path) -> int:
    """Replay by turns, print the table, and return the exit code."""
    file = work / "trace.jsonl"
    file.write_text(trace(), encoding="utf-8")
    os.environ["PATH"] = frontend.on_path("aiperf")
    runs: dict[bool, list[list[float]]] = {False: [], True: []}
    for number in range(rounds):
        # The order changes with each round: what else the machine does falls on both alike.
        for by_aiperf in (False, True) if number % 2 == 0 else (True, False):
            runs[by_aiperf].append(replay(wanted, file, work / f"{number}-{by_aiperf:d}", by_aiperf))
            shown = ", ".join(f"{value:.1f}" for value in runs[by_aiperf][-1])
            print(f"round {number + 1}, {'AIPerf' if by_aiperf else 'this project'}: {shown}", flush=True)
    found = verdicts(runs[False], runs[True])
    print(f"\nmedians of {rounds}{'':>14} {'this project':>13} {'AIPerf':>9} {'difference':>11} {'bound':>6}")
    for figure, (mine, other, share, holds) in zip(FIGURES, found, strict=True):
        print(
            f"{figure.name:23} {mine:>12.2f} {other:>9.2f} {share:>+10.1%} {figure.bound:>6.0%}  {figure.unit}"
            f"{'' if holds else '  BEYOND'}"
        )
    return 0 if all(holds for *_rest, holds in found) else 1


def main() -> int:
    """Install what is missing, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="replays by each of the two (3)")
    parser.add_argument("--smoke", action="store_true", help="only the published request and its negative")
    given = parser.parse_args()
    wanted, work = target(), Path(tempfile.mkdtemp(prefix="gb10-dynamo-"))
    try:
        for name in ("frontend",) if given.smoke else ("frontend", "aiperf"):
            frontend.install(name, lambda words: print(words, flush=True))
        frontend.lend_tokenizers()
        with frontend.serving(work / "smoke", wanted.model) as url:
            problems = smoke_problems(url, wanted)
        print(f"frontend of Dynamo {frontend.version('frontend', 'ai-dynamo')}: ", end="")
        print("; ".join(problems) or "the published request is answered, the other one refused with 400", flush=True)
        if problems or given.smoke:
            return 1 if problems else 0
        print(f"the job's script with AIPerf {frontend.version('aiperf', 'aiperf')}:", flush=True)
        print("\n".join(f"  {line}" for line in run_job(wanted, trace(), work)), flush=True)
        return measure(wanted, given.rounds, work)
    except (KubeError, BenchError, DynamoError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
