# SPDX-License-Identifier: Apache-2.0
"""What a pooling model must answer: an embedding, a score or a class of the right shape.  Pure.

Which of them a model gives depends on its pooler; vLLM has no route for the others, or refuses them (vllm/entrypoints/
pooling, 0.32).  So each question is asked until one is answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed, shaped

_TEXTS = ("The ferry leaves the harbour at noon.", "A recipe for bread with rye and seeds.")


class ShapeError(ValueError):
    """An answer that is none; the text says what is wrong with it."""


@dataclass(frozen=True)
class Question:
    """What to send to which path, and what makes of the answer a phrase such as ``an embedding of 1024 dimensions``."""

    path: str
    payload: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], str]


def questions(served_name: str) -> list[Question]:
    """Return what to ask a pooling model, in this order."""
    model = {"model": served_name}
    return [
        Question("/v1/embeddings", {**model, "input": list(_TEXTS), "encoding_format": "float"}, read_embeddings),
        Question(
            "/v1/rerank", {**model, "query": "When does the ferry leave?", "documents": list(_TEXTS)}, read_scores
        ),
        Question("/classify", {**model, "input": list(_TEXTS)}, read_classes),
    ]


def not_offered(status: int, body: str) -> bool:
    """Return whether an answer means that this model does not give such a thing, as opposed to an error."""
    return status in (404, 405, 501) or (status == 400 and "does not support" in body)


def prompt_tokens(body: str) -> int:
    """Return the tokens that the engine read, from an answer's usage; 0 when it states none."""
    usage = shaped(parsed(body), {"usage": {"prompt_tokens": 0, "total_tokens": 0}})["usage"]
    return int(usage["prompt_tokens"] or usage["total_tokens"])


def read_answer(question: Question, body: str) -> str:
    """Return what was answered, as a phrase.

    :raises ShapeError: the answer has not the shape that the question asks for.
    """
    answer = parsed(body)
    if answer is None:
        raise ShapeError(f"{question.path} answered no JSON: {body[:120]!r}")
    try:
        return question.read(answer)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as problem:
        raise ShapeError(f"{question.path} answered without {problem}: {body[:120]!r}") from None


def read_embeddings(answer: Mapping[str, Any]) -> str:
    """Read /v1/embeddings for two different texts: two different vectors of the same length."""
    vectors = [numbers(row["embedding"], "embedding") for row in _rows(answer["data"], "embeddings")]
    if len({len(vector) for vector in vectors}) != 1:
        raise ShapeError(f"the embeddings have different lengths: {', '.join(str(len(each)) for each in vectors)}")
    if any(not any(vector) for vector in vectors):
        raise ShapeError("an embedding is all zeros")
    if vectors[0] == vectors[1]:
        raise ShapeError("two different texts have the same embedding")
    return f"an embedding of {len(vectors[0])} dimensions"


def read_scores(answer: Mapping[str, Any]) -> str:
    """Read /v1/rerank for two documents: a score for each of them."""
    rows = _rows(answer["results"], "scores")
    if sorted(row["index"] for row in rows) != [0, 1]:
        raise ShapeError(f"the scores are of documents {', '.join(str(row['index']) for row in rows)}, not of 0 and 1")
    scores = numbers([row["relevance_score"] for row in rows], "score")
    return f"scores of two documents, {scores[0]:.3g} and {scores[1]:.3g}"


def read_classes(answer: Mapping[str, Any]) -> str:
    """Read /classify for two texts: a probability for each class."""
    rows = [numbers(row["probs"], "class") for row in _rows(answer["data"], "classes")]
    return f"probabilities of {len(rows[0])} classes"


def _rows(rows: Sequence[Mapping[str, Any]], what: str) -> Sequence[Mapping[str, Any]]:
    if len(rows) != len(_TEXTS):
        raise ShapeError(f"{len(rows)} {what} came for {len(_TEXTS)} texts")
    return rows


def numbers(values: Sequence[Any], what: str) -> list[float]:
    """Return numbers of an answer as they are.

    :raises ShapeError: there are none, or one of them is no finite number.
    """
    if not isinstance(values, list) or not values:
        raise ShapeError(f"{what}: empty")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ShapeError(f"{what}: {repr(value)[:120]} is no finite number")
    return [float(value) for value in values]
