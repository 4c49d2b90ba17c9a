# SPDX-License-Identifier: Apache-2.0
"""Read a ``vllm serve`` command line as vLLM's own parser reads it, into a ``serve`` dictionary.

vLLM (``FlexibleArgumentParser`` in vllm/utils/argparse_utils.py, releases 0.22 to 0.33) takes underscores for dashes
in an option's name, one-letter and short names (``-tp``), ``--a.b value`` for a key of a JSON option, ``--a.b+ value``
for an item of a list in it, and ``--no-x`` for a switch.  Everything here is pure.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import PARTS

#: Short names that are not in every release's table (vllm/engine/arg_utils.py, vllm/utils/argparse_utils.py).
SHORT: dict[str, str] = PARTS["short"]
#: Most levels of a dotted option.
_MOST_LEVELS = 20
_OPTION = re.compile(r"^--?[A-Za-z]")
_WHOLE = re.compile(r"^[+-]?\d+$")
_DECIMAL = re.compile(r"^[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?\d+[eE][+-]?\d+$")
_SEVERAL_WORDS = re.compile(r"&&|\|\||[;|<>`]|\$\(")


class CommandError(ValueError):
    """The text is not one ``vllm serve`` command; the message says what it is."""


@dataclass
class Command:
    """What a command line says.

    :ivar model: the positional model, or that of ``--model``; empty when it names none.
    :ivar serve: long option name without dashes -> value, as ``model_spec.serve`` has it.
    :ivar notes: what was read otherwise than written, one sentence each.
    """

    model: str = ""
    serve: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def words_of(text: str) -> list[str]:
    """Split a shell command into words; continuation lines and comments go.

    :raises CommandError: for several commands, redirections, substitutions or unbalanced quotes.
    """
    text = re.sub(r"\\[ \t]+\n", "\\\n", text).replace("\\\n", " ").strip()
    try:
        words = shlex.split(text, comments=True)
        plain = shlex.shlex(text, posix=True, punctuation_chars=True)
        plain.whitespace_split = True
        marks = [word for word in plain if _SEVERAL_WORDS.fullmatch(word)]
    except ValueError as problem:
        raise CommandError(f"the command cannot be split into words: {problem}") from None
    if marks:
        raise CommandError(f"the command is a shell script ({marks[0]!r} in it), not one vllm serve command")
    return words


def read_command(text: str, options: Mapping[str, Mapping[str, Any]]) -> Command:
    """Return what a ``vllm serve`` command says.

    :param text: the command as a shell would get it, placeholders already filled in.
    :param options: the option table of a vLLM release (name -> entry), for the kinds of values.
    :raises CommandError: when the text is another program's command or no single command.
    """
    words = words_of(text)
    found = Command()
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        name, value = words.pop(0).split("=", 1)
        found.env[name] = value
    if words[:2] == ["vllm", "serve"]:
        words = words[2:]
    elif re.fullmatch(r"python3?", words[0] if words else "") and words[1:3] == [
        "-m",
        "vllm.entrypoints.openai.api_server",
    ]:
        words = words[3:]
    else:
        raise CommandError(f"the command starts with {' '.join(words[:2])!r}, where 'vllm serve' is expected")
    read_arguments(words, options, found)
    return found


def read_arguments(words: Sequence[str], options: Mapping[str, Mapping[str, Any]], found: Command) -> None:
    """Add a list of arguments to what was found; see `read_command`."""
    negative = {off: name for name, entry in options.items() for off in entry.get("off", [])}
    short = SHORT | {each.lstrip("-"): name for name, entry in options.items() for each in entry.get("short", [])}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not _OPTION.match(word):
            if found.model:
                found.notes.append(f"{word!r} follows the model without an option before it; it is left out.")
            else:
                found.model = word
            continue
        name, equals, attached = word.lstrip("-").partition("=")
        name, dot, path = name.partition(".")
        if not word.startswith("--") and name not in short and re.fullmatch(r"O\d", name):
            name, equals, attached = "O", "=", name[1:]
        name = name.replace("_", "-")
        name = short.get(name, name) if not word.startswith("--") or name not in options else name
        target = negative.get(name, name)
        full = [each for each in options if each.startswith(target)] if word.startswith("--") else []
        if len(full) == 1 and target not in options:
            found.notes.append(f"--{target} is read as --{full[0]}, which vLLM's parser takes it for.")
            target = full[0]
        entry = options.get(target, {})
        values = [attached] if equals else []
        if not equals and entry.get("kind") != "flag":
            while at < len(words) and not _OPTION.match(words[at]):
                values.append(words[at])
                at += 1
                if entry.get("nargs") not in ("+", "append") and (entry or not _looks_listed(words, at)):
                    break
        if dot:
            _put(found, target, path, _json_value(" ".join(values)) if values else True)
        elif name in negative:
            found.serve[target] = False
        elif entry.get("kind") == "flag" or (not entry and not values):
            found.serve[target] = _switch(values)
        elif not values:
            found.notes.append(f"--{target} has no value in the command; it is left out.")
        elif entry.get("nargs") == "append" and target in found.serve:
            found.serve[target] = [*_as_list(found.serve[target]), *(_value(each, entry) for each in values)]
        elif len(values) == 1:
            found.serve[target] = _merge(found.serve.get(target), _value(values[0], entry))
        else:
            found.serve[target] = [_value(each, entry) for each in values]
    if "model" in found.serve:
        found.model = found.model or str(found.serve.pop("model"))


def _looks_listed(words: Sequence[str], at: int) -> bool:
    """An option that no table knows takes every word up to the next option."""
    return at < len(words) and not _OPTION.match(words[at])


def _switch(values: Sequence[str]) -> bool:
    return not values or values[0].lower() not in ("false", "0", "no", "off")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _merge(before: Any, value: Any) -> Any:
    """A JSON option given as a whole and by its keys holds both, as in vLLM; otherwise the last one counts."""
    return {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _put(found: Command, name: str, path: str, value: Any) -> None:
    """Set ``--name.a.b value`` in the dictionary of an option; ``b+`` adds to a list."""
    place = found.serve.setdefault(name, {})
    if not isinstance(place, dict):
        found.notes.append(f"--{name} is given as {place!r} and by its keys; the keys count.")
        place = found.serve[name] = {}
    keys = path.split(".")
    if len(keys) > _MOST_LEVELS:
        raise CommandError(f"--{name} has a key of {len(keys)} levels; {_MOST_LEVELS} is the most")
    for key in keys[:-1]:
        inner = place.get(key)
        place[key] = inner = inner if isinstance(inner, dict) else {}
        place = inner
    last = keys[-1]
    if last.endswith("+"):
        items = value.split(",") if isinstance(value, str) else _as_list(value)
        place[last[:-1]] = [*_as_list(place.get(last[:-1], [])), *items]
    else:
        place[last] = value


def _json_value(text: str) -> Any:
    """Return what vLLM makes of a dotted option's value: JSON where it is JSON, text otherwise."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _value(text: str, entry: Mapping[str, Any]) -> Any:
    """Return one value in the form that ``model_spec.serve`` has it."""
    kind = entry.get("kind")
    if kind in ("json", "str_or_json") or (kind is None and text[:1] in "{["):
        for form in (text, text.replace("{{", "{").replace("}}", "}")):
            try:
                return json.loads(form)
            except (ValueError, RecursionError):
                continue
        return text
    if kind == "str":
        return text
    if _WHOLE.match(text):
        return int(text)
    if _DECIMAL.match(text):
        return float(text)
    return text
