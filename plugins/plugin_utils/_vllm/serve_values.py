# SPDX-License-Identifier: Apache-2.0
"""The values of vllm serve's options, and the arguments that they become."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import (
    INTEGER,
    Check,
    Table,
    human_int,
    listed,
    show,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_names import spellings, unknown_option

_CLASS_PATH = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
# Not a method, but a ModelOpt NVFP4 checkpoint overrides whatever word is given
# (vllm/model_executor/layers/quantization/modelopt.py; tried on 0.22.1 and 0.33.0).
_OVERRIDDEN = {("quantization", "fp4"): "modelopt_fp4"}
#: What formats of weights are called, and vLLM's quantization methods are not.
_FORMAT = re.compile(r"nvfp4|^(?:int[48]|w\d+a\d+|bnb)", re.IGNORECASE)
_SECRETS = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}


def arguments(check: Check, serve: Mapping[str, Any]) -> list[str]:
    """Return the arguments of every option that is right; note what is wrong with the others."""
    known = spellings(check.options)
    check.given = {known[str(key)][0] for key in serve if str(key) in known}
    args: list[str] = []
    written: dict[str, str] = {}
    for raw, value in serve.items():
        key = str(raw)
        if key == "model":
            check.errors.append("serve.model: the model is model_spec.repo; leave it out here.")
            continue
        if key not in known:
            if check.unknown(unknown_option(check, key, known)):
                args.extend(_as_written(check, key, value))
            continue
        name, stores = known[key]
        if key in _SECRETS:
            check.errors.append(
                f"serve.{key} would show a secret on the command line of every node; "
                f"give {_SECRETS[key]} as a vaulted variable instead."
            )
            continue
        if name in written:
            check.errors.append(
                f"serve.{key} and serve.{written[name]} set the same thing (--{name}); keep one of them."
            )
            continue
        written[name] = key
        args.extend(_one(check, key, name, stores, value))
    return args


def _as_written(check: Check, key: str, value: Any) -> list[str]:
    """Return the arguments of an option that no table has, as the form of its value shows them."""
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, Mapping):
        return [f"--{key}", json.dumps(value, separators=(",", ":"))]
    words = [str(each) for each in (value if isinstance(value, (list, tuple)) else [value])]
    if value is None or not words or any(not word or word.startswith("-") for word in words):
        return check.refuse(f"serve.{key} has no value that a command line can carry: {show(value)}.")
    return [f"--{key}", *words]


def _one(check: Check, key: str, name: str, stores: bool, value: Any) -> list[str]:
    """Return the arguments of one option, or none after noting what is wrong with it."""
    entry = check.options[name]
    if value is None:
        return check.refuse(f"serve.{key} has no value; give one, or leave the option out altogether.")
    if entry["kind"] == "flag":
        return _switch(check, key, name, stores, value)
    if isinstance(value, bool):
        return check.refuse(
            f"serve.{key} needs a value, found {show(value)} (unquoted yes, no, on and off "
            "are booleans in YAML; quote them if the word is meant)."
        )
    if entry["kind"] in ("json", "str_or_json") and "nargs" not in entry:
        return _structured(check, key, name, value)
    several = entry.get("nargs")
    if isinstance(value, (list, tuple)):
        if several not in ("+", "append"):
            return check.refuse(f"serve.{key} takes one value, found a list: {show(value)}.")
        if not value:
            return check.refuse(f"serve.{key} is an empty list; give a value or leave it out.")
        items = list(value)
    else:
        items = [value]
    texts = [text for item in items if (text := _scalar(check, key, name, item)) is not None]
    if len(texts) != len(items):
        return []
    check.seen[name] = texts if several == "+" else texts[0]
    if several == "append":
        return [part for text in texts for part in (f"--{key}", text)]
    return [f"--{key}", *texts]


def _switch(check: Check, key: str, name: str, stores: bool, value: Any) -> list[str]:
    """Return the argument of a switch."""
    if not isinstance(value, bool):
        hint = ""
        if str(value).lower() in ("true", "false", "yes", "no", "1", "0", "on", "off"):
            hint = " without quotes"
        return check.refuse(f"serve.{key} is a switch: write true or false{hint}, found {show(value)}.")
    if not stores and not value:
        return check.refuse(f"serve.{key}: false is a double negative; write '{name}: true'.")
    check.seen[name] = stores and value
    if value:
        return [f"--{key}"]
    off = check.options[name].get("off")
    # A switch without an opposite is off when it is absent.
    return [f"--{off[0]}"] if off else []


def _scalar(check: Check, key: str, name: str, value: Any) -> str | None:
    """Return one value as text, or None after noting what is wrong with it."""
    entry = check.options[name]
    if isinstance(value, (dict, list, tuple)) or value is None:
        check.errors.append(f"serve.{key} takes plain values, found {show(value)}.")
        return None
    text = str(value).strip()
    if not text:
        check.errors.append(f"serve.{key} is empty; give a value or leave the option out.")
        return None
    number = _number(check, key, entry["kind"], value, text)
    if entry["kind"] in ("int", "float", "human_int", "human_int_or_auto"):
        if number is None or not _bounded(check, key, name, number):
            return None
        return text
    if text.startswith("-"):
        check.errors.append(f"serve.{key} is {show(text)}: vLLM's parser would take it for an option.")
        return None
    return text if _chosen(check, key, name, text) else None


def _number(check: Check, key: str, kind: str, value: Any, text: str) -> float | None:
    """Return the number that vLLM reads, or None (after noting it, where one is needed)."""
    if kind == "float":
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if math.isfinite(found):
            return found
        check.errors.append(f"serve.{key} takes a number, found {show(value)}.")
    elif kind == "int":
        if INTEGER.match(text):
            return int(text)
        read = human_int(text)
        hint = f"; write {read} (this option takes no suffix)" if read is not None else ""
        check.errors.append(f"serve.{key} takes a whole number, found {show(value)}{hint}.")
    elif kind in ("human_int", "human_int_or_auto"):
        if kind == "human_int_or_auto" and text.lower() in ("auto", "-1"):
            return -1
        read = human_int(text)
        if read is not None:
            if text[-1] in "kmgt":
                upper = human_int(text[:-1] + text[-1].upper())
                binary = f"; {text[:-1]}{text[-1].upper()} would be {upper}" if upper else ""
                check.notes.append(f"serve.{key}: vLLM reads {text} as {read}{binary}.")
            return read
        check.errors.append(
            f"serve.{key} takes a whole number or one with a single suffix (256k = 256000, "
            f"8G = {2**33}; capitals are powers of 1024 and take no decimals), "
            f"found {show(value)}{_suggestion(text)}."
        )
    return None


def _suggestion(text: str) -> str:
    """Return what was probably meant by ``8GiB``, ``8 GB`` or ``1.5G``."""
    match = re.match(r"^(\d+)\s*([kKmMgGtT])(i?)[bB]?$", text)
    if match is None:
        return ""
    units = [match[2].upper()] if match[3] else [match[2].upper(), match[2].lower()]
    right = [f"{match[1]}{unit} ({human_int(match[1] + unit)})" for unit in units]
    return f"; write {' or '.join(right)}"


def _bounded(check: Check, key: str, name: str, number: float) -> bool:
    """Return whether a number is within the option's bounds; note it when it is not."""
    bounds = dict(check.options[name].get("bounds", {}))
    if name == "max-model-len" and number == -1:
        return True  # as long as the memory allows
    if name in ("port", "master-port"):
        bounds = {"ge": 1, "le": 65535}
    elif name == "kv-cache-memory-bytes":
        bounds = {"gt": 0}
    elif name == "max-model-len":
        bounds = {"ge": 1}
    elif re.fullmatch(r"(tensor|pipeline|data)-parallel-size|nnodes|max-num-seqs", name):
        bounds.setdefault("ge", 1)
    texts = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    holds = {
        "gt": lambda bound: number > bound,
        "ge": lambda bound: number >= bound,
        "lt": lambda bound: number < bound,
        "le": lambda bound: number <= bound,
    }
    if all(holds[kind](bound) for kind, bound in bounds.items()):
        return True
    wanted = " and ".join(f"{texts[kind]} {bound}" for kind, bound in bounds.items())
    hint = ""
    if name == "gpu-memory-utilization" and number > 1:
        hint = (
            "; it is a fraction of the memory. For GiB take the mod 'gpu-mem-util-gb' "
            "(gpu-memory-utilization-gb) or kv-cache-memory-bytes"
        )
    check.errors.append(f"serve.{key} must be {wanted}, found {number:g}{hint}.")
    return False


def _chosen(check: Check, key: str, name: str, text: str) -> bool:
    """Return whether a word is among the option's values; note it when it is not."""
    entry = check.options[name]
    values = list(entry.get("choices") or entry.get("known") or ())
    if not values or text in values:
        return True
    if entry.get("fold") and text.lower() in [each.lower() for each in values]:
        return True
    if entry.get("open") and _CLASS_PATH.match(text):
        return True
    plugin = {
        "reasoning-parser": "reasoning-parser-plugin",
        "tool-call-parser": "tool-parser-plugin",
    }.get(name)
    # Whether a plugin's file registers it shows in the image's own check, not here.
    if plugin and (text in check.parsers or plugin in check.given):
        return True
    later = "" if "choices" in entry else " (its parser lets it through and the engine dies later)"
    if (name, text) in _OVERRIDDEN:
        right = _OVERRIDDEN[name, text]
        check.notes.append(
            f"serve.{key}: '{text}' is no {name} of vLLM {check.version.text}; an NVFP4 checkpoint "
            f"of ModelOpt overrides it with '{right}', any other is refused. Write '{right}'."
        )
        return True
    sentence = f"serve.{key}: vLLM {check.version.text} knows no {show(text)}{later}."
    elsewhere = check.elsewhere(lambda table: text in _values_in(table, name) and table is not check.tables[check.name])
    near = difflib.get_close_matches(text.lower(), [each.lower() for each in values], n=1)
    if name == "quantization" and _FORMAT.search(text):
        # nvfp4 is not mxfp4, which is the nearest word.
        which = " (modelopt_fp4 or compressed-tensors)" if "nvfp4" in text.lower() else ""
        return check.unknown(
            f"{sentence} Leave it out: vLLM reads the format from the checkpoint's own configuration{which}.{elsewhere}"
        )
    if near:
        right = next(each for each in values if each.lower() == near[0])
        sentence += f" Did you mean '{right}'?"
    elif plugin:
        sentence += f" Where the model's repository ships the parser, set {plugin} to that file."
    sentence += elsewhere
    if not near:
        sentence += f" Known: {listed(values, 20)}."
    return check.unknown(sentence)


def _values_in(table: Table, name: str) -> Sequence[str]:
    """Return the values that another version's table lists for an option."""
    entry = table["options"].get(name, {})
    found: Sequence[str] = entry.get("choices") or entry.get("known") or ()
    return found


def _structured(check: Check, key: str, name: str, value: Any) -> list[str]:
    """Return the argument of an option that takes JSON."""
    entry = check.options[name]
    if isinstance(value, str):
        if entry["kind"] == "str_or_json" and not value.lstrip().startswith(("{", "[")):
            text = _scalar(check, key, name, value)
            if text is not None:
                check.seen[name] = text
            return [] if text is None else [f"--{key}", text]
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as problem:
            return check.refuse(
                f"serve.{key} takes a dictionary or JSON, found {show(value)} "
                f"({problem.msg} at column {problem.colno})."
            )
        except (ValueError, RecursionError) as problem:
            return check.refuse(f"serve.{key} takes a dictionary or JSON, found {show(value)} ({str(problem)[:80]}).")
    else:
        parsed = value
    wants_dict = "keys" in entry or entry["kind"] == "str_or_json"
    if not isinstance(parsed, (dict, list)) or (wants_dict and not isinstance(parsed, dict)):
        kind = "a dictionary" if wants_dict else "a dictionary, a list or JSON"
        return check.refuse(f"serve.{key} takes {kind}, found {show(value)}.")
    try:
        text = json.dumps(parsed, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as problem:
        return check.refuse(f"serve.{key} cannot be written as JSON: {str(problem)[:80]}.")
    except ValueError as problem:
        if "ircular" in str(problem):
            return check.refuse(f"serve.{key} contains itself, which JSON cannot.")
        return check.refuse(f"serve.{key} holds an infinite number or no number at all, which JSON does not have.")
    keyed = isinstance(parsed, dict) and "keys" in entry
    if keyed and not _keys_known(check, f"serve.{key}", name, dict(parsed), entry["keys"]):
        return []
    check.seen[name] = parsed
    return [f"--{key}", text]


def _keys_known(check: Check, where: str, name: str, value: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Return whether every key and choice of a structured option is known; note the others."""
    right = True
    for raw, inner in value.items():
        # vLLM takes dashes for underscores in speculative-config, and nowhere else.
        key = str(raw).replace("-", "_") if name == "speculative-config" else str(raw)
        here = f"{where}.{raw}"
        if key not in keys:
            near = difflib.get_close_matches(key, list(keys), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known: {listed(sorted(keys), 40)}."
            right &= check.unknown(f"{here} is no key of --{name} in vLLM {check.version.text}.{hint}")
        elif isinstance(keys[key], Mapping) and isinstance(inner, Mapping):
            right &= _keys_known(check, here, name, inner, keys[key])
        elif isinstance(keys[key], list) and isinstance(inner, str) and inner not in keys[key]:
            near = difflib.get_close_matches(inner, keys[key], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            right &= check.unknown(
                f"{here} is {show(inner)}, which vLLM {check.version.text} does not know."
                f"{hint} Known: {listed(keys[key], 40)}."
            )
    return right
