# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.weights_watch: lines of progress, and the control node's files as the first link."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import Store

_POLL_S = 4
_LOOPBACK = "127.0.0.1"
_display = Display()


def _say(line: str) -> None:
    """Print a warning now: Ansible's own warnings wait for the end of the task."""
    _display.display(f"STALLED {line}", color=constants.COLOR_WARN)


class ActionModule(ActionBase):  # type: ignore[misc]
    """See the module of the same name for the documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Watch until the node's copy is complete, and be its source if that is requested."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str", "required": True},
                "manifest": {"type": "dict", "required": True},
                "complete": {"type": "bool", "required": True},
                "changes": {"type": "bool", "default": True},
                "origin": {"type": "dict", "default": {}},
                "port": {"type": "int", "required": True},
                "tunnels": {"type": "int", "default": 2},
                "token": {"type": "str", "required": True, "no_log": True},
                "every_s": {"type": "int", "default": 10},
                "stalled_s": {"type": "int", "default": 8},
            },
        )
        result["_ansible_verbose_override"] = True
        if self._task.check_mode or args["complete"]:
            result.update(changed=args["changes"] and not args["complete"], status={}, seconds=0.0)
            return result
        began = time.monotonic()
        server, tunnels = None, []
        try:
            if args["origin"]:
                server, port = self._serve(args)
                tunnels = self._tunnels(port, args)
            status = self._watch(args, task_vars or {}, tunnels)
        finally:
            for tunnel in tunnels:
                tunnel.terminate()
            if server is not None:
                server.close()
                server.store.close()
        failed = status["state"] != "complete"
        result.update(changed=args["changes"] and not failed, status=status, seconds=round(time.monotonic() - began, 1))
        if failed:
            result.update(failed=True, msg=f"{args['name']}: {args['manifest']['repo']}: {status['message']}")
        return result

    @staticmethod
    def _serve(args: dict[str, Any]) -> tuple[Server, int]:
        """Serve the source's files on the loopback and return the port."""
        manifest, origin = args["manifest"], args["origin"]
        names = [file["path"] for file in manifest["files"]]
        store = Store(manifest, [Path(origin["folder"]) / name for name in names], [True] * len(names))
        store.load_hashes(Path(origin["pieces"]).read_bytes(), origin["pieces"])
        store.marks = {number: list(origin["marks"][name]) for number, name in enumerate(names)}
        server = Server(store, args["token"], [_LOOPBACK])
        return server, server.listen(_LOOPBACK, 0)

    def _tunnels(self, port: int, args: dict[str, Any]) -> list[subprocess.Popen[bytes]]:
        """Let the node reach that port at its own loopback, over SSH connections with the inventory's options."""
        connection = self._connection
        if connection.transport != "ssh":
            raise AnsibleActionFail(
                f"{args['name']}: weights go to a node over ssh, and its connection is {connection.transport}. "
                "Use ansible.builtin.ssh for it, or put the model there by hand and run again."
            )
        if connection.get_option("password"):
            raise AnsibleActionFail(
                f"{args['name']}: weights go to a node over SSH connections of their own, which need a key. "
                "Give it one (ssh-copy-id) instead of ansible_password."
            )
        host = connection.get_option("host") or self._play_context.remote_addr
        running = []
        for number in range(args["tunnels"]):
            words = connection._build_command(
                connection.get_option("ssh_executable"), "ssh",
                "-S", "none", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "Compression=no",
                # A hardware cipher: the default one is bound by a core at a third of its rate.
                "-o", "Ciphers=^aes128-gcm@openssh.com",
                # It ends with its standard input, thus with this process, however that ends.
                "-T", "-R", f"{_LOOPBACK}:{args['port'] + number}:{_LOOPBACK}:{port}", host, "cat > /dev/null",
            )  # fmt: skip
            running.append(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            )
        return running

    def _watch(
        self, args: dict[str, Any], task_vars: dict[str, Any], tunnels: Sequence[subprocess.Popen[bytes]]
    ) -> dict[str, Any]:
        """Ask the node until its transfer has ended; print lines meanwhile."""
        parent = os.getppid()
        name, printed_at, stalled = args["name"], 0.0, False
        while True:
            # Before the status: a connection that ends after the node was complete is no failure.
            gone = [tunnel for tunnel in tunnels if tunnel.poll() is not None]
            status = self._ask(name, args["stalled_s"], task_vars)
            moment = time.monotonic()
            if os.getppid() != parent:
                raise AnsibleActionFail("The play that this belongs to has ended.")
            if status["state"] in ("complete", "failed"):
                _display.display(weights.progress_line(name, status))
                return status
            if gone:
                said = (gone[0].stderr.read() if gone[0].stderr else b"").decode(errors="replace").strip()
                return {
                    **status,
                    "state": "failed",
                    "message": f"the SSH connection that carries the files ended: {said[-500:]} "
                    "Does the node's sshd allow it (AllowTcpForwarding)? What has arrived is kept.",
                }
            if moment - printed_at >= args["every_s"]:
                _display.display(weights.progress_line(name, status))
                printed_at = moment
            line = weights.stall_line(name, status, args["stalled_s"])
            if line and not stalled:
                _say(line)
            stalled = bool(line)

    def _ask(self, name: str, stalled_s: int, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the node's status; say so when it does not answer, while the connection's own timeout runs."""
        answered = threading.Event()

        def complain() -> None:
            if not answered.wait(_POLL_S + stalled_s):
                _say(f"{name} has not answered for {stalled_s} s, or longer.")

        threading.Thread(target=complain, daemon=True).start()
        try:
            answer = self._execute_module(
                module_name="gb10.cluster.weights_move",
                module_args={"state": "read", "wait_s": _POLL_S},
                task_vars=task_vars,
            )
        finally:
            answered.set()
        if answer.get("failed") or "status" not in answer:
            with suppress(KeyError):
                raise AnsibleActionFail(f"{name}: {answer['msg']}")
            raise AnsibleActionFail(f"{name} gave no status: {answer.get('module_stderr', '')}")
        status: dict[str, Any] = answer["status"]
        return status
