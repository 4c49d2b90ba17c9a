# SPDX-License-Identifier: Apache-2.0
"""Models that give embeddings or scores: which they are, and what they are served with.  Pure.

Brackets are those of docs/sources.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import is_whole
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import Path
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.families import PUBLISHED, Architecture
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.images import ProposalError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository

GENERATE, EMBED, SCORE = "generate", "embed", "score"
#: The switch; empty follows the repository.
TASKS = ("", GENERATE, EMBED, SCORE)

#: Generating classes that vLLM makes a reranker of -> ``hf-overrides``, and where it was published.
RERANKERS: Mapping[str, Mapping[str, Any]] = PUBLISHED["rerankers"]
#: Positions of a Roberta model before the first token: its padding token is number 1.
PADDED_POSITIONS = 2
_MODULES = "modules.json"
_POOLING = "1_Pooling/config.json"
#: A layer of sentence-transformers after the pooling, which changes the width.
_DENSE = re.compile(r"\d+_Dense/config\.json")


def task_of(found: Architecture, repository: Repository, asked: str) -> tuple[str, str]:
    """Return (what a repository is served for, why).

    :param asked: the owner's word, of ``TASKS``.
    :raises ProposalError: its class cannot do what was asked.
    """
    if asked == GENERATE and found.kind == "pooling":
        raise ProposalError(
            f"{repository.repo} is a {found.name}, which generates nothing: add_model_task cannot be generate."
        )
    if asked:
        return asked, f"add_model_task is {asked}"
    name = repository.repo.rpartition("/")[2].lower()
    if "rerank" in name:
        return SCORE, "the repository's name; -e add_model_task= says otherwise"
    if found.kind == "pooling":
        scores = "Classification" in found.name or "Reward" in found.name
        return SCORE if scores else EMBED, f"{found.name} generates nothing [V]"
    if _MODULES in repository.sizes:
        return EMBED, "modules.json: made for sentence-transformers"
    if "embedding" in name:
        return EMBED, "the repository's name; -e add_model_task= says otherwise"
    return GENERATE, ""


def values(
    found: Architecture, repository: Repository, task: str, why: str, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Path, str]]:
    """Return (parts of a model file, the reason of each) of a pooling model.

    :param overrides: the owner's; ``serve.hf-overrides`` says how a generating class gives scores.
    :raises ProposalError: no source says how its class gives scores.
    """
    serve: dict[str, Any] = {"runner": "pooling"}
    reasons: dict[Path, str] = {("serve", "runner"): why}
    expected: dict[str, Any] = {}
    if task == EMBED:
        width, source = _dimensions(repository)
        if width:
            expected["embedding"] = {"dimensions": width, "source": source}
        reasons["expected", "embedding"] = source
    elif found.kind != "pooling" and "hf-overrides" not in (overrides.get("serve") or {}):
        if found.name not in RERANKERS:
            raise ProposalError(
                f"{repository.repo} is a {found.name}, and no source here says how vLLM gives scores of it: put "
                "serve.hf-overrides into add_model_overrides, or -e add_model_task=embed or generate."
            )
        serve["hf-overrides"] = dict(RERANKERS[found.name]["overrides"])
        reasons["serve", "hf-overrides"] = RERANKERS[found.name]["source"]
        expected["score"] = {"least": 0, "most": 1, "source": "calculated: the share of yes among yes and no"}
        reasons["expected", "score"] = "as the classifier is made from two tokens"
    else:
        reasons["expected", "score"] = "which range its scores have is in no file of the repository"
    return {"serve": serve, **({"expected": expected} if expected else {})}, reasons


def _dimensions(repository: Repository) -> tuple[int, str]:
    """Return (width of an embedding, where it is from), or (0, why it is not known)."""
    if any(_DENSE.fullmatch(name) for name in repository.sizes):
        return 0, "a layer after the pooling changes the width (Dense)"
    said = repository.documents.get(_POOLING, {}).get("word_embedding_dimension")
    for width, source in ((said, _POOLING), (repository.text.get("hidden_size"), "config.json, hidden_size")):
        if is_whole(width, "hidden_size"):
            return width, source
    return 0, "neither 1_Pooling/config.json nor config.json says it"
