# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.model_file: write a model file, and never over what its owner changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import owned


class ActionModule(ControlNodeAction):
    """Compare a file with what it should hold, and write it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``changed``, ``backup`` and the diff, or why the file was left alone."""
        result, args = self.begin(tmp, task_vars, "model_file")
        path = Path(args["path"])
        try:
            self._write(path, args["content"], args["replace"], result, args["variable"])
        except (OSError, ValueError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            result.update(failed=True, msg=f"{path} cannot be read or written: {reason}.")
        return result

    def _write(
        self, path: Path, content: str, replace: bool, result: dict[str, Any], variable: str = "add_model_replace"
    ) -> None:
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        write, keep, refused = owned.decide(before, content, replace)
        result.update(
            changed=write,
            path=str(path),
            backup="",
            diff=files.diff(str(path), before or "", content),
        )
        if refused:
            result.update(
                failed=True,
                msg=f"{path} is left as it is: {refused}. -e {variable}=true writes it anew and keeps the old "
                "file beside it; with --check --diff that shows the difference.",
            )
            return
        if keep and before is not None:
            result["backup"] = str(path.with_name(owned.backup_name(path.name, before)))
        if write and not self._task.check_mode:
            files.make_directories(path.parent)
            if keep and before is not None:
                files.write(result["backup"], before)
            files.write(path, content)
