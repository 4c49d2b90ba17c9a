# SPDX-License-Identifier: Apache-2.0
"""One pass over one model's options: what was understood so far, and what was wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.mods import ModOption

Table = Mapping[str, Any]
#: Names of options and variables that vLLM no longer has, never had, or that are set by habit.
NAMES: Mapping[str, Any] = json.loads((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))

_HUMAN = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgGtT])$")
_FACTORS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
INTEGER = re.compile(r"^[+-]?\d+$")


class ServeError(ValueError):
    """Everything that is wrong with a model's options, one sentence each in ``errors``."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


@dataclass(frozen=True)
class Gone:
    """Something that vLLM once had: what to do instead, and since which release it is gone."""

    instead: str
    since: tuple[int, ...] | None = None


def gone_in(part: str) -> dict[str, Gone]:
    """Return what a part of names.json says is gone, by name."""
    return {
        name: Gone(entry["instead"], tuple(entry["since"]) if "since" in entry else None)
        for name, entry in NAMES[part].items()
    }


def human_int(text: str) -> int | None:
    """Return what vLLM reads ``256k`` or ``8G`` as, or None when it refuses it.

    Lower-case suffixes are powers of 1000, upper-case ones powers of 1024 and take no decimals
    (vllm/utils/argparse_utils.py, human_readable_int).
    """
    if INTEGER.match(text):
        return int(text)
    match = _HUMAN.match(text)
    if match is None or ("." in match[1] and match[2].isupper()):
        return None
    factor = _FACTORS[match[2]]
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def in_order(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (vllm_version.parse(name).release, name))


def in_ranges(names: Mapping[str, Any] | Sequence[str], known: Mapping[str, Any]) -> str:
    """Return versions as text, three or more that are next to each other among the known ones as `a to b`."""
    order = in_order(known)
    runs: list[list[str]] = []
    for name in in_order(names):
        if runs and order.index(name) == order.index(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def close(word: str, known: Sequence[str]) -> str | None:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if found:
        return found[0]
    # 'max-seqs' for 'max-num-seqs': the same words with others between.
    words = set(re.split(r"[-_]", word))
    wider = [each for each in known if len(words) > 1 and words <= set(re.split(r"[-_]", each))]
    return min(wider, key=len) if wider else None


def show(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(values: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more


@dataclass
class Check:
    """One pass over one model: what was understood so far, and what was wrong."""

    version: vllm_version.VllmVersion
    name: str
    tables: Mapping[str, Table]
    options: dict[str, Mapping[str, Any]]
    extra: Mapping[str, ModOption]
    parsers: set[str]
    providers: Mapping[str, Sequence[str]]
    notes: list[str]
    # The version of the image is not known: what the table does not have may be there all the same.
    lenient: bool = False
    errors: list[str] = field(default_factory=list)
    # Canonical option → value as vLLM will see it; switches as booleans.
    seen: dict[str, Any] = field(default_factory=dict)
    # Canonical names of all options that were written, right or wrong.
    given: set[str] = field(default_factory=set)

    def versions_with(self, has: Callable[[Table], bool]) -> str:
        """Return the versions whose table satisfies ``has``, for the end of a sentence."""
        return in_ranges([name for name, table in self.tables.items() if has(table)], self.tables)

    def elsewhere(self, has: Callable[[Table], bool]) -> str:
        """Return a sentence, a blank before it, on which versions have something; nothing when none has."""
        found = self.versions_with(has)
        return f" vLLM {found} {'have' if re.search(', | to ', found) else 'has'} it." if found else ""

    def unknown(self, sentence: str) -> bool:
        """Note what the table does not have; return whether it is let through, for the image's own vLLM to judge."""
        (self.notes if self.lenient else self.errors).append(sentence)
        return self.lenient

    def refuse(self, sentence: str) -> list[str]:
        """Note what is wrong; return no arguments."""
        self.errors.append(sentence)
        return []

    def has(self, name: str) -> bool:
        """Return whether an option was written with a usable value that is not plain off."""
        return self.seen.get(name, False) is not False

    def count(self, name: str, default: int) -> int:
        """Return a whole number that was written, or its default."""
        read = human_int(str(self.seen.get(name, default)))
        return default if read is None else read
