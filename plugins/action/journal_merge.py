# SPDX-License-Identifier: Apache-2.0
"""Merge the nodes' journals into one log, and print it or write it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import write
from ansible_collections.gb10.cluster.plugins.module_utils._probe.journal import merged
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction


class ActionModule(ControlNodeAction):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, arguments = self.begin(tmp, task_vars, "journal_merge")
        absent = [
            f"# {node} gave no journal: {' '.join(str(why).split())}"
            for node, why in sorted(arguments["problems"].items())
        ]
        lines = merged(arguments["reports"])
        result.update(changed=False, lines=len(lines))
        text = "\n".join([*absent, *(lines or ["# No line matches."])])
        if not arguments["file"]:
            Display().display(text)
            return result
        target = Path(arguments["file"]).expanduser()
        try:
            write(target, text + "\n")
        except OSError as error:
            result.update(failed=True, msg=f"{target} could not be written: {error.strerror}")
            return result
        Display().display("\n".join([*absent, f"{len(lines)} lines in {target}"]))
        return result
