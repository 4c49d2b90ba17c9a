# SPDX-License-Identifier: Apache-2.0
"""How the first process of an engine's container ends.  Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

#: Exit status of a start that must not happen; systemd tries it again.
REFUSED = 78
#: Exit status of a start that is not tried again (the unit's RestartPreventExitStatus).
GAVE_UP = 75


def say(text: str) -> None:
    """Print one line for the log, at once.

    In one call: print() writes the end of the line by a second one, and another thread's line may come between.
    """
    sys.stdout.write(f"gb10: {text}\n")
    sys.stdout.flush()


class Life:
    """How this container ends: once, with one line in the log, and with a message to the other ranks."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        #: Whether the engine is being started: it may run already, and only `run` can end it properly.
        self.starting = False
        self.stopping = threading.Event()
        self.notify: Callable[[str, bool], None] = lambda _why, _requested: None
        self._once = threading.Lock()

    def end(self, status: int, sentence: str, *, why: str = "", requested: bool = False) -> None:
        """Print the sentence, report why to the others, and end; whatever else runs in the container ends with it."""
        if not self._once.acquire(blocking=False):
            threading.Event().wait()
        say(sentence)
        self.notify(why or sentence, requested)
        if self.child is not None:
            with contextlib.suppress(OSError):
                self.child.kill()
        sys.stdout.flush()
        os._exit(status)

    def handle_stop_signals(self) -> None:
        """Handle the signals that request an end; in the main thread alone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_stop)

    def request_stop(self, _number: int, _frame: object) -> None:
        """Pass a stop on to the engine, which may take its time."""
        self.stopping.set()
        if self.child is not None:
            with contextlib.suppress(OSError):
                self.child.terminate()
        elif not self.starting:
            threading.Thread(
                target=self.end, args=(0, "stopped before the engine ran"), kwargs={"requested": True}
            ).start()

    def run(self, command: Sequence[str]) -> None:
        """Run the engine until it ends, and end as it did; one that exits unexpectedly has failed with any status."""
        say(f"exec {command[0]}")
        self.starting = True
        self.child = subprocess.Popen(command)
        if self.stopping.is_set():
            self.child.terminate()
        code = self.child.wait()
        if self.stopping.is_set():
            self.end(0, f"stopped on request, the engine's status was {code}", why="it was stopped", requested=True)
        how = f"exited unexpectedly: {f'killed by signal {-code}' if code < 0 else f'status {code}'}"
        self.end(128 - code if code < 0 else code or 1, f"the engine {how}", why=f"its engine {how}")
