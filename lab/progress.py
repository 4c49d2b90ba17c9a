# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error: one line a step, with a sign of life every ten seconds."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError

_BEAT_S = 10.0


class Progress:
    """Writes timed lines; ``quiet`` writes none."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Write one line with the seconds since the start."""
        if self._quiet:
            return
        with self._lock:
            print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce ``what``, beat while it lasts, and say how long it took."""
        self.say(f"{what} ...")
        begun = time.monotonic()
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT_S):
                self.say(f"{what}: {time.monotonic() - begun:.0f} s so far")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.say(f"{what}: done in {time.monotonic() - begun:.1f} s")


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a command with its output appended to ``log``.

    Raises LabError with the command, its exit code, the log's path and its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        done = subprocess.run(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise LabError(
            f"{command[0]} failed with exit code {done.returncode}; its log is {log} and ends:\n" + tail(log)
        )


def tail(path: Path, lines: int = 8) -> str:
    """Return the last lines of a text file, indented, or an empty string without the file."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)
