# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.program: builds the archive, and sends it to a node that does not have it."""

from __future__ import annotations

import base64
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.plugin_utils._program import ProgramError, build


class ActionModule(ActionBase):  # type: ignore[misc]
    """Ask the node first: the archive is sent when it is missing, not at every run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        try:
            archive = build(str(args.get("program", "")))
        except ProgramError as error:
            raise AnsibleActionFail(str(error)) from error
        args["file"] = archive.name
        found = self._execute_module(module_args=args, task_vars=task_vars)
        if found.pop("missing", False) and not found.get("failed"):
            args["data"] = base64.b64encode(archive.data).decode()
            found = self._execute_module(module_args=args, task_vars=task_vars)
        result.update(found)
        return result
