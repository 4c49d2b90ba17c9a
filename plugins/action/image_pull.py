# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.image_pull: start it on the node, show how far it is, and have it checked."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._image.store import MIB, progress_line

UNIT = "gb10-image-pull"
_LOOK = f"cat /run/gb10/image-pull.json 2>/dev/null; echo; systemctl is-active {UNIT}.service"
_EVERY_S = 2.0
#: A line a node at least this often while bytes move.
_SHOW_S = 8.0


def parse_look(text: str) -> tuple[dict[str, Any], bool]:
    """Return (status, whether the unit still runs) from what a look at the node printed."""
    lines = text.strip().splitlines()
    running = bool(lines) and lines[-1].strip() in ("active", "activating")
    try:
        status = json.loads(lines[0]) if len(lines) > 1 else {}
    except ValueError:
        status = {}
    return (status if isinstance(status, dict) else {}), running


class ActionModule(ActionBase):  # type: ignore[misc]
    """Watch one node until its image is there, or until nothing has moved for too long."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module returns, with what was received."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        begun = self._execute_module(module_args={**args, "step": "start"}, task_vars=variables)
        if begun.get("failed") or not begun.pop("running", False):
            result.update(begun)
            return result
        started = time.monotonic()
        node = str(variables.get("inventory_hostname", ""))
        status, problem = self._watch(node, int(args.get("stall_seconds") or 600))
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

    def _watch(self, node: str, stall_s: int) -> tuple[dict[str, Any], str]:
        """Return (last status, why it failed or an empty string)."""
        display = Display()
        before: tuple[int, int] = (-1, -1)
        shown_at, shown_bytes = time.monotonic(), 0
        moved_at = time.monotonic()
        while True:
            status, running = parse_look(str(self._low_level_execute_command(_LOOK)["stdout"]))
            now = time.monotonic()
            sums = (int(status.get("received", 0)), int(status.get("unpacked", 0)))
            if status.get("done"):
                rate = (sums[0] - shown_bytes) / max(now - shown_at, 0.001)
                display.display(progress_line(node, status, rate))
                return status, str(status.get("error", ""))
            if not running:
                told = self._low_level_execute_command(f"journalctl -u {UNIT} -n 15 --no-pager")["stdout"]
                return status, f"the image agent ended without a word; its journal says: {str(told).strip()[-1500:]}"
            if sums != before:
                before, moved_at = sums, now
            elif now - moved_at > stall_s:
                self._low_level_execute_command(f"systemctl stop {UNIT}.service")
                return status, (
                    f"no byte was received or unpacked for {stall_s} s ({progress_line(node, status, 0)}). "
                    "What arrived is kept; look at the fabric and at the Docker Engine there, and run again."
                )
            if now - shown_at >= _SHOW_S:
                display.display(progress_line(node, status, (sums[0] - shown_bytes) / (now - shown_at)))
                shown_at, shown_bytes = now, sums[0]
            time.sleep(_EVERY_S)

    @staticmethod
    def _sums(status: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {
            "received_mib": round(int(status.get("received", 0)) / MIB, 1),
            "refetched": status.get("refetched", []),
            "seconds": seconds,
        }
