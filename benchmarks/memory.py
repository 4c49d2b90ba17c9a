# SPDX-License-Identifier: Apache-2.0
"""Hold the memory model against every published figure: predicted, published, deviation.

    make bench-memory

Prints one line a figure and one a verdict, and exits 1 when a bound is broken.  The points,
their sources and their bounds stand in memory_points.yml.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.module_utils._memory.fit import GB10  # noqa: E402
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import geometry_from_dict  # noqa: E402
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (  # noqa: E402
    Budget,
    Figures,
    Settings,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import (  # noqa: E402
    evaluate,
)

POINTS = Path(__file__).with_name("memory_points.yml")

ACCEPTED = ("fits", "tight")


@dataclass(frozen=True)
class Line:
    """One comparison.  ``bound_percent`` None is printed and not enforced."""

    point: str
    source: str
    what: str
    predicted: str
    published: str
    deviation_percent: float | None
    bound_percent: float | None
    holds: bool
    note: str = ""


def settings_of(model: Mapping[str, Any], point: Mapping[str, Any]) -> Settings:
    """Return the settings of a point: its own on top of its model's."""
    merged = {**model["settings"], **point["settings"]}
    # Beside a pool of a given size the utilization is what vLLM checks at its start; beside a budget there is none.
    if "budget_gib" in point["settings"]:
        merged.pop("gpu_memory_utilization", None)
    return Settings(geometry=geometry_from_dict(model["geometry"]), weights_gib=float(model["weights_gib"]), **merged)


def predict(name: str, figures: Figures, point: Mapping[str, Any]) -> float:
    """Return the predicted figure; ``node_used_gib`` is what the whole node holds while it serves."""
    if name in figures.breakdown:
        return figures.breakdown[name]
    if name != "node_used_gib":
        return float(getattr(figures, name))
    if "idle_used_gib" in point:
        return float(point["idle_used_gib"]) + GB10.host_processes_gib + figures.budget_gib
    return figures.mem_total_gib - figures.headroom_gib


def _figure_lines(point: Mapping[str, Any], budget: Budget) -> Iterator[Line]:
    for name, (published, bound) in point.get("figures", {}).items():
        if budget.figures is None:
            yield Line(point["name"], point["source"], name, "nothing", f"{published:g}", None, bound, holds=False)
            continue
        predicted = predict(name, budget.figures, point)
        deviation = 100 * (predicted - published) / abs(published)
        yield Line(
            point=point["name"],
            source=point["source"],
            what=name,
            predicted=f"{predicted:,.2f}".rstrip("0").rstrip("."),
            published=f"{published:,.2f}".rstrip("0").rstrip("."),
            deviation_percent=deviation,
            bound_percent=bound,
            holds=bound is None or abs(deviation) <= bound + 1e-9,
            note=point.get("note", ""),
        )


def lines(points_file: Path = POINTS) -> list[Line]:
    """Return every comparison of the points file."""
    data = yaml.safe_load(points_file.read_text(encoding="utf-8"))
    found = []
    for point in data["points"]:
        budget = evaluate(settings_of(data["models"][point["model"]], point))
        because = point.get("because", "")
        is_accepted = budget.verdict in ACCEPTED
        holds = is_accepted == (point["verdict"] == "accepted") and because in " ".join(budget.reasons)
        found.append(
            Line(
                point=point["name"],
                source=point["source"],
                what="verdict",
                predicted=budget.verdict,
                published=point["verdict"],
                deviation_percent=None,
                bound_percent=0,
                holds=holds,
            )
        )
        found.extend(_figure_lines(point, budget))
    return found


def render(found: list[Line]) -> str:
    """Return the table."""
    out = [f"{'point':<58} {'src':<4} {'what':<22} {'predicted':>12} {'published':>12} {'deviation':>10} {'bound':>7}"]
    notes: dict[str, str] = {}
    for line in found:
        deviation = "" if line.deviation_percent is None else f"{line.deviation_percent:+.2f} %"
        bound = (
            "info" if line.bound_percent is None else ("" if line.what == "verdict" else f"{line.bound_percent:g} %")
        )
        mark = "" if line.holds else "  BROKEN"
        if line.note:
            notes.setdefault(line.point, line.note)
        out.append(
            f"{line.point:<58} {line.source:<4} {line.what:<22} {line.predicted:>12} {line.published:>12} "
            f"{deviation:>10} {bound:>7}{mark}"
        )
    out += [f"* {point}: {note}" for point, note in notes.items()]
    broken = [line for line in found if not line.holds]
    out.append(
        f"{len(found)} comparisons, {sum(line.bound_percent is None for line in found)} for information, "
        f"{len(broken)} broken."
    )
    return "\n".join(out)


def main() -> int:
    found = lines()
    print(render(found))
    return 1 if any(not line.holds for line in found) else 0


if __name__ == "__main__":
    sys.exit(main())
