# SPDX-License-Identifier: Apache-2.0
"""What an image is built from: recipes, their lineage, their fingerprint.  Pure: no file is read here."""

from __future__ import annotations

import copy
import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible_collections.gb10.cluster.plugins.module_utils._image import remote
from ansible_collections.gb10.cluster.plugins.module_utils._model.other_engines import refusal
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import meant

_STEP_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")
#: The repository whose tags are releases of vLLM; a tag of any other says nothing about the version.
_RELEASES = re.compile(r"(?:docker\.io/)?vllm/vllm-openai:v?(?P<version>\d+\.\d+\.\d+)(?:[-@].*)?")


@functools.cache
def _defaults(part: str) -> dict[str, Any]:
    """Return the keys of an ``image`` or a ``step`` with their defaults.  Control node alone: a node has no tables."""
    table = json.loads(Path(__file__).with_name("image_recipe.json").read_text(encoding="utf-8"))
    return {key: rule["default"] for key, rule in table[part].items()}


def by_reference(name: str) -> dict[str, Any] | None:
    """Return the recipe of an image that a model names by its reference; None when the text is none.

    Keys of a catalogue have neither a slash nor a colon, so the two cannot be confused.
    """
    if not re.search(r"[/:@]", name) or remote.parse(name) is None:
        return None
    release = _RELEASES.fullmatch(name)
    return {"pull": name, "vllm_version": release["version"] if release else None}


def _short(name: str) -> str:
    """Return the name under which an image is built, kept and counted here: a key as it is, a reference shortened."""
    reference = remote.parse(name) if by_reference(name) else None
    if reference is None:
        return name
    tag = [] if reference.tag == "latest" else [reference.tag.lower()]
    return "-".join([*reference.name.split("/"), *tag])


def resolve(images: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the flat recipe of an image and its errors.

    An image with ``from: <other image>`` starts where the other ends: its steps follow the other's, so that
    both share the layers of the common part.

    :param name: a key of it, or a reference such as ``vllm/vllm-openai:v0.30.0``, which is pulled and taken as it is.
    :returns: (recipe with every key of an image present, sentences).
    """
    errors: list[str] = []
    chain: list[Mapping[str, Any]] = []
    lineage: list[str] = []
    current: str | None = name
    while current:
        if current in lineage:
            return {}, [f"gb10_images: '{' -> '.join([*lineage, current])}' is circular."]
        recipe = images[current] if current in images else by_reference(current)
        if not isinstance(recipe, Mapping):
            hint = meant(current, images)
            return {}, [f"gb10_images has no image '{current}'.{hint} Known: {', '.join(sorted(images))}."]
        lineage.append(current)
        chain.append(recipe)
        current = recipe.get("from")
    known, of_a_step = _defaults("image"), _defaults("step")
    flat: dict[str, Any] = copy.deepcopy(known)
    for image, recipe in zip(reversed(lineage), reversed(chain), strict=True):
        where = f"gb10_images.{image}"
        for key, value in recipe.items():
            if key == "from":
                continue
            if key in ("base", "pull") and (other := refusal(f"{where}.{key}", str(value))):
                return {}, [other]
            if key == "pull":
                flat.update(pull=value, base=value, venv=recipe.get("venv", ""))
                if recipe.get("base") or recipe.get("base_archive") or recipe.get("from"):
                    errors.append(f"{where} has `pull` and one of `base`, `base_archive` and `from`: give one of them.")
            elif key not in known:
                errors.append(f"{where}.{key} is not a known key.{meant(str(key), [*_defaults('image'), 'from'])}")
            elif key == "steps":
                flat[key] = [*flat[key], *({**step, "image": image} for step in value)]
            elif key == "packages":
                flat[key] = [*flat[key], *value]
            elif key in ("env", "assertions"):
                flat[key] = {**flat[key], **value}
            else:
                flat[key] = value
    if flat["source"] not in ("", "build", "archive"):
        errors.append(f"gb10_images.{name}.source is '{flat['source']}', expected is build or archive.")
    flat["name"] = _short(name)
    flat["lineage"] = list(reversed(lineage))
    if not flat["base"]:
        errors.append(f"gb10_images.{name} has none of `base`, `pull` and `from`.")
    steps = []
    names: set[str] = set()
    for number, step in enumerate(flat["steps"]):
        where = f"gb10_images.{name}.steps[{number}]"
        errors += [
            f"{where}.{key} is not a known key.{meant(str(key), [*_defaults('step'), 'name'])}"
            for key in step
            if key not in of_a_step and key not in ("name", "image")
        ]
        full = {**of_a_step, **step}
        if not _STEP_NAME.match(str(full.get("name", ""))):
            errors.append(f"{where}.name '{full.get('name', '')}' must be lower-case letters, digits, - and _.")
        elif full["name"] in names:
            errors.append(f"{where}.name '{full['name']}' is used twice in {' -> '.join(flat['lineage'])}.")
        else:
            names.add(full["name"])
        content = [full["wheels"], full["requirements"], full["run"], full["address"]]
        if not any(content):
            errors.append(f"{where} does nothing: give wheels, requirements, run or address.")
        if full["address"] and (any(content[:3]) or not re.fullmatch(r"https?://\S+/\S+\.whl", str(full["address"]))):
            errors.append(f"{where}.address must be the address of one wheel, and the step's only content.")
        if full["lock"] and (full["wheels"] or full["pip_args"] or full["run"] or not full["requirements"]):
            errors.append(f"{where} is locked: give requirements, and none of wheels, pip_args and run.")
        if full["replaces"] and not full["lock"]:
            errors.append(f"{where}.replaces needs `lock: true`.")
        steps.append(full)
    flat["steps"] = steps
    return flat, errors


def by_address(step: Mapping[str, Any], present: Collection[str], digest: str) -> tuple[dict[str, Any] | None, str]:
    """Return (a step that installs the wheel of its address, or None, a sentence about what is missing).

    :param step: one with ``address``.
    :param present: file names on the control node.
    :param digest: ``sha256:<hex>`` as it was recorded at the first fetch; empty before.
    """
    file = wheel_file(step["address"])
    if file not in present:
        return None, f"{file} is not on the control node. {step['without']} playbooks/wheels.yml fetches it.".strip()
    if not digest:
        return None, f"The hash of {file} is not recorded yet: run playbooks/wheels.yml, which records it."
    hashes = {file: digest.removeprefix("sha256:")}
    return {**step, "wheels": [file], "wheel_hashes": hashes, "pip_args": ["--no-index", "--no-deps"]}, ""


def wheel_file(address: str) -> str:
    """Return the file name of the wheel at an address."""
    return unquote(urlsplit(address).path.rpartition("/")[2])


def choose_wheels(step: Mapping[str, Any], present: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """Return (file names, sentences): which of the present wheels a step's patterns name.

    Each pattern must match; a pattern without wildcards must be there by its exact name; one that begins with
    ``!`` takes out what the patterns before it chose.
    """
    chosen: list[str] = []
    errors: list[str] = []
    for pattern in step["wheels"]:
        if pattern.startswith("!"):
            chosen = [file for file in chosen if not fnmatch.fnmatchcase(file, pattern[1:])]
            continue
        found = sorted(file for file in present if fnmatch.fnmatchcase(file, pattern))
        if not found:
            distribution = pattern.split("-", 1)[0]
            others = sorted(file for file in present if file.split("-", 1)[0] == distribution)
            hint = f" Present is {', '.join(others)}, which does not match the pins." if others else ""
            errors.append(f"{where}: wheel {pattern} is missing.{hint}")
        chosen += [file for file in found if file not in chosen]
    return chosen, errors


def foreign_wheels(files: Sequence[str], architecture: str) -> list[str]:
    """Return the wheels that do not install on an architecture.

    :param architecture: as registries name it (arm64, amd64); nothing is foreign to an empty one.
    """
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(architecture, architecture)
    platforms = {file: file.removesuffix(".whl").rpartition("-")[2].split(".") for file in files}
    return [
        file
        for file, tags in platforms.items()
        if machine and not any(tag == "any" or tag.endswith(machine) for tag in tags)
    ]


def wrong_hashes(step: Mapping[str, Any], hashes: Mapping[str, str], where: str) -> list[str]:
    """Return a sentence for each wheel whose sha256 is not the pinned one."""
    return [
        f"{where}: {file} has sha256 {hashes[file][:16]}..., pinned is {pinned[:16]}...: "
        "it is another file. Download it again, or change the pin."
        for file, pinned in step["wheel_hashes"].items()
        if file in hashes and hashes[file] != pinned
    ]


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of everything that an image is built from, independent of order and of paths."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identity(inspected: Mapping[str, Any]) -> str:
    """Return an image's identity that is the same on every storage driver: layer diff ids plus configuration.

    :param inspected: one element of ``docker image inspect``; ``.Id`` is ignored, for the containerd image
        store and overlay2 give different ones for the same image.
    """
    config = inspected.get("Config") or {}
    kept = {key: config.get(key) for key in ("Env", "Entrypoint", "Cmd", "WorkingDir", "User", "Labels")}
    kept = {key: value for key, value in kept.items() if value}
    layers = (inspected.get("RootFS") or {}).get("Layers") or []
    return fingerprint({"layers": layers, "config": kept, "architecture": inspected.get("Architecture")})
