# SPDX-License-Identifier: Apache-2.0
"""Write the table of model classes that releases of vLLM have.

    python3 scripts/vllm_architectures.py FILE.whl ...

reads ``vllm/model_executor/models/registry.py`` of each wheel, without running anything of it, and adds the release
to ``plugins/plugin_utils/_catalogue/architectures.json``, where playbooks/add_model.yml finds which image can serve a
model.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path("plugins/plugin_utils/_catalogue/architectures.json")
REGISTRY = "vllm/model_executor/models/registry.py"

#: Dictionary of the registry → what its classes are for. A class of several is for the first of them.
KINDS: Mapping[str, str] = {
    "_TEXT_GENERATION_MODELS": "generate",
    "_MULTIMODAL_MODELS": "generate",
    "_EMBEDDING_MODELS": "pooling",
    "_LATE_INTERACTION_MODELS": "pooling",
    "_REWARD_MODELS": "pooling",
    "_TOKEN_CLASSIFICATION_MODELS": "pooling",
    "_SEQUENCE_CLASSIFICATION_MODELS": "pooling",
    "_CROSS_ENCODER_MODELS": "pooling",
    "_TRANSFORMERS_SUPPORTED_MODELS": "generate",
    "_SPECULATIVE_DECODING_MODELS": "draft",
}


def classes_of(source: str) -> dict[str, str]:
    """Return class → kind (generate, pooling, draft) from the text of a registry.

    :raises ValueError: the text has no dictionary of text generation models.
    """
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id in KINDS and isinstance(value, ast.Dict):
            names = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            found[target.id] = dict.fromkeys(names, KINDS[target.id])
    if not found.get("_TEXT_GENERATION_MODELS"):
        raise ValueError(f"{REGISTRY} has no _TEXT_GENERATION_MODELS: it has another form than those read so far.")
    merged: dict[str, str] = {}
    for name in KINDS:
        merged = {**found.get(name, {}), **merged}
    return merged


def add_release(table: Mapping[str, Any], release: str, source: str, classes: Mapping[str, str]) -> dict[str, Any]:
    """Return the table with one release more; ``classes`` has the releases that hold each class."""
    held = {name: {**entry, "in": set(entry["in"]) - {release}} for name, entry in table.get("classes", {}).items()}
    for name, kind in classes.items():
        entry = held.setdefault(name, {"kind": kind, "in": set()})
        entry["kind"] = kind
        entry["in"].add(release)
    releases = {**table.get("releases", {}), release: source}
    order = sorted(releases, key=lambda text: [int(part) for part in text.split(".")])
    return {
        "releases": {each: releases[each] for each in order},
        "classes": {
            name: {"kind": held[name]["kind"], "in": [each for each in order if each in held[name]["in"]]}
            for name in sorted(held)
            if held[name]["in"]
        },
    }


def render(table: Mapping[str, Any]) -> str:
    """Return the table as JSON, one release or class a line."""
    parts = []
    for key in ("releases", "classes"):
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table[key].items())
        parts.append(f"{json.dumps(key)}: {{\n{rows}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def compact(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with ranges: ``in`` becomes [first, last] where no release between them is without the class.

    A class that went and came back keeps its list.
    """
    order = list(table["releases"])
    classes = {}
    for name, entry in table["classes"].items():
        held = entry["in"]
        whole = order[order.index(held[0]) : order.index(held[-1]) + 1] == held
        classes[name] = {"kind": entry["kind"], "in": f"{held[0]}-{held[-1]}" if whole else held}
    return {"releases": table["releases"], "classes": classes}


def expand(table: Mapping[str, Any]) -> dict[str, Any]:
    """Undo ``compact``."""
    order = list(table.get("releases", {}))
    classes = {}
    for name, entry in table.get("classes", {}).items():
        held = entry["in"]
        if isinstance(held, str):
            first, last = held.split("-")
            held = order[order.index(first) : order.index(last) + 1]
        classes[name] = {"kind": entry["kind"], "in": held}
    return {"releases": dict(table.get("releases", {})), "classes": classes}


def main(argv: list[str] | None = None) -> int:
    """Add the release of each wheel to the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("wheels", type=Path, nargs="+", metavar="FILE.whl")
    parser.add_argument("--output", type=Path, default=TABLE)
    args = parser.parse_args(argv)
    table = expand(json.loads(args.output.read_text(encoding="utf-8"))) if args.output.is_file() else {}
    for wheel in args.wheels:
        with zipfile.ZipFile(wheel) as archive:
            classes = classes_of(archive.read(REGISTRY).decode("utf-8"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        release = wheel.name.split("-")[1].partition("+")[0]
        table = add_release(table, release, f"{wheel.name} sha256:{digest}", classes)
        print(f"{release}: {len(classes)} classes")
    args.output.write_text(render(compact(table)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
