# SPDX-License-Identifier: Apache-2.0
"""Write the generated parts of docs/models.md and README.md: the table of models, and one model's two launches.

    .venv/bin/python scripts/models_page.py

The parts stand between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; what is outside stays as it is.
A test compares them with the catalogue (tests/unit/scripts/test_models_page.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / ".collections"))

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import rows  # noqa: E402

GROUP_VARS = REPO / "playbooks" / "group_vars"
#: MemTotal of the smallest GB10 box that a source reports [S0].
NODE_GIB = 119.0
BOXES = (1, 2, 4)


def images() -> dict[str, Any]:
    """Return the image catalogue with its pins filled in, as Ansible's templates would."""
    text = (GROUP_VARS / "all" / "images.yml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    text = re.sub(r"\{\{ gb10_pins\.(\w+) \}\}", lambda match: str(raw["gb10_pins"][match[1]]), text)
    found: dict[str, Any] = yaml.safe_load(text.replace("{{ gb10_torch_index }}", raw["gb10_torch_index"]))
    return dict(found["gb10_images"])


def models() -> list[tuple[dict[str, Any], list[str]]]:
    """Return (model_spec, marks of its sources) of every model of the catalogue, by nodes and size."""
    found = []
    for path in sorted(GROUP_VARS.glob("model_*.yml")):
        text = path.read_text(encoding="utf-8")
        found.append((yaml.safe_load(text)["model_spec"], sources(text)))
    return sorted(found, key=lambda each: (each[0]["nodes"], each[0]["size_gib"], each[0]["name"]))


def sources(text: str) -> list[str]:
    """Return the marks of a file's sources: what its first lines name, else those that it cites most."""
    cited = re.findall(r"\[([A-Z]\d?r?)(?: [^\]]*)?\]", text)
    head = re.findall(r"\[([A-Z]\d?r?)\]", "\n".join(line for line in text.splitlines() if line.startswith("#")))
    most = sorted(set(cited), key=lambda mark: (-cited.count(mark), mark))
    return list(dict.fromkeys(head)) or most[:2]


def weights_text(spec: Mapping[str, Any]) -> str:
    """Return the size of the weights, those of a draft model beside it."""
    drafter = (spec.get("drafter") or {}).get("size_gib")
    return f"{float(spec['size_gib']):g} GiB" + (f" + {drafter:g}" if drafter else "")


def full_table() -> str:
    """Return the table of docs/models.md."""
    known = images()
    lines = [
        "| model | boxes | weights | context | tokens/s, one request | most tokens/s | "
        + " | ".join(f"on {count}" for count in BOXES)
        + " | image (vLLM) | status | source |",
        "|" + "---|" * (9 + len(BOXES)),
    ]
    for spec, marks in models():
        row = rows.row(spec, known)
        verdicts = []
        for count in BOXES:
            verdict, _reason = rows.on_boxes(spec, known, count, NODE_GIB)
            verdicts.append(f"**{verdict}**" if count == spec["nodes"] else verdict)
        context = spec["serve"].get("max-model-len")
        cells = [
            f"`{spec['name']}`",
            str(spec["nodes"]),
            weights_text(spec),
            str(context),
            rows.speed_text(row["decode_one"]),
            rows.speed_text(row["decode_peak"]) if row["decode_peak"] else "none published",
            *verdicts,
            f"`{spec['image']}` ({'fork of ' if row['vllm_is_fork'] else ''}{row['vllm_version'] or 'not known'})",
            row["status"],
            " ".join(f"[{mark}]" for mark in marks),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table() -> str:
    """Return the table of README.md."""
    known = images()
    lines = [
        "| `-e model=` | boxes | weights | context | published decode tokens/s | source |",
        "|---|---|---|---|---|---|",
    ]
    for spec, marks in models():
        row = rows.row(spec, known)
        speed = rows.speed_text(row["decode_one"])
        if row["decode_peak"]:
            speed += f"; {rows.speed_text(row['decode_peak'])}"
        context = spec["serve"].get("max-model-len")
        shown = f"{context:,}" if isinstance(context, int) else str(context)
        cells = [f"`{spec['name']}`", str(spec["nodes"]), weights_text(spec), shown, speed]
        lines.append("| " + " | ".join([*cells, " ".join(f"[{mark}]" for mark in marks)]) + " |")
    return "\n".join(lines)


def comparison() -> str:
    """Return what differs between models that are launches of one repository with the same number of nodes."""
    by_repo: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for spec, _marks in models():
        by_repo.setdefault((spec["repo"], spec["nodes"]), []).append(spec)
    parts = []
    for (repo, _nodes), specs in by_repo.items():
        if len(specs) > 1:
            parts.append(_compared(repo, specs))
    return "\n\n".join(parts) or "No repository has two launches."


def _compared(repo: str, specs: Sequence[Mapping[str, Any]]) -> str:
    flat = [_flat(spec) for spec in specs]
    lines = [
        f"{repo}, {specs[0]['nodes']} node{'s' if specs[0]['nodes'] > 1 else ''}:",
        "",
        "| | " + " | ".join(f"`{spec['name']}`" for spec in specs) + " |",
        "|" + "---|" * (len(specs) + 1),
    ]
    for key in dict.fromkeys(key for each in flat for key in each):
        shown = [each.get(key, "none") for each in flat]
        if len(set(shown)) > 1:
            lines.append(
                f"| {key} | " + " | ".join(f"`{value}`" if value != "none" else "none" for value in shown) + " |"
            )
    return "\n".join(lines)


def _flat(spec: Mapping[str, Any]) -> dict[str, str]:
    defaults = {"engine": "ray", "image": "none", "mods": "none", "revision": "main"}
    found = {key: str(spec.get(key) or default) for key, default in defaults.items()}
    for part in ("serve", "env"):
        for name, value in (spec.get(part) or {}).items():
            inner = value.items() if isinstance(value, Mapping) else [("", value)]
            found |= {f"{part}.{name}" + (f".{key}" if key else ""): str(each) for key, each in inner}
    one, peak = rows.speeds(spec)
    found["tokens/s, one request"] = rows.speed_text(one)
    found["most tokens/s"] = rows.speed_text(peak)
    return found


#: File, name of the part, and the function that makes it.
PARTS = (
    (REPO / "docs" / "models.md", "table of models", full_table),
    (REPO / "docs" / "models.md", "two launches", comparison),
    (REPO / "README.md", "table of models", short_table),
)


def replaced(text: str, name: str, made: str) -> str:
    """Return a text with the part of that name replaced.

    :raises ValueError: the text does not have the two marks once, in their order.
    """
    first, last = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ValueError(f"there must be one '{first}' and after it one '{last}'")
    return text[: text.index(first) + len(first)] + f"\n{made}\n" + text[text.index(last) :]


def pages() -> dict[Path, str]:
    """Return file → what it has to hold."""
    found: dict[Path, str] = {}
    for path, name, make in PARTS:
        found[path] = replaced(found.get(path) or path.read_text(encoding="utf-8"), name, make())
    return found


if __name__ == "__main__":
    for each, text in pages().items():
        each.write_text(text, encoding="utf-8")
