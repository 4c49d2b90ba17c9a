# SPDX-License-Identifier: Apache-2.0
"""Write a model as the text of its ``group_vars/model_<name>.yml``, with a reason beside each value.  Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

#: Longest line, as .yamllint has it.
WIDTH = 160

#: A path of keys below ``model_spec``; an item of a list is named by its number, as text.
Path = tuple[str, ...]

#: What Ansible would read as a template: the file's values are an inventory's variables, which it renders.
_TEMPLATE_MARKS = ("{{", "{%", "{#")

#: Long lists of options, which read better one a line.
_ALWAYS_OPEN = {("serve",), ("env",)}

_INDENT = "  "


class DocumentError(ValueError):
    """A value that a model file cannot carry; the message is one sentence for the owner."""


def render(spec: Mapping[str, Any], reasons: Mapping[Path, str], header: Sequence[str]) -> str:
    """Return the text of a model file, the same for the same arguments; ``yaml.safe_load`` gives ``spec`` again.

    :param spec: the value of ``model_spec``; its keys keep their order.
    :param reasons: path below ``model_spec`` → why the value is what it is; it stands behind the value, or above it
        where the line would become too long. A path that ``spec`` does not have is unknown: it becomes the comment
        ``# UNKNOWN path: reason`` at the end of the nearest part that is there.
    :param header: sentences for the top of the file, each on lines of its own.
    :raises DocumentError: for a value or key that Ansible would render as a template, or that is no plain YAML.
    """
    _refuse_templates(spec, ())
    lines = ["---", *(line for sentence in header for line in _comment(sentence, ""))]
    lines += ["model_spec:", *_Writer(spec, reasons).mapping(spec, (), _INDENT)] if spec else ["model_spec: {}"]
    return "\n".join(lines) + "\n"


def _refuse_templates(value: object, path: Path) -> None:
    """Raise when a text below ``value`` holds the start of a template."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise DocumentError(f"{'.'.join(path) or 'model_spec'} has the key {key!r}, but keys must be text.")
            _refuse_templates(key, path)
            _refuse_templates(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            _refuse_templates(each, (*path, str(number)))
    elif isinstance(value, str):
        for mark in _TEMPLATE_MARKS:
            if mark in value:
                raise DocumentError(
                    f"{'.'.join(path) or 'model_spec'} holds '{mark}', which Ansible would render as a template: "
                    "write this value by hand, as a mod or a file."
                )
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise DocumentError(f"{'.'.join(path)} is a {type(value).__name__}, which a model file cannot carry.")


def _plain(text: str) -> str:
    """Return a text for a comment: on one line, nothing that YAML does not read."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(str(text).split()))


def _comment(text: str, indent: str) -> list[str]:
    """Return a text as comment lines."""
    prefix = indent + "# "
    return textwrap.wrap(
        _plain(text), WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False
    ) or [prefix.rstrip()]


def _leaf(value: object) -> str:
    """Return a value on one line: a scalar, or a list or dictionary in flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_leaf(key)}: {_leaf(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_leaf(each) for each in value) + "]"
    # Ansible's values are subclasses of these, which YAML does not know.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            value = kind(value)
            break
    # Dumped inside a list, so that a text is quoted where it would end the list that it may stand in.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text: str = yaml.safe_dump(
        [value], default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf")
    )
    return text.rstrip("\n").removeprefix("[").removesuffix("]")


def _home(spec: Mapping[str, Any], path: Path) -> Path | None:
    """Return the nearest dictionary around a path that ``spec`` does not have; None when it has the path."""
    home: Path = ()
    value: Any = spec
    for depth, step in enumerate(path):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, (list, tuple)) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return home
        if isinstance(value, Mapping) and value:
            home = path[: depth + 1]
    return None


def unknown_paths(spec: Mapping[str, Any], reasons: Mapping[Path, str]) -> list[Path]:
    """Return the paths that have a reason and no value: what `render` marks as unknown."""
    return [path for path in reasons if _home(spec, path) is not None]


class _Writer:
    """The lines of one model file.

    :param reasons: path → reason, of values that are there.
    :param unknown: path of a dictionary → (path below it, reason) of what is not known in it.
    """

    def __init__(self, spec: Mapping[str, Any], reasons: Mapping[Path, str]) -> None:
        self.reasons: dict[Path, str] = {}
        self.unknown: dict[Path, list[tuple[Path, str]]] = {}
        #: Every part that has a comment below it, and so cannot go on one line.
        self.open: set[Path] = set()
        for path, reason in reasons.items():
            home = _home(spec, path)
            if home is None:
                self.reasons[path] = reason
            else:
                self.unknown.setdefault(home, []).append((path[len(home) :], reason))
                self.open.add(home)
            self.open.update(path[:length] for length in range(len(path)))

    def on_one_line(self, value: object, path: Path, indent: str) -> bool:
        """Tell whether a value goes on one line: short enough, and no comment inside it."""
        if not isinstance(value, (Mapping, list, tuple)) or not value:
            return True
        if path in self.open or path in _ALWAYS_OPEN:
            return False
        if len(path) == 1 and isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
            return False
        return len(indent) + len(path[-1]) + 2 + len(_leaf(value)) <= WIDTH

    def mapping(self, values: Mapping[str, Any], path: Path, indent: str) -> Iterator[str]:
        """Yield the lines of a dictionary in block style, and what is unknown in it."""
        for number, (key, value) in enumerate(values.items()):
            here = (*path, key)
            if number and not path and not self.on_one_line(value, here, indent):
                yield ""
            yield from self.entry(f"{indent}{_leaf(key)}:", value, here, indent)
        for below, reason in self.unknown.get(path, []):
            yield from _comment(f"UNKNOWN {'.'.join(below)}: {reason}", indent)

    def entry(self, start: str, value: object, path: Path, indent: str) -> Iterator[str]:
        """Yield the lines of one value behind ``start``, its key or its dash, which stands at ``indent``."""
        on_one_line = self.on_one_line(value, path, indent)
        text = f"{start} {_leaf(value)}" if on_one_line else start
        if path in self.reasons:
            behind = f"{text}  # {_plain(self.reasons[path])}"
            if len(behind) > WIDTH:
                yield from _comment(self.reasons[path], indent)
            else:
                text = behind
        yield text
        if on_one_line:
            return
        if isinstance(value, Mapping):
            yield from self.mapping(value, path, indent + _INDENT)
        elif isinstance(value, (list, tuple)):
            for number, each in enumerate(value):
                yield from self.entry(f"{indent}{_INDENT}-", each, (*path, str(number)), indent + _INDENT)
