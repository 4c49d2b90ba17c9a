# SPDX-License-Identifier: Apache-2.0
"""The playbooks as an owner runs them, against a real API server: idempotence, check mode, rollback, secrecy."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.bench import BEGIN, END
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import GRAPH_LABEL
from tests.kube.conftest import Kube

REPO = Path(__file__).resolve().parents[2]
CANARY = "hf_CANARYcanaryCANARYcanary0123"
SPACE = "ultra"
GRAPH = "DynamoGraphDeployment"
FIRST, SECOND = "agg-b200-chat-mtp", "agg-b200-agentic-mtp"
ANSWER = {"choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}


class Frontend(http.server.BaseHTTPRequestHandler):
    """Answers as the frontend of Dynamo does, where the smoke test looks."""

    seen: list[bytes]

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        odd = "force_nonempty_content" in json.loads(body)
        self._answer(400 if odd else 200, {"error": "Unsupported parameter(s)"} if odd else ANSWER)

    def _answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def frontend() -> Iterator[tuple[str, list[bytes]]]:
    seen: list[bytes] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (Frontend,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def play(kube: Kube, name: str, *more: str, fails: bool = False) -> str:
    """Run a playbook and return all that it printed."""
    given = [
        f"dynamo_kubeconfig={kube.api.kubeconfig}", f"dynamo_namespace={SPACE}", "dynamo_pull_secret=",
        "dynamo_every_seconds=0.2", "dynamo_passing_seconds=120", "dynamo_ready_stall_seconds=120",
    ]  # fmt: skip
    extra = [word for each in given for word in ("-e", each)]
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "HF_TOKEN": CANARY, "NO_COLOR": "1"}
    done = subprocess.run(
        ["ansible-playbook", "-vvv", "--diff", str(REPO / "playbooks" / f"{name}.yml"), *extra, *more],
        capture_output=True, text=True, check=False, cwd=REPO, env=env, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-4000:]
    assert CANARY not in text
    assert base64.b64encode(CANARY.encode()).decode() not in text
    return text


def changes(text: str) -> int:
    found = re.search(r"localhost\s*: ok=\d+\s+changed=(\d+)", text)
    assert found, text[-2000:]
    return int(found[1])


def everything(kube: Kube) -> dict[str, str]:
    """Return name → resourceVersion of every object of the namespace that a run may touch."""
    kinds = (GRAPH, "Job", "ConfigMap", "Secret", "PersistentVolumeClaim", "Pod")
    return {
        f"{kind}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for kind in kinds
        for item in kube.api.cluster.find(kind, SPACE)
    }


def serving(kube: Kube) -> list[str]:
    return [each["metadata"]["name"] for each in kube.api.cluster.find(GRAPH, SPACE)]


def workers(kube: Kube) -> dict[str, str]:
    """Return pod → uid of what serves."""
    found = kube.api.cluster.find("Pod", SPACE, f"{GRAPH_LABEL}=ultra-{SECOND}")
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}


def measured(kube: Kube, tmp_path: Path) -> None:
    """Run the benchmark twice: the job's log is a stand-in's, everything else is real."""
    trace, export = (
        tmp_path / "trace.jsonl",
        {
            "time_to_first_token": {"unit": "ms", "avg": 5.0},
            "output_token_throughput": {"unit": "tokens/s", "avg": 1200.0},
            "output_token_throughput_per_user": {"unit": "tokens/s", "p50": 80.0},
        },
    )
    trace.write_text('{"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n' * 9)
    packed = base64.b64encode(gzip.compress(json.dumps(export).encode())).decode()
    kube.behaviour.logs["nemotron-ultra-bench"] = f"noise\n{BEGIN}\n{packed}\n{END}\n"
    given = [
        "-e",
        f"target={SECOND}",
        "-e",
        f"dynamo_bench_trace={trace}",
        "-e",
        f"dynamo_bench_results_dir={tmp_path}/kept",
    ]
    before = workers(kube)
    first = play(kube, "dynamo_bench", *given)
    assert changes(first) == 3
    assert workers(kube) == before
    assert re.search(r"tokens_per_s_per_gpu +300.0  published +310.8  not the same run", first)
    # The next run begins with new workers, for the first one's prompts are in their caches; the frontend stays.
    second = play(kube, "dynamo_bench", *given, "-e", "dynamo_bench_requests=0")
    assert changes(second) == 3
    assert "served a measurement: it is replaced" in second
    after = workers(kube)
    frontend_pod = f"ultra-{SECOND}-frontend-0"
    assert {name for name, uid in after.items() if uid != before[name]} == set(after) - {frontend_pod}
    assert kube.api.cluster.find("Job", SPACE, "gb10.cluster/job=bench") == []
    kept = sorted((tmp_path / "kept").iterdir())
    assert [json.loads(file.read_text())["unlike"] for file in kept][1:] == [[]] * (len(kept) - 1)


def test_a_life_of_a_deployment(kube: Kube, tmp_path: Path) -> None:
    if not kube.api.has_manager:
        pytest.skip("there is no kube-controller-manager beside this API server: jobs make no pods")
    with frontend() as (url, seen):
        at = ["-e", f"dynamo_url={url}"]
        look = play(kube, "dynamo", "-e", f"target={FIRST}", *at, "--check")
        assert "does not exist yet" in look
        assert kube.api.cluster.get("Namespace", SPACE) is None

        assert changes(play(kube, "dynamo", "-e", f"target={FIRST}", *at)) == 6
        assert serving(kube) == [f"ultra-{FIRST}"]
        assert len(seen) == 2
        assert seen[0].startswith(b'{"model":"nvidia/')
        assert b'\n       "max_tokens":64,\n' in seen[0]

        before = everything(kube)
        assert changes(play(kube, "dynamo", "-e", f"target={FIRST}", *at)) == 0
        assert changes(play(kube, "dynamo", "-e", f"target={FIRST}", *at, "--check")) == 0
        assert changes(play(kube, "dynamo", "-e", f"target={SECOND}", *at, "--check")) == 2
        assert everything(kube) == before

        switched = play(kube, "dynamo", "-e", f"target={SECOND}", *at)
        assert changes(switched) == 2
        assert f"ultra-{FIRST} serves in this namespace; -e target={SECOND} replaces it" in switched
        assert serving(kube) == [f"ultra-{SECOND}"]

        shown = play(kube, "dynamo_status")
        assert re.search(rf"deployment  ultra-{SECOND} +successful: Frontend 1/1, worker 1/1", shown)
        assert "shared-model-cache" in shown

        measured(kube, tmp_path)

        kube.behaviour.faults[f"ultra-{FIRST}"] = "exit43"
        failed = play(kube, "dynamo", "-e", f"target={FIRST}", *at, fails=True)
        assert "ended with 43: a file of the model is missing or short." in failed
        assert f"What served before serves again: ultra-{SECOND}." in failed
        assert serving(kube) == [f"ultra-{SECOND}"]

    kinds = ("ConfigMap", "PersistentVolumeClaim", "Pod", "Job", GRAPH, "Event")
    kept = json.dumps([kube.api.cluster.find(kind, SPACE) for kind in kinds])
    assert CANARY not in kept
    assert base64.b64encode(CANARY.encode()).decode() not in kept
    secret = kube.api.cluster.get("Secret", "hf-token-secret", SPACE)
    assert secret is not None
    assert base64.b64decode(secret["data"]["HF_TOKEN"]).decode() == CANARY

    refused = play(kube, "dynamo_delete", "-e", "dynamo_delete_cache=true", fails=True)
    assert f"-e dynamo_confirm={SPACE}" in refused
    assert changes(play(kube, "dynamo_delete")) == 2
    assert serving(kube) == []
    assert kube.api.cluster.get("PersistentVolumeClaim", "shared-model-cache", SPACE) is not None
    assert changes(play(kube, "dynamo_delete")) == 0
    play(kube, "dynamo_delete", "-e", "dynamo_delete_cache=true", "-e", f"dynamo_confirm={SPACE}")
    assert kube.api.cluster.get("Secret", "hf-token-secret", SPACE) is None
