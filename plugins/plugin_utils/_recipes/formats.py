# SPDX-License-Identifier: Apache-2.0
"""Read the recipe files that owners of GB10 boxes share: three formats, one record.

- eugr/spark-vllm-docker ``recipe_version: "1"``: the command is one Python format string, JSON braces doubled.
- sparkrun ``recipe_version`` 1 and 2: ``{key}`` is filled in from ``defaults`` again and again until nothing changes;
  other braces stay; without ``command`` the defaults are the options.
- vllm-project/recipes: ``model.base_args`` and ``features``, with ``hardware_overrides`` for one kind of machine.

Everything here is pure: text in, a record or a sentence out.
"""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: sparkrun's runtimes that are vLLM (src/sparkrun/core/recipe.py, its resolvers).
VLLM_RUNTIMES = ("", "vllm", "vllm-distributed", "vllm-ray", "eugr-vllm")
#: Keys of sparkrun's ``defaults`` -> vLLM's option, where the name differs by more than dashes.
DEFAULTS = {
    "data_parallel": "data-parallel-size",
    "decode_context_parallel": "decode-context-parallel-size",
    "expert_parallel": "enable-expert-parallel",
    "pipeline_parallel": "pipeline-parallel-size",
    "tensor_parallel": "tensor-parallel-size",
}
#: The key of this machine in vllm-project/recipes.
GB10 = "dgx_spark_gb10"
#: What is read from a recipe file; every other key is reported.
_READ = {
    "recipe_version", "sparkrun_version", "name", "description", "model", "model_revision", "runtime", "container",
    "command", "defaults", "env", "mods", "min_nodes", "max_nodes", "mode", "cluster_only", "solo_only", "metadata",
    "overrides",
}  # fmt: skip
#: Keys that say nothing about the engine.
_SILENT = {"runtime_version", "category", "maintainer", "tags"}
_WHY = {
    "benchmark": "figures are measured here by playbooks/bench.yml",
    "build_args": "images are built here from pinned wheels or pulled by digest, not by another project's script",
    "builder": "images are built here from pinned wheels or pulled by digest, not by another project's script",
    "builder_config": "images are built here from pinned wheels or pulled by digest, not by another project's script",
    "capabilities": "the container gets the capabilities of the role engine",
    "cluster_config": "nodes, addresses and roles come from the inventory",
    "container_name": "containers are named after the model",
    "distribution_config": "image and weights go to every member",
    "executor": "the container is run by systemd and Docker",
    "executor_config": "the container is run by systemd and Docker; engine_docker_args holds what one needs besides",
    "layout": "nodes, addresses and roles come from the inventory",
    "min_sparkrun_version": "it concerns the other program alone",
    "post_commands": "nothing is run after a start but the verification",
    "post_exec": "nothing is run after a start but the verification",
    "pre_exec": "scripts are not run in the container; a change to vLLM is a mod (docs/mods.md)",
    "pull_image": "an image is pulled once and locked by its digest",
    "raw_entrypoint": "the entry point is this project's own",
    "readiness": "an engine is ready when a completion yields tokens",
    "runtime_cache": "caches of compiled kernels are kept for each image and model",
    "runtime_config": "it configures the other program's launcher",
    "scheduler": "systemd starts the engine",
    "shared_weights_nfs": "every node holds its own verified copy of the weights",
    "stop_after_post": "nothing is run after a start but the verification",
    "unsupported_capabilities": "the container gets the capabilities of the role engine",
}  # fmt: skip


class RecipeError(ValueError):
    """The file is no recipe that this project can run; the message says why, in one sentence."""


@dataclass
class Recipe:
    """What a recipe says, whatever its format.

    :ivar origin: the format, such as ``sparkrun 2``.
    :ivar words: the arguments of ``vllm serve`` when the format lists them; otherwise ``command`` is set.
    :ivar nodes: (fewest, most) nodes; most is None without a limit.
    :ivar left: key of the recipe -> why it was not carried over.
    """

    origin: str
    name: str
    model: str
    revision: str = ""
    description: str = ""
    container: str = ""
    command: str = ""
    words: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    nodes: tuple[int, int | None] = (1, None)
    ray: bool = False
    mods: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def read_recipe(text: str, where: str, include: Callable[[str], str] | None = None) -> Recipe:
    """Return a recipe from the text of its file.

    :param text: YAML.
    :param where: the file's name, for messages and for a recipe without a name.
    :param include: returns the text of a file that ``include`` names; None refuses includes.
    :raises RecipeError: not a recipe, or one for something that this project does not do.
    """
    data = _load(text, where, include, ())
    if isinstance(data.get("model"), Mapping) and "model_id" in data["model"]:
        return _from_vllm_recipes(data, where)
    if "model" not in data or not ({"container", "runtime", "recipe_version", "command", "containers"} & set(data)):
        raise RecipeError(f"{where} is no recipe: it has no 'model' with a 'container', 'runtime' or 'command'.")
    return _from_recipe_version(data, where)


def _load(text: str, where: str, include: Callable[[str], str] | None, above: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line} is not valid YAML: {getattr(problem, 'problem', problem)}.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{where} is no recipe: its top level is no mapping.")
    names = data.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        if include is None:
            raise RecipeError(f"{where} includes {name}, and files beside it are not read here.")
        if name in above or len(above) > 8:
            raise RecipeError(f"{where} includes {name} in a circle.")
        merged = _over(merged, _load(include(str(name)), str(name), include, (*above, str(name))))
    return _over(merged, data)


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merge, all else of the including file replaces."""
    out = dict(base)
    for key, value in top.items():
        inner = out.get(key)
        out[key] = _over(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def _mapping(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: '{key}' must be a mapping, found {type(value).__name__}.")
    return {str(name): each for name, each in value.items()}


def _whole(data: Mapping[str, Any], key: str, where: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)) or int(value) < 1:
        raise RecipeError(f"{where}: '{key}' must be a whole number of at least 1, found {value!r}.")
    return int(value)


def _from_recipe_version(data: Mapping[str, Any], where: str) -> Recipe:
    version = str(data.get("recipe_version", data.get("sparkrun_version", "2")))
    first = version == "1"
    if version not in ("1", "2"):
        raise RecipeError(f"{where} has recipe_version {version}; 1 and 2 are read here.")
    runtime = str(data.get("runtime") or "")
    command = str(data.get("command") or "")
    if runtime not in VLLM_RUNTIMES:
        raise RecipeError(f"{where} is for the engine {runtime}; this project serves with vLLM.")
    if command and not re.search(r"\bvllm\b", command):
        program = (command.split() or ["?"])[0]
        raise RecipeError(f"{where} starts {program}; this project serves with vLLM.")
    defaults = _mapping(data, "defaults", where) | _mapping(data, "overrides", where)
    values = {"model": data["model"], "model_revision": data.get("model_revision") or "main"} | defaults
    fewest, most = _whole(data, "min_nodes", where) or 1, _whole(data, "max_nodes", where)
    if data.get("cluster_only"):
        fewest = max(2, fewest)
    if data.get("solo_only") or data.get("mode") == "solo":
        fewest, most = 1, 1
    container = data.get("container")
    if container is None and isinstance(data.get("containers"), Mapping):
        container = next(iter(data["containers"].values()), "")
    metadata = _mapping(data, "metadata", where)
    recipe = Recipe(
        origin=f"eugr {version}" if first and "runtime" not in data else f"sparkrun {version}",
        name=str(data.get("name") or re.sub(r".*/|\.ya?ml$", "", where)),
        model=str(data["model"]),
        revision=str(data.get("model_revision") or ""),
        description=str(data.get("description") or metadata.get("description") or ""),
        container=str(container or ""),
        env=_environment(data, values, where),
        nodes=(fewest, most),
        ray=runtime == "vllm-ray",
        mods=[str(each) for each in data.get("mods") or []],
        left={key: _reason(key) for key in data if key not in _READ | _SILENT and data[key] not in (None, [], {}, "")},
    )
    if command:
        recipe.command = _format_once(command, values, where) if first else fill(command, values)
    else:
        recipe.words = _words_of_defaults(defaults)
    return recipe


def _reason(key: str) -> str:
    return _WHY.get(key, "this project has nothing of that name")


def _environment(data: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, str]:
    found = {}
    for name, value in _mapping(data, "env", where).items():
        text = fill(_text(value), values)
        if re.search(r"\$\{?\w|\{(launch|config)\.", text):
            raise RecipeError(f"{where}: env.{name} is {text!r}, which another launcher fills in at its start.")
        found[name] = text
    return found


def _text(value: Any) -> str:
    """Return a YAML scalar as the text that a shell would get."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _format_once(template: str, values: Mapping[str, Any], where: str) -> str:
    """Fill in a version 1 command, as ``str.format`` does."""
    try:
        names = [field[1] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as problem:
        raise RecipeError(f"{where}: the braces of 'command' do not match: {problem}.") from None
    missing = sorted({name for name in names if name not in values})
    if missing:
        raise RecipeError(f"{where}: 'command' uses {', '.join(missing)}, which 'defaults' does not have.")
    return template.format(**{key: _text(value) for key, value in values.items()})


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Fill in ``{key}`` for every known key until nothing changes; other braces stay."""
    for _round in range(20):
        text = re.sub(r"\{(\w+)\}", lambda match: _text(values[match[1]]) if match[1] in values else match[0], template)
        if text == template:
            break
        template = text
    return template


def _words_of_defaults(defaults: Mapping[str, Any]) -> list[str]:
    """Return the arguments that sparkrun makes of ``defaults`` for a recipe without a command."""
    words: list[str] = []
    for key, value in defaults.items():
        name = DEFAULTS.get(key, key.replace("_", "-"))
        if value is None or value is False:
            continue
        if value is True or (name == "enable-expert-parallel" and str(value) not in ("0", "false")):
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *(_text(each) for each in value)]
        else:
            words += [f"--{name}", _text(value)]
    return words


def _from_vllm_recipes(data: Mapping[str, Any], where: str) -> Recipe:
    meta, model = _mapping(data, "meta", where), _mapping(data, "model", where)
    words = [_text(each) for each in model.get("base_args") or []]
    env = {name: _text(value) for name, value in (model.get("base_env") or {}).items()}
    left: dict[str, str] = {}
    for name, each in _mapping(data, "features", where).items():
        if isinstance(each, Mapping):
            words += [_text(word) for word in each.get("args") or []]
            env |= {key: _text(value) for key, value in (each.get("env") or {}).items()}
        else:
            left[f"features.{name}"] = "it has no list of arguments"
    override = _mapping(data, "hardware_overrides", where).get(GB10)
    if isinstance(override, Mapping):
        words += [_text(each) for each in override.get("extra_args") or override.get("args") or []]
        env |= {key: _text(value) for key, value in (override.get("extra_env") or override.get("env") or {}).items()}
    hardware = meta.get("hardware")
    if isinstance(hardware, Mapping) and GB10 not in hardware:
        left["meta.hardware"] = "the recipe does not name this machine: its figures and options are for others"
    for key, value in data.items():
        if key not in ("meta", "model", "features", "hardware_overrides", "guide", "default_hardware") and value:
            left[key] = "the default variant is taken; other variants are further model files"
    return Recipe(
        origin="vllm-project/recipes",
        name=str(meta.get("slug") or re.sub(r".*/|\.ya?ml$", "", where)),
        model=str(model["model_id"]),
        description=str(meta.get("description") or ""),
        container=str(model.get("docker_image") or "vllm/vllm-openai:latest"),
        words=words,
        env=env,
        left=left,
    )


def command_of(recipe: Recipe) -> str:
    """Return the recipe's command line as one text, also where its format only lists arguments."""
    return recipe.command or shlex.join(["vllm", "serve", recipe.model, *recipe.words])
