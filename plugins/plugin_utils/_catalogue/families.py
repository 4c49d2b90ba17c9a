# SPDX-License-Identifier: Apache-2.0
"""What a class of models is served with, and the classes of vLLM's registry: the readers of two tables.

In published.json each option and variable has where it was published: brackets are those of docs/sources.md, ``docs``
is docs.vllm.ai. A class that is not there gets no parser: its model file says so instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.version import parse

ARCHITECTURES = Path(__file__).parent / "architectures.json"
PUBLISHED: Mapping[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))

SERVE, ENV = "serve", "env"


@dataclass(frozen=True)
class Row:
    """One option or variable.

    :ivar key: option without dashes, or name of the variable.
    :ivar source: where it was published.
    :ivar template: text that the chat template must have for it to make sense; without it the row is left out. Of
        several rows of one key the last counts: coders write calls in another form, which their template shows.
    :ivar since: first release of vLLM that takes it, where the class is older.
    :ivar until: first release of vLLM that no longer takes it.
    """

    key: str
    value: Any
    source: str
    template: str = ""
    since: str = ""
    until: str = ""
    place: str = SERVE


#: Classes of config.json → their rows.
FAMILIES: tuple[tuple[tuple[str, ...], tuple[Row, ...]], ...] = tuple(
    (tuple(each["classes"]), tuple(Row(**row) for row in each["rows"])) for each in PUBLISHED["families"]
)
#: Quantisation, and whether the model has experts → rows.
QUANTISED: Mapping[tuple[str, bool], tuple[Row, ...]] = {
    (each["quantisation"], each["experts"]): tuple(Row(**row) for row in each["rows"])
    for each in PUBLISHED["quantised"]
}


def rows_for(architecture: str, quantisation: str, experts: bool, release: str) -> list[Row] | None:
    """Return what is published for a class on one release; None for a class of which nothing is.

    :param quantisation: as ``quantisation_of`` names it.
    """
    found = next((rows for classes, rows in FAMILIES if architecture in classes), None)
    rows = [*(found or ()), *QUANTISED.get((quantisation, experts), ())]
    now = parse(release).release
    rows = [
        row
        for row in rows
        if (not row.since or now >= parse(row.since).release) and (not row.until or now < parse(row.until).release)
    ]
    return rows if found is not None or rows else None


def quantisation_of(config: Mapping[str, Any], modelopt: Mapping[str, Any]) -> str:
    """Return how the weights are quantised: nvfp4, or the method that the file names, or nothing.

    :param modelopt: hf_quant_config.json, or empty.
    """
    found = config.get("quantization_config")
    found = found if isinstance(found, Mapping) else {}
    own = modelopt.get("quantization")
    own = own if isinstance(own, Mapping) else {}
    texts = [json.dumps(each, default=str).lower() for each in (found, own)]
    if any("nvfp4" in text for text in texts):
        return "nvfp4"
    return str(found.get("quant_method") or own.get("quant_algo") or "").lower()


@dataclass(frozen=True)
class Architecture:
    """A class of vLLM's registry.

    :ivar kind: generate, pooling or draft.
    :ivar releases: those that were read and have it, oldest first.
    """

    name: str
    kind: str
    releases: tuple[str, ...]


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[str, ...], dict[str, Any]]:
    read = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))
    return tuple(read["releases"]), read["classes"]


def releases_read() -> tuple[str, ...]:
    """Return the releases of vLLM whose registry was read, oldest first."""
    return _table()[0]


def architecture(name: str) -> Architecture | None:
    """Return a class of vLLM's registry, or None when no release that was read has it."""
    releases, classes = _table()
    entry = classes.get(name)
    if entry is None:
        return None
    held = entry["in"]
    if isinstance(held, str):
        first, last = held.split("-")
        held = releases[releases.index(first) : releases.index(last) + 1]
    return Architecture(name, entry["kind"], tuple(held))


def has_class(found: Architecture, version: str) -> bool:
    """Tell whether a version of vLLM has a class: by the same release, or the nearest one below that was read."""
    wanted = parse(version).release
    below = [each for each in releases_read() if parse(each).release <= wanted]
    return bool(below) and below[-1] in found.releases


def names(found: Iterable[str]) -> str:
    """Return some names for a sentence."""
    return ", ".join(found) or "none"
