# SPDX-License-Identifier: Apache-2.0
"""What a reader wants to know of each model of the catalogue: one row a model.  Pure.

docs/models.md, README's table, playbooks/models.yml and playbooks/init.yml all show these rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory.answer import answer
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import GeometryError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    FITS,
    REFUSED,
    TIGHT,
    UNKNOWN,
    Budget,
    MemoryModelError,
)
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import deep_merge
from ansible_collections.gb10.cluster.plugins.plugin_utils._memory.spec import device_of, memory_arguments

TOO_FEW = "too few nodes"
#: Status of a model whose file does not say where its launch comes from.
NOT_STATED = "not stated"
NOT_DIVISIBLE = "not divisible"


def version_of(spec: Mapping[str, Any], images: Mapping[str, Any]) -> str | None:
    """Return the release of vLLM in a model's image, of a fork that of its upstream; empty when no source states it.

    None when the image is not in the catalogue.
    """
    recipe, errors = image_recipe.resolve(images, str(spec.get("image")))
    return None if errors else str(recipe["vllm_upstream"] or recipe["vllm_version"] or "")


def verdict_on(spec: Mapping[str, Any], images: Mapping[str, Any], memory_gib: Sequence[float]) -> tuple[str, str]:
    """Return (verdict, reason) of a model on a cluster; the tightest node decides.

    :param memory_gib: MemTotal of each node, the head first.
    :returns: fits, tight, refused, unknown or ``too few nodes``, and one or more sentences.
    """
    found = _judged(spec, images, memory_gib)
    return found.verdict, " ".join([*found.reasons, *found.missing])


def _judged(spec: Mapping[str, Any], images: Mapping[str, Any], memory_gib: Sequence[float]) -> Budget:
    nodes = int(spec.get("nodes") or 1)
    if nodes > len(memory_gib):
        return Budget(verdict=TOO_FEW, reasons=[f"needs {nodes} nodes, here are {len(memory_gib)}"])
    version = version_of(spec, images)
    if version is None:
        return Budget(verdict=UNKNOWN, reasons=["its image is not in the catalogue"])
    try:
        return budget_of(spec, version, min(memory_gib[:nodes]))
    except (GeometryError, MemoryModelError) as error:
        return Budget(verdict=UNKNOWN, reasons=[str(error)])


def budget_of(
    spec: Mapping[str, Any], version: str, total_gib: float, available_gib: float | None = None, **changes: Any
) -> Budget:
    """Return what gb10.cluster.memory_budget says of a model, from its file alone.

    :param available_gib: what the node has free; None for what its size suggests.
    :param changes: arguments of the module that replace the model's.
    :raises GeometryError: the geometry is wrong.
    :raises MemoryModelError: the options cannot be sized.
    """
    asked = {**memory_arguments(spec, version, device_of(version)), **changes}
    return answer({**asked, "mem_total_gib": total_gib, "mem_available_gib": available_gib})


def on_boxes(spec: Mapping[str, Any], images: Mapping[str, Any], nodes: int, memory_gib: float) -> tuple[str, str]:
    """Return (verdict, reason) of a model that is split over another number of equal nodes (tensor parallelism)."""
    if nodes != spec["nodes"]:
        # A cache that was measured says nothing about another number of nodes.
        spec = {**spec, "expected": {}}
    heads = int(((spec.get("geometry") or {}).get("attention") or {}).get("heads") or 0)
    if heads % nodes:
        return NOT_DIVISIBLE, f"{heads} attention heads cannot be split over {nodes} ranks"
    split = {"nodes": nodes, "serve": {"tensor-parallel-size": nodes, "pipeline-parallel-size": 1}}
    return verdict_on(deep_merge(spec, split), images, [memory_gib] * nodes)


def published(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the published points of a model's own launch; those of other settings where there is no other."""
    points = [dict(each) for each in (spec.get("expected") or {}).get("sweep") or []]
    return [each for each in points if "settings" not in each] or points


def speeds(spec: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return (point of one request, point with the most tokens a second); None where nothing is published."""
    points = published(spec)
    one = next((each for each in points if each["concurrency"] == 1), None)
    many = [each for each in points if each["concurrency"] > 1]
    return one, max(many, key=lambda each: float(each["decode_tokens_per_s"]), default=None)


def row(spec: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a model without a node, as plain data.

    :returns: ``name``, ``repo``, ``revision``, ``nodes``, ``size_gib``, ``context``, ``image``, ``vllm_version``,
        ``vllm_is_fork``, ``decode_one`` and ``decode_peak`` (points of ``expected.sweep`` or None), and ``status`` and
        ``source`` of ``provenance``. Nothing here was run by this project.
    """
    one, peak = speeds(spec)
    keys = ("name", "repo", "revision", "nodes", "size_gib", "image")
    found = {key: spec.get(key) for key in keys}
    found["context"] = (spec.get("serve") or {}).get("max-model-len")
    found["vllm_version"] = version_of(spec, images)
    found["vllm_is_fork"] = bool(image_recipe.resolve(images, str(spec.get("image")))[0].get("vllm_upstream"))
    found["decode_one"], found["decode_peak"] = one, peak
    provenance = spec.get("provenance") or {}
    found["status"], found["source"] = provenance.get("status", NOT_STATED), provenance.get("source", "")
    return found


def on_cluster(
    specs: Sequence[Mapping[str, Any]], images: Mapping[str, Any], memory_gib: Sequence[float | None]
) -> list[dict[str, Any]]:
    """Return the rows of a cluster with ``verdict``, ``reason`` and ``basis``, the largest that fits first.

    ``basis`` says what the verdict follows from: ``computed`` from the shape, or ``measured`` from a published cache,
    which comes after all that is computed: nothing is known of what such a model needs beside its cache.

    :param memory_gib: MemTotal of each node, the head first; None for a node that did not answer.
    """
    found = []
    for spec in specs:
        nodes = int(spec.get("nodes") or 1)
        known = [each for each in memory_gib[:nodes] if each is not None]
        if len(known) < min(nodes, len(memory_gib)):
            judged = Budget(verdict=UNKNOWN, reasons=[f"of its {nodes} nodes, {nodes - len(known)} did not answer"])
        else:
            judged = _judged(spec, images, known)
        said = {"verdict": judged.verdict, "reason": " ".join([*judged.reasons, *judged.missing])}
        basis = "measured" if judged.figures is None and judged.verdict in (FITS, TIGHT) else "computed"
        found.append({**row(spec, images), **said, "basis": basis})
    order = {(FITS, "computed"): 0, (TIGHT, "computed"): 0, (TIGHT, "measured"): 1, (UNKNOWN, "computed"): 2}
    return sorted(
        found, key=lambda each: (order.get((each["verdict"], each["basis"]), 3), -float(each["size_gib"] or 0.0))
    )


def cluster(
    specs: Sequence[Mapping[str, Any]], images: Mapping[str, Any], nodes: Sequence[str], memory_gib: Mapping[str, float]
) -> dict[str, Any]:
    """Return ``models`` (see ``on_cluster``) and ``nodes``: MemTotal by node, null for one that did not answer.

    A model that stands in two directories counts once, as in the first of them.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for spec in specs:
        first.setdefault(str(spec.get("name")), spec)
    known = {node: float(memory_gib[node]) if node in memory_gib else None for node in nodes}
    return {"models": on_cluster(list(first.values()), images, list(known.values())), "nodes": known}


def screen(found: Mapping[str, Any]) -> list[str]:
    """Return a cluster's rows as lines for a terminal, with what stands behind the marks."""
    answered = [size for size in found["nodes"].values() if size is not None]
    silent = [node for node, size in found["nodes"].items() if size is None]
    smallest = f", the smallest has {min(answered):.1f} GiB" if answered else ""
    boxes = "1 box" if len(found["nodes"]) == 1 else f"{len(found['nodes'])} boxes"
    lines = [f"{boxes}{smallest}" + (f"; no answer from {', '.join(silent)}" if silent else "")]
    lines += [*table(found["models"]), "", "Speeds were published by the source of each model, not measured here."]
    if any("settings" in (each[key] or {}) for each in found["models"] for key in ("decode_one", "decode_peak")):
        lines.append("* with other settings than the model's file: docs/models.md")
    lines += [f"{each['name']}: {each['reason']}" for each in found["models"] if each["verdict"] == REFUSED]
    return lines


def speed_text(point: Mapping[str, Any] | None) -> str:
    """Return a published speed as a cell of a table, with what was set otherwise."""
    if point is None:
        return "none published"
    rate = f"{float(point['decode_tokens_per_s']):g}"
    many = f" for {point['concurrency']} requests" if point["concurrency"] > 1 else ""
    return f"{rate}{many}" + (f" ({point['settings']})" if "settings" in point else "")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of a cluster as lines for a terminal."""
    head = ("model", "boxes", "context", "GiB", "tokens/s", "peak", "here", "status", "image")
    cells = [
        (
            str(each["name"]),
            str(each["nodes"]),
            str(each["context"] or "?"),
            f"{float(each['size_gib'] or 0):g}",
            _rate(each["decode_one"]),
            _rate(each["decode_peak"]),
            str(each["verdict"]),
            str(each["status"]),
            str(each["image"]),
        )
        for each in rows
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *cells]
    ]


def _rate(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "-"
    many = f" x{point['concurrency']}" if point["concurrency"] > 1 else ""
    return f"{float(point['decode_tokens_per_s']):g}{many}" + ("*" if "settings" in point else "")
