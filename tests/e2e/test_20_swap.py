# SPDX-License-Identifier: Apache-2.0
"""One model gives way to another, on another engine, and leaves nothing behind."""

from __future__ import annotations

import socket

from tests.e2e import harness
from tests.e2e.harness import HEAD, NODES

FIRST = "tiny-qwen3"
SECOND = "tiny-nemotronh"
SERVED = "lab/tiny-nemotronh"


def test_what_the_image_itself_refuses_is_refused_while_the_first_model_serves_on() -> None:
    """A wrong architecture passes every table of ours; only the vLLM in the image knows that it has none such."""
    unit = f"vllm-{FIRST}.service"
    before = {node: harness.unit_state(node, unit)["ExecMainStartTimestampMonotonic"] for node in NODES}
    list_files = "ls -l --time-style=full-iso /etc/systemd/system/vllm-* /etc/gb10/engine"
    files = {node: harness.node_exec(node, list_files).stdout for node in NODES}
    overrides = {"serve": {"hf-overrides": {"architectures": ["NoSuchForCausalLM"]}}}

    result = harness.run("swap-model.yml", {"model": SECOND, "model_overrides": overrides}, ok=False)

    message = "\n".join(result.failed_messages())
    assert "vLLM says: Model architectures ['NoSuchForCausalLM'] are not supported for now." in message
    assert "Nothing was stopped or changed." in message
    assert harness.served_models() == ["lab/tiny-qwen3"]
    after = {node: harness.unit_state(node, unit)["ExecMainStartTimestampMonotonic"] for node in NODES}
    assert after == before
    assert {node: harness.node_exec(node, list_files).stdout for node in NODES} == files


def test_swap_serves_the_second_model_through_ray() -> None:
    harness.run("swap-model.yml", {"model": SECOND})

    assert harness.served_models() == [SERVED]
    assert harness.chat(SERVED, "What is a GB10?")["usage"]["completion_tokens"] > 0
    nodes = harness.node_exec(HEAD, f"docker exec vllm-{SECOND} ray status --address 10.211.0.11:6379").stdout
    assert nodes.count("node_") == len(NODES)


def test_nothing_of_the_first_model_runs_or_would_start_again() -> None:
    for node in NODES:
        kept, *others = harness.containers_on(node, stopped=True)
        assert kept.startswith("gb10-keep-")  # holds the image, and never ran
        assert [name for name in others if not name.startswith("gb10-keep-")] == [f"vllm-{SECOND}"]
        assert harness.unit_state(node, f"vllm-{FIRST}.service")["ActiveState"] == "inactive"
        assert harness.unit_state(node, f"vllm-{FIRST}.service")["UnitFileState"] == "disabled"


def reachable(address: str, port: int) -> bool:
    """Return whether this host, which is on the management network alone, gets a connection."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def test_ray_is_reachable_on_the_fabric_alone() -> None:
    for node in NODES:
        management = node.replace("gx10-", "10.210.0.1")
        listening = {int(line.split()[3].rsplit(":", 1)[1]) for line in harness.node_exec(node, "ss -Hltn").lines}
        assert len(listening) > 2, f"{node} listens on {listening}: Ray should"
        open_ports = {port for port in listening if reachable(management, port)}
        assert open_ports == ({22, 8000} if node == HEAD else {22})
    peer = harness.node_exec(NODES[1], "timeout 3 bash -c '</dev/tcp/10.211.0.11/6379'", check=False)
    assert peer.rc == 0, "a worker does not reach the head's Ray over the fabric"


def test_the_mod_is_in_every_rank() -> None:
    for node in NODES:
        record = harness.node_exec(node, f"docker exec vllm-{SECOND} cat /etc/gb10/mods.json").stdout
        assert "ray-on-cpu" in record


def test_a_second_swap_to_the_same_model_changes_nothing() -> None:
    harness.assert_converged(harness.run("swap-model.yml", {"model": SECOND}))
