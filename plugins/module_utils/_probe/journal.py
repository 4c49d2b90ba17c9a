# SPDX-License-Identifier: Apache-2.0
"""The journals of several nodes merged by time; pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed, shaped
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import clean

#: What is read of a node's entries (`parse_entries`).
_ENTRIES = [{"time_us": 0, "unit": "", "text": ""}]
#: Digits of an instant in microseconds of the epoch, up to the year 2286.
_STAMP_DIGITS = 16


def entries_of(lines: Iterable[str]) -> Iterator[tuple[dict[str, Any], int, str]]:
    """Yield (entry, microseconds of the epoch or 0, message) of what ``journalctl --output=json`` printed.

    A line that is not complete JSON is left out: the journal may be written while it is read.
    """
    for line in lines:
        entry = parsed(line)
        if not isinstance(entry, dict):
            continue
        stamp = str(entry.get("__REALTIME_TIMESTAMP", ""))
        usable = stamp.isascii() and stamp.isdigit() and len(stamp) <= _STAMP_DIGITS
        message = entry.get("MESSAGE") or ""
        if isinstance(message, list):
            # The journal gives bytes that it does not take for printable text as numbers.
            numbers = [each for each in message if isinstance(each, int) and 0 <= each <= 0xFF]
            message = bytes(numbers).decode("utf-8", "replace")
        yield entry, int(stamp) if usable else 0, str(message)


def parse_entries(output: str, *, newest_first: bool = False) -> list[dict[str, Any]]:
    """Return time (microseconds of the epoch), unit and text of what ``journalctl --output=json`` printed.

    ``newest_first`` is how journalctl prints when it is given both --grep and --lines; what is returned begins with the
    oldest in any case. A line without an instant is left out.
    """
    found = []
    lines = output.splitlines()
    for entry, time_us, message in entries_of(reversed(lines) if newest_first else lines):
        unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or "")
        if time_us:
            found += [{"time_us": time_us, "unit": unit, "text": clean(text)} for text in message.split("\n")]
    return found


def line_text(node: str, unit: str, time_us: int, text: str, node_width: int, unit_width: int) -> str:
    """Return one line: instant in UTC to the millisecond, node, unit without its suffix, text."""
    stamp = datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"{stamp} {node:<{node_width}} {unit.removesuffix('.service'):<{unit_width}} {text}".rstrip()


def merged(reports: Mapping[str, Any]) -> list[str]:
    """Return the entries of all nodes as lines, oldest first; those of one node keep their order."""
    node_width = max((len(node) for node in reports), default=0)
    streams = [
        [(each["time_us"], node, clean(each["unit"]), clean(each["text"])) for each in shaped(entries, _ENTRIES)]
        for node, entries in sorted(reports.items())
    ]
    units = {unit.removesuffix(".service") for stream in streams for _time_us, _node, unit, _text in stream}
    unit_width = max((len(unit) for unit in units), default=0)
    return [
        line_text(node, unit, time_us, text, node_width, unit_width)
        for time_us, node, unit, text in heapq.merge(*streams, key=lambda entry: entry[0])
    ]
