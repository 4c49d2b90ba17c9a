# SPDX-License-Identifier: Apache-2.0
"""Read the recipe files that owners of GB10 boxes share: three formats, one record.

- eugr/spark-vllm-docker ``recipe_version: "1"``: the command is one Python format string, JSON braces doubled.
- sparkrun ``recipe_version`` 1 and 2: ``{key}`` is filled in from ``defaults`` again and again until nothing changes;
  other braces stay; without ``command`` the defaults are the options.
- vllm-project/recipes: see `vllm_recipes`.

Everything here is pure: text in, a record or a sentence out.
"""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import vllm_recipes
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import (
    Include,
    NoRecipeError,
    RecipeError,
    load,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import (
    PARTS,
    Recipe,
    as_text,
    listed,
    mapping_of,
    reasons_of,
)

#: sparkrun's runtimes that are vLLM (src/sparkrun/core/recipe.py, its resolvers).
VLLM_RUNTIMES = ("", "vllm", "vllm-distributed", "vllm-ray", "eugr-vllm")
#: Keys of sparkrun's ``defaults`` -> vLLM's option, where the name differs by more than dashes.
DEFAULTS: Mapping[str, str] = PARTS["sparkrun"]["defaults"]
#: The image of sparkrun for a recipe that names none (src/sparkrun/runtimes/vllm_distributed.py).
SPARKRUN_IMAGE = "ghcr.io/spark-arena/dgx-vllm-eugr-nightly-tf5:latest"
#: What is read from a recipe file; every other key is reported.
_READ = frozenset(PARTS["sparkrun"]["read"])
#: Most characters of a text once its placeholders are filled in.
MAX_CHARACTERS = 100_000
_WHY = reasons_of("sparkrun")


def read_recipe(text: str, where: str, include: Include | None = None, variant: str = "") -> Recipe:
    """Return a recipe from the text of its file.

    :param where: the file's name, for messages and for a recipe without a name.
    :param include: reads a file that ``include`` names; None refuses includes.
    :param variant: of a file of vllm-project/recipes; empty for its own default.
    :raises RecipeError: not a recipe, or one for something that this project does not do.
    """
    data = load(text, where, include)
    if isinstance(data.get("model"), Mapping) and "model_id" in data["model"]:
        return vllm_recipes.read(data, where, variant)
    if "model" not in data or not ({"container", "runtime", "recipe_version", "command", "containers"} & set(data)):
        raise NoRecipeError(f"{where} is no recipe: it has no 'model' with a 'container', 'runtime' or 'command'.")
    if variant:
        raise RecipeError(f"{where} has no variant {variant[:80]!r}: its format has none.")
    return _from_recipe_version(data, where)


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
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,3}", version):
        raise RecipeError(f"{where} has recipe_version {version[:40]!r}, which is no number.")
    runtime = str(data.get("runtime") or "")
    command = str(data.get("command") or "")
    if runtime not in VLLM_RUNTIMES:
        raise RecipeError(f"{where} is for the engine {runtime}; this project serves with vLLM.")
    if command and not re.search(r"\bvllm\b", command):
        program = (command.split() or ["?"])[0]
        raise RecipeError(f"{where} starts {program}; this project serves with vLLM.")
    defaults = mapping_of(data, "defaults", where)
    values = {"model": data["model"], "model_revision": data.get("model_revision") or "main"} | defaults
    fewest, most = _whole(data, "min_nodes", where) or 1, _whole(data, "max_nodes", where)
    if data.get("cluster_only"):
        fewest = max(2, fewest)
    if data.get("solo_only") or data.get("mode") == "solo":
        fewest, most = 1, 1
    container, left = _container(data)
    if version not in ("1", "2"):
        left["recipe_version"] = f"it says {version}; it is read as 2, as sparkrun reads every one but 1"
    metadata = mapping_of(data, "metadata", where)
    rest = [key for key in data if key not in _READ and data[key] not in (None, [], {}, "")]
    left |= {key: _WHY.get(key, "this project has nothing of that name") for key in rest}
    if set(metadata) <= {"description"}:
        left.pop("metadata", None)
    eugr = first and "runtime" not in data
    recipe = Recipe(
        origin=f"eugr {version}" if eugr else f"sparkrun {version}",
        name=str(data.get("name") or re.sub(r".*/|\.ya?ml$", "", where)),
        model=str(data["model"]),
        revision=str(data.get("model_revision") or ""),
        description=str(data.get("description") or metadata.get("description") or ""),
        container=str(container or ("" if eugr else SPARKRUN_IMAGE)),
        env={name: fill(as_text(value), values, where) for name, value in mapping_of(data, "env", where).items()},
        nodes=(fewest, most),
        ray=runtime == "vllm-ray",
        mods=[str(each) for each in listed(data, "mods", where)],
        left=left,
    )
    if command:
        recipe.command = _filled(command, values, where, left, once=first)
        recipe.unused = _unused(data, defaults)
        name = recipe.unused.get("served_model_name")
        if not eugr and name and "--served-model-name" not in recipe.command:
            recipe.command = f"{recipe.command.rstrip()} --served-model-name {shlex.quote(as_text(name))}"
    else:
        recipe.words = _words_of_defaults(defaults)
    return recipe


def _container(data: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return (image, what is left of a choice of images and why)."""
    several = data.get("containers")
    if data.get("container") is not None or not several:
        return str(data.get("container") or ""), {}
    entries = list(several.values()) if isinstance(several, Mapping) else several if isinstance(several, list) else []
    texts = [each.get("image") or each.get("container") if isinstance(each, Mapping) else each for each in entries]
    images = [str(each) for each in texts if each]
    others = {"containers": f"the first is taken; left out: {', '.join(images[1:])}"} if len(images) > 1 else {}
    return images[0] if images else "", others


class _BraceError(RecipeError):
    """``str.format`` cannot read the braces of a command."""


def _format_once(template: str, values: Mapping[str, Any], where: str) -> str:
    """Fill in a version 1 command, as ``str.format`` does with plain names; anything else that it can do is refused."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as problem:
        raise RecipeError(f"{where}: the braces of 'command' do not match: {problem}.") from None
    parts: list[str] = []
    missing: set[str] = set()
    for literal, name, spec, conversion in fields:
        parts.append(literal)
        if name is None:
            continue
        if spec or conversion or not re.fullmatch(r"[A-Za-z_]\w*", name):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise _BraceError(
                f"{where}: 'command' has {{{shown[:60]}}}, which is no value of 'defaults'; a plain brace is doubled."
            )
        if values.get(name) is not None:
            parts.append(as_text(values[name]))
        else:
            missing.add(name)
    if missing:
        raise RecipeError(f"{where}: 'command' uses {', '.join(sorted(missing))}, which 'defaults' does not have.")
    return _bounded(sum(map(len, parts)), where) or "".join(parts)


def _bounded(characters: int, where: str) -> str:
    """Refuse a text that placeholders make longer than any command is."""
    if characters > MAX_CHARACTERS:
        raise RecipeError(f"{where}: placeholders expand to more than {MAX_CHARACTERS} characters.")
    return ""


_PLACEHOLDER = re.compile(r"\{([\w.-]+)\}")
#: What is left of a placeholder that names nothing; JSON has quotes or spaces, a template's braces are doubled.
_NAME = r"\{\w[^{}\s\"',]*\}"
_OPEN = re.compile(rf"(?<![{{$]){_NAME}|(?<!\$){_NAME}(?!\}})")


def _filled(template: str, values: Mapping[str, Any], where: str, left: dict[str, str], *, once: bool) -> str:
    """Fill in a command as its launcher does.

    :param once: as ``str.format`` does; what that cannot read is read as sparkrun reads it, which runs these files too.
    :raises RecipeError: a placeholder names no value.
    """
    problem = None
    if once:
        try:
            return _format_once(template, values, where)
        except _BraceError as found:
            problem = found
    text = fill(template, values, where)
    if still := _OPEN.search(text):
        raise problem or RecipeError(f"{where}: 'command' uses {still[0][:60]}, which 'defaults' does not have.")
    if problem:
        left["command"] = "it has plain braces, which str.format cannot read; it is read as sparkrun reads it"
    return text


def _unused(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that neither the command nor a variable uses, directly or through another default."""
    texts = [as_text(data["command"]), as_text(data.get("env") or "")]
    rest = dict(defaults)
    while texts:
        names = set(_PLACEHOLDER.findall(texts.pop()))
        texts += [as_text(rest.pop(name)) for name in names & set(rest)]
    return rest


def fill(template: str, values: Mapping[str, Any], where: str = "recipe") -> str:
    """Fill in ``{key}`` for every known key until nothing changes; other braces stay.

    :raises RecipeError: the result would have more than `MAX_CHARACTERS` characters.
    """
    texts = {key: as_text(value) for key, value in values.items() if value is not None}
    for _round in range(20):
        found = [match for match in _PLACEHOLDER.findall(template) if match in texts]
        _bounded(len(template) + sum(len(texts[name]) for name in found), where)
        text = _PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), template)
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
            words += [f"--{name}", *(as_text(each) for each in value)]
        else:
            words += [f"--{name}", as_text(value)]
    return words


def command_of(recipe: Recipe) -> str:
    """Return the recipe's command line as one text, also where its format only lists arguments."""
    return recipe.command or shlex.join(["vllm", "serve", recipe.model, *recipe.words])
