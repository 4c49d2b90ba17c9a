# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a model of this project: every part is carried over, or named with the reason why not.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.command import CommandError, read_command
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import DEFAULTS, command_of
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError, one_line
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mods import (
    ImportedMod,
    ModError,
    convert,
    mod_name,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import PARTS, Recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import launch, model_checks, serve_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError, in_order, show
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import parse

#: Names that scripts give images on the owner's machine, and where the same project publishes them (FACTS: prebuilt;
#: src/sparkrun/builders/eugr.py).
LOCAL_IMAGES: Mapping[str, str] = PARTS["local_images"]
#: Options whose value is another part of a model here, or of a role.
_ELSEWHERE: Mapping[str, str] = PARTS["elsewhere"]
#: Variables that name a machine's network, or hold a secret.
_OF_THE_MACHINE = re.compile(
    r"VLLM_HOST_IP|(NCCL|GLOO|TP|UCX|OMPI_MCA)_\w*(IFNAME|NET_DEVICES|btl_tcp_if\w*)|NCCL_IB_(HCA|GID_INDEX)|MN_IF_NAME"
)
_SECRETS = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: A revision of a repository in the cache of huggingface_hub.
_SNAPSHOT = re.compile(
    r"/.*/models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})/?", re.ASCII
)
#: Most ranks of a recipe; the largest known one has 16.
MAX_RANKS = 1024
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

#: A path of keys below `spec`.
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What the owner's machine knows besides the recipe.

    :ivar models: model files by path, their ``model_spec``.
    :ivar mod_files: returns name -> text of the script and patches of a recipe's mod in the recipe's checkout.
    :ivar writes_mods: whether mods that are patches are written, or only what is run once.
    :ivar size_gib: returns the size of a repository's weights on this machine; 0 when they are not there.
    """

    images: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mods: Sequence[str] = ()
    size_gib: Callable[[str], float] = lambda _repo: 0.0
    mod_files: Callable[[str], Mapping[str, str]] = lambda _mod: {}
    writes_mods: bool = False


@dataclass(frozen=True)
class Imported:
    """A recipe as a model.

    :ivar spec: the ``model_spec``; it has passed the checks that every model file passes.
    :ivar reasons: path below ``spec`` -> where the value comes from.
    :ivar left: one sentence for each part of the recipe that is not in the model, or is in it otherwise.
    :ivar notes: what the checks accepted but have a word about.
    :ivar mods: mods made of the recipe's patches.
    """

    recipe: Recipe
    spec: dict[str, Any]
    reasons: dict[Keys, str]
    left: list[str]
    notes: list[str]
    mods: tuple[ImportedMod, ...] = ()


def slug(text: str) -> str:
    """Return a text as a model's name: lower case, with dashes for all but letters, digits and dots."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80].rstrip("-.")


def to_model(recipe: Recipe, where: str, known: Known, name: str = "", image: str = "") -> Imported:
    """Return a recipe as a model.

    :param name: the model's name; empty for one made of the recipe's.
    :param image: the image in place of the recipe's: a key of the catalogue or a reference.
    :raises RecipeError: for what this project does not do, in one sentence.
    """
    left = [f"{key}: {why}." for key, why in recipe.left.items()]
    reasons: dict[Keys, str] = {}
    chosen = image or _image(recipe, where, known, left)
    version, upstream = _versions(known, chosen, where)
    try:
        command = read_command(command_of(recipe), _options(version or upstream))
    except CommandError as problem:
        raise RecipeError(f"{where}: {problem}.") from None
    left += command.notes
    serve = command.serve
    left += _unused(recipe, serve)
    repo, snapshot = _of_cache(command.model or recipe.model)
    if snapshot:
        left.append(
            f"model: {command.model or recipe.model} is {repo} at {snapshot} in a cache of the hub; that is taken."
        )
    if not _REPO.fullmatch(repo):
        raise RecipeError(
            f"{where} serves {repo or 'no model'}, a place on another machine; a model here is "
            "<organisation>/<repository>, whose weights are moved to every node."
        )
    if recipe.model not in (repo, command.model, ""):
        left.append(f"model: it says {recipe.model}, the command serves {repo}; the command counts.")
    spec: dict[str, Any] = {"name": name or slug(recipe.name), "repo": repo}
    revision = str(serve.pop("revision", "") or snapshot or recipe.revision)
    if revision and revision != "main":
        spec["revision"] = revision
    else:
        reasons["revision",] = (
            "the recipe names none: the branch main is taken, and what it holds is recorded at the first run"
        )
    spec["served_name"] = _served_name(serve, repo, left)
    _size(spec, known, reasons)
    world = _nodes(recipe, serve, where, spec, reasons, left)
    spec["image"] = chosen
    reasons["image",] = f"the recipe's container {recipe.container or '(none)'}"
    made: list[ImportedMod] = []
    spec["mods"] = _mods(recipe, known, upstream or version, left, made)
    spec["engine"] = _engine(recipe, serve, world, reasons)
    spec["ports"] = {"api": _port(serve, left)}
    _elsewhere(serve, left)
    _drafter(serve, spec, known, reasons, left)
    spec["serve"] = serve
    spec["env"] = _variables(recipe.env | command.env, where, left)
    _launcher_fills(serve, where)
    _geometry(spec, known, reasons)
    spec["provenance"] = {"status": "imported", "source": f"{where} ({recipe.origin})"}
    if recipe.description:
        spec["notes"] = [" ".join(recipe.description.split())]
    if made:
        reasons["mods",] = "made of the recipe's patches, which were read and not run"
    notes = _checked(spec, version, upstream, where, [each.name for each in made], left)
    left, notes = [one_line(each) for each in left], [one_line(each) for each in notes]
    return Imported(recipe, spec, reasons, left, notes, tuple(made))


def _of_cache(model: str) -> tuple[str, str]:
    """Return (repository, commit) of a snapshot in a cache of the hub; (the text, nothing) of anything else."""
    found = _SNAPSHOT.fullmatch(model)
    return (f"{found['owner']}/{found['name']}", found["commit"]) if found else (model, "")


def _options(version: str) -> dict[str, Any]:
    """Return the options of a version, or of every version, the newest first to count."""
    tables = serve_files.load_tables()
    if version in tables:
        return dict(tables[version]["options"])
    merged: dict[str, Any] = {}
    for name in in_order(tables):
        merged |= tables[name]["options"]
    return merged


def _image(recipe: Recipe, where: str, known: Known, left: list[str]) -> str:
    """Return the image of a recipe: a key of the catalogue, or a reference that can be pulled."""
    container = recipe.container.removesuffix(":latest") if "/" not in recipe.container else recipe.container
    if container in LOCAL_IMAGES:
        published = LOCAL_IMAGES[container]
        left.append(
            f"container: {container} is built on the owner's machine by another project's script; {published}, which "
            "that project publishes, is taken in its place."
        )
        return published
    if container in known.images:
        left.append(
            f"container: {container} is the image of that name in gb10_images here; the other project's script builds "
            "its own, of another release."
        )
        return container
    if "/" in container and image_recipe.by_reference(container):
        return container
    if not container:
        raise RecipeError(f"{where} names no container; import_recipe_image names an image.")
    raise RecipeError(
        f"{where} needs the image {container[:100]}, which another project's script builds and nobody "
        "publishes; import_recipe_image names one that can be pulled."
    )


def _versions(known: Known, image: str, where: str) -> tuple[str, str]:
    """Return (version of vLLM in an image, release that a fork is based on); empty what is not known."""
    flat, errors = image_recipe.resolve(known.images, image)
    if errors:
        raise RecipeError(f"{where}: {' '.join(errors)}")
    return str(flat["vllm_version"] or ""), str(flat["vllm_upstream"] or "")


def _served_name(serve: dict[str, Any], repo: str, left: list[str]) -> str:
    names = serve.pop("served-model-name", None)
    several = [str(each) for each in (names if isinstance(names, list) else [names]) if each is not None]
    if len(several) > 1:
        left.append(
            f"serve.served-model-name: a model has one name here, {several[0]}; left out: {', '.join(several[1:])}."
        )
    return several[0] if several else repo


def _same_repo(spec: Mapping[str, Any], known: Known) -> Iterator[Mapping[str, Any]]:
    """Yield the other known models that serve the same repository."""
    for model in known.models.values():
        if model.get("repo") == spec["repo"] and model.get("name") != spec["name"]:
            yield model


def _size(spec: dict[str, Any], known: Known, reasons: dict[Keys, str]) -> None:
    if size := known.size_gib(spec["repo"]):
        spec["size_gib"] = size
        reasons["size_gib",] = "the weights on the control node"
        return
    for model in _same_repo(spec, known):
        if model.get("size_gib"):
            spec["size_gib"] = model["size_gib"]
            reasons["size_gib",] = f"as model {model.get('name')}, which serves the same repository"
            return
    reasons["size_gib",] = "no recipe says it: the size of the weight files in GiB"


def _geometry(spec: dict[str, Any], known: Known, reasons: dict[Keys, str]) -> None:
    for model in _same_repo(spec, known):
        if model.get("geometry"):
            spec["geometry"] = model["geometry"]
            reasons["geometry",] = f"as model {model.get('name')}, which serves the same repository"
            return
    reasons["geometry",] = "no recipe says it: read from config.json of the weights when the memory is checked"


def _nodes(
    recipe: Recipe, serve: dict[str, Any], where: str, spec: dict[str, Any], reasons: dict[Keys, str], left: list[str]
) -> int:
    """Put ``nodes`` into the model and return it: a GB10 has one GPU, so each rank is a node."""
    sizes = {name: serve.get(f"{name}-parallel-size", 1) for name in ("tensor", "pipeline", "data")}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RecipeError(f"{where}: {name}-parallel-size is {str(size)[:40]!r}, which is no number of ranks.")
    if sizes["data"] > 1:
        raise RecipeError(
            f"{where} runs {sizes['data']} data-parallel copies; an engine here is one copy of tensor and pipeline "
            "parallel ranks."
        )
    world: int = sizes["tensor"] * sizes["pipeline"]
    if world > MAX_RANKS:
        raise RecipeError(f"{where} has {world} ranks, each of which is a node here; {MAX_RANKS} is the most.")
    fewest, most = recipe.nodes
    if world < fewest or (most is not None and world > most):
        asked = f"{fewest} or more" if most is None else f"{fewest} to {most}"
        left.append(f"nodes: the recipe is for {asked} nodes, its command has {world} ranks; the ranks count.")
    spec["nodes"] = world
    reasons["nodes",] = f"tensor {sizes['tensor']} x pipeline {sizes['pipeline']}; each rank is a node"
    return world


def _engine(recipe: Recipe, serve: dict[str, Any], world: int, reasons: dict[Keys, str]) -> str:
    backend = serve.pop("distributed-executor-backend", None)
    ray = world > 1 and (backend == "ray" or (backend is None and recipe.ray))
    reasons["engine",] = (
        "one node needs no Ray"
        if world == 1
        else f"distributed-executor-backend {backend or 'not given'} in the recipe"
    )
    return "ray" if ray else "native"


def _port(serve: dict[str, Any], left: list[str]) -> int:
    port = serve.pop("port", 8000)
    if isinstance(port, int) and not isinstance(port, bool) and 1024 <= port <= 65535:
        return port
    left.append(f"serve.port: {str(port)[:40]!r} is no port of an API here; 8000 is taken.")
    return 8000


def _elsewhere(serve: dict[str, Any], left: list[str]) -> None:
    """Take out the options that other parts of this project decide."""
    for option, why in _ELSEWHERE.items():
        if option in serve:
            del serve[option]
            left.append(f"serve.{option}: {why}.")
    template = serve.get("chat-template")
    if isinstance(template, str) and not template.startswith("/") and not re.search(r"[{}\n]", template):
        del serve["chat-template"]
        left.append(
            f"serve.chat-template: the file {template} lies in the other project's container; the template of the "
            "model's own repository is used."
        )


def _drafter(
    serve: dict[str, Any], spec: dict[str, Any], known: Known, reasons: dict[Keys, str], left: list[str]
) -> None:
    """Take a draft model of a repository of its own into the model, so that its weights are moved too."""
    config = serve.get("speculative-config")
    if isinstance(config, str):
        try:
            config = serve["speculative-config"] = json.loads(config)
        except (ValueError, RecursionError):
            return
    repo, snapshot = _of_cache(str(config.get("model") or "")) if isinstance(config, dict) else ("", "")
    if isinstance(config, dict) and repo == spec["repo"] and "mtp" in str(config.get("method")):
        del config["model"]
        left.append("serve.speculative-config.model: it is the model itself, which drafts by itself with this method.")
        return
    if not isinstance(config, dict) or repo == spec["repo"] or not _REPO.fullmatch(repo):
        return
    del config["model"]
    spec["drafter"] = {"repo": repo}
    if revision := config.pop("revision", None) or snapshot:
        spec["drafter"]["revision"] = str(revision)
    if size := known.size_gib(repo):
        spec["drafter"]["size_gib"] = size
    else:
        reasons["drafter", "size_gib"] = "no recipe says it: the size of the draft model's weight files in GiB"


def _mods(recipe: Recipe, known: Known, version: str, left: list[str], made: list[ImportedMod]) -> list[str]:
    """Return the recipe's mods that there are here, or that its patches become; each other one is named."""
    mods = []
    for each in recipe.mods:
        name, shown = mod_name(each), each.rstrip("/").rsplit("/", 1)[-1]
        if name in known.mods and version:
            mods.append(name)
        elif name in known.mods:
            left.append(f"mods.{shown}: there is such a mod, but the version of vLLM in the image is not known.")
        else:
            try:
                made.append(_converted(each, recipe, known, version))
                mods.append(made[-1].name)
            except (ModError, RecipeError) as problem:
                left.append(f"mods.{shown}: {problem}.")
    return mods


def _converted(mod: str, recipe: Recipe, known: Known, version: str) -> ImportedMod:
    """Return a mod made of a recipe's patches.

    :raises ModError: it is no mere patch, or it cannot be one here.
    """
    files = known.mod_files(mod)
    if not files:
        raise ModError(
            "a script of the other project, which is not in this checkout; what it changes in vLLM is a mod here "
            "(docs/mods.md)"
        )
    release = parse(version).base if version else "0.0.0"
    try:
        found = convert(mod, files, release, recipe.origin)
    except ModError as problem:
        raise ModError(f"it {problem}; its script is not run (docs/mods.md)") from None
    if not version:
        raise ModError(
            "its patches can become a mod for an image whose vLLM version is known: import_recipe_image names one of "
            "gb10_images"
        )
    if not known.writes_mods:
        raise ModError("its patches become a mod when the recipe is imported (playbooks/import_recipe.yml); left out")
    return found


def _unused(recipe: Recipe, serve: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each default that the command does not use, unless it says the same without it."""
    for key, value in recipe.unused.items():
        option = DEFAULTS.get(key, key.replace("_", "-"))
        has = serve.get(option)
        if option in serve and str(has).lower() == str(value).lower():
            continue
        more = f", which has --{option} {show(has)}" if option in serve else ""
        yield f"defaults.{key[:60]}: {show(value)} is not used by the command{more}."


#: What a shell or a launcher would fill in.
_SHELL = re.compile(r"\$(?:\{?[A-Za-z_]|\()|`|\{(?:launch|config)\.")


def _launcher_fills(serve: Mapping[str, Any], where: str) -> None:
    """Refuse an option whose value stands in another launcher's environment."""
    for option, value in serve.items():
        if isinstance(value, str) and _SHELL.search(value) and not re.search(r"\{[{%]|\"", value):
            raise RecipeError(f"{where}: --{option} is {show(value)}, which another launcher fills in at its start.")


def _variables(env: Mapping[str, str], where: str, left: list[str]) -> dict[str, str]:
    """Return the variables of the engine; those that name another machine's network are left out.

    :raises RecipeError: one has a value of another launcher's environment.
    """
    found = {}
    for name, value in env.items():
        if name in _SECRETS:
            left.append(f"env.{name}: secrets are vaulted variables.")
        elif _OF_THE_MACHINE.fullmatch(name):
            left.append(f"env.{name}: it is found on each node.")
        elif _SHELL.search(value):
            raise RecipeError(f"{where}: env.{name} is {show(value)}, which another launcher fills in at its start.")
        elif not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or not value.isprintable():
            left.append(f"env.{name[:60]}: no variable that an environment file can carry.")
        else:
            found[name] = value
    return found


#: What the checks say of a variable that vLLM itself would ignore.
_IGNORED = re.compile(r"env\.(?P<name>\w+): (?P<why>.*(?:ignores it|would only warn).*)", re.DOTALL)


def _checked(
    spec: dict[str, Any], version: str, upstream: str, where: str, made: Sequence[str], left: list[str]
) -> list[str]:
    """Check a model as every model file is checked; return the notes. Variables that vLLM ignores are left out.

    :param made: mods that are not written yet; `convert` has checked them.
    :raises RecipeError: with the first error, and how many there are.
    """
    errors, notes = _problems(spec, version, upstream, made)
    ignored = {found["name"]: found["why"] for found in map(_IGNORED.fullmatch, errors) if found}
    for name, why in ignored.items():
        spec["env"].pop(name, None)
        left.append(f"env.{name}: {why}")
    if ignored:
        errors, notes = _problems(spec, version, upstream, made)
    if errors:
        more = f" ({len(errors) - 1} more of this kind)" if len(errors) > 1 else ""
        raise RecipeError(f"{where} does not make a model that can be served here: {errors[0]}{more}")
    return notes


def _problems(spec: Mapping[str, Any], version: str, upstream: str, made: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (errors, notes) of a model's checks, for the first and the last rank."""
    full, errors = ms.validate(spec)
    notes: list[str] = []
    if not errors:
        errors += model_checks.context_errors(full)
        members = [f"rank{number}" for number in range(full["nodes"])]
        plan = {"spec": full, "members": members, "multi_node": len(members) > 1, "head_address": "127.0.0.1"}
        for host in dict.fromkeys((members[0], members[-1])):
            options, problems = launch.rank_options(plan, host, "0.0.0.0")
            errors += problems
            try:
                mods = [each for each in full["mods"] if each not in made]
                notes += serve_files.render(options, version, full["env"], mods, upstream=upstream).notes
            except ServeError as problem:
                errors += problem.errors
    return list(dict.fromkeys(errors)), list(dict.fromkeys(notes))
