# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the source on a cluster: a trace in ConfigMaps, a job with AIPerf, figures beside the published.

Pure.  A trace is packed and cut into ConfigMaps, which need no helper pod and are checked by their digest in the job.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import tokens
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.trace import (
    BLOCK_TOKENS,
    TraceError,
    TraceRow,
    aiperf_command,
    parse_aiperf,
    parse_trace,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.render import (
    MODELS,
    cache_volume,
    job,
    shared_labels,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import DynamoError, Target
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import (
    COMPONENT_LABEL,
    GRAPH_LABEL,
    worker_pods,
)

#: A ConfigMap holds 1 MiB; base64 adds a third.
PART_BYTES = 700 * 1024
#: What the published rows were measured with [S3r].
PUBLISHED_AIPERF = "0.8.0"
#: These refuse the block size of a trace that the published command gives.
REFUSED_AIPERF = ("0.10.", "0.12.")
IMAGE = "python:3.12-slim"
LEAST_SECONDS = 3600
MARGIN = 1.2
#: On the pod of a worker: the job whose requests it served.
MEASURED = "gb10.cluster/measured"
BEGIN, END = "GB10_EXPORT_BEGIN", "GB10_EXPORT_END"


@dataclass(frozen=True)
class Bench:
    """What is measured.

    :ivar requests: of the trace's beginning; 0 for all.
    :ivar concurrency: requests at once; 0 for the published row's.
    :ivar deadline_seconds: of the job; 0 computes it.
    """

    requests: int = 400
    concurrency: int = 0
    deadline_seconds: int = 0
    aiperf: str = PUBLISHED_AIPERF


def rows_of(text: str, bench: Bench) -> tuple[list[TraceRow], str]:
    """Return the requests that are replayed, and their lines.

    :raises DynamoError: the text is no trace, or the settings cannot be used.
    """
    if bench.aiperf.startswith(REFUSED_AIPERF):
        raise DynamoError([(
            f"AIPerf {bench.aiperf} refuses the published command's block size: set dynamo_bench_aiperf to "
            f"{PUBLISHED_AIPERF}."
        )])  # fmt: skip
    for name in ("requests", "concurrency", "deadline_seconds"):
        if getattr(bench, name) < 0:
            raise DynamoError([f"dynamo_bench_{name} is {getattr(bench, name)}, but it must be 0 or more."])
    lines = [line for line in text.splitlines() if line.strip()]
    kept = lines[: bench.requests] if bench.requests else lines
    try:
        return parse_trace(kept), "\n".join(kept) + "\n"
    except TraceError as error:
        raise DynamoError([str(error)]) from error


def deadline_seconds(target: Target, rows: Sequence[TraceRow], bench: Bench) -> int:
    """Return how long the job may take: at the published rate and a fifth more, an hour at least.

    :raises DynamoError: the deadline that was asked for is too short.
    """
    output = sum(row.output_tokens for row in rows)
    rate = float(target.reference.get("tokens_per_s_per_gpu") or 0) * target.total_gpus
    needed = max(LEAST_SECONDS, int(MARGIN * output / rate)) if rate else LEAST_SECONDS
    if bench.deadline_seconds and bench.deadline_seconds < needed:
        raise DynamoError([
            f"The replay makes {output} tokens: {output / rate / 3600:.1f} h at {rate:.0f} tokens/s. Set "
            f"dynamo_bench_requests lower, or dynamo_bench_deadline_seconds to {needed} or more."
        ])  # fmt: skip
    return bench.deadline_seconds or needed


def config_maps(target: Target, lines: str) -> list[dict[str, Any]]:
    """Return the ConfigMaps that hold a packed trace; the same lines give the same names and bytes."""
    digest = hashlib.sha256(lines.encode()).hexdigest()[:8]
    packed = gzip.compress(lines.encode(), mtime=0)
    parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{target.part_of}-trace-{digest}-{number}",
                "namespace": target.settings.namespace,
                "labels": {**shared_labels(target), "gb10.cluster/trace": digest},
            },
            "immutable": True,
            "binaryData": {f"part-{number:03}": base64.b64encode(part).decode()},
        }
        for number, part in enumerate(parts)
    ]


def bench_job(target: Target, rows: Sequence[TraceRow], lines: str, bench: Bench) -> dict[str, Any]:
    """Return the job: it checks the trace's digest, warms up, replays, and prints AIPerf's export."""
    view = f"{target.cache['path']}/{target.cache['view']}"
    url = f"http://{target.graph}-frontend:{target.frontend['port']}"
    tokenizer, prepared = view, []
    if bench.aiperf != PUBLISHED_AIPERF:
        # Newer ones cannot load a directory in their decoding workers: see _bench/tokens.py.
        kept = f"/tmp/hf/hub/models--{tokens.REPOSITORY.replace('/', '--')}"
        tokenizer = tokens.REPOSITORY
        prepared = [
            f"mkdir -p {kept}/refs {kept}/snapshots/{tokens.COMMIT}",
            f"printf %s {tokens.COMMIT} >{kept}/refs/main",
            f"for file in {shlex.quote(view)}/*; do case $file in *.safetensors) ;; *) "
            f'ln -s "$file" {kept}/snapshots/{tokens.COMMIT}/ ;; esac; done',
            "export HF_HUB_OFFLINE=1",
        ]
    command = aiperf_command(
        program="aiperf", model=target.model, tokenizer=tokenizer, trace="/tmp/trace.jsonl", url=url,
        artifacts="/tmp/replay", concurrency=concurrency(target, bench), requests=len(rows), block_tokens=BLOCK_TOKENS,
    )  # fmt: skip
    command += ["--request-timeout-seconds", "1200", "--workers-max", str(concurrency(target, bench))]
    warm = [
        *("aiperf", "profile", "-m", target.model, "--tokenizer", tokenizer, "--tokenizer-trust-remote-code"),
        *("--url", url, "--endpoint-type", "chat", "--streaming", "--isl", "8000", "--osl", "1000"),
        *("--concurrency", "1", "--request-count", "5", "--artifact-dir", "/tmp/warm-up", "--ui", "none"),
    ]
    script = "\n".join([
        "set -eu",
        "cat /trace/*/part-* | gunzip >/tmp/trace.jsonl",
        f'echo "{hashlib.sha256(lines.encode()).hexdigest()}  /tmp/trace.jsonl" | sha256sum -c -',
        (
            f"pip install --quiet --disable-pip-version-check aiperf=={bench.aiperf} protobuf "
            "transformers==4.57.3 tiktoken==0.13.0"
        ),
        *prepared,
        shlex.join(warm),
        shlex.join(command),
        f"echo {BEGIN}",
        "find /tmp/replay -name profile_export_aiperf.json -exec gzip -c {} + | base64 -w 100",
        f"echo {END}",
    ])  # fmt: skip
    maps = config_maps(target, lines)
    mounts = [
        {"name": f"trace-{number}", "mountPath": f"/trace/{number:03}", "readOnly": True} for number in range(len(maps))
    ]
    container = {
        "name": "bench",
        "image": IMAGE,
        "command": ["/bin/bash", "-c", script],
        "env": [
            {"name": "HF_HOME", "value": "/tmp/hf"},
            {"name": "AIPERF_HTTP_CONNECTION_LIMIT", "value": "200"},
            {"name": "AIPERF_HTTP_SO_RCVTIMEO", "value": "120"},
            {"name": "AIPERF_SERVICE_PROFILE_CONFIGURE_TIMEOUT", "value": "3600"},
            {"name": "AIPERF_DATASET_CONFIGURATION_TIMEOUT", "value": "3600"},
        ],
        "volumeMounts": [{"name": MODELS, "mountPath": target.cache["path"], "readOnly": True}, *mounts],
    }
    volumes = [
        cache_volume(target),
        *({"name": f"trace-{at}", "configMap": {"name": one["metadata"]["name"]}} for at, one in enumerate(maps)),
    ]
    return job(
        target,
        "bench",
        container,
        backoff=0,
        volumes=volumes,
        deadline=deadline_seconds(target, rows, bench),
        affinity=_beside_the_frontend(target),
    )


def _beside_the_frontend(target: Target) -> dict[str, Any]:
    """Return what places the job on the frontend's node, as the recipe does: no network between the two."""
    labels = {COMPONENT_LABEL: "frontend", GRAPH_LABEL: target.graph}
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def used_workers(pods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the workers that served a measurement: their caches hold its prompts."""
    marked = [pod for pod in worker_pods(pods) if MEASURED in (pod["metadata"].get("annotations") or {})]
    return [str(pod["metadata"]["name"]) for pod in marked]


def concurrency(target: Target, bench: Bench) -> int:
    """Return how many requests are sent at once."""
    return bench.concurrency or int(target.reference.get("concurrency") or 1)


def export_of(log: str) -> dict[str, dict[str, Any]]:
    """Return AIPerf's figures from the job's log.

    :raises DynamoError: the log has no export.
    """
    try:
        packed = log.split(f"{BEGIN}\n", 1)[1].split(END, 1)[0]
        return parse_aiperf(gzip.decompress(base64.b64decode(packed)).decode())
    except (IndexError, ValueError, OSError, EOFError, TraceError) as error:
        raise DynamoError([f"The job's log holds no export of AIPerf: {error}."]) from error


def unlike(target: Target, bench: Bench) -> list[str]:
    """Return why a run is not the published one; figures of unlike runs are shown and not judged."""
    said = []
    if bench.requests:
        said.append(f"{bench.requests} requests, not the published 15 % of the trace")
    if target.gpu == "H200":
        said.append("the published row rests on 300 samples")
    if bench.aiperf != PUBLISHED_AIPERF:
        said.append(f"AIPerf {bench.aiperf}, not {PUBLISHED_AIPERF}")
    if target.settings.replicas != 1:
        said.append(f"{target.settings.replicas} replicas, not 1")
    wanted = target.reference.get("concurrency")
    if bench.concurrency and bench.concurrency != wanted:
        said.append(f"{bench.concurrency} requests at once, not {wanted}")
    return said


def compare(target: Target, figures: Mapping[str, Mapping[str, Any]], bench: Bench, share: float) -> dict[str, Any]:
    """Return ``rows`` (name, measured, published, verdict), ``unlike``, ``failed`` and ``lines`` to print."""
    found = {
        "user_tokens_per_s": (figures.get("user_tokens_per_s") or {}).get("p50"),
        "tokens_per_s_per_gpu": ((figures.get("output_tokens_per_s") or {}).get("avg") or 0) / target.total_gpus,
    }
    different = unlike(target, bench)
    rows = []
    for name, measured in found.items():
        published = target.reference.get(name)
        verdict = "not measured" if not measured else "no published figure"
        if measured and published:
            low, high = published * (1 - share), published * (1 + share)
            verdict = "worse" if measured < low else "better" if measured > high else "within"
            if different:
                verdict = "not the same run"
        rows.append({"name": name, "measured": measured, "published": published, "verdict": verdict})
    lines = [
        f"{row['name']:22} {row['measured'] or 0:10.1f}  published {row['published'] or 0:10.1f}  {row['verdict']}"
        for row in rows
    ]
    if different:
        lines.append(f"not the same run: {'; '.join(different)}.")
    failed = (figures.get("failed") or {}).get("avg") or 0
    if failed:
        lines.append(f"{failed:.0f} requests failed; they are counted as evidence, not left out.")
    return {"rows": rows, "unlike": different, "failed": failed, "lines": lines}


def record(target: Target, lines: str, bench: Bench, figures: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """Return the JSON text that is kept of a run."""
    about = {
        "target": target.target, "image": target.image, "revision": target.revision, "aiperf": bench.aiperf,
        "trace_sha256": hashlib.sha256(lines.encode()).hexdigest(), "requests": bench.requests,
        "concurrency": concurrency(target, bench), "figures": figures, "comparison": compared["rows"],
        "unlike": compared["unlike"],
    }  # fmt: skip
    return json.dumps(about, indent=2) + "\n"
