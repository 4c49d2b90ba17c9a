# SPDX-License-Identifier: Apache-2.0
"""A swap of the served model that the nodes roll back unless the control node commits it.

Each node that takes part holds one description on disk from before the previous model is stopped until the swap is
decided: ``pending``, then ``committed`` or ``rolled_back``.  Only the head decides: it commits when the control node
reports that the new model is verified, and rolls back when that does not come in time.  The others ask the head, so
that all nodes serve the same model whichever of them lost its power.  `_engine.guard` is the program that waits.

Whatever has to happen for a decision can be repeated: a node that lost its power in the middle does it again.
Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._edge.follow import CONF_DIR, Proxy
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import EngineUnits, Run
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

PENDING, COMMITTED, ROLLED_BACK = "pending", "committed", "rolled_back"
UNIT = "gb10-swap.service"
STATE_DIR = Path("/var/lib/gb10/engine")
#: Gone after a boot: that is how a node knows that it was restarted while a swap was pending.
ARMED = Path("/run/gb10/swap.armed")
LOCK = Path("/run/gb10/swap.lock")


class SwapError(Exception):
    """The swap cannot go on; the message says what was decided, when and why."""


#: Options of the modules, documented in the fragment `engine`: where a node has the files of its engines.
PLACES: dict[str, dict[str, Any]] = {
    "units_dir": {"type": "path", "default": "/etc/systemd/system"},
    "record_path": {"type": "path", "default": "/etc/gb10/engine/active.json"},
    "run_dir": {"type": "path", "default": "/run/gb10/engine"},
    "state_dir": {"type": "path", "default": "/var/lib/gb10/engine"},
}


def unit_of(record: Mapping[str, Any], node: str) -> str:
    """Return the unit that a node runs for a model; empty when it takes no part in it.

    :param record: an active record, with ``unit`` and ``members``.
    """
    return str(record.get("unit", "")) if node in record.get("members", []) else ""


#: What the description of a swap takes from the options of gb10.cluster.engine_swap, which documents them.
DESCRIBED = (
    "node", "head", "peers", "address", "head_address", "port", "key", "before", "after", "stall_seconds",
    "restarts_allowed",
)  # fmt: skip


def describe(identity: str, options: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """Return the description of a swap for one node.

    :param identity: the same on all nodes, another one for each swap.
    :param options: `DESCRIBED` and others.
    :param now_s: seconds of the epoch.
    """
    given = {name: options[name] for name in DESCRIBED}
    return {"id": identity, "state": PENDING, **given, "armed_s": round(now_s, 1)}


def outcome(swap: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (unit, record) that a decided swap leaves on its node; both empty where it serves nothing.

    A model that was to be restarted with other files has those alone: its engine listens where they say.
    """
    after: Mapping[str, Any] = swap["after"]
    record: Mapping[str, Any] = after if swap["state"] == COMMITTED else swap["before"]
    if record.get("unit") == after.get("unit"):
        record = {**record, **{port: after[port] for port in ("api_port", "proxy_port") if port in after}}
    unit = unit_of(record, swap["node"])
    return unit, dict(record) if unit else {}


def rolled_back_sentence(note: Mapping[str, Any]) -> str:
    """Return what is said of a swap that the nodes rolled back, from what `Swap.apply` noted."""
    return (
        f"The swap from {note.get('before', '')} to {note.get('after', '')} was rolled back by the nodes at "
        f"{note.get('time', '')}: {note.get('why', '')}."
    )


def summary(swap: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is reported of a swap that is not done on a node; empty when there is none."""
    if not swap:
        return {}
    return {
        "state": str(swap.get("state", "")),
        "before": str(swap.get("before", {}).get("model", "")),
        "after": str(swap.get("after", {}).get("model", "")),
        "head": str(swap.get("head", "")),
        "armed_s": float(swap.get("armed_s", 0.0)),
        "stall_seconds": float(swap.get("stall_seconds", 0.0)),
    }


def pending_sentence(shown: Mapping[str, Any]) -> str:
    """Return what is said of a swap that is not decided, from its `summary`."""
    return (
        f"The swap from {shown['before']} to {shown['after']} is not committed: the nodes return to {shown['before']} "
        f"after {shown['stall_seconds']:.0f} s without progress and without a commit by the control node."
    )


def reported(swap: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `summary` of a swap with its sentence; empty when there is none."""
    shown = summary(swap)
    return {**shown, "sentence": pending_sentence(shown)} if shown else {}


def unit_text(program: str, path: Path) -> str:
    """Return the systemd unit that waits for a decision, also after a boot.

    :param program: path of the program archive.
    :param path: the description of the swap.
    """
    return f"""\
# Written by gb10.cluster; exists only while a swap of the served model is not decided on every node.
[Unit]
Description=Roll the swap of the served model back unless it is committed
ConditionPathExists={path}
After=docker.service network-online.target
Wants=docker.service network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/python3 -I -B {program} guard {path}
Restart=on-failure
RestartSec=5
KillMode=mixed
TimeoutStopSec=10

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Swap:
    """The swap that this node takes part in.

    :param units: the engine units of the node.
    :param state_dir: holds ``swap.json`` and, after a rollback by the nodes, ``swap_rolled_back.json``.
    :param proxy_dir: holds the configurations of the proxy in front of the API, on the head.
    """

    units: EngineUnits
    run: Run
    state_dir: Path = STATE_DIR
    armed: Path = ARMED
    lock: Path = LOCK
    proxy_dir: Path = CONF_DIR

    @property
    def path(self) -> Path:
        return self.state_dir / "swap.json"

    @property
    def note(self) -> Path:
        """What the nodes rolled back, for status and doctor; the next committed swap removes it."""
        return self.state_dir / "swap_rolled_back.json"

    def read(self) -> dict[str, Any]:
        """Return the description; empty when there is no swap."""
        return files.read_json(self.path)

    def read_note(self) -> dict[str, Any]:
        """Return what the nodes rolled back last; empty when nothing since the last committed swap."""
        return files.read_json(self.note)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the node's swap: a decision and what follows from it are one step for others."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("w", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def arm(self, swap: Mapping[str, Any], program: str) -> None:
        """Write the description and start the guard.  Call it before anything is stopped.

        :raises SwapError: systemd refused; nothing is armed then.
        """
        self._stop_guard()
        files.make_directories(self.state_dir)
        self.armed.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.armed, f"{swap['id']}\n")
        # Without a description the unit does nothing, so it is enabled first: a node that loses its power in between
        # has no swap, or one whose guard starts at the boot.
        files.write(self.units.units_dir / UNIT, unit_text(program, self.path))
        self._require(["systemctl", "enable", "--quiet", UNIT])
        self.units.reload()
        self.write(swap)
        self._require(["systemctl", "start", UNIT])

    def _require(self, command: list[str]) -> None:
        code, _out, err = self.run(command)
        if code != 0:
            self.disarm()
            raise SwapError(f"The rollback of the swap could not be prepared, nothing was stopped: {err.strip()}")

    def write(self, swap: Mapping[str, Any]) -> None:
        files.write_json(self.path, dict(swap), 0o600)

    def decide(self, swap: Mapping[str, Any], state: str, why: str, *, by_nodes: bool) -> dict[str, Any]:
        """Write a decision to disk and return the description with it; hold the lock.

        :param by_nodes: the nodes decided, not the control node; a rollback is then noted for status and doctor.
        """
        decided = {**swap, "state": state, "why": why, "by_nodes": by_nodes, "decided_s": round(time.time(), 1)}
        decided.update(applied=False, done=[])
        self.write(decided)
        return decided

    def require_pending(self, identity: str) -> None:
        """Fail when the nodes have decided on a swap meanwhile, or it is another one; hold the lock.

        :param identity: of the swap that the control node works on; empty when there is none.
        :raises SwapError: what the control node would do next would leave a model that nobody verified.
        """
        found = self.read()
        if not identity or (found.get("id") == identity and found["state"] == PENDING):
            return
        note = note_of(found) if found.get("id") == identity and found.get("by_nodes") else self.read_note()
        raise SwapError(
            rolled_back_sentence(note) if note else "The swap is not armed on this node any more; run it again."
        )

    def apply(self, swap: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Do on this node what was decided; hold the lock.

        :returns: (units that were stopped, units that were started or enabled).
        :raises UnitError: systemd refused.
        """
        unit, record = outcome(swap)
        proxy = Proxy(self.run, self.units.units_dir, self.proxy_dir)
        verb = proxy.prepare(record)
        done = self.units.serve_only(unit, record)
        proxy.follow(verb)
        if swap["state"] == COMMITTED:
            files.remove(self.note)
        elif swap.get("by_nodes"):
            files.write_json(self.note, note_of(swap), 0o644)
        return done

    def disarm(self) -> bool:
        """Stop the guard and remove the description; return whether there was one."""
        there = self.path.exists() or (self.units.units_dir / UNIT).exists()
        if there:
            self._stop_guard()
            self.remove()
        return there

    def remove(self) -> None:
        """Remove the description and the guard's unit; the guard itself ends on its own."""
        files.remove(self.path)
        self.run(["systemctl", "disable", "--quiet", UNIT])
        files.remove(self.units.units_dir / UNIT)
        files.remove(self.armed)
        self.units.reload()
        self.run(["systemctl", "reset-failed", UNIT])

    def _stop_guard(self) -> None:
        if (self.units.units_dir / UNIT).exists():
            self.run(["systemctl", "stop", UNIT])


def note_of(swap: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a swap that the nodes rolled back: when, from which model to which, and why."""
    decided_s = float(swap.get("decided_s", 0.0))
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(decided_s)),
        "epoch_s": decided_s,
        "before": str(swap["before"].get("model", "")),
        "after": str(swap["after"].get("model", "")),
        "why": str(swap.get("why", "")),
    }


def swap_at(run: Run, places: Mapping[str, str]) -> Swap:
    """Return the swap of a node, with its engine units.

    :param places: values of `PLACES`.
    """
    units = EngineUnits(run, Path(places["units_dir"]), Path(places["record_path"]), Path(places["run_dir"]))
    return Swap(units, run, state_dir=Path(places["state_dir"]))
