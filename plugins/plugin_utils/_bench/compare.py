# SPDX-License-Identifier: Apache-2.0
"""Which measurements may be compared, and what the comparison says; pure.

A run's fingerprint is the digest of all that makes one cluster answer faster or slower than another; its shape is
what was asked of it. Runs of one fingerprint and one shape repeat each other; runs of one shape can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Keys of model_spec that say something about the model and change nothing of the engine.
SILENT_KEYS = ("expected", "notes", "steps", "geometry", "memory", "size_gib")
#: The published sweeps' shape, unless `expected.shape` names another: 10 006 tokens in, 1 024 out [S0].
PUBLISHED_SHAPE = {"input_tokens": 10006, "output_tokens": 1024}
#: Prompts whose lengths differ by less than this share are of one shape: the published 9 818 + template are 10 006.
SHAPE_SHARE = 0.05
#: Figures that are compared, with the sign of what is better, and their place in a burst's figures.
FIGURES: dict[str, tuple[int, tuple[str, ...]]] = {
    "decode_tokens_per_s": (1, ("decode_tokens_per_s",)),
    "prefill_tokens_per_s": (1, ("prefill_tokens_per_s",)),
    "output_tokens_per_s": (1, ("output_tokens_per_s",)),
    "embeddings_per_s": (1, ("embeddings_per_s",)),
    "input_tokens_per_s": (1, ("input_tokens_per_s",)),
    "ttft_s": (-1, ("ttft_s", "p50")),
    "tpot_s": (-1, ("tpot_s", "p50")),
    "wall_s": (-1, ("wall_s",)),
}
#: The published prefill rate is all input tokens by the last first token, waiting included [S0].
EXPECTED_PLACES = {
    "decode_tokens_per_s": ("decode_tokens_per_s",),
    "prefill_tokens_per_s": ("prefill_with_queue_tokens_per_s",),
    "embeddings_per_s": ("embeddings_per_s",),
    "input_tokens_per_s": ("input_tokens_per_s",),
    "ttft_s": ("ttft_s", "p50"),
    "wall_s": ("wall_s",),
}
#: Those by which a regression is judged: each of the others follows from them.
JUDGED = ("decode_tokens_per_s", "embeddings_per_s", "prefill_tokens_per_s", "ttft_s", "tpot_s")

#: Metrics of a point that are compared and judged: the sign of what is better, and what the row calls it.
POINT_FIGURES = {
    "pp_throughput": (1, "pp{prompt_size} t/s"),
    "tg_throughput": (1, "tg{response_size} t/s"),
    "ttfr": (-1, "pp{prompt_size} ttfr ms"),
}


def canonical(value: Any) -> str:
    """Return one text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def fingerprint(
    spec: Mapping[str, Any],
    *,
    image: str,
    vllm_version: str,
    nodes: Mapping[str, Mapping[str, Any]],
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what the measured cluster is, with its ``digest``.

    ``image`` is the identity of layers and configuration, ``nodes`` the facts by node name in rank order, ``command``
    the arguments that the head's engine really runs with, whatever the catalogue says by now.
    """
    parts: dict[str, Any] = {
        "model_spec": {key: value for key, value in spec.items() if key not in SILENT_KEYS},
        "command": list(command),
        "image": image,
        "mods": list(spec.get("mods") or []),
        "vllm_version": vllm_version,
        "nodes": [{"name": name, **facts} for name, facts in nodes.items()],
        "driver": sorted({str(facts.get("driver") or "none") for facts in nodes.values()}),
    }
    return {"digest": hashlib.sha256(canonical(parts).encode()).hexdigest()[:12], **parts}


def node_marks(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes one node answer otherwise than another, from the facts of gb10.cluster.node_facts."""
    return {
        "arch": facts["os"]["arch"],
        "kernel": facts["os"]["kernel"],
        "driver": facts["gpu"]["driver"],
        "memory_gib": round(float(facts["memory_gib"]["total"])),
    }


def _differences(before: Any, after: Any, where: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in sorted({*before, *after}):
            found += _differences(before.get(key), after.get(key), f"{where}.{key}" if where else str(key))
        return found
    if before == after:
        return []
    shown = ["nothing" if each is None else canonical(each) for each in (before, after)]
    return [f"{where}: {shown[0]} -> {shown[1]}"]


def changed_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each part of two fingerprints that differs."""
    parts = [{key: value for key, value in each.items() if key != "digest"} for each in (before, after)]
    return _differences(parts[0], parts[1], "")


def place(figures: Mapping[str, Any] | None, path: Sequence[str]) -> float | None:
    """Return a figure from its place in nested figures, or None."""
    found: Any = figures
    for name in path:
        if not isinstance(found, Mapping) or found.get(name) is None:
            return None
        found = found[name]
    return float(found)


def same_shape(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two sweeps asked for the same: output tokens equal, input tokens nearly."""
    wanted = int(theirs["input_tokens"])
    return (
        int(ours["output_tokens"]) == int(theirs["output_tokens"])
        and abs(int(ours["input_tokens"]) - wanted) <= SHAPE_SHARE * wanted
    )


def _row(
    concurrency: int, figure: str, before: float | None, now: float | None, source: object, sign: int | None = None
) -> list[dict[str, Any]]:
    """Return the row of a figure, none where one side does not have it."""
    if before is None or now is None:
        return []
    judged = sign is not None or figure in JUDGED
    sign = FIGURES[figure][0] if sign is None else sign
    change = now / before - 1 if before else 0.0
    return [
        {
            "concurrency": concurrency,
            "figure": figure,
            "before": before,
            "now": now,
            "change": change,
            "worse_by": max(0.0, -sign * change),
            "judged": judged,
            "source": str(source),
        }
    ]


def compare_expected(sweep: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a comparison with the model's published figures, or the reason why there are none."""
    if not expected.get("sweep"):
        return [], "nothing is published for this model"
    if not sweep:
        return [], "no sweep was run"
    shape = expected.get("shape") or PUBLISHED_SHAPE
    if not same_shape(sweep["shape"], shape):
        return [], (
            f"the published sweep has {shape['input_tokens']} tokens in and {shape['output_tokens']} out, this one "
            f"{sweep['shape']['input_tokens']} and {sweep['shape']['output_tokens']}"
        )
    measured = {point["concurrency"]: point for point in sweep["points"]}
    rows = []
    for published in expected["sweep"]:
        count, source = published.get("concurrency"), published.get("source", "expected")
        for figure, path in EXPECTED_PLACES.items():
            rows += _row(count, figure, place(published, [figure]), place(measured.get(count), path), source)
    return rows, "" if rows else "no concurrency of this sweep was published"


def shape_of(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what must be equal for two runs to be comparable: of the sweep, or else of the points."""
    sweep, points = run.get("sweep"), run.get("points")
    if sweep:
        shape: Mapping[str, Any] = sweep["shape"]
        return shape
    return {key: points[key] for key in ("prefix_caching", "latency_mode", "request")} if points else None


def compare_points(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the points that two runs have in common."""
    keys = ("is_context_prefill_phase", "context_size", "prompt_size", "response_size", "concurrency")
    if shape_of({"points": before.get("points")}) != shape_of({"points": now.get("points")}):
        return []
    earlier = {tuple(each[key] for key in keys): each for each in (before.get("points") or {}).get("benchmarks", [])}
    rows = []
    for entry in (now.get("points") or {}).get("benchmarks", []):
        other = earlier.get(tuple(entry[key] for key in keys))
        for metric, (sign, name) in POINT_FIGURES.items():
            was, is_now = place(other, (metric, "mean")), place(entry, (metric, "mean"))
            context = "ctx, " if entry["is_context_prefill_phase"] else ""
            figure = f"{context}{name.format(**entry)} @ d{entry['context_size']}"
            rows += _row(entry["concurrency"], figure, was, is_now, before.get("run", "earlier"), sign)
    return rows


def compare_runs(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a comparison with an earlier run's results, or the reason why there are none."""
    ours, theirs = now.get("sweep"), before.get("sweep")
    points = compare_points(before, now)
    if not ours or not theirs:
        return points, "" if points else "the two runs have neither a sweep nor a point in common"
    if ours["shape"] != theirs["shape"]:
        return [], f"the earlier run asked for {canonical(theirs['shape'])}, this one for {canonical(ours['shape'])}"
    earlier = {point["concurrency"]: point for point in theirs["points"]}
    rows = []
    for point in ours["points"]:
        other = earlier.get(point["concurrency"])
        for figure, (_sign, path) in FIGURES.items():
            was, is_now = place(other, path), place(point, path)
            rows += _row(point["concurrency"], figure, was, is_now, before.get("run", "earlier"))
    rows += points
    return rows, "" if rows else "the two runs have no concurrency in common"


def lost_needles(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each needle that the earlier run found and this one did not."""
    found = {
        (each["asked_tokens"], each["depth"]) for each in before.get("needles") or [] if each["verdict"] == "exact"
    }
    return [
        f"The needle at {each['asked_tokens']} tokens and depth {each['depth']:g} was found before, and now is not: "
        f"{each['sentence']}."
        for each in now.get("needles") or []
        if (each["asked_tokens"], each["depth"]) in found and each["verdict"] != "exact"
    ]


def new_failures(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each concurrency with more failed requests than the earlier run had (or than none)."""
    earlier = {
        point["concurrency"]: sum(point["failures"].values())
        for point in ((before or {}).get("sweep") or {}).get("points", [])
    }
    found = []
    for point in (now.get("sweep") or {}).get("points", []):
        failed = sum(point["failures"].values())
        if failed > earlier.get(point["concurrency"], 0):
            kinds = ", ".join(f"{kind} {count}" for kind, count in point["failures"].items())
            found.append(f"At {point['concurrency']} requests {failed} of {point['requests']} failed ({kinds}).")
    return found


def without_answers(now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part of a run in which not one request was answered."""
    sweep, trace = now.get("sweep") or {"points": []}, now.get("trace") or {}
    figures = trace.get("figures") or {}
    parts = [(f"the {point['concurrency']} requests of the sweep", point) for point in sweep["points"]]
    parts += [("the requests of the trace", figures)] if "succeeded" in figures else []
    parts += [
        (
            f"the requests of the point at depth {entry['context_size']}, {entry['concurrency']} at once,",
            {**entry, "succeeded": entry["e2e_ttft"]},
        )
        for entry in (now.get("points") or {}).get("benchmarks", [])
    ]
    return [
        f"Not one of {name} was answered: {', '.join(f'{kind} {count}' for kind, count in part['failures'].items())}."
        for name, part in parts
        if not part["succeeded"]
    ]


def regressions(rows: Iterable[Mapping[str, Any]], share: float) -> list[str]:
    """Return a sentence for each judged figure that is worse than before by more than a share of it."""
    return [
        f"At {row['concurrency']} requests {row['figure']} is {row['now']:.4g}, {row['worse_by']:.0%} worse than "
        f"{row['before']:.4g} ({row['source']})."
        for row in rows
        if row["judged"] and row["worse_by"] > share
    ]


def pick_baseline(
    runs: Sequence[Mapping[str, Any]], wanted: str, shape: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, str]:
    """Return the earlier run that is compared with, and a sentence when there is none.

    ``last`` is the newest of the same shape, ``none`` and ``expected`` are no run; anything else is the beginning of a
    run's name or of a fingerprint's digest. Runs are in the order of their times, the newest last.
    """
    if wanted in ("none", "expected"):
        return None, "no comparison with an earlier run was asked for"
    if wanted == "last":
        for run in reversed(runs):
            if shape is not None and shape_of(run) == shape:
                return run, ""
        return None, "there is no earlier run of this shape"
    for run in reversed(runs):
        if str(run.get("run", "")).startswith(wanted) or str(run["fingerprint"]["digest"]).startswith(wanted):
            return run, ""
    known = ", ".join(str(run.get("run")) for run in runs[-5:]) or "none"
    return None, f"No earlier run is named {wanted!r}, nor is a fingerprint. The newest runs: {known}."
