# SPDX-License-Identifier: Apache-2.0
"""What add_model proposes for drafts, embeddings and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import drafts, families
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import (
    unknown_paths,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import (
    Wanted,
    propose,
)
from tests.unit.proposals import FOUR, refused, repository, text_of
from tests.unit.repositories import GIB, HYBRID, MOE

# --- what drafts ----------------------------------------------------------------------------------------

#: A dense hybrid of the width and depth for which a drafter is published.
DENSE: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "text_config": {
        **{key: value for key, value in HYBRID["text_config"].items() if "expert" not in key and "moe" not in key},
        "num_hidden_layers": 64,
        "hidden_size": 5120,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "linear_num_value_heads": 48,
    },
}
DRAFT = {
    "architectures": ["DFlash2DraftModel"],
    "hidden_size": 5120,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_hidden_layers": 5,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def drafter(config: Mapping[str, Any] | None = None) -> drafts.Reader:
    """Return a reader of a repository of 3 GiB with what was asked for."""
    return lambda repo, revision: repository(config or DRAFT, 3, repo=repo, revision=revision)


def test_the_heads_of_the_checkpoint_draft_as_published() -> None:
    made = propose(repository(DENSE), FOUR, Wanted())
    assert made.spec["serve"]["speculative-config"] == {"method": "mtp", "num_speculative_tokens": 3}
    reason = made.reasons["serve", "speculative-config"]
    assert "[P]" in reason
    assert reason.endswith("-e add_model_drafts=none leaves it out")
    assert "drafter" not in made.spec
    plain = propose(repository(DENSE), FOUR, Wanted(drafts="none"))
    assert "speculative-config" not in plain.spec["serve"]
    assert "notes" not in plain.spec
    # The heads and their cache are counted.
    assert (plain.fits[0].kv_cache_tokens or 0) > (made.fits[0].kv_cache_tokens or 0)


def test_a_drafter_of_a_repository_of_its_own_is_read_and_counted() -> None:
    made = propose(repository(DENSE), FOUR, Wanted(drafts="drafter"), drafter())
    spec, errors = ms.validate(made.spec)
    assert not errors
    assert (spec["drafter"]["size_gib"], spec["drafter"]["geometry"]["layers"]) == (3, 5)
    assert len(spec["drafter"]["revision"]) == 40
    assert spec["serve"]["speculative-config"]["method"] == "dflash"
    assert made.reasons["drafter",]
    assert made.fits[0].serves
    text_of(made)


def test_a_drafter_that_cannot_be_read_is_left_out() -> None:
    made = propose(repository(DENSE), FOUR, Wanted(drafts="drafter"))
    assert "drafter" not in made.spec
    assert "speculative-config" not in made.spec["serve"]
    assert any("could not be read, so nothing drafts" in note for note in made.spec["notes"])


def test_a_drafter_without_a_shape_leaves_the_cache_unknown() -> None:
    made = propose(repository(DENSE), FOUR, Wanted(drafts="drafter"), drafter({"architectures": ["Odd"]}))
    assert "geometry" not in made.spec["drafter"]
    assert [each.verdict for each in made.fits] == ["unknown"] * 3


@pytest.mark.parametrize(
    ("tensors", "has"),
    [
        (None, True),
        ({"mtp.layers.0.mlp.gate.weight"}, True),
        ({"model.layers.64.eh_proj.weight"}, True),
        ({"model.language_model.layers.63.mlp.up_proj.weight", "lm_head.weight"}, False),
    ],
)
def test_heads_that_are_named_and_not_there_draft_nothing(tensors: set[str] | None, has: bool) -> None:
    names = None if tensors is None else frozenset(tensors)
    made = propose(repository(DENSE, tensors=names), FOUR, Wanted(drafts="heads"))
    assert ("speculative-config" in made.spec["serve"]) == has
    note = "config.json names draft heads, and the index has no tensors of them: nothing drafts."
    assert (note in made.spec.get("notes", [])) != has


def test_heads_without_a_published_launch_are_a_note() -> None:
    made = propose(repository({**MOE, "num_nextn_predict_layers": 1}), FOUR, Wanted(drafts="heads"))
    assert "speculative-config" not in made.spec["serve"]
    assert any("add_model_drafts is heads, and no source" in note for note in made.spec["notes"])


@pytest.mark.parametrize("found", drafts.DRAFTS, ids=lambda each: f"{each.classes[0]}-{each.config['method']}")
def test_a_published_draft_is_of_a_class_that_a_release_has(found: drafts.Draft) -> None:
    assert found.config["num_speculative_tokens"] > 0
    assert "[" in found.source
    assert bool(found.drafter) == bool(found.shape)
    assert all(families.architecture(name) for name in found.classes)


# --- embeddings and scores ------------------------------------------------------------------------------

SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 1024,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
}


def test_a_repository_of_sentence_transformers_gives_embeddings() -> None:
    sizes = {"model.safetensors": GIB, "modules.json": 10, "1_Pooling/config.json": 10}
    documents = {"1_Pooling/config.json": {"word_embedding_dimension": 1024}}
    made = propose(repository(SMALL, sizes=sizes, documents=documents), FOUR, Wanted())
    spec, errors = ms.validate(made.spec)
    assert not errors
    assert spec["serve"] == {
        "tensor-parallel-size": 1,
        "runner": "pooling",
        "max-model-len": 32768,
        "gpu-memory-utilization": 0.3,
    }
    assert spec["expected"] == {"embedding": {"dimensions": 1024, "source": "1_Pooling/config.json"}}
    assert made.reasons["serve", "runner"] == "modules.json: made for sentence-transformers"
    assert [each.verdict for each in made.fits] == ["fits"] * 3
    assert "no chat template" not in text_of(made)


def test_a_large_embedding_model_gets_the_share_that_it_needs() -> None:
    sizes = {"model.safetensors": 40 * GIB, "modules.json": 10}
    made = propose(repository(SMALL, sizes=sizes), FOUR, Wanted())
    assert made.spec["serve"]["gpu-memory-utilization"] == 0.5


def test_a_reranker_by_its_name_or_by_the_owners_word() -> None:
    named = propose(repository(SMALL, 1, repo="org/Some-Reranker"), FOUR, Wanted())
    asked = propose(repository(SMALL, 1), FOUR, Wanted(task="score"))
    for made in (named, asked):
        assert made.spec["serve"]["hf-overrides"]["architectures"] == ["Qwen3ForSequenceClassification"]
        assert made.spec["expected"]["score"]["most"] == 1
        assert "[P]" in made.reasons["serve", "hf-overrides"]
    assert "repository's name" in named.reasons["serve", "runner"]
    assert asked.reasons["serve", "runner"] == "add_model_task is score"


def test_a_class_that_pools_and_has_no_cache() -> None:
    config = {
        "architectures": ["XLMRobertaForSequenceClassification"], "hidden_size": 1024, "max_position_embeddings": 8194,
        "num_attention_heads": 16, "num_hidden_layers": 24,
    }  # fmt: skip
    made = propose(repository(config, 2), FOUR, Wanted())
    assert made.spec["serve"] == {"tensor-parallel-size": 1, "runner": "pooling", "max-model-len": 8192}
    assert made.reasons["serve", "runner"] == "XLMRobertaForSequenceClassification generates nothing [V]"
    assert ("expected", "score") in unknown_paths(made.spec, made.reasons)


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (MOE, "score", "no source here says how vLLM gives scores of it"),
        ({**SMALL, "architectures": ["BertModel"]}, "generate", "generates nothing: add_model_task cannot be generate"),
    ],
)
def test_a_task_that_a_class_cannot_do(config: dict[str, Any], task: str, message: str) -> None:
    assert message in refused(repository(config), FOUR, Wanted(task=task))


def test_overrides_say_how_a_generating_class_gives_scores() -> None:
    overrides = {"serve": {"hf-overrides": {"architectures": ["OddForSequenceClassification"]}}}
    made = propose(repository(MOE), FOUR, Wanted(task="score", overrides=overrides))
    assert made.spec["serve"]["hf-overrides"] == overrides["serve"]["hf-overrides"]
    assert "score" not in made.spec.get("expected", {})


@pytest.mark.parametrize(
    ("sizes", "config", "reason"),
    [
        ({"2_Dense/config.json": 1}, SMALL, "a layer after the pooling changes the width (Dense)"),
        ({}, {**SMALL, "hidden_size": None}, "neither 1_Pooling/config.json nor config.json says it"),
    ],
)
def test_a_width_that_is_not_known_is_marked(sizes: dict[str, int], config: dict[str, Any], reason: str) -> None:
    sizes = {"model.safetensors": GIB, "modules.json": 10, **sizes}
    made = propose(repository(config, sizes=sizes), FOUR, Wanted())
    assert made.reasons["expected", "embedding"] == reason
    assert ("expected", "embedding") in unknown_paths(made.spec, made.reasons)
