# SPDX-License-Identifier: Apache-2.0
"""The journals of several nodes merged by time; pure."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import clean


def parse_entries(output: str, *, newest_first: bool = False) -> list[dict[str, Any]]:
    """Return time (microseconds of the epoch), unit and text of what ``journalctl --output=json`` printed.

    A line that is not complete JSON is left out: the journal may be written while it is read. ``newest_first`` is how
    journalctl prints when it is given both --grep and --lines; what is returned begins with the oldest in any case.
    """
    found = []
    lines = output.splitlines()
    for line in reversed(lines) if newest_first else lines:
        try:
            entry = json.loads(line)
            time_us = int(entry["__REALTIME_TIMESTAMP"])
        except (ValueError, KeyError, TypeError):
            continue
        message = entry.get("MESSAGE") or ""
        if isinstance(message, list):
            # The journal gives bytes that it does not take for printable text as numbers.
            message = bytes(each for each in message if isinstance(each, int)).decode("utf-8", "replace")
        unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or "")
        found += [{"time_us": time_us, "unit": unit, "text": clean(text)} for text in str(message).split("\n")]
    return found


def line_text(node: str, unit: str, time_us: int, text: str, node_width: int, unit_width: int) -> str:
    """Return one line: instant in UTC to the millisecond, node, unit without its suffix, text."""
    stamp = datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{stamp} {node:<{node_width}} {unit.removesuffix('.service'):<{unit_width}} {text}".rstrip()


def merged(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the entries of all nodes as lines, oldest first; those of one node keep their order."""
    node_width = max((len(node) for node in reports), default=0)
    units = {str(each["unit"]).removesuffix(".service") for entries in reports.values() for each in entries}
    unit_width = max((len(unit) for unit in units), default=0)
    streams = (
        [(int(each["time_us"]), place, node, each) for place, each in enumerate(entries)]
        for node, entries in sorted(reports.items())
    )
    return [
        line_text(node, str(each["unit"]), time_us, str(each["text"]), node_width, unit_width)
        for time_us, _place, node, each in heapq.merge(*streams, key=lambda entry: entry[0])
    ]
