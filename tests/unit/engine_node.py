# SPDX-License-Identifier: Apache-2.0
"""A node with two engine units, for tests: answers as systemctl and docker do, and notes what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import Swap
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import EngineUnits

A, B, FOREIGN = "vllm-a.service", "vllm-b.service", "vllm-foreign.service"


class Node:
    """Units in a directory, their states, and the commands that were run; model a serves."""

    def __init__(self, folder: Path) -> None:
        """Render the units."""
        self.folder = folder
        self.active = {A: "active", B: "inactive", FOREIGN: "active"}
        self.enabled = {A}
        self.reload_needed = "no"
        self.asked: list[str] = []
        #: How often systemd does not answer in its own time when it is asked for a unit.
        self.silences = 0
        #: A command that is refused, and systemd's words.
        self.refused = ("", "")
        for unit in (A, B):
            (folder / unit).write_text("# Rendered by gb10.cluster: model\n", encoding="utf-8")
        (folder / FOREIGN).write_text("[Unit]\n", encoding="utf-8")

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command as systemctl does."""
        if command[1] == "show" and self.silences:
            self.silences -= 1
            return 1, "", "Failed to get properties: Connection timed out\n"
        if command[1] == "show":
            unit = command[2]
            state = "enabled" if unit in self.enabled else "disabled"
            text = f"ActiveState={self.active[unit]}\nUnitFileState={state}\nNeedDaemonReload={self.reload_needed}\n"
            return 0, text, ""
        self.asked.append(" ".join(command))
        if self.refused[0] == self.asked[-1]:
            return 1, "", self.refused[1]
        if command[1:3] == ["disable", "--now"]:
            self.active[command[3]] = "inactive"
            self.enabled.discard(command[3])
        elif command[1] == "enable":
            self.enabled.add(command[-1])
        elif command[1] in ("start", "restart"):
            self.active[command[-1]] = "active"
        return 0, "", ""

    @property
    def places(self) -> dict[str, str]:
        """Options of the modules: where this node has its files."""
        return {
            "units_dir": str(self.folder),
            "record_path": str(self.folder / "etc" / "active.json"),
            "run_dir": str(self.folder / "run"),
            "state_dir": str(self.folder / "state"),
        }

    @property
    def units(self) -> EngineUnits:
        """The node's engine units."""
        places = {name: Path(path) for name, path in self.places.items() if name != "state_dir"}
        return EngineUnits(self.run, **places)

    @property
    def swap(self) -> Swap:
        """The node's swap."""
        return Swap(
            self.units, self.run, self.folder / "state", self.folder / "run" / "armed", self.folder / "run" / "lock",
            self.folder / "edge",
        )  # fmt: skip

    def serving(self) -> tuple[list[str], list[str], Any]:
        """Return which units run, which start at boot, and the recorded model."""
        ours = [unit for unit in (A, B) if self.active[unit] == "active"]
        return ours, sorted(self.enabled - {"gb10-swap.service"}), self.units.record().get("model")

    def power_off(self) -> None:
        """Lose the power and boot: what is enabled runs, and /run is empty."""
        self.active = {unit: "active" if unit in self.enabled else "inactive" for unit in self.active}
        (self.folder / "run" / "armed").unlink(missing_ok=True)
