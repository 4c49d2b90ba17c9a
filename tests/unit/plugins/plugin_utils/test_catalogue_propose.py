# SPDX-License-Identifier: Apache-2.0
"""From a repository and a cluster to a model file: which nodes, image, context and options, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import geometry_from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import budget, report
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import (
    DocumentError,
    render,
    unknown_paths,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.images import ProposalError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import (
    ASSUMED_MEMORY_GIB,
    Cluster,
    Wanted,
    free_port,
    model_name,
    propose,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.shape import geometry_values
from tests.unit.plugins.module_utils.hostile import bounded
from tests.unit.proposals import FOUR, IMAGES, refused, repository, text_of
from tests.unit.repositories import GIB, HYBRID, MOE, UNREAD

# --- parsers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{% if tools %}<tool_call>{json}</tool_call>{% endif %}<think>", "hermes"),
        ("{% if tools %}<tool_call><function=name>{% endif %}", "qwen3_coder"),
        ("no calls here", None),
    ],
)
def test_the_chat_template_says_in_which_form_calls_are_written(template: str, parser: str | None) -> None:
    made = propose(repository(MOE, template=template), FOUR, Wanted())
    assert made.spec["serve"].get("tool-call-parser") == parser
    left = made.reasons.get(("serve",), "")
    assert ("tool-call-parser" in left) == (parser is None)


# --- one of each kind -----------------------------------------------------------------------------------


def test_a_model_that_fits_one_box() -> None:
    made = propose(repository(MOE), FOUR, Wanted())
    spec, errors = ms.validate(made.spec)
    assert not errors
    assert (spec["name"], spec["nodes"], spec["image"], spec["size_gib"]) == ("some-model.v2", 1, "newer", 29)
    assert spec["serve"] == {
        "tensor-parallel-size": 1,
        "max-num-seqs": 8,
        "max-num-batched-tokens": 8192,
        "reasoning-parser": "qwen3",
        "tool-call-parser": "hermes",
        "enable-auto-tool-choice": True,
        "max-model-len": 262144,
        "gpu-memory-utilization": 0.85,
    }
    assert geometry_from_dict(spec["geometry"]).attention.kv_heads == 4
    assert [(each.nodes, each.verdict) for each in made.fits] == [(1, "fits"), (2, "fits"), (4, "fits")]
    tokens = [each.kv_cache_tokens or 0 for each in made.fits]
    assert tokens[0] > 262144
    assert tokens == sorted(tokens)


def test_every_value_has_a_reason_or_holds_only_such() -> None:
    for config, gib in ((MOE, 29), (HYBRID, 300), (UNREAD, 150)):
        made = propose(repository(config, gib), FOUR, Wanted())
        for key, value in made.spec.items():
            if key in ("serve", "ports"):
                assert not [option for option in value if (key, option) not in made.reasons]
            elif value and key != "notes":
                assert (key,) in made.reasons
        text_of(made)


def test_a_model_that_needs_four_boxes() -> None:
    made = propose(repository(HYBRID, 300), FOUR, Wanted())
    assert (made.spec["nodes"], made.spec["serve"]["tensor-parallel-size"], made.spec["engine"]) == (4, 4, "native")
    assert [each.verdict for each in made.fits[:2]] == ["refused", "refused"]
    assert made.fits[2].serves
    assert made.spec["serve"]["kv-cache-dtype"] == "fp8"
    assert made.spec["serve"]["speculative-config"]["method"] == "mtp"
    assert any("with prefix caching corrupted" in note for note in made.spec["notes"])


def test_a_model_that_does_not_fit() -> None:
    message = refused(repository(HYBRID, 700))
    assert message.startswith(
        "org/Some_Model.v2 (700.0 GiB of weights) is too large for the 4 nodes of this inventory: "
    )
    assert "Nothing is left for the cache" in message
    assert message.endswith("It does not fit on 4 nodes of this size either.")
    small = refused(repository(HYBRID, 300), Cluster([119.2], IMAGES))
    assert "is too large for the 1 node of this inventory" in small
    assert small.endswith("By the same calculation it would need 4 nodes.")


# --- nodes ----------------------------------------------------------------------------------------------


def test_the_owner_chooses_the_nodes() -> None:
    made = propose(repository(MOE), FOUR, Wanted(nodes=2))
    assert (made.spec["nodes"], made.spec["serve"]["tensor-parallel-size"]) == (2, 2)
    assert made.reasons["nodes",].startswith("-e nodes=2")


def test_ranks_that_do_not_divide_the_heads() -> None:
    message = refused(repository(MOE), wanted=Wanted(nodes=3))
    assert "does not run on 3 nodes: vLLM cannot split 32 attention heads over 3 ranks." in message
    assert message.endswith("It would be possible here on 1, 2, 4.")
    assert "vLLM cannot split 64 attention heads over 3 ranks." in refused(repository(UNREAD), wanted=Wanted(nodes=3))


@pytest.mark.parametrize("nodes", [-1, 5])
def test_more_nodes_than_there_are(nodes: int) -> None:
    assert refused(repository(MOE), wanted=Wanted(nodes=nodes)) == (
        f"nodes is {nodes}, and this inventory has 4: give 1 to 4."
    )


def test_the_tightest_node_counts_and_one_that_did_not_answer_is_assumed() -> None:
    assert Cluster([119.2, 60.0, 119.2], {}).tightest_gib(1) == 119.2
    assert Cluster([119.2, 60.0, 119.2], {}).tightest_gib(2) == 60.0
    assert Cluster([119.2, 60.0], {}).tightest_gib(4) == 60.0
    assert Cluster([None, 125.0], {}).tightest_gib(2) == ASSUMED_MEMORY_GIB
    assert Cluster([None], {}).tightest_gib(4) == ASSUMED_MEMORY_GIB
    made = propose(repository(MOE), Cluster([None], IMAGES), Wanted())
    assert "119.0 GiB assumed" in made.reasons["nodes",]


def test_a_context_that_does_not_fit_becomes_shorter() -> None:
    made = propose(repository(MOE, 75), Cluster([119.2], IMAGES), Wanted())
    assert budget.SHORTEST_TOKENS <= made.spec["serve"]["max-model-len"] <= 262144
    long = {**MOE, "num_key_value_heads": 32, "max_position_embeddings": 1048576}
    made = propose(repository(long, 60), Cluster([119.2], IMAGES), Wanted())
    assert made.spec["serve"]["max-model-len"] < 262144
    assert made.fits[0].verdict in ("fits", "tight")


def test_the_contexts_that_are_tried() -> None:
    assert budget.contexts(262144) == [262144, 131072, 65536, 32768, 16384, 8192, 4096]
    assert budget.contexts(40960) == [40960, 32768, 16384, 8192, 4096]
    assert budget.contexts(2048) == [2048]


# --- images ---------------------------------------------------------------------------------------------


def test_an_image_whose_vllm_has_the_class() -> None:
    assert propose(repository(MOE), FOUR, Wanted(image="older")).spec["image"] == "older"
    only = Cluster([119.2], {"own": IMAGES["own"]})
    made = propose(repository(MOE), only, Wanted())
    assert made.spec["image"] == "own"
    assert "wheels of your own" in made.reasons["image",]


def test_a_fork_is_taken_when_the_owner_asks_for_it() -> None:
    made = propose(repository(MOE), FOUR, Wanted(image="fork"))
    assert (made.spec["image"], made.vllm_version) == ("fork", "0.32.0")
    made = propose(repository({**MOE, "architectures": ["AliceAIForCausalLM"]}), FOUR, Wanted(image="fork"))
    assert "a fork of vLLM 0.32.0, which has no AliceAIForCausalLM: it may, or not" in made.reasons["image",]


def test_an_image_by_its_reference() -> None:
    made = propose(repository(MOE), FOUR, Wanted(image="vllm/vllm-openai:v0.31.0"))
    assert (made.spec["image"], made.vllm_version) == ("vllm/vllm-openai:v0.31.0", "0.31.0")


@pytest.mark.parametrize(
    ("architecture", "image", "message"),
    [
        ("Qwen4ExpForConditionalGeneration", "older", "Image 'older' has vLLM 0.22.1, which has no Qwen4Exp"),
        ("AliceAIForCausalLM", "", "Add an image"),
        ("AliceAIForCausalLM", "newer", "it is in vLLM from 0.33.0 on"),
        ("AquilaForCausalLM", "newer", "gone after 0.24.0"),
        ("Qwen3MoeForCausalLM", "nope", "Image 'nope' is not in gb10_images, or does not say which vLLM it has"),
        ("Qwen3MoeForCausalLM", "no-version", "Image 'no-version' is not in gb10_images, or does not say"),
        ("NoSuchForCausalLM", "", "which no release of vLLM that was read has (0.18.1 to "),
        ("Qwen3DSparkModel", "", "a draft model: it is not served alone"),
    ],
)
def test_a_class_that_cannot_be_served(architecture: str, image: str, message: str) -> None:
    images = {key: value for key, value in IMAGES.items() if key != "own"}
    found = refused(repository({**MOE, "architectures": [architecture]}), Cluster([119.2], images), Wanted(image=image))
    assert message in found


@pytest.mark.parametrize("named", [None, [], [3], "Qwen3MoeForCausalLM"])
def test_a_config_that_names_no_class(named: Any) -> None:
    assert "names no architecture" in refused(repository({**MOE, "architectures": named}))


# --- what is not known ----------------------------------------------------------------------------------


def test_a_class_without_a_memory_rule_is_marked_and_not_guessed() -> None:
    made = propose(repository(UNREAD, 150, ""), FOUR, Wanted())
    assert "geometry" not in made.spec
    assert made.spec["nodes"] == 2
    assert made.spec["serve"]["max-model-len"] == 32768
    assert [each.verdict for each in made.fits] == ["refused", "unknown", "unknown"]
    text = text_of(made)
    assert "# UNKNOWN geometry: The memory model has no rules for the architecture LongcatFlashForCausalLM." in text
    assert "# UNKNOWN expected.kv_cache: " in text
    lines = report.lines(made)
    assert any(line.startswith("2 boxes: unknown. 75.0 GiB of weights on each node") for line in lines)
    assert any(line.startswith("Unknown: geometry: ") for line in lines)


def test_a_family_without_a_row_says_so() -> None:
    config = {**MOE, "architectures": ["GraniteMoeForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}}
    made = propose(repository(config), FOUR, Wanted())
    missing = {path for path in unknown_paths(made.spec, made.reasons) if path[0] == "serve"}
    assert missing == {("serve", "reasoning-parser"), ("serve", "tool-call-parser"), ("serve", "trust-remote-code")}


def test_parsers_follow_the_chat_template() -> None:
    made = propose(repository(MOE, template="{{ messages }}"), FOUR, Wanted())
    assert not {"reasoning-parser", "tool-call-parser", "enable-auto-tool-choice"} & made.spec["serve"].keys()
    assert "reasoning-parser qwen3 (no 'think')" in made.reasons["serve",]
    bare = propose(repository(MOE, documents={}), FOUR, Wanted())
    assert any("no chat template" in note for note in bare.spec["notes"])


def test_what_the_other_files_say_becomes_a_note() -> None:
    documents = {"generation_config.json": {"temperature": 0.6, "top_k": 20, "bos_token_id": 1}}
    made = propose(repository(MOE, documents=documents, index_bytes=20 * GIB), FOUR, Wanted())
    assert any("sets temperature 0.6, top_k 20, where" in note for note in made.notes)
    assert any("The index says 20.00 GiB of tensors and the files have 29.00 GiB" in note for note in made.notes)


def test_nvfp4_experts_run_on_marlin() -> None:
    documents = {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}
    old = propose(repository(MOE, documents=documents), FOUR, Wanted(image="older"))
    assert old.spec["serve"]["moe-backend"] == "marlin"
    assert old.spec["env"] == {"VLLM_NVFP4_GEMM_BACKEND": "marlin", "VLLM_USE_FLASHINFER_MOE_FP4": "0"}
    new = propose(repository(MOE, documents=documents), FOUR, Wanted())
    assert (new.spec["serve"]["moe-backend"], new.spec["env"]) == ("marlin", {})


# --- the owner's own ------------------------------------------------------------------------------------


def test_overrides_of_the_inventory_are_in_every_new_model() -> None:
    overrides = {
        "serve": {"max-model-len": 4096, "kv-cache-memory-bytes": 2**30, "max-num-batched-tokens": None},
        "env": {"A": "1"},
        "memory": {"floor_gib": 0.5},
        "shm_size": "512m",
    }
    made = propose(repository(MOE), FOUR, Wanted(overrides=overrides))
    serve = made.spec["serve"]
    assert (serve["max-model-len"], serve["kv-cache-memory-bytes"]) == (4096, 2**30)
    assert not {"gpu-memory-utilization", "max-num-batched-tokens"} & serve.keys()
    assert made.reasons["serve", "max-model-len"] == made.reasons["env", "A"] == "add_model_overrides"
    assert not [path for path in unknown_paths(made.spec, made.reasons) if path[0] == "serve"]
    assert made.spec["shm_size"] == "512m"


def test_a_wrong_override_is_a_sentence() -> None:
    message = refused(repository(MOE), wanted=Wanted(overrides={"serve": {"max-num-seqs": "many"}}))
    assert "model_spec.serve.max-num-seqs is 'many', which is no number that vLLM reads" in message


# --- what others wrote ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
SHORT = Cluster([119.2], IMAGES)


@settings(bounded, max_examples=60)
@given(data=st.data(), base=st.sampled_from([MOE, HYBRID, UNREAD]))
def test_any_config_is_a_proposal_or_a_sentence(data: st.DataObject, base: dict[str, Any]) -> None:
    keys = [*base, "quantization_config", "text_config", "auto_map", "sliding_window", "mlp_only_layers", "layer_types"]
    changed = {**base, **data.draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=2))}
    documents = data.draw(
        st.dictionaries(
            st.sampled_from(["generation_config.json", "tokenizer_config.json", "hf_quant_config.json"]),
            st.dictionaries(st.sampled_from(["temperature", "chat_template", "quantization"]), JSON),
        )
    )
    try:
        made = propose(repository(changed, documents=documents), SHORT, Wanted())
        render(made.spec, made.reasons, made.header)
    except (ProposalError, DocumentError):
        return
    text_of(made)
    assert len(report.lines(made)) >= 4


# --- small parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "name"),
    [("org/Some_Model.v2", "some-model.v2"), ("org/A--B__C", "a--b-c"), ("x/.-Z", "z"), ("Plain", "plain")],
)
def test_a_name_from_a_repository(repo: str, name: str) -> None:
    assert model_name(repo) == name


def test_a_port_that_no_other_model_has() -> None:
    assert free_port([]) == 29510
    assert free_port([29510, 29530]) == 29520
    assert free_port(range(29510, 29600)) == 29610, "29600 is where the ranks of an engine meet"
    with pytest.raises(ProposalError, match=r"Every rendezvous port from 29510 to 29990 is taken"):
        free_port(range(29000, 30000))


def test_the_same_input_gives_the_same_file() -> None:
    first, second = (text_of(propose(repository(HYBRID, 300), FOUR, Wanted())) for _run in range(2))
    assert first == second
    assert json.dumps(yaml.safe_load(first))


SHAPES = yaml.safe_load((Path(__file__).parents[3] / "unit/fixtures/memory/families.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["name"])
def test_the_written_geometry_is_the_one_that_was_read(shape: dict[str, Any]) -> None:
    """Windows, latent caches, values of another width: each survives the way through the file."""
    rest = {"architecture": "X", "layers": 199, "hidden_size": 64, "max_position_embeddings": 4096}
    geometry = geometry_from_dict({**rest, **shape["geometry"]})
    values = geometry_values(geometry)
    assert (
        geometry_from_dict(yaml.safe_load(render({"geometry": values}, {}, []))["model_spec"]["geometry"]) == geometry
    )
    assert not [value for value in values.values() if value in (None, [], {})]


def test_published_shapes_fit_where_they_were_served() -> None:
    """The search finds a context for every shape of the catalogue on as many nodes as its source served it on."""
    folder = Path(__file__).parents[4] / "playbooks" / "group_vars"
    shapes = [yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"] for path in folder.glob("model_*.yml")]
    shapes = [spec for spec in shapes if spec.get("geometry") and "speculative-config" not in spec["serve"]]
    assert shapes
    for spec in shapes:
        serve = {
            key: spec["serve"][key] for key in ("kv-cache-dtype", "enable-expert-parallel") if key in spec["serve"]
        }
        base = {**spec, "serve": {"max-num-seqs": 8, "max-num-batched-tokens": 8192, **serve}, "memory": {}}
        fit = budget.fit(base, "0.30.0", spec["nodes"], 119.2)
        assert fit.serves, f"{spec['name']}: {fit.reason}"
