# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.serve_args: a dictionary becomes the argument list of vllm serve."""

from __future__ import annotations

from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_args, serve_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError


class ActionModule(ControlNodeAction):
    """Check every option and variable against one version of vLLM; no host is contacted."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``args``, ``env``, ``command`` and ``notes``, or every error at once."""
        result, args = self.begin(tmp, task_vars, "serve_args")
        try:
            rendered = serve_files.render(
                args["serve"],
                args["vllm_version"],
                args["env"],
                args["mods"],
                args["mods_dir"],
                args["tables_dir"],
                args["upstream"],
                args["image_table"],
            )
        except ServeError as problem:
            result.update(failed=True, errors=problem.errors, msg="\n".join(problem.errors))
            return result
        result.update(
            changed=False,
            args=rendered.args,
            env=rendered.env,
            notes=rendered.notes,
            table=rendered.table,
            command=serve_args.shell_command(args["model"], rendered.args),
        )
        return result
