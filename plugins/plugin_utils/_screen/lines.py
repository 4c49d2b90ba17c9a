# SPDX-License-Identifier: Apache-2.0
"""A playbook run as lines of text: for pipes and logs of continuous integration."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import (
    OUTPUT_EVENTS,
    Event,
    RunState,
    TaskEvent,
    TaskRow,
    clean,
    names,
    outcome_phrase,
)

HEARTBEAT_SECONDS = 10.0


class PlainLines:
    """One line per task, and one every `heartbeat_seconds` while it lasts; tasks that all hosts skipped are left out.

    `write` receives the text of one or more lines, without the final line feed, from any thread.
    """

    def __init__(
        self, state: RunState, write: Callable[[str], None], heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        self._state = state
        self._write = write
        self._heartbeat_seconds = heartbeat_seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_line = state.clock()
        self._shown: TaskRow | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Start the heartbeat; a second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """End the heartbeat and show the last task."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._show_finished_task()

    def show(self, event: Event, closed: TaskEvent | None) -> None:
        """Show what an event brought; failures at once, everything else once its task has ended."""
        self._show_finished_task()
        if event.get("event") == "playbook_on_play_start":
            total = f"/{self._state.plays_total}" if self._state.plays_total else ""
            self.say(f"play {self._state.play_number}{total}  {self._state.play}")
        if closed is not None and closed.outcome in ("failed", "unreachable"):
            self.say(f"{closed.outcome.upper()} on {closed.host}: {closed.title}", closed.message)
        if event.get("event") == "verbose" and self._state.task is not None and self._state.task.progress:
            for line in clean(str(event.get("stdout", ""))).splitlines():
                if line.strip() in self._state.task.progress:
                    self.say(f"    {line.strip()}")
        if self._state.warnings and event.get("event") in OUTPUT_EVENTS:
            text = " ".join(clean(str(event.get("stdout", ""))).split())
            if text and text == self._state.warnings[-1]:
                self.say(text)

    def say(self, heading: str, body: str = "") -> None:
        """Write one line with the time, and the body below it unless the line has it already."""
        with self._lock:
            self._last_line = self._state.clock()
            text = f"[{self._state.elapsed:7.1f} s] {heading}"
            if body not in heading:
                text += "".join(f"\n{'':14}{part}" for part in body.splitlines())
            self._write(text)

    def _show_finished_task(self) -> None:
        with self._lock:
            task = self._state.finished_tasks[-1] if self._state.finished_tasks else None
            if task is None or task is self._shown:
                return
            self._shown = task
        if set(task.outcomes) - {"skipped"}:
            self.say(f"  {task.title:<58} {task.seconds(task.ended or 0):6.1f} s  {outcome_phrase(task)}")
        for message, hosts in task.messages_of_success():
            self.say(f"    {names(hosts)}:" if "\n" in message else f"    {names(hosts)}: {message}", message)

    def _beat(self) -> None:
        while not self._stop.wait(min(1.0, self._heartbeat_seconds)):
            now = self._state.clock()
            task = self._state.task
            if now - self._last_line < self._heartbeat_seconds:
                continue
            if task is None:
                self.say("  ... starting" if not self._state.play else "  ... between tasks")
            else:
                waiting = f", waiting for {names(list(task.waiting))}" if task.waiting else ""
                self.say(f"  ... {task.title}: {task.seconds(now):.0f} s so far{waiting}")
