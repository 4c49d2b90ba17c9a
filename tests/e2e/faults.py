# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults share: a look at the cluster all the time that one lasts, and a control node that dies.

`python -m tests.e2e.faults STEP SECONDS COMMAND...` runs a playbook and kills it as `kill_at` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.runs import kill_with_all

#: One look: (state, sentence), or None when nothing was told.
Look = Callable[[], tuple[str, str] | None]
#: What was told: seconds since the fault, state, sentence.
Told = tuple[float, str, str]


@dataclass
class Watch:
    """What is told of the cluster again and again, with the seconds since the fault."""

    look: Look
    since: float
    seen: list[Told] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until told to stop."""
        while not self.stopped.wait(0.5):
            if told := self.look():
                self.seen.append((time.monotonic() - self.since, *told))

    def first(self, *states: str) -> Told:
        """Return what was told when one of these states was first seen; (0.0, "", "") when none was."""
        return next((each for each in self.seen if each[1] in states), (0.0, "", ""))

    def not_ready(self) -> Told:
        """Return what was told when the model was first not served; (0.0, "", "") when it always was."""
        return next((each for each in self.seen if each[1] != "ready"), (0.0, "", ""))

    def changes(self) -> list[Told]:
        """Return what was told whenever the state was another than before."""
        found: list[Told] = []
        for at, state, words in self.seen:
            if not found or found[-1][1] != state:
                found.append((round(at, 1), state, words[:300]))
        return found


@contextmanager
def watched(look: Look) -> Iterator[Watch]:
    """Look at the cluster all the time that a fault lasts."""
    watch = Watch(look, since=time.monotonic())
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stopped.set()
        thread.join(120)


def keep(figures: Path, fault: str, watch: Watch | None, **measured: Any) -> None:
    """Add what a fault gave to a file of figures, for the tables of docs/decisions/faults.md."""
    kept = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    kept[fault] = {name: round(value, 1) if isinstance(value, float) else value for name, value in measured.items()}
    if watch:
        kept[fault]["said"] = watch.changes()
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def kill_at(step: str, seconds: float, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
    """Run a playbook and kill it, with all that it has started, some seconds after a step has begun.

    :param step: what the line `TASK [...]` of the step contains.
    :raises AssertionError: the run ended before; the message has the end of its output.
    """
    seen: list[str] = []
    with subprocess.Popen(
        list(command),
        cwd=cwd, env={**env, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            seen.append(line)
            if line.startswith("TASK") and step in line:
                break
        else:
            raise AssertionError(f"the run never came to '{step}':\n{''.join(seen)[-3000:]}")
        time.sleep(seconds)
        kill_with_all(run.pid)


if __name__ == "__main__":
    kill_at(sys.argv[1], float(sys.argv[2]), sys.argv[3:], os.environ)
