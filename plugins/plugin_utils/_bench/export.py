# SPDX-License-Identifier: Apache-2.0
"""Results as llama-benchy 0.4.0 writes them: its Markdown table, its CSV (which Spark Arena takes), its JSON; pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.points import METRICS, rows

FORMATS = ("md", "csv", "json")
#: What made the rows; not llama-benchy itself.
TOOL = "gb10.cluster bench, by the definitions of llama-benchy 0.4.0"
PAIRED = ("t_s", "t_s_req", "peak_ts", "peak_ts_req", "ttfr", "est_ppt", "e2e_ttft")
HEADERS = {
    "model": "model",
    "test_name": "test",
    "t_s": "t/s (total)",
    "t_s_req": "t/s (req)",
    "peak_ts": "peak t/s",
    "peak_ts_req": "peak t/s (req)",
    "ttfr": "ttfr (ms)",
    "est_ppt": "est_ppt (ms)",
    "e2e_ttft": "e2e_ttft (ms)",
}
#: The shape of a benchmark in its JSON.
SIZES = ("concurrency", "context_size", "prompt_size", "response_size", "is_context_prefill_phase")


def at_once(benchmarks: Sequence[Mapping[str, Any]]) -> int:
    """Return the most requests at once of any benchmark."""
    return max((int(entry["concurrency"]) for entry in benchmarks), default=1)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value['mean']:.2f} ± {value['std']:.2f}"


def markdown(model: str, benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: mean ± standard deviation, the columns of one request only where several run at once."""
    headers = dict(HEADERS)
    if at_once(benchmarks) == 1:
        headers = {key: name for key, name in headers.items() if not key.endswith("_req")}
        headers["t_s"] = "t/s"
    table = [[_shown({"model": model, **row}[key]) for key in headers] for row in rows(benchmarks)]
    # As tabulate lays a pipe table out: two places more than the header at least.
    widths = [max(len(name) + 2, *(len(line[n]) for line in table), 0) for n, name in enumerate(headers.values())]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            f"{cell:<{width}}" if not number else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = "|".join([f":{'-' * (widths[0] + 1)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])])
    return "\n".join([line(list(headers.values())), f"|{rule}|", *(line(cells) for cells in table)])


def as_csv(model: str, benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """Return its CSV: a line for each row, mean and standard deviation of each metric."""
    names = ["model", "test_name", *(f"{key}_{part}" for key in PAIRED for part in ("mean", "std"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    for row in rows(benchmarks):
        figures = {f"{key}_{part}": row[key][part] if row[key] else None for key in PAIRED for part in ("mean", "std")}
        writer.writerow({"model": model, "test_name": row["test_name"], **figures})
    return text.getvalue()


def as_json(model: str, taken: str, points: Mapping[str, Any]) -> str:
    """Return its JSON, without what only we add to a benchmark.

    :param points: the results of `points_run.run_points`.
    """
    found = {
        "version": TOOL,
        "timestamp": taken,
        "latency_mode": points["latency_mode"],
        "latency_ms": points["latency_ms"],
        "model": model,
        "prefix_caching_enabled": points["prefix_caching"],
        "max_concurrency": at_once(points["benchmarks"]),
        "benchmarks": [
            {
                **{key: entry[key] for key in (*SIZES, *METRICS)},
                "throughput_over_time": None,
                "requests_throughput_over_time": None,
            }
            for entry in points["benchmarks"]
        ],
    }
    return json.dumps(found, indent=2)


def files(model: str, taken: str, points: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each format.

    :param taken: when it was measured, in ISO 8601 and UTC.
    """
    taken = datetime.fromisoformat(taken).strftime("%Y-%m-%d %H:%M:%SZ")
    table = markdown(model, points["benchmarks"])
    foot = f"{TOOL}\ndate: {taken} | latency mode: {points['latency_mode']}"
    return {
        "md": f"{table}\n\n{foot}\n",
        "csv": as_csv(model, points["benchmarks"]),
        "json": as_json(model, taken, points),
    }
