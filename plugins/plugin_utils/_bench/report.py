# SPDX-License-Identifier: Apache-2.0
"""Results on disk, and the two forms of the report: one HTML page that needs no network, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import compare, gates, intervals, points
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import FAILURES
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.svg import (
    Bar,
    Limit,
    Series,
    line_chart,
    number,
    timeline,
)

FORMAT = 1
SHOWN_REQUESTS = 32
SHOWN_RUNS = 40
NOTHING = "\N{EN DASH}"
TEMPLATES = Path(__file__).parent
LEGEND = (("queue", "waits for a slot"), ("prefill", "prefill"), ("decode", "decode"), ("failed", "failed"))


def now_stamp() -> tuple[str, str]:
    """Return the time as it stands in a run's name, and as it is shown."""
    now = datetime.now(UTC)
    return now.strftime("%Y%m%dT%H%M%SZ"), now.isoformat(timespec="seconds")


def load_runs(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the results in a folder, the oldest first, and a sentence for each file that holds none."""
    found, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["format"] != FORMAT:
                problems.append(f"{path} has format {run['format']}, not {FORMAT}: left out of the history.")
                continue
            _unused = (run["run"], run["taken"], run["fingerprint"]["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path} holds no results ({error}): left out of the history.")
            continue
        found.append(run)
    return sorted(found, key=lambda run: str(run["taken"])), problems


# --- plots ----------------------------------------------------------------------------------------


#: Charts over concurrency: title, unit, and by its name the place of each line in a point's figures.
CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Decode, all requests together",
        "tokens/s",
        {"decode": "decode_tokens_per_s", "output by wall time": "output_tokens_per_s"},
    ),
    (
        "Decode of one request",
        "tokens/s",
        {"median": "request_decode_tokens_per_s.p50", "slowest": "request_decode_tokens_per_s.min"},
    ),
    (
        "Time to the first token",
        "s",
        {"median": "ttft_s.p50", "p90": "ttft_s.p90", "p99": "ttft_s.p99", "prefill alone": "prefill_s.p50"},
    ),
    (
        "Prefill",
        "tokens/s",
        {"while under way": "prefill_tokens_per_s", "waiting counted in": "prefill_with_queue_tokens_per_s"},
    ),
    ("Between chunks", "s", {"median": "gap_s.p50", "p99": "gap_s.p99"}),
)


def sweep_plots(sweep: Mapping[str, Any], ceiling: Mapping[str, Any] | None) -> list[str]:
    """Return the charts over concurrency; the ceiling of one sequence is drawn into the one of a request."""
    points = sweep["points"]
    labels = [str(point["concurrency"]) for point in points]
    limit = [Limit("ceiling of one sequence", float(ceiling["value"]))] if ceiling else []
    found = []
    for title, unit, lines in CHARTS:
        series = [Series(name, [compare.place(point, at.split(".")) for point in points]) for name, at in lines.items()]
        limits = limit if title == "Decode of one request" else []
        found.append(line_chart(title, labels, series, x_name="requests at once", y_name=unit, limits=limits))
    return found


def request_bars(point: Mapping[str, Any]) -> str:
    """Return the timeline of a concurrency's requests, those of its first round."""
    rows = [row for row in point["per_request"] if row["round"] == 1]
    bars = []
    for row in rows[:SHOWN_REQUESTS]:
        begin, ttft, queue = row["sent_s"], row["ttft_s"], row["queue_s"] or 0.0
        end = begin + row["duration_s"]
        if row["failure"]:
            parts = [("failed", begin, end)]
        else:
            parts = [("prefill", begin + queue, begin + ttft), ("decode", begin + ttft, end)]
            parts = [("queue", begin, begin + queue), *parts] if queue else parts
        bars.append(Bar(f"request {row['request']}", parts, row["failure"]))
    more = f", the first {SHOWN_REQUESTS}" if len(rows) > SHOWN_REQUESTS else ""
    return timeline(f"{point['concurrency']} requests at once{more}", bars, LEGEND, x_name="s after the start")


def history_plot(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the chart of decode rates over runs of one shape; each label ends with the fingerprint's first digits."""
    shown = runs[-SHOWN_RUNS:]
    counts = sorted({point["concurrency"] for run in shown for point in run["sweep"]["points"]})
    rates = [{point["concurrency"]: point["decode_tokens_per_s"] for point in run["sweep"]["points"]} for run in shown]
    series = [Series(f"N={count}", [of_run.get(count) for of_run in rates]) for count in counts]
    labels = [f"{run['taken'][5:10]} {run['fingerprint']['digest'][:4]}" for run in shown]
    return line_chart(
        "Decode, all requests together, over runs", labels, series, x_name="run and fingerprint", y_name="tokens/s"
    )


def history(runs: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs of this one's shape up to it, what changed from one to the next, and their plot."""
    shape = (result.get("sweep") or {}).get("shape")
    same = [
        run for run in runs if shape and (run.get("sweep") or {}).get("shape") == shape and run["run"] != result["run"]
    ]
    same = [*same, result] if shape else []
    rows = []
    for before, run in zip([None, *same], same, strict=False):
        changed = compare.changed_between(before["fingerprint"], run["fingerprint"]) if before else []
        best = max((point["decode_tokens_per_s"] or 0 for point in run["sweep"]["points"]), default=0)
        about = {"run": run["run"], "taken": run["taken"], "digest": run["fingerprint"]["digest"]}
        rows.append({**about, "changed": changed, "best": best})
    return {"rows": rows[-SHOWN_RUNS:], "plot": history_plot(same) if len(same) > 1 else ""}


# --- words ----------------------------------------------------------------------------------------


def client_sentence(result: Mapping[str, Any]) -> str:
    """Return the sentence on how much of the figures the client itself adds."""
    overhead = result["client"]["overhead"]
    if not overhead:
        return "The client overhead was not measured in this run (bench_client_overhead is false)."
    worst = max(overhead, key=lambda row: row["ttft_share_s"]["p50"])
    slowest = min(overhead, key=lambda row: row["chunks_per_s"])
    lag_ms = max(row["token_lag_s"]["p50"] for row in overhead) * 1000
    sentence = (
        "Against a local server that does no work, at up to "
        f"{max(row['concurrency'] for row in overhead)} requests at once, this client adds a median of at most "
        f"{worst['ttft_share_s']['p50'] * 1000:.1f} ms to a first token (at {worst['concurrency']}), sees a token "
        f"{lag_ms:.1f} ms after it was sent, and takes {slowest['chunks_per_s']:.0f} chunks/s or more. "
        "The connection and that server are in these figures too."
    )
    points = (result.get("sweep") or {}).get("points") or []
    rates = [point["output_tokens_per_s"] or 0 for point in points]
    if rates and max(rates) > 0:
        sentence += (
            f" The endpoint gave at most {max(rates):.1f} tokens/s, {max(rates) / slowest['chunks_per_s']:.1%} of that."
        )
    return sentence


def judged_by(result: Mapping[str, Any]) -> list[str]:
    """Return the names of the runs or figures that decide whether this run is worse."""
    return [str(each["with"]) for each in result["comparisons"] if each["rows"] and each["judged"]]


def verdict(result: Mapping[str, Any], regression_share: float) -> str:
    """Return the sentence for a run in which nothing is worse: what it was compared with, or why with nothing."""
    judged = judged_by(result)
    if judged:
        return f"No regression of more than {regression_share:.0%} against {' and '.join(judged)}."
    reasons = [str(each["reason"]) for each in result["comparisons"] if each["judged"] and each["reason"]]
    return f"No baseline{': ' if reasons else ''}{'; '.join(reasons)}."


def figure(value: float | None) -> str:
    """Return a number for a table."""
    return NOTHING if value is None else number(value)


def percent(value: float | None, signed: bool = False) -> str:
    """Return a share for a table."""
    if value is None:
        return NOTHING
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def of(values: Mapping[str, Any] | None, name: str) -> float | None:
    """Return one figure of a summary that may be missing."""
    return None if values is None else values.get(name)


def spread(value: intervals.Interval | None) -> str:
    """Return a mean and the half width of its interval, for a table."""
    if value is None:
        return NOTHING
    return number(value.mean) if value.half is None else f"{number(value.mean)} ± {number(value.half)}"


def decode_interval(point: Mapping[str, Any]) -> intervals.Interval | None:
    """Return the interval of a concurrency's decode rate over its rounds."""
    return intervals.interval(point.get("decode_by_round") or [])


def cell(text: Any) -> str:
    """Return a text that does not break a row of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters.update(figure=figure, percent=percent, of=of, cell=cell, spread=spread, decode_interval=decode_interval)
    return env


def render(result: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], regression_share: float) -> tuple[str, str]:
    """Return the report of a run as (HTML, Markdown); ``runs`` are the earlier ones, the oldest first."""
    sweep, measured, judged = result.get("sweep"), result.get("points"), result.get("gates") or []
    rounds = int(sweep.get("rounds", 1)) if sweep else 1
    swept = sweep["points"] if sweep else []
    rows = [row for point in swept for row in point["per_request"]]
    context: dict[str, Any] = {
        "result": result,
        "sweep": sweep,
        "plots": sweep_plots(sweep, result["decode_ceiling"]) if sweep else [],
        "bars": [request_bars(point) for point in swept],
        "history": history(runs, result),
        "verdict": verdict(result, regression_share),
        "judged": bool(judged_by(result)),
        "client_sentence": client_sentence(result),
        "failure_words": FAILURES,
        "failed": [row for row in rows if row["failure"]],
        "notes": sorted(
            {
                *(note for row in rows for note in row["notes"]),
                *(warning for point in swept for warning in point["warnings"]),
                *(point["queue_problem"] for point in swept if point["queue_problem"]),
            }
        ),
        "measured": measured,
        "points": points.report_rows(measured["benchmarks"]) if measured else [],
        "repeats": intervals.sentence(measured["runs"]) if measured else "",
        "rounds": rounds,
        "repeats_of_sweep": intervals.sentence(rounds),
        "gates": judged,
        "gate_failures": gates.failures(judged),
        "regression_share": regression_share,
        "fingerprint_rows": [
            (key, compare.canonical(value)) for key, value in result["fingerprint"].items() if key != "model_spec"
        ],
        "spec": json.dumps(result["fingerprint"]["model_spec"], indent=2, sort_keys=True, default=str),
    }
    env = _environment()
    html, words = (env.get_template(f"bench_report.{kind}.j2").render(context) for kind in ("html", "md"))
    return html, words
