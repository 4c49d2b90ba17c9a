# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.weights_watch: lines of progress, and the control node's files as the first link."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._node import reach
from ansible_collections.gb10.cluster.plugins.plugin_utils._weights import watch

_display = Display()


def warn(line: str) -> None:
    """Print a warning now: Ansible's own warnings wait for the end of the task."""
    _display.display(f"STALLED {line}", color=constants.COLOR_WARN)


class ActionModule(ActionBase):  # type: ignore[misc]
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Watch until the node's copy is complete, and be its source if that is requested."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec("weights_watch"))
        result["_ansible_verbose_override"] = True
        if self._task.check_mode or args["complete"]:
            result.update(changed=args["changes"] and not args["complete"], status={}, seconds=0.0)
            return result
        began = time.monotonic()
        name, stalled_s = args["name"], args["stalled_s"]

        def ask() -> dict[str, Any]:
            answer = watch.ask_aloud(name, lambda: self.read_status(task_vars), warn, stalled_s)
            return watch.status_of(name, answer)

        server, tunnels = None, []
        try:
            if args["origin"]:
                server, port = watch.serve_origin(args["manifest"], args["origin"], args["token"])
                tunnels = self.open_tunnels(name, port, args["port"], args["tunnels"])
            status = watch.follow(name, ask, _display.display, warn, tunnels, args["every_s"], stalled_s)
        except watch.WatchError as error:
            raise AnsibleActionFail(str(error)) from error
        finally:
            for tunnel in tunnels:
                tunnel.terminate()
            if server is not None:
                server.close()
                server.store.close()
        failed = status["state"] != "complete"
        result.update(changed=args["changes"] and not failed, status=status, seconds=round(time.monotonic() - began, 1))
        if failed:
            result.update(failed=True, msg=f"{name}: {args['manifest']['repo']}: {status['message']}")
        return result

    def read_status(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return what gb10.cluster.weights_move reports on the node."""
        found: dict[str, Any] = reach.ask(
            self._connection,
            lambda: self._execute_module(
                module_name="gb10.cluster.weights_move",
                module_args={"state": "read", "wait_s": watch.POLL_S},
                task_vars=task_vars,
            ),
        )
        return found

    def open_tunnels(self, name: str, port: int, node_port: int, number: int) -> list[subprocess.Popen[bytes]]:
        """Let the node reach a port here, at its own ports from one on, with the inventory's SSH options."""
        connection = self._connection
        wrong = watch.connection_error(
            name, connection.transport, connection.transport == "ssh" and connection.get_option("password")
        )
        if wrong:
            raise AnsibleActionFail(wrong)
        host = connection.get_option("host") or self._play_context.remote_addr
        executable = connection.get_option("ssh_executable")
        return [
            watch.open_tunnel(
                connection._build_command(
                    executable, "ssh", *watch.forward_options(node_port + each, port), host, "cat > /dev/null"
                )
            )
            for each in range(number)
        ]
