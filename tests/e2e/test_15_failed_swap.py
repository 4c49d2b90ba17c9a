# SPDX-License-Identifier: Apache-2.0
"""A swap to a model whose real engine dies while it starts: the model before serves again, by itself."""

from __future__ import annotations

from tests.e2e import harness
from tests.e2e.harness import NODES

BEFORE = "tiny-qwen3"
FAILS = "tiny-nemotronh"
SERVED = "lab/tiny-qwen3"
#: vLLM's message queues want 160 MiB of /dev/shm: no check before the start can know, and each rank dies of it.
OVERRIDES = {"engine": "native", "shm_size": "1m"}


def test_a_model_that_cannot_start_gives_way_to_the_one_before() -> None:
    result = harness.run("swap-model.yml", {"model": FAILS, "model_overrides": OVERRIDES}, ok=False)

    message = "\n".join(result.failed_messages())
    assert f"{FAILS} did not start, and {BEFORE} serves again, proven by a completion." in message
    assert "/dev/shm" in message, message
    assert harness.served_models() == [SERVED]
    assert harness.chat(SERVED, "What is a GB10?")["usage"]["completion_tokens"] > 0
    for node in NODES:
        assert harness.containers_on(node) == [f"vllm-{BEFORE}"]
        assert harness.unit_state(node, f"vllm-{FAILS}.service")["ActiveState"] == "inactive"
        assert harness.unit_state(node, f"vllm-{FAILS}.service")["UnitFileState"] == "disabled"
        assert harness.unit_state(node, f"vllm-{BEFORE}.service")["ActiveState"] == "active"
        assert harness.unit_state(node, f"vllm-{BEFORE}.service")["UnitFileState"] == "enabled"
