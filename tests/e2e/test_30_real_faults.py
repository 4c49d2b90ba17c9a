# SPDX-License-Identifier: Apache-2.0
"""Faults of the real engine: processes killed, power and links cut; what the probe says, and that a model serves again.

Runs on the lab of four and serves each of its models in turn, one with the native engine and one through Ray. What is
measured goes to .lab/runs/real-faults.json; docs/decisions/faults.md shows it.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.e2e import harness
from tests.e2e.faults import keep, watched
from tests.e2e.harness import HEAD, NODES, REPO

pytestmark = pytest.mark.soak

FIGURES = REPO / ".lab" / "runs" / "real-faults.json"
#: A real engine's start on the lab's few cores, with room for a start that was refused before it.
SERVED_S = 420.0
NATIVE = "tiny-qwen3"
RAY = "tiny-nemotronh"
#: The process that holds the weights is a grandchild of the container's entry; it names itself in its title.
KILL_ENGINE_CORE = "pkill -9 -f ^VLLM::EngineCore"
KILL_RANK = "pkill -9 -f '^VLLM::Worker'"
KILL_RAYLET = "pkill -9 raylet"


def completes(model: str) -> bool:
    """Return whether a completion with tokens comes now."""
    body = {"model": f"lab/{model}", "prompt": "x", "max_tokens": 2}
    try:
        answer = harness.api_post("/v1/completions", body, timeout_s=10)
    except requests.RequestException:
        return False
    return answer.status_code == 200 and int(answer.json()["usage"]["completion_tokens"]) > 0


def starts(model: str) -> list[str]:
    """Return when each rank's unit was started last, by the node's monotonic clock."""
    unit = f"vllm-{model}.service"
    return [harness.unit_state(node, unit).get("ExecMainStartTimestampMonotonic", "") for node in NODES]


def look(folder: Path) -> tuple[str, str] | None:
    """Return the state and the sentence that playbooks/status.yml tells now."""
    into = folder / "status.json"
    into.unlink(missing_ok=True)
    harness.run("playbooks/status.yml", {"status_json": str(into)}, ok=None, quiet=True)
    if not into.exists():
        return None
    told = json.loads(into.read_text(encoding="utf-8"))
    return str(told["state"]), str(told["summary"])


note = partial(keep, FIGURES)


def serve(model: str) -> None:
    """Let this model be the one that serves, no unit be short of starts, and no reason be kept of a fault before."""
    harness.run("swap-model.yml", {"model": model})
    harness.wait_until(f"{model} served before the fault", lambda: completes(model), stall_s=SERVED_S)
    harness.on_all(f"rm -f /run/gb10/engine/{model}.starts /var/lib/gb10/engine/last_failure.json")


def reasons(model: str) -> dict[str, str]:
    """Return the newest reason that each node has kept for this model."""
    found = {}
    for node in NODES:
        text = harness.node_exec(node, "cat /var/lib/gb10/engine/last_failure.json", check=False).stdout
        if text and (kept := json.loads(text))["model"] == model:
            found[node] = str(kept["reason"])
    return found


def assert_one_engine(model: str) -> None:
    """Fail unless every node runs the one container of this model and no other."""
    for node in NODES:
        assert harness.containers_on(node) == [f"vllm-{model}"]


@pytest.mark.parametrize(
    ("model", "fault", "node", "script"),
    [
        (NATIVE, "kill -9 of the head's engine core", HEAD, KILL_ENGINE_CORE),
        (NATIVE, "kill -9 of a worker's rank", NODES[2], KILL_RANK),
        (RAY, "kill -9 of a worker's raylet", NODES[2], KILL_RAYLET),
        (RAY, "kill -9 of a worker's container", NODES[1], f"docker kill vllm-{RAY}"),
    ],
)
def test_a_killed_process_restarts_all_ranks(tmp_path: Path, model: str, fault: str, node: str, script: str) -> None:
    serve(model)
    before = starts(model)
    with watched(partial(look, tmp_path)) as watch:
        harness.node_exec(node, script)
        harness.wait_until(
            "the restart of every rank",
            lambda: all(now and now != was for now, was in zip(starts(model), before, strict=True)),
            stall_s=SERVED_S,
        )
        restarted = time.monotonic() - watch.since
        harness.wait_until("served again", lambda: completes(model), stall_s=SERVED_S)
        again = time.monotonic() - watch.since
    note(f"{fault} ({model})", watch, restarted=restarted, again=again, reasons=reasons(model))

    assert watch.not_ready()[1] in {"dead", "degraded", "starting"}, watch.seen
    assert_one_engine(model)
    # One rank was first, and the others say which.
    assert any("restarting with the others" in each for each in reasons(model).values()), reasons(model)


@pytest.mark.parametrize(("model", "node"), [(RAY, HEAD), (NATIVE, NODES[3])], ids=["head", "worker"])
def test_a_node_without_power_comes_back_into_a_served_model(tmp_path: Path, model: str, node: str) -> None:
    serve(model)
    with watched(partial(look, tmp_path)) as watch:
        harness.lab("kill", node)
        # A look that was under way when the power was cut may say something else.
        harness.wait_until(
            "the probe names the node",
            lambda: any(state != "ready" and node in words for _at, state, words in watch.seen),
            stall_s=SERVED_S,
        )
        assert not completes(model)
        booted = time.monotonic()
        harness.lab("boot", node)
        harness.wait_until("served again", lambda: completes(model), stall_s=SERVED_S)
        again = time.monotonic() - booted
    note(f"power-off of {'the head' if node == HEAD else 'a worker'} ({model})", watch, again_after_boot=again)

    assert_one_engine(model)


def test_a_cut_of_five_seconds_restarts_nothing(tmp_path: Path) -> None:
    serve(NATIVE)
    before = starts(NATIVE)
    with watched(partial(look, tmp_path)) as watch:
        harness.lab("cut", NODES[2], "--net", "fabric")
        time.sleep(5)
        harness.lab("heal", NODES[2], "--net", "fabric")
        harness.wait_until("a completion after the cut", lambda: completes(NATIVE), stall_s=SERVED_S)
        again = time.monotonic() - watch.since - 5
        time.sleep(45)  # longer than a silent rank is waited for
    note("cut of the fabric for 5 s (tiny-qwen3)", watch, again_after_heal=again)

    assert starts(NATIVE) == before
    assert completes(NATIVE)


def test_a_lasting_cut_is_named_and_heals_with_the_cable(tmp_path: Path) -> None:
    serve(NATIVE)
    node = NODES[2]
    with watched(partial(look, tmp_path)) as watch:
        harness.lab("cut", node, "--net", "fabric")
        harness.wait_until(
            "the probe names the cable",
            lambda: any("carrier" in words for _at, _state, words in watch.seen),
            stall_s=SERVED_S,
        )
        harness.wait_until("the reason is kept", lambda: "carrier" in reasons(NATIVE).get(node, ""), stall_s=SERVED_S)
        kept = reasons(NATIVE)[node]
        healed = time.monotonic()
        harness.lab("heal", node, "--net", "fabric")
        harness.wait_until("served again", lambda: completes(NATIVE), stall_s=SERVED_S)
        again = time.monotonic() - healed
    note("cut of the fabric for good (tiny-qwen3)", watch, again_after_heal=again, reason=kept)

    assert "has no carrier; check the cable" in kept
    assert_one_engine(NATIVE)
