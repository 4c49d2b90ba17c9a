# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_bench: plan the benchmark's objects, then read its job's log and compare."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import bench, difference
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster, ClusterError
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import DynamoError, Target, chosen
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import GRAPH_LABEL, worker_pods
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

LOG_LINES = 20000


class ActionModule(DynamoAction):
    module = "dynamo_bench"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        target = chosen(args["specs"], args["target"], args["settings"], serve_files.load_tables())
        wanted = bench.Bench(**{key: args[key] for key in ("requests", "concurrency", "deadline_seconds", "aiperf")})
        file = Path(args["trace"]).expanduser()
        try:
            raw = file.read_bytes()
            text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DynamoError(
                [f"The trace {file} cannot be read: {error}. This target's is {target.trace}."]
            ) from error
        rows, lines = bench.rows_of(text, wanted)
        job = bench.bench_job(target, rows, lines, wanted)
        if args["step"] == "plan":
            output = sum(row.output_tokens for row in rows)
            self.say(f"{len(rows)} requests, {output} output tokens, at most {job['spec']['activeDeadlineSeconds']} s")
            return {"trace": bench.config_maps(target, lines), "job": job}
        if args["step"] in ("fresh", "mark"):
            return self._workers(cluster, target, job["metadata"]["name"], args["step"])
        if self._task.check_mode:
            return {"skipped": True}
        space, name = target.settings.namespace, job["metadata"]["name"]
        pods = cluster.find("Pod", space, f"job-name={name}")
        if not pods:
            raise ClusterError(
                f"{name} has no pod any more: its log, and the figures in it, are gone. Delete the job and run again."
            )
        figures = bench.export_of(cluster.log(pods[-1]["metadata"]["name"], space, "bench", LOG_LINES))
        compared = bench.compare(target, figures, wanted, args["share"])
        for line in compared["lines"]:
            self.say(line)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        kept = Path(args["results_dir"]).expanduser() / f"{stamp}-{target.target}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, bench.record(target, lines, wanted, figures, compared))
        self.say(f"kept in {kept}")
        return {"comparison": compared["rows"], "unlike": compared["unlike"], "results": str(kept)}

    def _workers(self, cluster: Cluster, target: Target, job: str, step: str) -> dict[str, Any]:
        """Delete the workers that served a measurement, or mark those that are about to serve this one."""
        space = target.settings.namespace
        pods = cluster.find("Pod", space, f"{GRAPH_LABEL}={target.graph}")
        started = cluster.get("Job", job, space)
        if started is not None and not difference.failed_job(started):
            # An interrupted run: its job goes on, with the workers that it has.
            names = []
        elif step == "fresh":
            names = bench.used_workers(pods)
        else:
            names = [str(pod["metadata"]["name"]) for pod in worker_pods(pods)]
        try:
            for name in names if not self._task.check_mode else []:
                if step == "fresh":
                    self.say(
                        f"{name} served a measurement: it is replaced, so that its cache holds nothing of the trace"
                    )
                    cluster.delete("Pod", name, space)
                else:
                    cluster.annotate("Pod", name, space, {bench.MEASURED: job})
        except ClusterError as error:
            if not error.forbidden:
                raise
            if step == "fresh":
                words = "Ask for a role that may delete pods, or set dynamo_bench_fresh=false for a warm cache."
                raise ClusterError(f"{error} {words}", error.status) from error
            self.say(f"the workers are not marked, so the next measurement does not replace them: {error}")
        return {"changed": bool(names) and step == "fresh", "graph": target.graph, "workers": names}
