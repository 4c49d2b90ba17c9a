# SPDX-License-Identifier: Apache-2.0
"""The engine units of a node: which there are, and how they are started, stopped, enabled and recorded.

Shared by modules and by the program that rolls a swap back (`_engine.guard`).  Standard library only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record as records
from ansible_collections.gb10.cluster.plugins.module_utils._engine.started import stale
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_systemctl_show

#: Runs a command without a shell; returns (exit status, standard output, standard error).
Run = Callable[[list[str]], tuple[int, str, str]]

MARK = "# Rendered by gb10.cluster"
PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload"


class UnitError(Exception):
    """systemd refused; the message has the unit and systemd's words."""


def model_of(unit: str) -> str:
    """Return the model of a unit `vllm-<model>.service`."""
    return unit.removeprefix("vllm-").removesuffix(".service")


def _synchronise(directory: Path) -> None:
    """Write a directory's entries to disk; `systemctl enable` leaves that to the kernel."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class EngineUnits:
    """The units that this collection rendered on a node, known by the mark in their first line; no others are touched.

    :param units_dir: where units are rendered.
    :param record_path: the active record.
    :param run_dir: where a start records what it found.
    """

    run: Run
    units_dir: Path = Path("/etc/systemd/system")
    record_path: Path = Path("/etc/gb10/engine/active.json")
    run_dir: Path = Path("/run/gb10/engine")

    def known(self) -> list[str]:
        found = []
        for path in sorted(self.units_dir.glob("vllm-*.service")):
            try:
                with path.open(encoding="utf-8") as handle:
                    if handle.readline().startswith(MARK):
                        found.append(path.name)
            except OSError:
                continue
        return found

    def show(self, unit: str) -> dict[str, Any]:
        """Return whether a unit is active (or about to be), enabled, and stale: running with older files.

        :raises UnitError: systemd does not answer: what is not known to have stopped must not count as stopped.
        """
        code, out, err = self.run(["systemctl", "show", unit, f"--property={PROPERTIES}"])
        if code != 0:
            raise UnitError(f"systemctl show {unit} failed: {err.strip()}")
        fields = parse_systemctl_show(out)
        noted = self.run_dir / f"{model_of(unit)}.started"
        return {
            "active": fields.get("ActiveState") in ("active", "activating", "reloading"),
            "state": fields.get("ActiveState", ""),
            "enabled": fields.get("UnitFileState") == "enabled",
            "stale": fields.get("NeedDaemonReload") == "yes"
            or stale(noted, self.units_dir / unit, self.record_path.parent),
        }

    def states(self) -> dict[str, dict[str, Any]]:
        """Return unit → `show` of every known unit.

        :raises UnitError: systemd does not answer.
        """
        return {unit: self.show(unit) for unit in self.known()}

    def reload(self) -> None:
        self.run(["systemctl", "daemon-reload"])

    def stop(self, unit: str) -> None:
        """Stop and disable a unit, and remove its container by its exact name and what its starts left.

        :raises UnitError: systemd refused.
        """
        code, _out, err = self.run(["systemctl", "disable", "--now", unit])
        if code != 0:
            raise UnitError(f"{unit} cannot be stopped: {err.strip()}")
        self._sync_wants()
        self.run(["systemctl", "reset-failed", unit])
        if shutil.which("docker"):
            self.run(["docker", "rm", "--force", unit.removesuffix(".service")])
        for suffix in ("env", "starts", "started"):
            (self.run_dir / f"{model_of(unit)}.{suffix}").unlink(missing_ok=True)
        shutil.rmtree(self.run_dir / f"{model_of(unit)}.progress", ignore_errors=True)

    def start(self, unit: str) -> None:
        """Start a unit without waiting for it; whether it starts at boot stays as it is.

        :raises UnitError: systemd refused.
        """
        self.run(["systemctl", "reset-failed", unit])
        self._must(["systemctl", "start", "--no-block", unit])

    def enable(self, unit: str) -> None:
        """Let a unit start at boot.

        :raises UnitError: systemd refused.
        """
        self._must(["systemctl", "enable", unit])
        self._sync_wants()

    def record(self) -> dict[str, Any]:
        """Return the active record; empty when nothing was verified here."""
        return files.read_json(self.record_path)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the active record and that of the last verified model; an empty one removes the active one alone.

        :raises OSError: as the operating system reports it.
        """
        if self.record() != record:
            records.write(self.record_path, dict(record))

    def serve_only(self, unit: str, record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Let one verified engine run and start at boot, no other, and record it.

        :param unit: the engine; an empty one stops all.
        :param record: what to write as the active record.
        :returns: (units that were stopped, units that were started, enabled or both).
        :raises UnitError: systemd refused, or the unit is not rendered here.
        """
        states = self.states()
        if unit and unit not in states:
            raise UnitError(f"{unit} is not rendered on this node; it takes no part in this model.")
        busy = [name for name, state in states.items() if is_busy(state)]
        stopped = [name for name in busy if name != unit]
        for name in stopped:
            self.stop(name)
        changed = []
        if unit:
            if not states[unit]["enabled"]:
                self.enable(unit)
                changed = [unit]
            if not states[unit]["active"]:
                self.start(unit)
                changed = [unit]
        self.write_record(record)
        return stopped, changed

    def _must(self, command: list[str]) -> None:
        code, _out, err = self.run(command)
        if code != 0:
            raise UnitError(f"{' '.join(command)} failed: {err.strip()}")

    def _sync_wants(self) -> None:
        _synchronise(self.units_dir / "multi-user.target.wants")


def is_busy(state: Mapping[str, Any]) -> bool:
    """Return whether a unit (`EngineUnits.show`) runs, would start at boot, or has failed.

    One whose engine is just ending counts: systemd restarts it unless it is stopped.
    """
    return bool(state["enabled"] or state["state"] not in ("", "inactive"))
