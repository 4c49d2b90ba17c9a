# SPDX-License-Identifier: Apache-2.0
"""Reads what one node knows of its rank: unit, container, log, kernel, memory. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.command import NOT_FOUND
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import KIB_PER_GIB, parse_meminfo
from ansible_collections.gb10.cluster.plugins.module_utils._probe import log as engine_log
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.journal import entries_of
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine
from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import GAVE_UP, START_REFUSED

Run = Callable[[Sequence[str]], "tuple[int, str, str]"]
"""Runs a command without a shell: (exit status, stdout, stderr); 127 when there is no such command."""

UNIT_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "ExecMainStatus",
    "InvocationID",
    "Job",
    "InactiveExitTimestampMonotonic",
    "UnitFileState",
)
JOURNAL_FIELDS = "MESSAGE,_SYSTEMD_INVOCATION_ID,INVOCATION_ID,_TRANSPORT,_PID,SYSLOG_IDENTIFIER"
KERNEL_WORDS = r"(?i)oom-kill|out of memory|killed process|NVRM|Xid"
# Processes that compile kernels: their starts and ends are progress of a start that logs nothing.
COMPILERS = frozenset("nvcc cicc ptxas cudafe++ fatbinary ninja cc1plus cc1 gcc g++ c++ clang ld as".split())
#: A busy systemd may not answer within its own 25 s, which says nothing of the unit.
ASK_TIMES = 3
_NO_ACTIVITY: dict[str, Any] = {"compilers": "", "read_mib": 0}


@dataclass(frozen=True)
class RankNames:
    """Where to look: the unit's and the container's exact names, and the node's in the inventory."""

    unit: str
    container: str
    node: str


@dataclass(frozen=True)
class LogLimits:
    """How many of a run's newest lines to read, and how many of them to hand back."""

    read_lines: int = 5000
    shown_lines: int = 20


def parse_show(output: str) -> dict[str, str]:
    """The properties that `systemctl show` printed."""
    pairs = (line.partition("=") for line in output.splitlines() if "=" in line)
    return {name: value for name, _equals, value in pairs}


def parse_journal(output: str, source: str = "") -> list[LogLine]:
    """The lines that `journalctl -o json` printed; a line that is not complete JSON is left out.

    source: of the lines; by default the unit or its engine. A message of systemd about the unit has no
    _SYSTEMD_INVOCATION_ID of its own but names the run in INVOCATION_ID.
    """
    lines: list[LogLine] = []
    for entry, time_us, message in entries_of(output.splitlines()):
        about_unit = str(entry.get("INVOCATION_ID", ""))
        own = source or ("unit" if about_unit else "engine")
        invocation = about_unit or str(entry.get("_SYSTEMD_INVOCATION_ID", ""))
        lines.append(LogLine(message, time_us / 1e6, own, invocation))
    return lines


def meminfo_gib(text: str) -> dict[str, float]:
    """Return MemTotal and MemAvailable of /proc/meminfo in GiB."""
    found = parse_meminfo(text)
    wanted = {"MemTotal": "mem_total_gib", "MemAvailable": "mem_available_gib"}
    return {key: round(found[name] / KIB_PER_GIB, 2) for name, key in wanted.items() if name in found}


def _number(value: str) -> int:
    return int(value) if value.lstrip("-").isdigit() else 0


class RankReader:
    """Reads one rank. `run` starts commands; nothing here writes."""

    def __init__(self, run: Run, names: RankNames, limits: LogLimits | None = None) -> None:
        self.run = run
        self.names = names
        self.limits = limits or LogLimits()

    def unit(self) -> dict[str, Any]:
        """What systemd knows of the unit, in plain words and seconds."""
        command = ["systemctl", "show", self.names.unit, f"--property={','.join(UNIT_PROPERTIES)}"]
        for _time in range(ASK_TIMES):
            status, out, _err = self.run(command)
            if status in (0, NOT_FOUND):
                break
        shown = parse_show(out) if status == 0 else {}
        now_s = time.clock_gettime(time.CLOCK_MONOTONIC)
        started_s = _number(shown.get("InactiveExitTimestampMonotonic", "")) / 1e6
        active = shown.get("ActiveState", "")
        if active == "inactive" and _number(shown.get("Job", "")):
            active = "activating"  # its start waits for that of another unit
        return {
            "name": self.names.unit,
            "load_state": shown.get("LoadState", ""),
            "active_state": active,
            "sub_state": shown.get("SubState", ""),
            "result": shown.get("Result", ""),
            "enabled": shown.get("UnitFileState", "") == "enabled",
            "restarts": _number(shown.get("NRestarts", "")),
            "exit_status": _number(shown.get("ExecMainStatus", "")),
            "invocation": shown.get("InvocationID", ""),
            "seconds": round(now_s - started_s, 1) if started_s and active in ("active", "activating") else 0.0,
        }

    def others(self) -> list[str]:
        """Return the engine units of other models that run on this node."""
        command = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "vllm-*.service"]
        status, out, _err = self.run(command)
        units = [line.split()[0] for line in out.splitlines() if line.strip()] if status == 0 else []
        return [unit for unit in units if unit != self.names.unit]

    def pulse(self) -> tuple[str, ...]:
        """The cheapest look that shows whether the unit has changed its state or run."""
        unit = self.unit()
        return tuple(str(unit[name]) for name in ("active_state", "sub_state", "restarts", "invocation"))

    def container(self) -> dict[str, Any]:
        """Whether the container runs, of which image, since when. Docker's API is not needed."""
        none: dict[str, Any] = {"running": False, "image_id": "", "image": "", "started_at": "", "pid": 0}
        status, out, _err = self.run(["docker", "container", "inspect", self.names.container])
        if status != 0:
            return none
        try:
            inspected = json.loads(out)[0]
        except (ValueError, IndexError, KeyError):
            return none
        state = inspected.get("State", {})
        return {
            "running": bool(state.get("Running", False)),
            "image_id": str(inspected.get("Image", "")),
            "image": str(inspected.get("Config", {}).get("Image", "")),
            "started_at": str(state.get("StartedAt", "")),
            "pid": int(state.get("Pid", 0) or 0),
        }

    def _journal(self, *matches: str) -> str:
        command = ["journalctl", "--no-pager", "--quiet", "--all", "--output=json"]
        status, out, _err = self.run([*command, f"--output-fields={JOURNAL_FIELDS}", *matches])
        return out if status == 0 else ""

    def log(self, invocation: str) -> tuple[list[LogLine], bool]:
        """The newest lines of one run's log, oldest first, and whether that is all of it.

        A start writes some hundred lines; only an engine that has served for long has more, and
        then its later lines show that it serves.
        """
        if not invocation:
            return [], False
        matches = (f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}")
        lines = parse_journal(self._journal(f"--lines={self.limits.read_lines}", *matches))
        return lines, len(lines) < self.limits.read_lines

    def previous_invocation(self, invocation: str) -> str:
        """The run before this one, for a unit that was restarted: its log holds the reason."""
        lines = parse_journal(self._journal("--lines=3000", f"--unit={self.names.unit}"))
        for line in reversed(lines):
            if line.invocation and line.invocation != invocation:
                return line.invocation
        return ""

    def kernel(self, since_s: float) -> tuple[list[LogLine], bool]:
        """The kernel's lines about memory and GPU since an instant (seconds since the epoch), and
        whether its log can be read."""
        out = self._journal("--dmesg", f"--since=@{int(since_s)}", f"--grep={KERNEL_WORDS}", "--lines=200")
        # Where nothing matched, the journal of this node may hold nothing of the kernel (a container's).
        readable = out or self._journal("--dmesg", "--lines=1")
        return parse_journal(out, "kernel"), bool(readable.strip())

    def earlyoom(self, since_s: float) -> list[LogLine]:
        """What earlyoom and systemd-oomd did to processes since an instant (seconds since the epoch)."""
        units = ("--unit=earlyoom.service", "--unit=systemd-oomd.service")
        out = self._journal(f"--since=@{int(since_s)}", *units, "--lines=100")
        # A container's processes are in a group of Docker's, so the unit's own log does not name systemd-oomd.
        kills = ("sending SIG", "Killed /")
        return [line for line in parse_journal(out, "earlyoom") if any(words in line.text for words in kills)]

    def activity(self) -> dict[str, Any]:
        """Signs of life that the log does not show: compilers that come and go, bytes read from disk."""
        status, out, _err = self.run(["docker", "top", self.names.container, "-eo", "pid,comm"])
        if status != 0:
            return _NO_ACTIVITY
        compilers: list[str] = []
        read_bytes = 0
        for row in out.splitlines()[1:]:
            pid, _space, command = row.strip().partition(" ")
            if command.strip() in COMPILERS:
                compilers.append(pid)
            try:
                text = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
            except OSError:
                continue
            read_bytes += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes:"))
        return {"compilers": " ".join(sorted(compilers)), "read_mib": read_bytes >> 20}

    def _tail(self, lines: Sequence[LogLine]) -> list[str]:
        """The newest lines for a reader; without the forty routes that vLLM lists at its start."""
        texts = [text for text in (engine_log.clean(line.text) for line in lines) if text and "] Route: /" not in text]
        return texts[-self.limits.shown_lines :]

    def report(self) -> dict[str, Any]:
        """Everything at once, as a dictionary that `probe.merge` reads."""
        unit = self.unit()
        container = self.container()
        state = probe.state_of_unit(
            unit["load_state"],
            unit["active_state"],
            unit["sub_state"],
            unit["result"],
            container_running=container["running"],
        )
        found: dict[str, Any] = {
            "node": self.names.node,
            "state": state,
            "unit": unit,
            "container": container,
            "log": {**engine_log.EngineLog().as_dict(), "complete": True},
            "findings": [],
            "tail": [],
            "activity": _NO_ACTIVITY,
            "kernel_log_readable": False,
            **_memory(),
        }
        if state == probe.DEAD:
            # Liveness first, then the last words: the journal may not have written what was printed before the end.
            self.run(["journalctl", "--sync"])
        if state != probe.ABSENT:
            found |= self._of_run(unit, state, container["running"])
        others = self.others() if found["state"] in (probe.ABSENT, probe.STOPPED) else []
        return {**found, "read_s": time.time(), "others": others}

    def _of_run(self, unit: Mapping[str, Any], state: str, running: bool) -> dict[str, Any]:
        """What the logs say of the run of a unit that exists, or of the one before it that is to be explained."""
        lines, complete = self.log(unit["invocation"])
        read = engine_log.read_engine_log(lines)
        if read.phase == "none":
            phase = "image_start" if running else "prepare" if state == probe.STARTING else "none"
            read = replace(read, phase=phase)
        blamed = lines
        known = {finding.name for finding in diagnose(lines)}
        if unit["restarts"] and (state != probe.DEAD or GAVE_UP in known):
            before = self.previous_invocation(unit["invocation"])
            blamed = [*(self.log(before)[0] if before else []), *(lines if GAVE_UP in known or not before else [])]
        # What befell this run, or the one before it that is to be explained, and no older incident.
        since_s = oldest_blame(blamed, time.time())
        kernel, readable = self.kernel(since_s)
        findings = diagnose([*blamed, *kernel, *self.earlyoom(since_s)])
        return {
            "state": probe.DEAD if START_REFUSED in known and not running else state,
            "log": {**read.as_dict(), "complete": complete},
            "findings": [finding.as_dict() for finding in findings],
            "tail": self._tail(lines),
            "activity": self.activity() if running else _NO_ACTIVITY,
            "kernel_log_readable": readable,
        }


def oldest_blame(lines: Sequence[LogLine], now_s: float) -> float:
    """Since when the kernel's log counts, in seconds since the epoch: a little before the lines' oldest
    instant, ten minutes where there are none, and never more than a day.

    Lines later than the present were written before the clock was put back: the day is looked through.
    """
    oldest_s = min((line.time_s for line in lines), default=now_s - 570) - 30
    return max(oldest_s, now_s - 86400) if oldest_s < now_s else now_s - 86400


def _memory() -> dict[str, float]:
    try:
        return meminfo_gib(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return {}


#: What every module that looks at a rank can be given.
RANK_ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "unit": {"type": "str"},
    "container": {"type": "str"},
    "node": {"type": "str"},
    "poll_seconds": {"type": "float", "default": 0},
    "seen_pulse": {"type": "list", "elements": "str"},
    "tail_lines": {"type": "int", "default": 20},
}


def rank_names(params: Mapping[str, Any], hostname: str) -> RankNames:
    """The exact names from a module's parameters: `vllm-<name>` unless said otherwise."""
    base = f"vllm-{params['name']}"
    return RankNames(
        unit=str(params.get("unit") or f"{base}.service"),
        container=str(params.get("container") or base),
        node=str(params.get("node") or hostname),
    )
