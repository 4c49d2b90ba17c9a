# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.image_pull: start the pull on a node, show its progress, have the result checked."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import progress_line
from ansible_collections.gb10.cluster.plugins.module_utils._image.records import PULL_STATUS, PULL_UNIT
from ansible_collections.gb10.cluster.plugins.plugin_utils._node import reach

#: Liveness first, then the last report: the pull writes its last report before it ends, so a report that is read after
#: the unit was found inactive is the last one.
_LOOK = f'echo "unit=$(systemctl is-active {PULL_UNIT}.service)"; cat {PULL_STATUS} 2>/dev/null'
#: A systemd that does not answer in its own time names no state: that says nothing of the unit.
_ENDED = ("inactive", "failed", "unknown")
_POLL_SECONDS = 2.0
#: While bytes move, each node gets a line at least this often.
_SHOW_SECONDS = 8.0


def parse_look(text: str) -> tuple[dict[str, Any], bool]:
    """Return (report of the pull, whether its unit had not ended before it was read)."""
    unit, _newline, report = text.strip().partition("\n")
    try:
        status = json.loads(report)
    except ValueError:
        status = {}
    return (status if isinstance(status, dict) else {}), unit.partition("=")[2].strip() not in _ENDED


class ActionModule(ActionBase):  # type: ignore[misc]
    """Watch one node until its image is complete, or until nothing has moved for too long."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        begun = self._execute_module(module_args={**args, "step": "start"}, task_vars=variables)
        if begun.get("failed") or not begun.pop("running", False):
            result.update(begun)
            return result
        started = time.monotonic()
        node = str(variables.get("inventory_hostname", ""))
        status, problem = self.watch(node, int(args.get("stall_seconds") or 600))
        seconds = round(time.monotonic() - started, 1)
        if problem:
            result.update(failed=True, msg=f"{node}: {problem}", **self._sums(status, seconds))
            return result
        ended = self._execute_module(
            module_args={**args, "step": "finish", "pulled": status["name"]}, task_vars=variables
        )
        result.update(ended)
        result.update(self._sums(status, seconds))
        return result

    def watch(self, node: str, stall_seconds: int) -> tuple[dict[str, Any], str]:
        """Return (last report, why the pull failed or an empty string)."""
        display = Display()
        before: tuple[int, ...] = ()
        shown_at, shown_bytes = time.monotonic(), 0
        moved_at = time.monotonic()
        while True:
            look = reach.ask(self._connection, lambda: self._low_level_execute_command(_LOOK))
            status, running = parse_look(str(look["stdout"]))
            now = time.monotonic()
            sums = tuple(int(status.get(name, 0)) for name in ("received", "unpacked", "disk"))
            if status.get("done"):
                rate = (sums[0] - shown_bytes) / max(now - shown_at, 0.001)
                display.display(progress_line(node, status, rate))
                return status, str(status.get("error", ""))
            if not running:
                journal = self._low_level_execute_command(f"journalctl -u {PULL_UNIT} -n 15 --no-pager")["stdout"]
                return status, f"the pull ended without a result; its journal: {str(journal).strip()[-1500:]}"
            if sums != before:
                before, moved_at = sums, now
            elif now - moved_at > stall_seconds:
                self._low_level_execute_command(f"systemctl stop {PULL_UNIT}.service")
                return status, (
                    f"no byte was received or unpacked for {stall_seconds} s ({progress_line(node, status, 0)}). "
                    "Unpacked layers are kept; check the fabric and the Docker Engine of this node, and run again."
                )
            if now - shown_at >= _SHOW_SECONDS:
                display.display(progress_line(node, status, (sums[0] - shown_bytes) / (now - shown_at)))
                shown_at, shown_bytes = now, sums[0]
            time.sleep(_POLL_SECONDS)

    @staticmethod
    def _sums(status: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {
            "received_mib": round(int(status.get("received", 0)) / MIB, 1),
            "seconds": seconds,
        }
