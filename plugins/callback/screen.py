# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a playbook run as one screen, or as one line per task."""

from __future__ import annotations

DOCUMENTATION = r"""
name: screen
type: stdout
short_description: Show a playbook run as one screen, or as one line per task
description:
  - On a terminal, shows one live screen with a row for each host - its state, task, seconds and counts - above the last
    tasks and warnings. What a task says, differences (C(--diff)) and failures are printed above the screen.
  - Elsewhere (a pipe, a log of continuous integration), prints one line per task with its seconds and the outcome,
    naming hosts only where they differ, and a line at regular intervals while a task lasts. Tasks that every host
    skipped are left out.
  - With C(-v), the result of each task is printed as well.
requirements:
  - The Python package rich on the control node for the live screen; without it, lines are printed.
  - C(stdout_callback) in ansible.cfg, or E(ANSIBLE_STDOUT_CALLBACK), set to C(gb10.cluster.screen).
extends_documentation_fragment:
  - result_format_callback
options:
  view:
    description: What to show. V(auto) shows the screen if standard output is a terminal, else lines.
    type: str
    choices: [auto, screen, lines]
    default: auto
    env:
      - name: GB10_SCREEN_VIEW
    ini:
      - section: callback_screen
        key: view
  heartbeat_seconds:
    description: How many seconds may pass without a line before one says which task runs, and on which hosts.
    type: float
    default: 10
    env:
      - name: GB10_SCREEN_HEARTBEAT_SECONDS
    ini:
      - section: callback_screen
        key: heartbeat_seconds
"""

import atexit
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen import live
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.lines import PlainLines
from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import RunState, closing_line

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Actions that ask at the terminal, which the screen has to leave to them meanwhile.
_PROMPTING = ("pause", "ansible.builtin.pause", "ansible.legacy.pause")


def task_data(task: Any) -> dict[str, Any]:
    """Return what an event says of an Ansible task: name, role, action and place."""
    role = getattr(task, "_role", None)
    return {
        "task": task.name or task.action,
        "role": role.get_name() if role else "",
        "task_action": task.action,
        "resolved_action": getattr(task, "resolved_action", None) or task.action,
        "task_path": task.get_path() or "",
    }


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core has no types
    """Turns Ansible's calls into events for the state of the run, and shows that."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "gb10.cluster.screen"

    def __init__(self) -> None:
        super().__init__()
        self._state = RunState()
        self._views: list[PlainLines | live.LiveScreen] = []
        self._screen: live.LiveScreen | None = None
        self._playbook = ""
        self._play = ""
        self._began: dict[tuple[str, str], float] = {}

    # --- Beginning and end ---

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Choose the views; they start with the first play, after its prompts."""
        self._playbook = Path(str(getattr(playbook, "_file_name", "playbook"))).name
        self._state = RunState(plays_total=len(playbook.get_plays()))
        wanted = self.get_option("view")
        if wanted == "screen" or (wanted == "auto" and sys.stdout.isatty()):
            if live.RICH_MISSING is None:
                from rich.console import Console

                self._screen = live.LiveScreen(self._state, Console(), self._playbook, redirect=True)
                self._views.append(self._screen)
            else:
                self._display.warning(f"There is no live screen: {live.RICH_MISSING}. `pip install rich` provides it.")
        if self._screen is None:
            self._add_lines(log_only=False)
        elif constants.DEFAULT_LOG_PATH:
            self._add_lines(log_only=True)
        atexit.register(self._stop)  # a run that Ansible gives up ends without its closing counts

    def _add_lines(self, log_only: bool) -> None:
        def write(text: str) -> None:
            self._display.display(text, log_only=log_only)

        self._views.append(PlainLines(self._state, write, float(self.get_option("heartbeat_seconds"))))

    def _stop(self) -> None:
        while self._views:
            self._views.pop().stop()

    def v2_playbook_on_vars_prompt(self, *args: Any, **kwargs: Any) -> None:
        """Leave the terminal to the prompt."""
        if self._screen:
            self._screen.suspend()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Show that a play begins."""
        self._play = play.get_name().strip()
        for view in self._views:
            view.start()
        self._take("playbook_on_play_start", {"name": self._play})

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Show the closing counts."""
        names = ("processed", "ok", "changed", "failures", "dark", "skipped", "rescued", "ignored")
        self._take("playbook_on_stats", {name: getattr(stats, name) for name in names})
        self._stop()
        rc = 4 if stats.dark else 2 if stats.failures else 0
        self._display.display(closing_line(self._playbook, rc, self._state.elapsed, self._state.stats))

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Say that the play has no host, which otherwise looks like success."""
        self._say("no hosts matched", "")

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Say that no host is left."""
        self._say("no hosts left", "")

    # --- Tasks ---

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Show that a task begins."""
        self._take("playbook_on_task_start", task_data(task))
        if self._screen and self._views:
            if task.action in _PROMPTING:
                self._screen.suspend()
            else:
                self._screen.start()

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Show that a handler begins."""
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Show that a task begins on a host."""
        self._began[host.get_name(), task._uuid] = time.monotonic()
        self._take("runner_on_start", {"host": host.get_name()})

    def v2_runner_on_ok(self, result: Any) -> None:
        """Show a success; with -v also its result."""
        self._close("runner_on_ok", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Show that a host skipped the task."""
        self._close("runner_on_skipped", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a failure."""
        self._close("runner_on_failed", result, ignore_errors=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Show that a host was lost."""
        self._close("runner_on_unreachable", result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Show what one item of a loop says, such as a debug task's."""
        if self._run_is_verbose(result):
            label = self._get_item_label(result.result)
            self._say(f"{result.host.get_name()}: {result.task.get_name()} ({label})", self._text_of(result))

    def v2_runner_retry(self, result: Any) -> None:
        """Say that a task is tried again."""
        facts = result.result
        left = facts.get("retries", 0) - facts.get("attempts", 0)
        self._say(f"{result.host.get_name()}: {result.task.get_name()}: trying again, {left} left", "")

    def v2_on_file_diff(self, result: Any) -> None:
        """Show what a task changes, with --diff."""
        for part in result.result.get("results") or [result.result]:
            if isinstance(part, dict) and part.get("diff") and part.get("changed"):
                self._say(f"{result.host.get_name()}: {result.task.get_name()}", self._get_diff(part["diff"]).rstrip())

    # --- Parts ---

    def _take(self, kind: str, data: Mapping[str, Any]) -> None:
        event = {"event": kind, "event_data": data}
        closed = self._state.feed(event)
        for view in self._views:
            view.show(event, closed)

    def _say(self, heading: str, body: str) -> None:
        for view in self._views:
            view.say(heading, body)

    def _text_of(self, result: Any) -> str:
        facts = result.result
        return str(facts["msg"]) if isinstance(facts.get("msg"), str) else self._dump_results(facts)

    def _close(self, kind: str, result: Any, ignore_errors: bool = False) -> None:
        if self._display.verbosity:
            self._handle_warnings_and_exception(result)
        else:
            self._handle_warnings(result.result)
        self._clean_results(result.result, result.task.action)
        facts = dict(result.result)
        if facts.get("_ansible_verbose_always") and "msg" not in facts:
            facts["msg"] = self._dump_results(result.result)  # debug with `var`
        host = result.host.get_name()
        began = self._began.pop((host, result.task._uuid), None)
        seconds = 0.0 if began is None else time.monotonic() - began
        data = {"host": host, "play": self._play, "res": facts, "duration": seconds, **task_data(result.task)}
        self._take(kind, {**data, "ignore_errors": ignore_errors})
        if self._run_is_verbose(result) and not facts.get("_ansible_verbose_always"):
            self._say(f"{host}: {result.task.get_name()}", self._dump_results(result.result))
