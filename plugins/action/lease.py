# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.lease: who asks, and a process that renews the lease as long as the run lives."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ansible_collections.gb10.cluster.plugins.module_utils._node import files, lease
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import given_as_text
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._lease import processes


def command_line(arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    """Return the playbooks of a run and the model that it names; the rest of a command line can hold secrets."""
    books = [Path(str(each)).name for each in arguments.get("args") or ()]
    limit = f" --limit {arguments['subset']}" if arguments.get("subset") else ""
    model = f" -e model={extra['model']}" if extra.get("model") else ""
    return f"{' '.join(books) or 'ansible'}{limit}{model}"


def refusal(head: str, holders: list[dict[str, Any]]) -> str:
    """Return in one line who holds the leases, and what to do."""
    first = holders[0]
    return (
        f"{head}: {lease.sentence(first)}, renewed {first['renewed_seconds']:.0f} s ago. Wait until that run ends, or "
        "give -e take_over=true, which stops it. If its control node is gone, the lease ends "
        f"{lease.LASTS_SECONDS:.0f} s after its last renewal."
    )


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the leases and have them renewed, or fail with who holds them."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec("lease"))
        extra = load_extra_vars(self._loader)
        if wrong := given_as_text():
            return {**result, "failed": True, "changed": False, "holders": [], "msg": wrong}
        self.vars = task_vars or {}
        # It lives as long as the run, and every process of the run sees it.
        board = Path(constants.DEFAULT_LOCAL_TMP) / "gb10-lease.json"
        noted = files.read_json(board)
        has = set(noted.get("scopes", []))
        renewed = bool(has) and not processes.has_ended(noted.get("keeper", {}))
        if args["state"] == "held" and renewed and set(args["scopes"]) <= has:
            return {**result, "changed": False, "holders": []}
        run = os.getppid()
        self.ask = {
            **args,
            "scopes": [each for each in lease.SCOPES if each in has | set(args["scopes"])],
            "holder": {
                "run": noted.get("run") or secrets.token_hex(8),
                "who": processes.user(),
                "where": socket.gethostname(),
                "what": command_line(context.CLIARGS, extra),
                "process": processes.describe(run),
            },
        }
        answer = self._hold()
        if answer.get("failed") or args["state"] != "held":
            return {**result, **answer}
        delegated = (self.vars.get("ansible_delegated_vars") or {}).get("inventory_hostname")
        head = str(delegated or self._task.delegate_to or self.vars.get("inventory_hostname", ""))
        holders = answer["holders"]
        if self._task.check_mode:
            result["warnings"] = [f"{head}: {lease.sentence(each)}. Only --check goes on now." for each in holders]
            return {**result, **answer}
        if holders and not args["take_over"]:
            return {**result, "failed": True, "changed": False, "holders": holders, "msg": refusal(head, holders)}
        if alive := [each for each in holders if not processes.has_ended(each["process"])]:
            self._wait_for(alive)
        if not renewed:
            noted = {"keeper": processes.describe(processes.beside(lambda: self._keep(run)))}
        noted = {**noted, "run": self.ask["holder"]["run"], "scopes": self.ask["scopes"]}
        files.write_json(board, noted, 0o600)
        return {**result, **answer}

    def _hold(self, **more: Any) -> dict[str, Any]:
        """Ask the head for the leases; those of runs that ended on this control node do not count."""
        answer: dict[str, Any] = self._execute_module(module_args={**self.ask, **more}, task_vars=self.vars)
        answer["holders"] = shaped(answer, {"holders": [lease.HOLDER]})["holders"]
        ended = [each["run"] for each in answer["holders"] if processes.has_ended(each["process"])]
        if ended and not more and self.ask["state"] == "held":
            return self._hold(ended=ended)
        return answer

    def _wait_for(self, holders: list[dict[str, Any]]) -> None:
        """Let the runs whose leases were taken meet that at their next renewal, and end."""
        # A busy control node renews late; the end of a run of this one is seen.
        seconds = 3 * lease.RENEW_SECONDS
        for each in holders:
            Display().display(f"Taken over: {lease.sentence(each)}. Waiting up to {seconds:.0f} s for its end.")
        if any(each["renewed_seconds"] < seconds for each in holders):
            processes.await_end([each["process"] for each in holders], seconds)

    def _keep(self, run: int) -> None:
        """Renew the leases as long as the run lives, in a process of its own."""
        display = Display()
        display._final_q = None  # its reader belongs to the run
        display.verbosity = 0
        own = tempfile.mkdtemp(prefix="gb10-lease-")
        constants.DEFAULT_LOCAL_TMP = own
        began = processes.started(run)

        def ask(**more: Any) -> list[dict[str, Any]]:
            self._connection._shell.tmpdir = None  # the one of the task is removed with the task
            try:
                holders: list[dict[str, Any]] = self._hold(**more).get("holders", [])
            except AnsibleError:
                return []
            finally:
                self.cleanup()
            return holders

        def renew() -> str:
            holders = ask(take_over=False)
            return f"{lease.sentence(holders[0])}. It has taken the lease over; this run ends here." if holders else ""

        def release() -> None:
            ask(state="released")

        def lives() -> bool:
            return processes.started(run) == began

        try:
            processes.keep(lives, renew, lambda why: processes.stop(run, why), release)
        finally:
            shutil.rmtree(own, ignore_errors=True)
