# SPDX-License-Identifier: Apache-2.0
"""What counts as an answer of a pooling model.  The answers are those of vLLM 0.32.0+cpu to a tiny Qwen3, shortened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import api
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe

EMBEDDINGS: dict[str, Any] = {
    "id": "embd-87a5c2c18ca3cae1",
    "object": "list",
    "created": 1795903291,
    "model": "tiny",
    "data": [
        {"index": 0, "object": "embedding", "embedding": [0.13905811309814453, -0.14318975806236267, -0.1052195355296]},
        {"index": 1, "object": "embedding", "embedding": [0.13862073421478271, -0.13907377421855927, -0.1071184799075]},
    ],
    "usage": {"prompt_tokens": 75, "total_tokens": 75, "completion_tokens": 0},
}
SCORES: dict[str, Any] = {
    "id": "score-b5bdd2d476841db9",
    "model": "tiny",
    "usage": {"prompt_tokens": 101, "total_tokens": 101},
    "results": [
        {"index": 1, "document": {"text": "A recipe.", "multi_modal": None}, "relevance_score": 0.9997508525848389},
        {"index": 0, "document": {"text": "The ferry.", "multi_modal": None}, "relevance_score": 0.9997506737709045},
    ],
}
CLASSES: dict[str, Any] = {
    "id": "classify-9c68b6ba01e62fd5",
    "object": "list",
    "created": 1745383065,
    "model": "tiny",
    "data": [
        {"index": 0, "label": "Default", "probs": [0.566, 0.434], "num_classes": 2},
        {"index": 1, "label": "Spoiled", "probs": [0.269, 0.731], "num_classes": 2},
    ],
    "usage": {"prompt_tokens": 15, "total_tokens": 15},
}
NOT_FOUND = api.Reply(404, '{"detail":"Not Found"}')


class Server:
    """Answers by path; what is not named is not found, as vLLM does for routes of other poolers."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def get(self, path: str, *, patient: bool = False) -> api.Reply:
        listed = {"data": [{"id": "tiny", "root": "/m", "max_model_len": 512}]}
        return api.Reply(200, json.dumps(listed) if path == "/v1/models" else "")

    def post(self, path: str, payload: Mapping[str, Any]) -> api.Reply:
        assert payload["model"] == "tiny"
        self.asked.append(path)
        answer = self.answers.get(path, NOT_FOUND)
        return answer if isinstance(answer, api.Reply) else api.Reply(200, json.dumps(answer))

    def stream(self, path: str, _payload: Mapping[str, Any]) -> Iterator[str]:
        raise AssertionError(f"no completion may be asked for: {path}")


def report(answers: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    server = Server(answers)
    return api.probe_api(server, "here", api.Wanted("tiny", pooling=True, metrics=False)), server.asked


@pytest.mark.parametrize(
    ("answers", "asked", "phrase", "tokens"),
    [
        ({"/v1/embeddings": EMBEDDINGS}, 1, "an embedding of 3 dimensions", 75),
        ({"/v1/rerank": SCORES}, 2, "scores of two documents, 1 and 1", 101),
        (
            {
                "/v1/embeddings": api.Reply(400, '{"error": {"message": "The model does not support Embeddings API"}}'),
                "/v1/rerank": SCORES,
            },
            2,
            "scores of two documents, 1 and 1",
            101,
        ),
        ({"/classify": CLASSES}, 3, "probabilities of 2 classes", 15),
    ],
)
def test_a_pooling_model_is_ready_by_what_it_gives(
    answers: dict[str, Any], asked: int, phrase: str, tokens: int
) -> None:
    found, paths = report(answers)
    (canary,) = found["canaries"]
    assert (canary["name"], canary["ok"], canary["answer"], canary["tokens"]) == ("pooling", True, phrase, tokens)
    assert len(paths) == asked
    rank = {"node": "a", "state": probe.RUNNING, "unit": {}, "log": {"phase": "ready"}}
    state = probe.merge([rank], found, head="a", expected={"served_name": "tiny"})
    assert (state.state, state.summary) == (probe.READY, f"1 rank(s) up, tiny answered with {phrase}.")


def changed(answer: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(answer)), **more}


def embeddings(*vectors: object) -> dict[str, Any]:
    return changed(EMBEDDINGS, data=[{"index": number, "embedding": each} for number, each in enumerate(vectors)])


@pytest.mark.parametrize(
    ("answers", "detail"),
    [
        ({"/v1/embeddings": embeddings([0.1, 0.2], [0.1])}, "the embeddings have different lengths: 2, 1"),
        ({"/v1/embeddings": embeddings([0.1, 0.2])}, "1 embeddings came for 2 texts"),
        ({"/v1/embeddings": embeddings([0.0, 0.0], [0.1, 0.2])}, "an embedding is all zeros"),
        ({"/v1/embeddings": embeddings([0.1, 0.2], [0.1, 0.2])}, "two different texts have the same embedding"),
        ({"/v1/embeddings": embeddings([], [])}, "embedding: empty"),
        ({"/v1/embeddings": embeddings([float("nan"), 1.0], [1.0, 1.0])}, "embedding: nan is no finite number"),
        ({"/v1/embeddings": embeddings("AACAPw==", "AAAAQA==")}, "embedding: empty"),
        ({"/v1/embeddings": {"data": [{}, {}]}}, "/v1/embeddings answered without 'embedding'"),
        ({"/v1/embeddings": api.Reply(200, "<html>")}, "/v1/embeddings answered no JSON: '<html>'"),
        (
            {"/v1/rerank": changed(SCORES, results=[SCORES["results"][0]] * 2)},
            "the scores are of documents 1, 1, not of 0 and 1",
        ),
        ({"/v1/rerank": changed(SCORES, results=SCORES["results"][:1])}, "1 scores came for 2 texts"),
        ({"/classify": changed(CLASSES, data=[{"probs": ["a"]}, {"probs": [1]}])}, "class: 'a' is no finite number"),
        ({}, "the engine offers none of /v1/embeddings, /v1/rerank, /classify"),
        (
            {"/v1/embeddings": api.Reply(400, '{"error": {"message": "too long"}}')},
            "/v1/embeddings: HTTP 400: too long",
        ),
    ],
)
def test_an_answer_of_another_shape_is_none(answers: dict[str, Any], detail: str) -> None:
    found, _paths = report(answers)
    (canary,) = found["canaries"]
    assert not canary["ok"]
    assert detail in canary["detail"]
    rank = {"node": "a", "state": probe.RUNNING, "unit": {}, "log": {"phase": "ready"}}
    state = probe.merge([rank], found, head="a", expected={"served_name": "tiny"})
    assert state.state == probe.DEGRADED
    assert detail in state.summary


def test_an_engine_that_does_not_answer_is_wedged() -> None:
    found, _paths = report({"/v1/embeddings": api.Reply(0, "", "timeout")})
    rank = {"node": "a", "state": probe.RUNNING, "unit": {}, "log": {"phase": "ready"}}
    state = probe.merge([rank], found, head="a", expected={"served_name": "tiny"})
    assert state.state == probe.WEDGED
    assert "gives no embedding, score or class: /v1/embeddings: timeout" in state.summary
