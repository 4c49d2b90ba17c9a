# SPDX-License-Identifier: Apache-2.0
"""One screen, or one document, of what a cluster serves and how well; pure.

Its input is what `node_status` reports for each node; a node without a report is named, not left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine.record import RECORD
from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import (
    PENDING,
    pending_sentence,
    rolled_back_sentence,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node import lease
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.front import open_sentence
from ansible_collections.gb10.cluster.plugins.module_utils._probe.states import API, RANK

#: What asks for JSON on the terminal; anything else that is not empty is a path.
PRINTED = ("-", "true", "yes", "1")
#: The state as long as the head does not answer, beside those of the probe.
UNKNOWN = "unknown"

#: What is read of `node_status`.
_LOAD = ("running", "waiting", "kv_cache_percent", "generated_tokens_per_s", "prompt_tokens_per_s")
NODE: dict[str, Any] = {
    "rank": (RANK,),
    "api": ({**API, "canary_wanted": True},),
    "units": [""],
    "record": (RECORD,),
    "coming": ({"model": "", "served_name": "", "rank": 0, "nodes": 0},),
    "leases": [lease.HOLDER],
    "load": ({**dict.fromkeys(_LOAD, float), "window_s": 0.0},),
    **dict.fromkeys(("mem_available_gib", "mem_total_gib", "mem_floor_gib"), float),
    "last_failure": ({"time": None, "unit": "", "reason": ""},),
    "swap": ({"state": "", "before": "", "after": "", "stall_seconds": 0.0},),
    "rolled_back": ({"time": "", "before": "", "after": "", "why": "", "epoch_s": None},),
    "watch": ({"state": "unknown", "since": None, "looked": None},),
}

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def rate(before: Mapping[str, float], after: Mapping[str, float], name: str, seconds: float) -> float | None:
    """Return by how much a counter grew per second; None when it was not read twice, or was reset in between."""
    if name not in before or name not in after or seconds <= 0 or after[name] < before[name]:
        return None
    return round((after[name] - before[name]) / seconds, 1)


def load_of(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float | None]:
    """Return what an engine is doing, from two looks at its /metrics ``seconds`` apart."""
    kv = after.get("kv_cache_usage_perc")
    return {
        "running": after.get("num_requests_running"),
        "waiting": after.get("num_requests_waiting"),
        "kv_cache_percent": None if kv is None else round(kv * 100, 1),
        "generated_tokens_per_s": rate(before, after, "generation_tokens_total", seconds),
        "prompt_tokens_per_s": rate(before, after, "prompt_tokens_total", seconds),
        "preemptions": after.get("num_preemptions_total"),
        "window_s": round(seconds, 1),
    }


def since_text(seconds: float) -> str:
    """Return a duration in its two largest units."""
    total = max(0, int(seconds))
    if total < _MINUTE_S:
        return f"{total} s"
    if total < _HOUR_S:
        return f"{total // _MINUTE_S} min"
    if total < _DAY_S:
        return f"{total // _HOUR_S} h {total % _HOUR_S // _MINUTE_S} min"
    return f"{total // _DAY_S} d {total % _DAY_S // _HOUR_S} h"


def time_text(epoch_s: float) -> str:
    """Return an instant in UTC, to the second."""
    try:
        return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "an instant beyond the calendar"


def instant(value: object) -> float:
    """Return seconds of the epoch from such seconds or from ISO 8601; 0.0 for anything else."""
    if isinstance(value, bool):
        return 0.0
    if isinstance(value, (int, float)):
        return float(shaped(value, 0.0))
    try:
        found = datetime.fromisoformat(str(value))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


#: How `_engine.group` begins the sentence of a rank that ends because another did, and how soon after it.
WITH_OTHERS = "restarting with the others"
TOGETHER_S = 120.0


def last_failure(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the newest recorded failure of all nodes, with the node's name; None when there is none."""
    found: list[dict[str, Any]] = [
        {
            "node": node,
            "time": instant(each["last_failure"].get("time")),
            "unit": str(each["last_failure"].get("unit", "")),
            "reason": str(each["last_failure"].get("reason", "")),
        }
        for node, each in reports.items()
        if each.get("last_failure")
    ]
    if not found:
        return None
    newest_s = max(each["time"] for each in found)
    # The rank that failed and those that ended with it record a reason each, seconds apart: the first kind explains.
    together = [each for each in found if newest_s - each["time"] < TOGETHER_S]
    causes = [each for each in together if not each["reason"].startswith(WITH_OTHERS)]
    return max(causes or found, key=lambda each: each["time"])


def swap_lines(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what there is to say of a swap that is not committed, or that the nodes rolled back; mostly nothing."""
    pending = [each["swap"] for each in reports.values() if (each.get("swap") or {}).get("state") == PENDING]
    if pending:
        return [pending_sentence(pending[0])]
    lines = []
    coming = sorted({str(each["coming"]["model"]) for each in reports.values() if each.get("coming")})
    if coming:
        lines.append(
            f"{', '.join(coming)} is not verified and does not start at boot; playbooks/serve.yml -e model={coming[0]} "
            "verifies it."
        )
    notes = [each["rolled_back"] for each in reports.values() if each.get("rolled_back")]
    if notes:
        lines.append(rolled_back_sentence(max(notes, key=lambda each: instant(each.get("epoch_s")))))
    return lines


def _node(name: str, found: Mapping[str, Any] | None, problem: str, members: Sequence[str]) -> dict[str, Any]:
    rank = members.index(name) if name in members else None
    if found is None:
        return {"node": name, "rank": rank, "state": probe.UNREACHABLE, "problem": " ".join(problem.split())}
    report = found.get("rank") or {}
    unit = report.get("unit") or {}
    others = [each for each in found.get("units", []) if each != unit.get("name")]
    return {
        "node": name,
        "rank": rank,
        "state": str(report.get("state") or ("idle" if rank is None else probe.ABSENT)),
        "unit": str(unit.get("name", "")),
        "seconds": float(unit.get("seconds", 0.0)),
        "restarts": int(unit.get("restarts", 0)),
        "mem_available_gib": found.get("mem_available_gib"),
        "mem_total_gib": found.get("mem_total_gib"),
        "mem_floor_gib": found.get("mem_floor_gib"),
        "other_units": others,
    }


def _coming(nodes: Sequence[str], reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a record of the model that is being started in place of the recorded one; empty when there is none.

    Its ``members`` are in the order of their ranks, with an empty name where a rank is not started yet.
    """
    found = {name: reports[name].get("coming") or {} for name in nodes if name in reports}
    started = {name: each for name, each in found.items() if each}
    if not started:
        return {}
    # During a second swap a node may lag behind: the model that most nodes start is the coming one.
    names = [str(each["model"]) for each in started.values()]
    model = max(dict.fromkeys(names), key=names.count)
    # A rank that this inventory has no node for is none.
    by_rank = {
        int(each["rank"]): name
        for name, each in started.items()
        if each["model"] == model and 0 <= each["rank"] < len(nodes)
    }
    if not by_rank:
        return {}
    first = started[next(iter(by_rank.values()))]
    size = max(min(int(first["nodes"]), len(nodes)), max(by_rank) + 1)
    return {**first, "members": [by_rank.get(rank, "") for rank in range(size)]}


def document(
    nodes: Sequence[str],
    head: str,
    reports: Mapping[str, Mapping[str, Any]],
    problems: Mapping[str, str],
    now_s: float,
) -> dict[str, Any]:
    """Return everything that is known of the cluster, as plain data.

    nodes: all members of the inventory, in order; reports: by node that answered; problems: why the
    others did not; now_s: seconds since the epoch.
    """
    reports = {name: shaped(each, NODE) for name, each in reports.items()}
    for name, each in reports.items():
        if each["rank"]:
            each["rank"]["node"] = name
    # The head's record is the one that counts; with the head gone, any member's.
    records = [reports[name].get("record") or {} for name in [head, *nodes] if name in reports]
    recorded: Mapping[str, Any] = next((each for each in records if each), {})
    record = _coming(nodes, reports) or recorded
    members = [str(each) for each in record.get("members", [])]
    serving_head = members[0] if members else head  # empty while a coming model's rank 0 is not there yet
    entries = [_node(name, reports.get(name), problems.get(name, "no report"), members) for name in nodes]
    api = (reports.get(serving_head) or {}).get("api") or {}
    load = (reports.get(serving_head) or {}).get("load") or {}
    result: dict[str, Any] = {
        "time": now_s,
        "model": str(record.get("model", "")),
        "served_name": str(record.get("served_name", "")),
        "state": probe.ABSENT,
        "summary": "Nothing is served.",
        "replaces": {},
        "since": None,
        "nodes": entries,
        "unreachable": [name for name in nodes if name not in reports],
        "load": load,
        "diagnosis": [],
        "last_failure": last_failure(reports),
        "swap": swap_lines(reports),
        "watch": (reports.get(serving_head) or {}).get("watch") or None,
        "leases": (reports.get(head) or {}).get("leases") or [],
        "open": open_sentence(api.get("front") or {}, serving_head),
    }
    if recorded and record is not recorded:
        result["replaces"] = {key: str(recorded.get(key, "")) for key in ("model", "served_name")}
    if not members:
        if result["unreachable"]:
            result["summary"] = "No node that answers has a record of what is served."
        return result
    if not serving_head:
        result.update(state=probe.STARTING, summary="Starting: rank 0 is not started yet.")
        return result
    if serving_head not in reports:
        why = " ".join(problems.get(serving_head, "no report").split())
        result.update(state=UNKNOWN, summary=f"{serving_head}, which serves the API, does not answer: {why}")
        return result
    ranks = [
        reports[name].get("rank") or {"node": name, "state": probe.ABSENT}
        if name in reports
        else probe.unreachable_rank(name, problems.get(name, "no report"))
        for name in filter(None, members)
    ]
    asked = bool(api.get("canary_wanted", True))
    expected = {"served_name": result["served_name"], "canary": asked}
    merged = probe.merge(ranks, api, head=serving_head, expected=expected)
    head_report = next(each for each in ranks if each.get("node") == serving_head)
    log, unit = head_report.get("log") or {}, head_report.get("unit") or {}
    if merged.state == probe.READY and log.get("phase") == "ready" and log.get("phase_time_s"):
        result["since"] = float(log["phase_time_s"])
    elif unit.get("seconds"):
        result["since"] = now_s - float(unit["seconds"])
    known = [each for each in members if each]
    waiting = f" {len(known)} of {len(members)} ranks are started." if len(known) < len(members) else ""
    result.update(
        state=merged.state,
        summary=merged.summary + waiting,
        progress=merged.progress,
        diagnosis=[
            {"node": each.node, "name": each.name, "cause": each.cause, "remedy": each.remedy, "line": each.line}
            for each in merged.diagnosis
        ],
    )
    return result


def _figure(value: Any, form: str = "{:.1f}") -> str:
    return "-" if value is None else form.format(float(value))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def screen(found: Mapping[str, Any]) -> list[str]:
    """Return the document as lines for a person."""
    now_s = float(found["time"])
    lines = []
    if found["model"]:
        since = found.get("since")
        for_long = f" since {time_text(since)} ({since_text(now_s - since)})" if since else ""
        lines.append(f"{found['served_name']} ({found['model']}): {found['state']}{for_long}")
        replaced = found.get("replaces") or {}
        if replaced:
            lines.append(f"in place of {replaced['served_name']} ({replaced['model']}), which is stopped")
    else:
        lines.append(str(found["summary"]))
    rows = [["RANK", "NODE", "STATE", "FOR", "RESTARTS", "AVAILABLE", "TOTAL", "START FLOOR GiB"]]
    notes = []
    for each in found["nodes"]:
        rank = "-" if each["rank"] is None else str(each["rank"])
        if "problem" in each:
            rows.append([rank, each["node"], each["state"], "-", "-", "-", "-", "-"])
            notes.append(f"{each['node']} does not answer: {each['problem']}")
            continue
        rows.append(
            [
                rank,
                each["node"],
                each["state"],
                since_text(each["seconds"]) if each["seconds"] else "-",
                str(each["restarts"]) if each["unit"] else "-",
                _figure(each["mem_available_gib"]),
                _figure(each["mem_total_gib"]),
                _figure(each["mem_floor_gib"]),
            ]
        )
        available, floor = each["mem_available_gib"], each["mem_floor_gib"]
        if available is not None and floor is not None and available < floor:
            notes.append(
                f"{each['node']} has {available:.1f} GiB available, {floor - available:.1f} below its start floor."
            )
        notes += [f"{each['node']} also runs {unit}" for unit in each["other_units"]]
    lines += ["", *_table(rows)]
    load = found.get("load") or {}
    if load:
        generated, read = _figure(load["generated_tokens_per_s"]), _figure(load["prompt_tokens_per_s"])
        lines += [
            "",
            f"requests {_figure(load['running'], '{:.0f}')} running, {_figure(load['waiting'], '{:.0f}')} waiting"
            f"   KV cache {_figure(load['kv_cache_percent'])} %"
            f"   tokens/s {generated} generated, {read} read (over {load['window_s']:.0f} s)",
        ]
    if found["model"]:
        lines += ["", str(found["summary"])]
    lines += [str(found["open"])] if found.get("open") else []
    lines += notes
    lines += [lease.sentence(each) for each in found.get("leases") or []]
    lines += found.get("swap") or []
    watch = found.get("watch")
    if watch:
        looked = instant(watch.get("looked"))
        ago = f", last look {since_text(now_s - looked)} ago" if looked else ""
        lines.append(f"watch: {watch.get('state', 'unknown')} since {time_text(instant(watch.get('since')))}{ago}")
    failure = found.get("last_failure")
    if failure:
        lines.append(
            f"last failure: {time_text(failure['time'])} on {failure['node']}, {failure['unit']}: {failure['reason']}"
        )
    return lines
