# SPDX-License-Identifier: Apache-2.0
"""Read the model files of vllm-project/recipes as their site does for a GB10.  Pure.

A file has variants (checkpoints), features (some of them with modes) and settings for kinds of machines, which their
site puts into one command (src/lib/command-synthesis.js, taxonomy.yaml). What stands for this machine itself counts
over what stands for its generation.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import (
    PARTS,
    READERS,
    Recipe,
    as_text,
    listed,
    mapping_of,
    reasons_of,
)

GB10, GENERATION, BRAND = "dgx_spark_gb10", "blackwell", "nvidia"
#: Memory of one such machine, as the variants' ``vram_minimum_gb`` is compared with it (taxonomy.yaml).
MEMORY_GB = 128
DEFAULT = "default"
IMAGE, NIGHTLY = "vllm/vllm-openai:latest", "vllm/vllm-openai:nightly"
_TP = "--tensor-parallel-size"
#: Features that only read the model's answers: on, also where a file has them off.
_PARSERS = ("reasoning", "tool_calling")
#: What is read of each part; the rest is reported.
_READ: Mapping[str, Sequence[str]] = PARTS["vllm"]["read"]
_TOP = frozenset(PARTS["vllm"]["top"])
_STRATEGY = "the ranks of an engine here are tensor parallel, one on each node; model_overrides changes that"
_WHY = reasons_of("vllm")


@dataclass
class _Reading:
    """A file while it is read.

    :ivar named: whether the file says that it is for this machine.
    :ivar variant: the chosen variant, and ``key`` its name.
    """

    data: Mapping[str, Any]
    where: str
    key: str
    named: bool = False
    variant: Mapping[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def take(self, part: Mapping[str, Any], *keys: str) -> None:
        """Add the arguments and the variables that stand below the keys of a part."""
        for key in keys:
            if key.endswith("args"):
                self.words += [as_text(each) for each in listed(part, key, self.where)]
            else:
                self.env |= {name: as_text(value) for name, value in mapping_of(part, key, self.where).items()}

    def below(self, part: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        """Return the mapping that several keys lead to; empty where there is none."""
        found = dict(part)
        for key in keys:
            found = mapping_of(found, key, self.where)
        return found

    def general(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings for the machine's generation, else for its maker."""
        for key in (GENERATION, BRAND):
            if overrides.get(key) and (self.named or key == BRAND):
                return self.below(overrides, key)
        return {}


def read(data: Mapping[str, Any], where: str, variant: str = "") -> Recipe:
    """Return a model file of vllm-project/recipes as a recipe.

    :param variant: the variant to take; empty for the file's own default.
    :raises RecipeError: it is for another engine, not for this machine, or has no such variant.
    """
    meta, model = mapping_of(data, "meta", where), mapping_of(data, "model", where)
    variants = mapping_of(data, "variants", where)
    if variant and variant not in variants:
        raise RecipeError(f"{where} has no variant {variant[:80]!r}; it has: {', '.join(variants)[:300] or 'none'}.")
    file = _Reading(data, where, variant or DEFAULT)
    file.variant = mapping_of(variants, file.key, where)
    if data.get("omni") or "--omni" in listed(model, "base_args", where):
        raise RecipeError(
            f"{where} is for vLLM-Omni, which makes images, sound or video; this project serves with vLLM."
        )
    _machine(file, meta)
    nodes = _nodes(file, variants)
    _arguments(file, model, "multi_node_tp" if nodes > 1 else "single_node_tp")
    if nodes > 1 and not any(word.split("=")[0] in (_TP, "-tp") for word in file.words):
        file.words += [_TP, str(nodes)]
        file.left["nodes"] = (
            f"the file names none; {nodes}, as its variant {file.key} needs {file.variant['vram_minimum_gb']} GB and a "
            f"node has {MEMORY_GB}"
        )
    _described(file, meta, model)
    name = str(meta.get("slug") or re.sub(r".*/|\.ya?ml$", "", where))
    return Recipe(
        origin="vllm-project/recipes",
        name=f"{name} {variant}" if variant and variant != DEFAULT else name,
        model=as_text(file.variant.get("model_id") or model["model_id"]),
        description=as_text(meta.get("description") or ""),
        container=_container(file, model),
        words=file.words,
        env=file.env,
        left=file.left,
    )


def _machine(file: _Reading, meta: Mapping[str, Any]) -> None:
    """Read what the file says of this machine.

    :raises RecipeError: that the model does not run on it.
    """
    hardware = meta.get("hardware")
    says = hardware.get(GB10) if isinstance(hardware, Mapping) else None
    file.named = says is not None
    if says == "unsupported":
        raise RecipeError(f"{file.where} says that the model does not run on this machine yet (meta.hardware.{GB10}).")
    if isinstance(hardware, Mapping) and not file.named:
        file.left["meta.hardware"] = "the recipe does not name this machine: its figures and options are for others"
    supported = file.variant.get("supported_hardware")
    if isinstance(supported, list) and supported and GB10 not in supported:
        file.left[f"variants.{file.key}.supported_hardware"] = "it does not name this machine"


def _nodes(file: _Reading, variants: Mapping[str, Any]) -> int:
    """Return how many nodes hold the variant by its own figure, a power of two; note what other variants there are."""
    others = [
        f"{name} ({each['model_id']})" if isinstance(each, Mapping) and each.get("model_id") else name
        for name, each in variants.items()
        if name != file.key
    ]
    if others:
        file.left["variants"] = f"{file.key} is taken; <file>:<variant> chooses another: {', '.join(others)[:600]}"
    needed = file.variant.get("vram_minimum_gb")
    nodes = 1
    if isinstance(needed, int | float) and not isinstance(needed, bool):
        while nodes < 64 and nodes * MEMORY_GB < needed:
            nodes *= 2
    return nodes


def _arguments(file: _Reading, model: Mapping[str, Any], strategy: str) -> None:
    """Put the arguments and variables together, the most particular last, as the last one counts."""
    file.take(model, "base_args", "base_env")
    file.take(file.variant, "extra_args", "extra_env")
    every = file.below(file.data, "strategy_overrides")
    chosen = file.below(every, strategy)
    file.take(chosen, "extra_args", "vllm_args", "extra_env", "env")
    overrides = [file.below(part, "hardware_overrides") for part in (file.data, file.variant, chosen)]
    general = [found for found in map(file.general, overrides) if found]
    for part in general[-1:] if file.general(overrides[2]) else general:
        file.take(part, "extra_args", "extra_env", "args", "env")
    for each in overrides:
        file.take(file.below(each, GB10), "extra_args", "extra_env", "args", "env")
    for name, settings in overrides[0].items():
        if name == GENERATION and not file.named:
            file.left[f"hardware_overrides.{name}"] = (
                "it is for other machines of this generation, as the recipe does not name this one"
            )
        elif name not in (GB10, GENERATION, BRAND) or not isinstance(settings, Mapping):
            file.left[f"hardware_overrides.{name}"] = "it is for another machine"
    if others := [name for name in overrides[1] if name not in (GB10, GENERATION, BRAND)]:
        file.left[f"variants.{file.key}.hardware_overrides.{', '.join(others)}"] = "it is for another machine"
    if file.variant.get("tp") not in (None, 1):
        file.left[f"variants.{file.key}.tp"] = _STRATEGY
    if others := [name for name in every if name != strategy]:
        file.left[f"strategy_overrides.{', '.join(others)}"] = _STRATEGY
    _features(file, strategy)


def _features(file: _Reading, strategy: str) -> None:
    """Add the arguments of the features that are on."""
    off = {as_text(each) for each in listed(file.data, "opt_in_features", file.where)}
    off |= {as_text(each) for each in listed(file.below(file.data, "hardware_opt_in_features"), GB10, file.where)}
    steered = file.below(file.variant, "default_modes")
    for name, feature in mapping_of(file.data, "features", file.where).items():
        where = f"features.{name}"
        if not isinstance(feature, Mapping):
            file.left[where] = "it has no list of arguments"
            continue
        chosen, more = _mode(file, feature, steered.get(name))
        if chosen is None:
            file.left[where] = "it is not for this variant or machine"
        elif (strategies := listed(feature, "strategies", file.where)) and strategy not in strategies:
            file.left[where] = f"it is not for {strategy}"
        elif name in off and name not in steered and name not in _PARSERS:
            words = [as_text(each) for each in listed(chosen, "args", file.where)]
            file.left[where] = f"it is off unless asked for: {shlex.join(words)[:300]}"
        else:
            file.take(chosen, "args", "env")
            if more:
                file.left[where] = more


def _mode(file: _Reading, feature: Mapping[str, Any], steered: Any) -> tuple[Mapping[str, Any] | None, str]:
    """Return (what has the arguments of a feature, or None where it is not for this machine; which modes are left)."""
    note = ""
    modes = {name: each for name, each in file.below(feature, "modes").items() if isinstance(each, Mapping)}
    if modes:
        allowed = [
            name
            for name, each in modes.items()
            if _runs_here(file, each) and file.key in (each.get("variants") or [file.key])
        ]
        wanted = [name for name in (steered, feature.get("default_mode")) if name in allowed]
        if not allowed:
            return None, ""
        key = [*wanted, *allowed][0]
        if others := [name for name in modes if name != key]:
            note = f"the mode {key} is taken; left out: {', '.join(others)}"
        feature = modes[key]
    elif not _runs_here(file, feature):
        return None, ""
    overrides = file.below(feature, "hardware_overrides")
    found = file.below(overrides, GB10) or file.general(overrides) or file.below(overrides, DEFAULT)
    return {**feature, **found}, note


def _runs_here(file: _Reading, part: Mapping[str, Any]) -> bool:
    hardware = file.below(part, "hardware")
    return "unsupported" not in (hardware.get(GENERATION), hardware.get(GB10))


def _container(file: _Reading, model: Mapping[str, Any]) -> str:
    """Return the image for this machine."""
    here = file.below(file.variant, "hardware_overrides", GB10)
    for part in (here, file.variant, model):
        value = part.get("docker_image")
        if isinstance(value, Mapping) and not {"cu129", "cu130"} & set(value):
            value = value.get(BRAND)
        if isinstance(value, Mapping):
            value = value.get("cu130") or value.get("cu129")
        if value:
            return as_text(value)
    return NIGHTLY if file.variant.get("nightly_required") or model.get("nightly_required") else IMAGE


def _described(file: _Reading, meta: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Note the parts that are not read."""
    least = file.variant.get("min_vllm_version") or model.get("min_vllm_version")
    if least:
        file.left["model.min_vllm_version"] = (
            f"it says {as_text(least)[:40]}; whether the image is new enough shows in its own check"
        )
    parts: Sequence[tuple[str, str, Mapping[str, Any]]] = (
        ("meta", "meta", meta),
        ("model", "model", model),
        ("variant", f"variants.{file.key}", file.variant),
    )
    described = [f"{shown}.{key}" for part, shown, found in parts for key in found if key not in _READ[part]]
    described += [key for key in ("guide", "default_hardware") if file.data.get(key)]
    if described:
        file.left[", ".join(described)] = READERS
    for key, value in file.data.items():
        if key not in _TOP and key not in ("guide", "default_hardware") and value:
            file.left[str(key)] = _WHY.get(key, "this project has nothing of that name")
