# SPDX-License-Identifier: Apache-2.0
"""The sweep of a pooling model, with a client whose answers are those of vLLM 0.32.0+cpu, shortened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.action import bench
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import compare, pooling
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError, Client, Endpoint
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import Sweep
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request


class Pooler(Client):
    """A client of a pooling model that counts a token for each character."""

    def __init__(self, offers: str, fail_at: int = -1) -> None:
        """Take the path that the model offers, and which of the requests of the sweep fails."""
        super().__init__(Endpoint("http://here", "tiny", chat=False), None, None)  # type: ignore[arg-type]
        self.offers, self.fail_at = offers, fail_at
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.under_way = self.most = self.answered = 0

    async def count(self, prompt: str, system: str = "") -> int:
        """Return the tokens of a prompt."""
        return len(prompt)

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str, str]:
        """Answer as the model does."""
        self.asked.append((path, body))
        if path != self.offers:
            return 404, '{"detail":"Not Found"}', ""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.answered += 1
        if self.answered == self.fail_at:
            return 500, '{"error": {"message": "EngineCore encountered an issue."}}', ""
        texts = body.get("documents") or body["input"]
        usage = {"prompt_tokens": sum(len(text) for text in texts)}
        if path == "/v1/rerank":
            rows = [{"index": number, "relevance_score": 0.5} for number, _text in enumerate(texts)]
            return 200, json.dumps({"results": rows, "usage": usage}), ""
        vectors = [{"index": number, "embedding": [0.1, float(number)]} for number, _text in enumerate(texts)]
        return 200, json.dumps({"data": vectors, "usage": usage}), ""


def sweep(client: Pooler, **more: Any) -> dict[str, Any]:
    wanted = Sweep(**{"concurrency": [1, 6], "input_tokens": 200, "output_tokens": 1024, "rounds": 2, **more})
    return asyncio.run(pooling.run_pooling(client, wanted, lambda _words: None))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_each_point_answers_its_texts(path: str) -> None:
    client = Pooler(path)
    found = sweep(client)
    assert found["shape"] == {
        "input_tokens": 200, "output_tokens": 0, "distinct_prompts": True, "api": path, "request": {},
    }  # fmt: skip
    assert [(point["concurrency"], point["requests"], point["succeeded"]) for point in found["points"]] == [
        (1, 2 * 16, 2 * 16),
        (6, 2 * 24, 2 * 24),
    ]
    assert client.most == 6
    texts = [body["documents" if path == "/v1/rerank" else "input"] for asked, body in client.asked if asked == path]
    measured = [text for (text,) in texts[2:]]
    assert {len(text) for text in measured} == {200}
    assert len(set(measured)) == len(measured), "a text that was read before would come from a cache"
    for point in found["points"]:
        assert point["input_tokens"] == 200 * point["requests"]
        assert point["embeddings_per_s"] == pytest.approx(point["succeeded"] / point["wall_s"])
        assert point["input_tokens_per_s"] == pytest.approx(200 * point["embeddings_per_s"])
        assert point["decode_tokens_per_s"] is None


def test_a_request_that_fails_is_counted() -> None:
    # Two questions are asked before the sweep: which path, and the one that warms up.
    (point,) = sweep(Pooler("/v1/embeddings", fail_at=5), concurrency=[2], rounds=1)["points"]
    assert (point["requests"], point["succeeded"], point["failures"]) == (16, 15, {"http": 1})


def test_a_model_that_does_not_pool_is_not_measured() -> None:
    with pytest.raises(BenchError, match="offers neither embeddings nor scores nor classes"):
        sweep(Pooler("/v1/completions"))
    with pytest.raises(BenchError, match="answered 500"):
        sweep(Pooler("/v1/embeddings", fail_at=1))
    with pytest.raises(BenchError, match="The first request failed, so nothing is measured: http, 500"):
        sweep(Pooler("/v1/embeddings", fail_at=2))


def point(at_once: int, seconds: float) -> dict[str, Any]:
    requests = [
        Request(number, 0.0, seconds, first_s=seconds, input_tokens=100, output_tokens=0) for number in range(10)
    ]
    return pooling.point_of(at_once, [requests])


def test_published_figures_of_a_pooling_model_are_compared() -> None:
    shape = {"input_tokens": 512, "output_tokens": 0}
    run = {"shape": shape, "points": [point(4, 2.0)]}
    published = {"concurrency": 4, "embeddings_per_s": 10.0, "input_tokens_per_s": 500.0, "source": "[P]"}
    rows, reason = compare.compare_expected(run, {"shape": shape, "sweep": [published]})
    assert reason == ""
    assert [(row["figure"], row["now"], row["worse_by"]) for row in rows] == [
        ("embeddings_per_s", 5.0, 0.5),
        ("input_tokens_per_s", 500.0, 0.0),
    ]
    assert compare.regressions(rows, 0.1) == ["At 4 requests embeddings_per_s is 5, 50% worse than 10 ([P])."]


def test_a_pooling_model_needs_no_room_for_an_answer() -> None:
    asked = {"sweep": True, "input_tokens": 512, "output_tokens": 1024, "needles": [], "needle_output_tokens": 1}
    assert bench.too_long({**asked, "spec": {"serve": {"runner": "pooling"}}}, 512) == []
    assert len(bench.too_long({**asked, "spec": {"serve": {}}}, 512)) == 1
