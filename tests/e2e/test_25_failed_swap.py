# SPDX-License-Identifier: Apache-2.0
"""A swap to a model whose real engine dies while it starts: the model before serves again automatically."""

from __future__ import annotations

from tests.e2e import harness
from tests.e2e.harness import NODES

BEFORE = "tiny-nemotronh"
FAILS = "tiny-qwen3"
SERVED = "lab/tiny-nemotronh"
#: vLLM takes this loader when it builds its configuration, and finds its package missing when it loads the weights.
OVERRIDES = {"serve": {"load-format": "runai_streamer"}}


def test_a_model_that_cannot_start_gives_way_to_the_one_before() -> None:
    variables = {"model": FAILS, "model_overrides": OVERRIDES, "engine_restarts_allowed": 0}

    result = harness.run("swap-model.yml", variables, ok=False)

    message = "\n".join(result.failed_messages())
    assert f"{FAILS} did not start, and {BEFORE} serves again, verified by a completion." in message
    assert "runai" in message, message
    assert harness.served_models() == [SERVED]
    assert harness.chat(SERVED, "What is a GB10?")["usage"]["completion_tokens"] > 0
    for node in NODES:
        assert harness.containers_on(node) == [f"vllm-{BEFORE}"]
        assert harness.unit_state(node, f"vllm-{FAILS}.service")["ActiveState"] == "inactive"
        assert harness.unit_state(node, f"vllm-{FAILS}.service")["UnitFileState"] == "disabled"
        assert harness.unit_state(node, f"vllm-{BEFORE}.service")["ActiveState"] == "active"
        assert harness.unit_state(node, f"vllm-{BEFORE}.service")["UnitFileState"] == "enabled"
