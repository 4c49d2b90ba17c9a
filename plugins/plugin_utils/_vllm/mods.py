# SPDX-License-Identifier: Apache-2.0
"""Mods: patches of vLLM with a manifest that says what they add and how to see that they are in.

``mods/<name>/manifest.yml`` names one unified diff for each range of vLLM versions (or none,
for a mod that only checks), the options, variables, architectures and parsers that it adds,
and a probe.  Everything here is pure: manifests and patch texts come in as values, plans and
sentences go out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version

_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")
_OPTION_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")
_ENV_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")

#: What an option of a mod may take; the words are those of the option tables.
OPTION_TYPES = ("bool", "float", "int", "json", "str")
_KEYS = ("name", "summary", "why", "versions", "adds", "probe")
_ADDS = ("options", "env", "architectures", "parsers")
_OPTION_KEYS = ("name", "type", "choices", "minimum", "above", "excludes")


class ModsError(ValueError):
    """Everything that is wrong with a list of mods, one sentence each in ``errors``."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


@dataclass(frozen=True)
class ModOption:
    """An option that a mod adds to ``vllm serve``.

    :ivar name: without leading dashes.
    :ivar kind: one of OPTION_TYPES.
    :ivar choices: allowed values; empty when any value of the kind will do.
    :ivar minimum: smallest allowed number, or None.
    :ivar above: the number must be larger than this, or None.
    :ivar excludes: names of options that cannot stand beside it.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModVersion:
    """A range of vLLM versions and the patch for it; ``patch`` is empty when none is needed."""

    vllm: str
    patch: str


@dataclass(frozen=True)
class Mod:
    """One mod, as its manifest and its patch files describe it.

    :ivar files: path relative to the mod's directory → text, for each patch.
    """

    name: str
    summary: str
    why: str
    versions: tuple[ModVersion, ...]
    probe: str
    options: tuple[ModOption, ...] = ()
    env: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    parsers: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def parse_manifest(data: object, directory: str, files: Mapping[str, str]) -> tuple[Mod | None, list[str]]:
    """Return the mod, or None and one sentence for each thing that is wrong with it.

    :param files: path relative to that directory → text, at least of the named patches.
    """
    where = f"mods/{directory}/manifest.yml"
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else type(data).__name__
        return None, [f"{where} must hold a dictionary, found {found}."]
    errors = _unknown_keys(where, data, _KEYS)
    for key in ("name", "summary", "why"):
        _text(where, data, key, errors)
    name = str(data.get("name", directory))
    if not _NAME.match(name):
        errors.append(
            f"{where}: name '{name}' must be lower-case letters, digits and dashes; it becomes part of an image label."
        )
    elif name != directory:
        errors.append(f"{where}: name is '{name}', but the directory is '{directory}'.")
    versions = _versions(where, data.get("versions"), files, errors)
    adds = _adds(where, data.get("adds", {}), errors)
    options = _options(where, adds.get("options", []), errors)
    probe = _probe(where, data.get("probe"), errors)
    env = _names(where, "env", adds.get("env", []), errors)
    for variable in env:
        if not _ENV_NAME.match(variable):
            errors.append(f"{where}: adds.env has '{variable}', which is no variable name.")
    architectures = _names(where, "architectures", adds.get("architectures", []), errors)
    parsers = _names(where, "parsers", adds.get("parsers", []), errors)
    if errors:
        return None, errors
    mod = Mod(
        name=name,
        summary=str(data["summary"]).strip(),
        why=str(data["why"]).strip(),
        versions=tuple(versions),
        probe=probe,
        options=tuple(options),
        env=tuple(env),
        architectures=tuple(architectures),
        parsers=tuple(parsers),
        files={version.patch: files[version.patch] for version in versions if version.patch},
    )
    return mod, []


def patch_errors(text: str) -> list[str]:
    """Return what keeps ``text`` from being a unified diff that ``-p1`` in site-packages takes."""
    if not text.strip():
        return ["is empty"]
    errors: list[str] = []
    if "\r\n" in text:
        errors.append("has Windows line ends, which reject every hunk; convert it to \\n")
    if not text.endswith("\n"):
        errors.append("does not end with a line feed, so its last hunk is cut off")
    targets = touched_files(text)
    if not targets:
        errors.append("names no file ('--- a/...' and '+++ b/...' lines are missing)")
    for target in targets:
        parts = target.split("/")
        if target.startswith("/") or ".." in parts:
            errors.append(f"would write outside site-packages: '{target}'")
        elif parts[0] != "vllm":
            errors.append(
                f"touches '{target}'; paths are relative to site-packages with a/ and b/ before "
                "them, so the first directory must be vllm"
            )
    errors.extend(_hunk_errors(text))
    return errors


def touched_files(text: str) -> list[str]:
    """Return the files that a unified diff changes, ``a/`` or ``b/`` stripped, in order."""
    found: list[str] = []
    old = ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("--- ") and number + 1 < len(lines):
            old = line[4:].split("\t")[0].strip()
        elif line.startswith("+++ ") and number and lines[number - 1].startswith("--- "):
            new = line[4:].split("\t")[0].strip()
            target = old if new == "/dev/null" else new
            target = target[2:] if target[:2] in ("a/", "b/") else target
            if target not in found:
                found.append(target)
    return found


def choose(mod: Mod, version: vllm_version.VllmVersion) -> ModVersion:
    """Return the entry of ``mod`` for a vLLM version: the exact text first, then the one range.

    :raises ModsError: when no entry covers the version, or more than one range does.
    """
    for entry in mod.versions:
        if vllm_version.is_exact(entry.vllm, version):
            return entry
    fitting = [entry for entry in mod.versions if vllm_version.matches(entry.vllm, version)]
    if len(fitting) == 1:
        return fitting[0]
    covered = "; ".join(entry.vllm for entry in mod.versions)
    if not fitting:
        raise ModsError(
            [
                (
                    f"Mod '{mod.name}' has no patch for vLLM {version.text}: it covers {covered}. "
                    f"Rebase the nearest one on that version, save it as mods/{mod.name}/patches/"
                    f"{version.base}.patch and list it in its manifest."
                )
            ]
        )
    raise ModsError(
        [
            (
                f"Mod '{mod.name}' has {len(fitting)} entries for vLLM {version.text} "
                f"({'; '.join(entry.vllm for entry in fitting)}); narrow them so that one is left."
            )
        ]
    )


def mods_plan(mods: Mapping[str, Mod], names: Sequence[str], version: str) -> list[dict[str, Any]]:
    """Return what an image build has to apply, in order.

    :param names: the wanted ones, in the order in which they are applied.
    :param version: vLLM's version in the image, suffixes included.
    :returns: one dictionary per mod: ``name``, ``vllm`` (the specifier that matched), ``patch_path``
        (path below ``mods/``, empty for a mod that only checks), ``files`` (what it changes),
        ``sha256`` (of what it does to the image: patch and probe), ``probe`` (Python that must
        exit with 0), ``adds``.
    :raises ModsError: with every error at once.
    """
    errors: list[str] = []
    plan: list[dict[str, Any]] = []
    if not names:
        return []
    if not version:
        raise ModsError(
            [
                f"Mods {', '.join(names)} are chosen by the version of vLLM, and that of the image is not known: "
                "put the image into gb10_images with its vllm_version."
            ]
        )
    try:
        parsed = vllm_version.parse(version)
    except vllm_version.VersionError as problem:
        raise ModsError([str(problem)]) from None
    providers: dict[str, str] = {}
    for position, name in enumerate(names):
        if name not in mods:
            errors.append(_unknown_mod(name, mods))
            continue
        if name in names[:position]:
            errors.append(f"Mod '{name}' is listed twice; each patch goes in once.")
            continue
        mod = mods[name]
        for option in mod.options:
            if option.name in providers:
                errors.append(
                    f"Mods '{providers[option.name]}' and '{name}' both add --{option.name}; keep one of them."
                )
            providers.setdefault(option.name, name)
        try:
            entry = choose(mod, parsed)
        except ModsError as problem:
            errors.extend(problem.errors)
            continue
        plan.append(_planned(mod, entry))
    if errors:
        raise ModsError(errors)
    return plan


def plan_digest(plan: Sequence[Mapping[str, Any]]) -> str:
    """Return one SHA-256 over the mods of a plan and their order; equal digests, equal layer."""
    pairs = [[entry["name"], entry["sha256"]] for entry in plan]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def plan_document(plan: Sequence[Mapping[str, Any]], version: str) -> str:
    """Return what apply_mods.py reads inside the image build, as ``mods/plan.json``."""
    keys = ("name", "vllm", "patch_path", "files", "sha256", "probe")
    mods = [{key: entry[key] for key in keys} for entry in plan]
    document = {"vllm_version": version, "digest": plan_digest(plan), "mods": mods}
    return json.dumps(document, indent=2) + "\n"


def plan_labels(plan: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the labels that an image with this plan carries.

    ``gb10.mods`` names each mod with the first twelve digits of its hash, in order, and is empty
    for an image without mods; ``gb10.mods.sha256`` is plan_digest.
    """
    listed = ",".join(f"{entry['name']}@{entry['sha256'][:12]}" for entry in plan)
    return {"gb10.mods": listed, "gb10.mods.sha256": plan_digest(plan)}


def options_of(mods: Mapping[str, Mod], names: Iterable[str]) -> list[ModOption]:
    """Return the options that the named mods add; unknown names add none."""
    return [option for name in names if name in mods for option in mods[name].options]


def providers_of(mods: Mapping[str, Mod]) -> dict[str, list[str]]:
    """Return option or variable name → the mods that add it, over every known mod."""
    found: dict[str, list[str]] = {}
    for name in sorted(mods):
        for added in (*(option.name for option in mods[name].options), *mods[name].env):
            found.setdefault(added, []).append(name)
    return found


def _unknown_mod(name: str, mods: Mapping[str, Mod]) -> str:
    near = difflib.get_close_matches(str(name), list(mods), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    known = ", ".join(sorted(mods)) or "none"
    return f"Mod '{name}' is not known.{hint} Known: {known}. A mod is mods/<name>/manifest.yml."


def _planned(mod: Mod, entry: ModVersion) -> dict[str, Any]:
    text = mod.files[entry.patch] if entry.patch else ""
    # Neither prose nor the patches for other versions: they would rebuild an image for nothing.
    effect = {"name": mod.name, "patch": text, "probe": mod.probe}
    return {
        "name": mod.name,
        "vllm": entry.vllm,
        "patch_path": f"{mod.name}/{entry.patch}" if entry.patch else "",
        "files": touched_files(text),
        "sha256": hashlib.sha256(json.dumps(effect, sort_keys=True).encode()).hexdigest(),
        "probe": mod.probe,
        "adds": {
            "options": [option.name for option in mod.options],
            "env": list(mod.env),
            "architectures": list(mod.architectures),
            "parsers": list(mod.parsers),
        },
    }


def _unknown_keys(where: str, data: Mapping[Any, Any], known: Sequence[str]) -> list[str]:
    errors = []
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(known)}."
            errors.append(f"{where}: '{key}' is not a known key.{hint}")
    return errors


def _text(where: str, data: Mapping[Any, Any], key: str, errors: list[str]) -> None:
    if key not in data:
        errors.append(f"{where}: '{key}' is missing.")
    elif not isinstance(data[key], str) or not data[key].strip():
        errors.append(f"{where}: '{key}' must be text, found {data[key]!r}.")


def _versions(where: str, value: object, files: Mapping[str, str], errors: list[str]) -> list[ModVersion]:
    if not isinstance(value, list) or not value:
        errors.append(
            f"{where}: 'versions' must be a list of {{vllm: <specifier>, patch: <file>}} "
            f"with at least one entry, found {value!r}."
        )
        return []
    found: list[ModVersion] = []
    for number, item in enumerate(value):
        here = f"{where}: versions[{number}]"
        if not isinstance(item, Mapping) or not isinstance(item.get("vllm"), str):
            errors.append(f"{here} must name a vLLM version as text under 'vllm', found {item!r}.")
            continue
        errors.extend(_unknown_keys(here, item, ("vllm", "patch")))
        try:
            vllm_version.check_specifier(item["vllm"])
        except vllm_version.VersionError as problem:
            errors.append(f"{here}.vllm: {problem}")
        if "patch" not in item:
            errors.append(f"{here} says nothing about a patch; write 'patch: null' if none is needed.")
            continue
        patch = item["patch"]
        if patch is None:
            patch = ""
        elif not isinstance(patch, str) or patch.startswith("/") or ".." in patch.split("/"):
            errors.append(f"{here}.patch must be a path below the mod's directory, found {patch!r}.")
            continue
        elif patch not in files:
            errors.append(f"{here}.patch '{patch}' does not exist in the mod's directory.")
            continue
        else:
            errors.extend(f"{here}.patch '{patch}' {each}." for each in patch_errors(files[patch]))
        if any(each.vllm == item["vllm"] for each in found):
            errors.append(f"{here}.vllm '{item['vllm']}' is listed twice.")
        found.append(ModVersion(vllm=item["vllm"], patch=patch))
    return found


def _adds(where: str, value: object, errors: list[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        errors.append(f"{where}: 'adds' must be a dictionary, found {value!r}.")
        return {}
    errors.extend(_unknown_keys(f"{where}: adds", value, _ADDS))
    return value


def _options(where: str, value: object, errors: list[str]) -> list[ModOption]:
    if not isinstance(value, list):
        errors.append(f"{where}: adds.options must be a list, found {value!r}.")
        return []
    found: list[ModOption] = []
    for number, item in enumerate(value):
        here = f"{where}: adds.options[{number}]"
        if not isinstance(item, Mapping):
            errors.append(f"{here} must be a dictionary with name and type, found {item!r}.")
            continue
        problems = _unknown_keys(here, item, _OPTION_KEYS)
        name = item.get("name")
        if not isinstance(name, str) or not _OPTION_NAME.match(name):
            problems.append(f"{here}.name must be a long option without dashes before it, found {name!r}.")
        if item.get("type") not in OPTION_TYPES:
            problems.append(f"{here}.type must be one of {', '.join(OPTION_TYPES)}, found {item.get('type')!r}.")
        for key in ("choices", "excludes"):
            if not isinstance(item.get(key, []), list):
                problems.append(f"{here}.{key} must be a list, found {item[key]!r}.")
        for key in ("minimum", "above"):
            bound = item.get(key)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float))):
                problems.append(f"{here}.{key} must be a number, found {bound!r}.")
        if any(each.name == name for each in found):
            problems.append(f"{here}.name '{name}' is listed twice.")
        errors.extend(problems)
        if not problems:
            found.append(
                ModOption(
                    name=str(name),
                    kind=str(item["type"]),
                    choices=tuple(str(each) for each in item.get("choices", [])),
                    minimum=item.get("minimum"),
                    above=item.get("above"),
                    excludes=tuple(str(each) for each in item.get("excludes", [])),
                )
            )
    return found


def _names(where: str, key: str, value: object, errors: list[str]) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        errors.append(f"{where}: adds.{key} must be a list of names, found {value!r}.")
        return []
    return list(value)


def _probe(where: str, value: object, errors: list[str]) -> str:
    code = value.get("python") if isinstance(value, Mapping) else None
    if not isinstance(code, str) or not code.strip():
        errors.append(
            f"{where}: 'probe' must be {{python: <code that exits with 0 when the mod is in>}}, "
            f"found {value!r}; without one nobody can tell whether the patch took effect."
        )
        return ""
    if isinstance(value, Mapping):
        errors.extend(_unknown_keys(f"{where}: probe", value, ("python",)))
    try:
        compile(code, f"{where} probe", "exec")
    except SyntaxError as problem:
        errors.append(f"{where}: the probe is not Python: {problem.msg} (line {problem.lineno}).")
    return code


def _hunk_errors(text: str) -> list[str]:
    """Compare each hunk's announced line counts with what follows; a cut patch shows up here."""
    errors: list[str] = []
    hunks = 0
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        match = _HUNK.match(lines[position])
        if match is None:
            position += 1
            continue
        hunks += 1
        start = position
        old_left, new_left = (int(count) if count is not None else 1 for count in match.groups())
        position += 1
        while position < len(lines) and (old_left > 0 or new_left > 0):
            kind = lines[position][:1]
            if kind not in ("", " ", "+", "-", "\\"):
                break
            old_left -= kind in ("", " ", "-")
            new_left -= kind in ("", " ", "+")
            position += 1
        if old_left or new_left:
            errors.append(
                f"has a broken hunk at line {start + 1}: it announces {match.group(0)} "
                f"and {'ends early' if old_left > 0 or new_left > 0 else 'goes on longer'}"
            )
    if not hunks:
        errors.append("has no hunk ('@@ -a,b +c,d @@')")
    return errors
