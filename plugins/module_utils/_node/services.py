# SPDX-License-Identifier: Apache-2.0
"""What a service needs, decided from the node alone: systemd's properties, its files, and what was noted at its start.

A run that is killed between writing a file and restarting the service leaves nothing to remember: the next run finds
the service older than the file, or started with another content, and decides the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What `systemctl show` is asked for.
PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "NeedDaemonReload",
    "InactiveExitTimestampMonotonic",
)
RUNNING = frozenset({"active", "activating", "reloading"})
STARTED, STOPPED, CURRENT = "started", "stopped", "current"


@dataclass(frozen=True)
class Files:
    """Files of one kind (read at the start alone, or again on a reload) as they are on the disk."""

    #: Path → SHA-256 of the content in hexadecimal; a file that does not exist has no entry.
    digests: Mapping[str, str] = field(default_factory=dict)
    #: When the newest one was written, in seconds of the epoch; 0 without any.
    newest_s: float = 0.0


def read_files(paths: Iterable[str]) -> Files:
    """Return the files' digests and the time of the newest one."""
    digests: dict[str, str] = {}
    newest_s = 0.0
    for path in paths:
        try:
            with Path(path).open("rb") as stream:
                digests[path] = hashlib.sha256(stream.read()).hexdigest()
                newest_s = max(newest_s, os.fstat(stream.fileno()).st_mtime)
        except FileNotFoundError:
            continue
    return Files(digests, newest_s)


def parse_show(text: str) -> list[dict[str, str]]:
    """Return the properties of each unit, in the order asked, from the output of ``systemctl show UNIT…``.

    ``loginctl show-session`` prints sessions in the same form.
    """
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in text.strip().split("\n\n")
        if block.strip()
    ]


def started_us(unit: Mapping[str, str]) -> int:
    """Return when the unit was last started, in µs of CLOCK_MONOTONIC; 0 when it never was."""
    return int(unit.get("InactiveExitTimestampMonotonic") or 0)


def note(unit: Mapping[str, str], restart: Files, reload: Files) -> dict[str, Any]:
    """Return what to note of a service that runs with these files: the start it is valid for, and the digests."""
    return {"started_us": started_us(unit), "restart": dict(restart.digests), "reload": dict(reload.digests)}


def _differs(files: Files, noted: Mapping[str, Any], kind: str, started_s: float) -> bool:
    """Return whether the service runs with other files: by digest where noted, else by time."""
    if isinstance(noted.get(kind), Mapping):
        return dict(noted[kind]) != dict(files.digests)
    return files.newest_s > started_s


def actions(
    unit: Mapping[str, str],
    wanted: str,
    restart: Files,
    reload: Files,
    noted: Mapping[str, Any],
    clock_offset_s: float,
) -> list[str]:
    """Return the verbs of systemctl that bring a unit into the wanted state, in order; none when it is there.

    :param unit: properties of the unit; see `PROPERTIES`.
    :param wanted: ``started`` (runs with the files of now, and after a boot), ``stopped`` (neither), or ``current``
        (if it runs, then with the files of now; whether it runs is somebody else's decision).
    :param noted: what `note` returned after the last action, or an empty mapping; it counts for the same start only.
    :param clock_offset_s: the wall clock minus CLOCK_MONOTONIC, in seconds.
    """
    loaded = unit.get("LoadState") != "not-found"
    runs = unit.get("ActiveState") in RUNNING
    enabled = unit.get("UnitFileState")
    if wanted == STOPPED:
        found = ["disable"] if loaded and enabled in ("enabled", "enabled-runtime") else []
        return [*found, "stop"] if runs else found
    found = ["enable"] if wanted == STARTED and (enabled == "disabled" or not loaded) else []
    if not runs:
        return [*found, "start"] if wanted == STARTED else []
    start_us = started_us(unit)
    valid = noted if noted.get("started_us") == start_us else {}
    started_s = clock_offset_s + start_us / 1e6
    if _differs(restart, valid, "restart", started_s):
        return [*found, "restart"]
    if _differs(reload, valid, "reload", started_s):
        return [*found, "reload"]
    return found
