# SPDX-License-Identifier: Apache-2.0
"""A playbook run as one screen of a terminal, redrawn four times a second. Needs the Python package rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import (
    Event,
    RunState,
    TaskEvent,
    TaskRow,
    names,
    outcome_phrase,
)

try:
    from rich.console import Group
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    RICH_MISSING: ImportError | None = error
else:
    RICH_MISSING = None

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_STYLES = {
    "running": "cyan",
    "ok": "green",
    "changed": "yellow",
    "failed": "bold red",
    "unreachable": "bold red",
    "ignored": "magenta",
    "skipped": "dim",
    "waiting": "dim",
}


class LiveScreen:
    """A row for each node, the last tasks and warnings; what a task says is printed above the screen.

    `redirect` prints what this process writes to its standard output and error above the screen as well.
    """

    def __init__(self, state: RunState, console: Console, title: str, redirect: bool = False) -> None:
        self._state = state
        self._console = console
        self._title = title
        self._shown: TaskRow | None = None
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=4,
            vertical_overflow="crop",
            redirect_stdout=redirect,
            redirect_stderr=redirect,
        )

    def start(self) -> None:
        """Draw the screen; it may have been suspended."""
        self._live.start(refresh=True)

    def suspend(self) -> None:
        """Leave the terminal to something else, such as a prompt, until the next `start`."""
        self._live.stop()

    def stop(self) -> None:
        """Leave the screen as it is and print the failures below it."""
        self._live.stop()
        for event in self._state.events:
            if event.outcome in ("failed", "unreachable"):
                self.say(f"{event.outcome} on {event.host}: {event.title}", event.message, "bold red")
        for error in self._state.errors:
            self.say("Ansible reports", error, "bold red")

    def show(self, event: Event, closed: TaskEvent | None) -> None:
        """Print what the finished task said; the screen itself is redrawn from the state."""
        task = self._state.finished_tasks[-1] if self._state.finished_tasks else None
        if task is None or task is self._shown:
            return
        self._shown = task
        for message, hosts in task.messages_of_success():
            self.say(f"{names(hosts)}: {task.title}", message)

    def say(self, heading: str, body: str, style: str = "bold") -> None:
        """Print a heading and a text above the screen."""
        self._console.print(Text(heading, style=style), Text(body), sep="\n", soft_wrap=True)

    def render(self) -> RenderableType:
        """Return the screen: title, nodes, the last tasks and the last warnings."""
        state = self._state
        now = state.clock()
        rows_left = max(0, self._console.size.height - len(state.hosts) - 8)
        warnings = state.warnings[-min(3, rows_left) :] if rows_left else []
        rows_left -= len(warnings)
        progress = list(state.task.progress)[-rows_left:] if state.task is not None and rows_left else []
        rows_left -= len(progress)
        recent = list(state.finished_tasks)[-min(8, rows_left) :] if rows_left > 0 else []

        parts: list[RenderableType] = [self._nodes(now)]
        if state.task is not None:
            parts += [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in progress]
        if recent:
            tasks = Table(expand=True, box=None, pad_edge=False, show_header=False)
            tasks.add_column("task", no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
            tasks.add_column("outcome", no_wrap=True, overflow="ellipsis", style="dim")
            tasks.add_column("seconds", justify="right", no_wrap=True, style="dim")
            for task in recent:
                tasks.add_row(Text(task.title), Text(outcome_phrase(task)), f"{task.seconds(now):.1f} s")
            parts += [Text(""), tasks]
        parts += [Text(text, style="yellow", no_wrap=True, overflow="ellipsis") for text in warnings]

        total = f" of {state.plays_total}" if state.plays_total else ""
        heading = f"{self._title}   play {state.play_number}{total}: {state.play}"
        minutes, seconds = divmod(int(state.elapsed), 60)
        return Panel(
            Group(*parts), title=Text(heading), title_align="left", subtitle=f"{minutes}:{seconds:02d}", padding=(0, 1)
        )

    def _nodes(self, now: float) -> Table:
        nodes = Table(expand=True, box=None, pad_edge=False, header_style="bold")
        nodes.add_column("node", no_wrap=True)
        nodes.add_column("state", no_wrap=True, width=11)
        nodes.add_column("task", no_wrap=True, ratio=1, overflow="ellipsis")
        for heading in ("seconds", "ok", "changed", "failed"):
            nodes.add_column(heading, justify="right", no_wrap=True)
        for host, row in sorted(self._state.hosts.items()):
            nodes.add_row(
                host,
                Text(row.state, style=_STYLES.get(row.state, "")),
                Text(row.task),
                f"{now - row.since:.0f}" if row.state == "running" else "",
                str(row.ok),
                Text(str(row.changed), style="yellow" if row.changed else "dim"),
                Text(str(row.failed), style="bold red" if row.failed else "dim"),
            )
        return nodes
