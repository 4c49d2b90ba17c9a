# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.apt_packages: a node lists its packages once in a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def all_there(names: Iterable[str], installed: Iterable[str]) -> bool:
    """Return whether of each name, which may list alternatives with ``|``, one is installed."""
    there = set(installed)
    return all(there.intersection(word.strip() for word in name.split("|")) for name in names)


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    """Ask the node unless an earlier task of this run has seen every package there."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        names = args.get("names")
        # It lives as long as the run, and every process of the run sees it.
        node = str(self._task.delegate_to or (task_vars or {}).get("inventory_hostname", ""))
        seen = Path(constants.DEFAULT_LOCAL_TMP) / f"gb10-packages-{node.replace('/', '_')}.json"
        installed = files.read_json(seen).get("installed", [])
        if installed and isinstance(names, list) and not args.get("manual") and all_there(map(str, names), installed):
            return {**result, "changed": False, "missing": [], "marked": [], "cache_updated": False}
        found = self._execute_module(module_args=args, task_vars=task_vars)
        if listed := found.pop("installed", None):
            files.write_json(seen, {"installed": listed}, 0o600)
        return {**result, **found}
