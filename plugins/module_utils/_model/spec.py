# SPDX-License-Identifier: Apache-2.0
"""The model dictionary: its shape, its defaults, and what is wrong with one.

A model is one dictionary, ``model_spec``, in one group_vars file.  Everything here is
pure: dictionaries in, dictionaries and sentences out.
"""

from __future__ import annotations

import copy
import difflib
import functools
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model.other_engines import refusals

_NAME = re.compile(r"^[a-z0-9][a-z0-9.-]*$")
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_MOUNT = re.compile(r"^(?:/[A-Za-z0-9_@.+-]+)+$")
REPO = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to ``word``, or None when none is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return found[0] if found else None


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question for a word that is not known, a blank before it; without a close one what is given."""
    near = nearest(word, known)
    return f" Did you mean '{near}'?" if near else otherwise


def group_name(model: str) -> str:
    """Return the inventory group that carries a model's variables, as the constructed plugin names it."""
    return "model_" + re.sub(r"[^A-Za-z0-9_]", "_", model)


def names_from_files(paths: Iterable[str]) -> list[str]:
    """Return the model names of ``.../model_<name>.yml`` files, sorted, underscores shown as dashes."""
    found = set()
    for path in paths:
        match = re.search(r"(?:^|/)model_([A-Za-z0-9_]+)\.ya?ml$", path)
        if match:
            found.add(match.group(1).replace("_", "-"))
    return sorted(found)


def unknown_model(model: object, known: Sequence[str]) -> str:
    """Return the sentence for a model that no file describes."""
    if not model:
        return f"No model is chosen. Set `model` in the inventory or give -e model=<name>. Known: {', '.join(known)}."
    return (
        f"Model '{model}' is not known.{meant(str(model), known)} Known: {', '.join(known)}. "
        f"A new one is one file: group_vars/{group_name(str(model))}.yml with a `model_spec` in it."
    )


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` merged into it; nested dictionaries merge, all else replaces; None removes."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = deep_merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


@functools.cache
def model_keys() -> dict[str, dict[str, Any]]:
    """Return every key of a model, in the order of docs/model_spec.md and in the notation of argument specs.

    The table also makes that page (scripts/model_spec_page.py). It is read on the control node alone.
    """
    found: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("model_spec.json").read_text(encoding="utf-8")
    )
    return found


def _coerce(where: str, value: Any, rule: Mapping[str, Any], errors: list[str]) -> Any:
    kind = rule["type"]
    if kind == "str":
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            value = str(value)
        else:
            errors.append(f"{where} must be a string, found {type(value).__name__} {value!r}.")
            return value
    elif kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            errors.append(f"{where} must be a number, found {type(value).__name__} {value!r}.")
            return value
        try:
            number = float(value)
        except ValueError:
            errors.append(f"{where} must be a number, found {value!r}.")
            return value
        if kind == "int" and number != int(number):
            errors.append(f"{where} must be a whole number, found {value!r}.")
        value = int(number) if kind == "int" else number
    elif kind == "dict":
        if not isinstance(value, Mapping):
            errors.append(f"{where} must be a dictionary, found {type(value).__name__} {value!r}.")
            return value
        # A dictionary with a default is optional: empty, it is not there.
        optional = not value and rule.get("default") == {}
        value = _walk(where, value, rule["options"], errors) if "options" in rule and not optional else dict(value)
    elif kind == "list":
        if not isinstance(value, (list, tuple)):
            errors.append(f"{where} must be a list, found {type(value).__name__} {value!r}.")
            return value
        inner = {"type": rule["elements"], **({"options": rule["options"]} if "options" in rule else {})}
        value = [_coerce(f"{where}[{number}]", item, inner, errors) for number, item in enumerate(value)]
    choices = rule.get("choices")
    if choices and value not in choices:
        errors.append(f"{where} must be one of {', '.join(choices)}, found {value!r}.")
    return value


def _walk(where: str, value: Mapping[str, Any], spec: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    known = f" Known: {', '.join(spec)}."
    errors += [f"{where}.{key} is not a known key.{meant(str(key), spec, known)}" for key in value if key not in spec]
    for key, rule in spec.items():
        here = f"{where}.{key}"
        if key not in value or value[key] is None:
            if rule.get("required"):
                errors.append(f"{here} is missing.")
            elif "options" in rule and "default" not in rule:
                out[key] = _walk(here, {}, rule["options"], errors)
            else:
                out[key] = copy.deepcopy(rule.get("default"))
            continue
        out[key] = _coerce(here, value[key], rule, errors)
    return out


def validate(spec: Mapping[str, Any], where: str = "model_spec") -> tuple[dict[str, Any], list[str]]:
    """Return the model with defaults filled in, and one sentence for each thing that is wrong with it.

    :param spec: the dictionary as written, after overrides.
    :param where: how to name it in the sentences.
    """
    other = refusals(spec, where)
    if other:
        return dict(spec), other
    errors: list[str] = []
    out = _walk(where, spec, model_keys(), errors)
    if errors:
        return out, errors
    if not _NAME.fullmatch(out["name"]):
        errors.append(f"{where}.name '{out['name']}' must be lower-case letters, digits, dots and dashes.")
    if not REPO.fullmatch(out["repo"]):
        errors.append(f"{where}.repo '{out['repo']}' must be <organisation>/<repository>.")
    errors += _beside_errors(out, where)
    errors += [
        f"{where}.{key} {text!r} holds a control character (a line break or a tab), which a systemd unit cannot carry."
        for key in ("repo", "revision", "served_name", "image", "shm_size", "mods", "required_env", "ray_start_args")
        for text in (out[key] if isinstance(out[key], list) else [out[key]])
        if not text.isprintable()
    ]
    if out["size_gib"] < 0:
        errors.append(f"{where}.size_gib must not be negative, found {out['size_gib']}.")
    if out["nodes"] < 1:
        errors.append(f"{where}.nodes must be 1 or more, found {out['nodes']}.")
    taken: dict[int, str] = {}
    for name, port in out["ports"].items():
        if not 1024 <= port <= 65535:
            errors.append(f"{where}.ports.{name} must be between 1024 and 65535, found {port}.")
        if port in taken:
            errors.append(f"{where}.ports.{name} and .{taken[port]} are both {port}; give each its own.")
        taken[port] = name
    errors += _variable_errors(out["env"], f"{where}.env")
    if "VLLM_API_KEY" in out["env"] or "HF_TOKEN" in out["env"]:
        errors.append(f"{where}.env must not hold VLLM_API_KEY or HF_TOKEN; give them as vaulted variables.")
    serve = out["serve"]
    world = 1
    for option in ("tensor-parallel-size", "pipeline-parallel-size"):
        size = serve.get(option, 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            errors.append(f"{where}.serve.{option} must be a whole number of 1 or more, found {size!r}.")
        else:
            world *= size
    if not errors and world != out["nodes"]:
        errors.append(
            f"{where}: tensor-parallel-size x pipeline-parallel-size is {world}, but nodes is {out['nodes']}; "
            "a GB10 has one GPU, so each rank needs a node of its own."
        )
    return out, errors


def _variable_errors(env: dict[str, Any], where: str) -> list[str]:
    """Return what is wrong with variables; values that are numbers become text."""
    errors = []
    for name, value in env.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            errors.append(f"{where} has '{name}', which is no variable name.")
        if isinstance(value, (Mapping, list)):
            errors.append(f"{where}.{name} must be a string, found {type(value).__name__}.")
        elif isinstance(value, bool):
            errors.append(f"{where}.{name} is a YAML boolean; quote what the variable must hold, e.g. '1'.")
        elif "\n" in str(value):
            errors.append(f"{where}.{name} holds a line break, which an environment file cannot carry.")
        else:
            env[name] = str(value)
    return errors


def _beside_errors(model: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with what lies beside the model's own weights: a draft model, prepared data."""
    errors = []
    drafter = model["drafter"]
    if drafter:
        here = f"{where}.drafter"
        if not REPO.fullmatch(drafter["repo"]):
            errors.append(f"{here}.repo '{drafter['repo']}' must be <organisation>/<repository>.")
        if drafter["repo"] == model["repo"]:
            errors.append(
                f"{here}.repo is the model's own repository: leave drafter out, and name the directory of the draft "
                "model in serve.speculative-config.model if it has one."
            )
        if not drafter["revision"].isprintable():
            errors.append(f"{here}.revision {drafter['revision']!r} holds a control character.")
        if drafter["size_gib"] < 0:
            errors.append(f"{here}.size_gib must not be negative, found {drafter['size_gib']}.")
    taken: dict[str, str] = {}
    for number, data in enumerate(model["prepared_data"]):
        here = f"{where}.prepared_data[{number}]"
        if not _NAME.fullmatch(data["name"]):
            errors.append(f"{here}.name '{data['name']}' must be lower-case letters, digits, dots and dashes.")
        if data["size_gib"] <= 0:
            errors.append(f"{here}.size_gib must be above 0, found {data['size_gib']}.")
        if not _MOUNT.fullmatch(data["mount"]) or "/../" in f"{data['mount']}/":
            errors.append(f"{here}.mount '{data['mount']}' must be an absolute path without colons and spaces.")
        if not any("{output}" in word for word in [*data["command"], *map(str, data["env"].values())]):
            errors.append(f"{here}.command does not say where to write: give {{output}} to it.")
        errors += [
            f"{here}.command has {word!r}, which holds a control character."
            for word in data["command"]
            if not word.isprintable()
        ]
        errors += _variable_errors(data["env"], f"{here}.env")
        for key in ("name", "mount"):
            if data[key] in taken:
                errors.append(f"{here}.{key} '{data[key]}' is also that of {taken[data[key]]}; give each its own.")
            taken[data[key]] = f"prepared_data[{number}]"
    return errors


def head_error(head: Sequence[str]) -> str:
    """Return the sentence for an inventory that has no head, or more than one: that of several clusters."""
    return (
        f"Group 'head' must hold exactly one host, found {len(head)}: {', '.join(head) or 'none'}. "
        "An inventory is one cluster; give each cluster a directory of its own, and one of them with -i."
    )


def membership(
    model: Mapping[str, Any], head: Sequence[str], workers: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Return (members in rank order, idle nodes, errors) for a model on a cluster.

    The head is rank 0; the workers follow in inventory order; nodes beyond the model's need stay idle.
    """
    if len(head) != 1:
        return [], [], [head_error(head)]
    cluster = [*head, *(host for host in workers if host not in head)]
    wanted = int(model["nodes"])
    if wanted > len(cluster):
        short = (
            f"Model '{model['name']}' needs {wanted} nodes and this cluster has {len(cluster)} "
            f"({', '.join(cluster)}): {wanted - len(cluster)} short. "
            f"Choose a model for {len(cluster)} or fewer nodes."
        )
        return [], [], [short]
    return cluster[:wanted], cluster[wanted:], []


_PLACEHOLDER = re.compile(
    r"change[-_ ]?me|<.*>|example|^x+(\.x+)*$|^(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+$|^2001:0?db8:", re.IGNORECASE
)


def in_url(host: object) -> str:
    """Return a name or an address as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in str(host) else str(host)


def placeholder_errors(addresses: Mapping[str, object]) -> list[str]:
    """Return a sentence for each node whose management address is still a placeholder.

    :param addresses: host name → its ``ansible_host``.
    """
    return [
        f"{name}: ansible_host is still the placeholder '{address or ''}'. "
        "Write the node's management address into hosts.yml."
        for name, address in addresses.items()
        if not address or _PLACEHOLDER.search(str(address))
    ]


def inventory_errors(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the nodes' addresses, before any of them is contacted.

    :param hosts: host name → {"ansible_host": str | None, "fabric_address": str | None}.
    """
    errors = placeholder_errors({name: known.get("ansible_host") for name, known in hosts.items()})
    seen: dict[str, str] = {}
    for name, known in hosts.items():
        address = str(known.get("ansible_host") or "")
        fabric = str(known.get("fabric_address") or "")
        if not fabric and len(hosts) == 1:
            continue
        if not fabric:
            errors.append(f"{name}: gb10_fabric_address is missing. Give each node its address on the fabric.")
            continue
        try:
            ipaddress.ip_address(fabric)
        except ValueError:
            errors.append(f"{name}: gb10_fabric_address '{fabric}' is no IP address.")
            continue
        if fabric in seen:
            errors.append(f"{name}: gb10_fabric_address {fabric} is also that of {seen[fabric]}.")
        seen.setdefault(fabric, name)
        if fabric == address and len(hosts) > 1:
            errors.append(
                f"{name}: the management and the fabric address are both {fabric}; "
                "on more than one node the fabric needs a network of its own."
            )
    return errors
