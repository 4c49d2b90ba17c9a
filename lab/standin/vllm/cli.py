# SPDX-License-Identifier: Apache-2.0
"""``vllm serve MODEL --options``: refuses what vLLM's own command line refuses, then plays the engine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__

#: Every option of ``vllm serve`` of this version, as read from the real one; the wheel carries it.
OPTIONS = Path(__file__).with_name("options.json")
_SCALE = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def human_int(text: str) -> int:
    """Return a whole number with an optional suffix: 1k is 1000, 1K is 1024."""
    if text and text[-1] in _SCALE:
        return int(float(text[:-1]) * _SCALE[text[-1]])
    return int(text)


def _auto(text: str) -> int:
    return -1 if text == "auto" else human_int(text)


def _bounded(rule: Mapping[str, Any], kind: Callable[[str], Any]) -> Callable[[str], Any]:
    bounds = rule.get("bounds", {})

    def number(text: str) -> Any:
        value = kind(text)
        low = ("ge" in bounds and value < bounds["ge"]) or ("gt" in bounds and value <= bounds["gt"])
        high = ("le" in bounds and value > bounds["le"]) or ("lt" in bounds and value >= bounds["lt"])
        if low or high:
            raise argparse.ArgumentTypeError(f"{text} is out of bounds {bounds}")
        return value

    return number


_KINDS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "json": json.loads,
    "human_int": human_int,
    "human_int_or_auto": _auto,
}


def make_parser(options: Mapping[str, Mapping[str, Any]]) -> argparse.ArgumentParser:
    """Return the parser for a table of options: name → kind, choices, bounds, nargs, short, off."""
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("-v", "--version", action="version", version=__version__)
    serve = parser.add_subparsers(dest="command", required=True).add_parser("serve")
    serve.add_argument("model_tag", nargs="?")
    for name, rule in options.items():
        if name == "help":
            continue
        names = [*rule.get("short", []), *(f"--{each}" for each in [name, *rule.get("aliases", [])])]
        target = name.replace("-", "_")
        if rule["kind"] == "flag":
            serve.add_argument(*names, dest=target, action="store_true", default=None)
            for off in rule.get("off", []):
                serve.add_argument(f"--{off}", dest=target, action="store_false", default=None)
            continue
        given: dict[str, Any] = {"dest": target, "default": None}
        kind = _KINDS.get(rule["kind"])
        if kind:
            given["type"] = _bounded(rule, kind)
        if rule.get("choices") and not rule.get("open"):
            given["choices"] = rule["choices"]
        if rule.get("nargs") == "append":
            given["action"] = "append"
        elif rule.get("nargs"):
            given["nargs"] = rule["nargs"]
        serve.add_argument(*names, **given)
    return parser


def dashed(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the underscores of option names as dashes, as vLLM's parser reads them."""
    out = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        out.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and play the engine; returns the exit status."""
    table = json.loads(OPTIONS.read_text(encoding="utf-8"))["options"]
    args = make_parser(table).parse_args(dashed(sys.argv[1:] if argv is None else argv))
    given = {key: value for key, value in vars(args).items() if value is not None and key != "command"}
    from . import engine

    return engine.run(given)


if __name__ == "__main__":
    sys.exit(main())
