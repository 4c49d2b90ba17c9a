# SPDX-License-Identifier: Apache-2.0
"""What the model's file alone shows to be wrong or risky, before an image is built or a node contacted.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import parse_version, rules_for
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import human_int

_ALLOW = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
#: Keys of hf-overrides that change what vLLM derives the longest context from.
_RESCALES = ("max_position_embeddings", "rope_parameters", "rope_scaling", "text_config")
#: Variables that keep an engine from the hub.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def engine_choice(overrides: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """Return the overrides of a run with ``-e engine=``: the executor then follows from the engine.

    :param overrides: what is merged into ``model_spec``.
    :param engine: ``native``, ``ray``, or empty for the model's own.
    """
    if not engine:
        return dict(overrides)
    serve = {"distributed-executor-backend": None, **(overrides.get("serve") or {})}
    return {**overrides, "engine": engine, "serve": serve}


def context_errors(spec: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a context that is longer than the model's geometry allows.

    vLLM refuses it after the weights are distributed and the image is built, unless a variable allows it
    (vllm/config/model.py, _get_and_verify_max_len).

    :param spec: a validated ``model_spec``.
    """
    limit = (spec.get("geometry") or {}).get("max_position_embeddings")
    length = human_int(str(spec["serve"].get("max-model-len", "")))
    if not isinstance(limit, int) or length is None or length <= limit:
        return []
    if str(spec["env"].get(_ALLOW, "0")).strip().lower() in ("1", "true"):
        return []
    overrides = spec["serve"].get("hf-overrides")
    if isinstance(overrides, str):
        try:
            overrides = json.loads(overrides)
        except (ValueError, RecursionError):
            overrides = None
    if isinstance(overrides, Mapping) and any(key in overrides for key in _RESCALES):
        return []
    return [
        f"model_spec.serve.max-model-len is {length}, but model_spec.geometry.max_position_embeddings is {limit}: vLLM "
        f"refuses a longer context ({length - limit} tokens too many). Set max-model-len to {limit} or less; or, if "
        f"the model is known to extrapolate, set model_spec.env.{_ALLOW}: '1'."
    ]


def code_errors(spec: Mapping[str, Any]) -> list[str]:
    """Return what lets an engine fetch code that nobody has locked.

    A model's configuration can name code of another repository; offline, the engine finds none.

    :param spec: a validated ``model_spec``.
    """
    open_to = [
        name for name in _OFFLINE if str(spec["env"].get(name, "1")).strip().lower() in ("", "0", "false", "no", "off")
    ]
    if not spec["serve"].get("trust-remote-code") or not open_to:
        return []
    return [
        f"model_spec.env.{open_to[0]} is off and model_spec.serve.trust-remote-code is on: the engine could run code "
        f"of another repository, at whatever revision it has at the start. Remove {open_to[0]}, or trust-remote-code."
    ]


def warnings(spec: Mapping[str, Any], vllm_version: str = "") -> list[str]:
    """Return the known risks of a model's settings, each with the override that avoids it.

    :param spec: a validated ``model_spec``.
    :param vllm_version: of its image, for what the release does where the options say nothing; empty when unknown.
    """
    serve = spec["serve"]
    hybrid = bool((spec.get("geometry") or {}).get("recurrent"))
    speculates = bool(serve.get("speculative-config") or serve.get("spec-method"))
    caching = serve.get("enable-prefix-caching")
    if caching is None and (release := parse_version(vllm_version)):
        caching = rules_for(release).hybrid_prefix_caching
    if not (hybrid and speculates and caching is True):
        return []
    return [
        f"{spec['name']}: speculative decoding with prefix caching corrupts the output of hybrid models in some "
        "releases of vLLM (vllm#43559 and #53912, reported up to 0.28.0; tool calls on GB10: dgx-spark-playbooks#89). "
        "The fix is vllm PR#53919; no release is known here to contain it. To avoid the risk for one run: "
        """-e '{"model_overrides": {"serve": {"enable-prefix-caching": false}}}'."""
    ]
