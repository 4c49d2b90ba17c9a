# SPDX-License-Identifier: Apache-2.0
"""Check the engine once from its head node, and report a change of its state.

Started by gb10-watch.timer, and by gb10-watch.path after an end that nobody requested.  It reads this node's rank and
asks the API as the collection's health_probe does (the same code decides), records the state, and for a change writes
one line of JSON, one line to the journal, and runs the hook.
Standard library only.  The API's key is read from the engine's own root-only file, and is never written or shown.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record as records
from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import PENDING
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import Wanted, probe_api
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import ProbeClient, probe_front
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import LogLimits, RankReader, rank_names

#: Priorities of the journal, as systemd reads them from the beginning of a line.
NOTICE, WARNING = "<5>", "<4>"


class CheckTooLongError(BaseException):
    """The check did not end in time; not an Exception, so that no handler on the way catches it."""


def unit_runs(unit: str) -> bool:
    """Return whether a unit of this node is active, or about to be."""
    return bool(unit) and run(["systemctl", "is-active", "--quiet", unit])[0] == 0


def served(record: Mapping[str, Any], swap: Mapping[str, Any], unit_runs: Callable[[str], bool]) -> Mapping[str, Any]:
    """Return the record of the model that is served, or that a swap starts in its place.

    :param swap: the description of a swap, empty when there is none.
    """
    coming = swap.get("after") or {}
    if swap.get("state") != PENDING or not coming.get("model") or unit_runs(str(record.get("unit", ""))):
        return record
    return coming


def check(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return model, state, summary and diagnosis of what the record says is served, or of what replaces it."""
    active, record = record, served(record, files.read_json(Path(config["swap"])), unit_runs)
    members = [str(each) for each in record.get("members", [])]
    if not record.get("model") or not members:
        return {"model": "", "state": probe.ABSENT, "summary": "Nothing is to be served.", "diagnosis": []}
    model = str(record["model"])
    api_key = records.api_key(Path(config["engine_dir"]) / "active.json", model)
    names = rank_names({**record, "name": model, "node": members[0]}, members[0])
    rank = RankReader(run, names, LogLimits(shown_lines=0)).report()
    url = f"http://127.0.0.1:{record.get('api_port', 8000)}"
    client = ProbeClient(url, api_key=api_key, silence_seconds=float(config["silence_seconds"]))
    wanted = Wanted(
        served_name=str(record.get("served_name", "")),
        pooling=record.get("runner") == "pooling",
        canary=bool(config["canary"]),
        canary_tokens=int(config["canary_tokens"]),
        metrics=False,
    )
    # With the rank down a completion would wait in vain.
    api = probe_api(client, url, wanted, canaries=rank["state"] == probe.RUNNING)
    if api["health"] == 200 and record.get("proxy_port"):
        api["front"] = probe_front(int(record["api_port"]), int(record["proxy_port"]))
    expected = {"served_name": wanted.served_name, "canary": wanted.canary}
    state = probe.merge([rank], api, head=members[0], expected=expected)
    # Between the end of one engine and the start of the other.
    swaps = state.state == probe.ABSENT and record is not active
    return {
        "model": model,
        "state": probe.STARTING if swaps else state.state,
        "summary": f"In place of {active.get('model') or 'nothing'}." if swaps else state.summary,
        "diagnosis": [{"name": each.name, "cause": each.cause, "remedy": each.remedy} for each in state.diagnosis],
    }


def in_time(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Check, but not longer than is allowed: what answers so slowly is wedged."""

    def end(_signal: int, _frame: object) -> None:
        raise CheckTooLongError

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, float(config["check_seconds"]))
    try:
        return check(config, record)
    except CheckTooLongError:
        said = (
            f"The check did not end within {config['check_seconds']} s: the engine, or this node, answers too slowly."
        )
        cause = {"name": "check_too_long", "cause": said, "remedy": "Look at the node's load, and at the engine's log."}
        return {"model": str(record.get("model", "")), "state": probe.WEDGED, "summary": said, "diagnosis": [cause]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def append(path: Path, entry: Mapping[str, Any], max_bytes: int, keep: int) -> None:
    """Append one line; a file that has become too long is rotated first, and the oldest one is dropped."""
    if path.exists() and path.stat().st_size >= max_bytes:
        for number in range(keep - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
    line = (json.dumps(entry, sort_keys=True) + "\n").encode()
    with path.open("ab") as stream:
        # A line that a power cut left without its end must not swallow the next one.
        if stream.tell():
            with path.open("rb") as there:
                there.seek(-1, os.SEEK_END)
                line = line if there.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def run_hook(hook: Sequence[str], entry: Mapping[str, Any], timeout_seconds: float) -> str:
    """Run the hook with the transition in its environment and on its input; return what went wrong, or nothing."""
    if not hook:
        return ""
    variables = {f"GB10_{name.upper()}": str(entry[name]) for name in ("state", "before", "model", "summary", "time")}
    try:
        done = subprocess.run(
            list(hook),
            check=False,
            input=json.dumps(entry).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_seconds,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **variables},
        )
    except OSError as error:
        return f"{hook[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{hook[0]} did not end within {timeout_seconds:.0f} s and was killed"
    said = done.stderr.decode("utf-8", "replace").strip()
    return f"{hook[0]} ended with {done.returncode}: {said[-300:]}" if done.returncode else ""


def note(config: Mapping[str, Any], found: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """Record what was found; return the transition, empty when it is none.

    The log is written before the state: a power cut in between may report a transition twice, but loses none.
    """
    directory = Path(config["state_dir"])
    before = files.read_json(directory / "state.json")
    entry: dict[str, Any] = {}
    # After a clock was set back, what is on record lies in the future.
    began = since = min(float(before.get("since", now_s)), now_s)
    if (before.get("state"), before.get("model")) != (found["state"], found["model"]):
        since = now_s
        entry = {
            "time": now_s,
            "before": str(before.get("state", "")),
            "before_model": str(before.get("model", "")),
            "before_seconds": round(now_s - began, 1),
            **found,
        }
        append(directory / "transitions.jsonl", entry, int(config["log_max_bytes"]), int(config["log_keep"]))
    # Without a record of ends, the first one to come is new.
    known = float(files.read_json(Path(config["failures"])).get("epoch_s") or 0.0)
    state = {"ended": known, **found, "since": since, "looked": now_s}
    files.write_json(directory / "state.json", state)
    return entry


def ended(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be reported of an end that nobody requested since the check before; empty without one.

    The engine may run again by now, or be about to: its unit's own record (``_engine.stopped``) says that it ended, and
    which rank ended first.
    """
    failure = files.read_json(Path(config["failures"]))
    before = files.read_json(Path(config["state_dir"]) / "state.json")
    when = float(failure.get("epoch_s") or 0.0)
    if not before or before.get("ended", when) == when or failure.get("model") != record.get("model"):
        return {}
    reason = str(failure.get("reason", ""))
    # The record is the head's own: a reason that names no member is that of the head's rank.
    members = [str(member) for member in record.get("members") or ()]
    named = set(members).intersection(word.rstrip(".") for word in re.findall(r"[\w.-]+", reason))
    head = f" on {members[0]}, rank 0" if members and not named else ""
    cause = {"name": "ended", "cause": reason, "remedy": f"The end of its log is in {config['failures']}."}
    return {
        "model": str(failure["model"]),
        "state": probe.DEAD,
        "summary": f"The engine ended{head}: {reason}",
        "diagnosis": [cause],
        "ended": when,
    }


def note_end(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Record an end that nobody requested; return the transition, empty when there is none."""
    found = ended(config, record)
    return note(config, found, round(time.time(), 3)) if found else {}


def report(config: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Write a transition to the journal and run the hook; an empty one is none."""
    if not entry:
        return
    level = NOTICE if entry["state"] in (probe.READY, probe.STARTING, probe.ABSENT) else WARNING
    name = entry["model"] or entry["before_model"] or "the engine"
    was = f", was {entry['before']} for {entry['before_seconds']:.0f} s" if entry["before"] else ""
    print(f"{level}{name} is {entry['state']}{was}. {entry['summary']}", flush=True)
    problem = run_hook(config["hook"], entry, float(config["hook_seconds"]))
    if problem:
        print(f"{WARNING}hook: {problem}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Check once, unless another check is running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="JSON file written by the role watch")
    config = files.read_json(parser.parse_args(argv).config)
    directory = Path(config["state_dir"])
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another check is running", flush=True)
            return
        record = files.read_json(Path(config["record"]))
        found: dict[str, Any] = {}
        while not found:
            # On record already, while a check takes seconds.
            report(config, note_end(config, record))
            found = in_time(config, record)
            if ended(config, record):
                found = {}  # It ended during the check.
        report(config, note(config, found, round(time.time(), 3)))
