# SPDX-License-Identifier: Apache-2.0
"""What a model's file alone shows to be wrong or risky."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import deep_merge
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import model_checks


def spec(serve: dict[str, Any], env: dict[str, str] | None = None, **geometry: Any) -> dict[str, Any]:
    return {"name": "m", "serve": serve, "env": env or {}, "geometry": {"max_position_embeddings": 8192, **geometry}}


@pytest.mark.parametrize(
    ("serve", "env"),
    [
        ({}, {}),
        ({"max-model-len": 8192}, {}),
        ({"max-model-len": "8k"}, {}),
        ({"max-model-len": "auto"}, {}),
        ({"max-model-len": -1}, {}),
        ({"max-model-len": 8193}, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}),
        ({"max-model-len": 16384, "hf-overrides": {"rope_parameters": {"factor": 4.0}}}, {}),
        ({"max-model-len": 16384, "hf-overrides": '{"max_position_embeddings": 16384}'}, {}),
    ],
)
def test_a_context_that_vllm_accepts(serve: dict[str, Any], env: dict[str, str]) -> None:
    assert model_checks.context_errors(spec(serve, env)) == []


@pytest.mark.parametrize(
    ("serve", "env"),
    [
        ({"max-model-len": 8193}, {}),
        ({"max-model-len": "8193"}, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}),
        ({"max-model-len": 8193, "hf-overrides": {"other": 1}}, {}),
        ({"max-model-len": 8193, "hf-overrides": "not json"}, {}),
    ],
)
def test_a_context_that_vllm_refuses_gets_figures_and_remedy(serve: dict[str, Any], env: dict[str, str]) -> None:
    assert model_checks.context_errors(spec(serve, env)) == [
        "model_spec.serve.max-model-len is 8193, but model_spec.geometry.max_position_embeddings is 8192: vLLM refuses "
        "a longer context (1 tokens too many). Set max-model-len to 8192 or less; or, if the model is known to "
        "extrapolate, set model_spec.env.VLLM_ALLOW_LONG_MAX_MODEL_LEN: '1'."
    ]


def test_a_suffix_counts_as_vllm_counts_it() -> None:
    assert model_checks.context_errors(spec({"max-model-len": "8K"})) == []
    assert "is 9000," in model_checks.context_errors(spec({"max-model-len": "9k"}))[0]


def test_without_a_geometry_nothing_is_known() -> None:
    assert model_checks.context_errors({"serve": {"max-model-len": 10**6}, "env": {}, "geometry": {}}) == []


MTP = {"speculative-config": {"method": "mtp", "num_speculative_tokens": 2}}
HYBRID = {"recurrent": {"kind": "mamba2"}}


def test_speculation_with_prefix_caching_on_a_hybrid_is_warned_about() -> None:
    (sentence,) = model_checks.warnings(spec({**MTP, "enable-prefix-caching": True}, **HYBRID))
    assert "vllm PR#53919" in sentence
    assert """-e '{"model_overrides": {"serve": {"enable-prefix-caching": false}}}'""" in sentence


@pytest.mark.parametrize(
    ("version", "warned"), [("0.25.1", False), ("0.26.0", True), ("0.33.0+cu130", True), ("", False)]
)
def test_a_release_that_caches_prefixes_by_default_is_warned_about_too(version: str, warned: bool) -> None:
    assert bool(model_checks.warnings(spec(MTP, **HYBRID), version)) is warned
    assert model_checks.warnings(spec({**MTP, "enable-prefix-caching": False}, **HYBRID), version) == []


@pytest.mark.parametrize(
    ("serve", "geometry"),
    [
        ({**MTP, "enable-prefix-caching": True}, {}),
        (MTP, HYBRID),
        ({**MTP, "enable-prefix-caching": False}, HYBRID),
        ({"enable-prefix-caching": True}, HYBRID),
    ],
)
def test_one_of_the_three_alone_is_no_risk(serve: dict[str, Any], geometry: dict[str, Any]) -> None:
    assert model_checks.warnings(spec(serve, **geometry)) == []


def test_the_override_in_the_warning_ends_it() -> None:
    risky = spec({**MTP, "enable-prefix-caching": True}, **HYBRID)
    assert model_checks.warnings(deep_merge(risky, {"serve": {"enable-prefix-caching": False}})) == []


def test_the_engine_of_a_run_decides_the_executor() -> None:
    written = {"engine": "ray", "serve": {"distributed-executor-backend": "ray", "max-num-seqs": 1}}
    changed = deep_merge(written, model_checks.engine_choice({"serve": {"max-num-seqs": 2}}, "native"))
    assert changed == {"engine": "native", "serve": {"max-num-seqs": 2}}
    assert model_checks.engine_choice({"nodes": 2}, "") == {"nodes": 2}


@pytest.mark.parametrize(
    ("trust", "env", "refused"),
    [
        (True, {"HF_HUB_OFFLINE": "0"}, True),
        (True, {"TRANSFORMERS_OFFLINE": "false"}, True),
        (True, {"HF_HUB_OFFLINE": "1"}, False),
        (True, {}, False),
        (False, {"HF_HUB_OFFLINE": "0"}, False),
    ],
)
def test_code_of_another_repository_is_not_fetched_at_a_start(trust: bool, env: dict[str, str], refused: bool) -> None:
    found = model_checks.code_errors(spec({"trust-remote-code": trust}, env))
    assert bool(found) is refused
    assert not found or next(iter(env)) in found[0]
