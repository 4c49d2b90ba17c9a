# SPDX-License-Identifier: Apache-2.0
"""Commit-confirmed: a dangerous change is undone by the node itself unless it is confirmed in time.

The firewall and the fabric's configuration may cut a node off from whoever changes them.  `Rollback.arm` saves the
files that will change and installs a systemd unit that undoes the change: a timer starts it, or the next boot.
`Rollback.confirm` disarms both once the change is proven; `Rollback.roll_back` does not wait for the timer.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: Runs a command without a shell; returns (exit code, standard output, standard error).
Run = Callable[[list[str]], tuple[int, str, str]]

UNITS = Path("/etc/systemd/system")


class RollbackError(RuntimeError):
    """Arming, confirming or rolling back failed; the message says what state the node is in and what to do."""


def last_line(text: str) -> str:
    """Return the last line that is not blank; of a traceback that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def restore_command(path: Path, saved: Path | None) -> str:
    """Return the shell line that restores a file from its copy, or removes it when there was none."""
    name = shlex.quote(str(path))
    if saved is None:
        return f"rm --force {name} || failed=1"
    return f"cp --preserve=all {shlex.quote(str(saved))} {name} && sync {name} || failed=1"


def script_text(subject: str, directory: Path, commands: Sequence[str]) -> str:
    """Return the shell script that undoes a change.

    :param subject: what is changed, as a noun phrase.
    :param directory: holds the script's log and its two markers, `pending` and `rolled-back`.
    :param commands: shell lines; one that fails sets `failed=1` and does not stop the others.
    :returns: a script that ends with 1 when anything failed, and then the change still counts as pending.
    """
    place = shlex.quote(str(directory))
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Written by gb10.cluster before it changed {subject}; runs unless the change is confirmed.",
            "set -u",
            f"exec >> {place}/rollback.log 2>&1",
            'echo "rolling back at $(date --iso-8601=seconds)"',
            "failed=0",
            *commands,
            'if [ "$failed" = 1 ]; then echo "the rollback is incomplete"; exit 1; fi',
            f"date --iso-8601=seconds > {place}/rolled-back",
            f"rm --force {place}/pending",
            'echo "rolled back at $(date --iso-8601=seconds)"',
            "",
        ]
    )


def unit_text(subject: str, directory: Path) -> str:
    """Return the systemd unit that runs the script, at boot and when the timer asks for it."""
    return f"""\
# Written by gb10.cluster; exists only while a change of {subject} is not confirmed.
[Unit]
Description=Roll back an unconfirmed change of {subject}
ConditionPathExists={directory}/pending
After=network.target

[Service]
Type=oneshot
ExecStart=/bin/sh {directory}/rollback.sh

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Rollback:
    """One kind of change on this node.

    :param subject: what is changed, as a noun phrase for messages.
    :param directory: where the script, the saved files and the markers are, such as /var/lib/gb10/fabric.
    :param unit: name of the systemd unit without its suffix; the timer's is `<unit>-timer`.
    """

    subject: str
    directory: Path
    unit: str
    run: Run

    def is_pending(self) -> bool:
        """Whether a change waits for its confirmation."""
        return self._pending.exists()

    @property
    def log(self) -> Path:
        """What the script printed."""
        return self.directory / "rollback.log"

    @property
    def _pending(self) -> Path:
        return self.directory / "pending"

    @property
    def _rolled_back(self) -> Path:
        return self.directory / "rolled-back"

    @property
    def _service(self) -> str:
        return f"{self.unit}.service"

    @property
    def _timer(self) -> str:
        return f"{self.unit}-timer"

    def arm(self, after_seconds: int, commands: Sequence[str], changed_files: Sequence[Path] = ()) -> None:
        """Save what will change and install what undoes it.  Call it before the change.

        :param after_seconds: the change is undone when it is not confirmed within this time.
        :param commands: shell lines that undo what is not a file; they run after the files are restored.
        :param changed_files: files that the change writes or removes.
        :raises RollbackError: systemd refused; nothing is armed then.
        :raises OSError: as the operating system reports it.
        """
        self._stop_timer()
        saved = self.directory / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir(mode=0o700, parents=True)
        restore = []
        for number, path in enumerate(changed_files):
            copy = saved / str(number) if path.exists() else None
            if copy:
                shutil.copy2(path, copy)
            restore.append(restore_command(path, copy))
        files.remove(self._rolled_back)
        files.write(
            self.directory / "rollback.sh", script_text(self.subject, self.directory, [*restore, *commands]), 0o700
        )
        files.write(UNITS / self._service, unit_text(self.subject, self.directory))
        files.write(self._pending, f"{int(time.time())}\n")
        for command in (
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--quiet", self._service],
            [
                "systemd-run", "--quiet", "--collect", f"--unit={self._timer}", f"--on-active={after_seconds}",
                "--timer-property=AccuracySec=1s", "systemctl", "start", self._service,
            ],
        ):  # fmt: skip
            code, _out, err = self.run(command)
            if code != 0:
                self.disarm()
                raise RollbackError(
                    f"The automatic rollback could not be prepared, nothing was changed: {last_line(err)}"
                )

    def confirm(self) -> bool:
        """Keep the change; return whether one was pending.

        :raises RollbackError: the change was rolled back already, or that is happening now.
        """
        if self.is_pending():
            self._stop_timer()
            # The mark first: without it a start that systemd has yet to receive does nothing.
            files.remove(self._pending)
            _code, state, _err = self.run(["systemctl", "is-active", self._service])
            if state.strip() in ("activating", "failed") or self._rolled_back.exists():
                if not self._rolled_back.exists():
                    files.write(self._pending, f"{int(time.time())}\n")
                raise RollbackError(
                    f"The change of {self.subject} is being rolled back: its confirmation came too late."
                )
            self.disarm()
            return True
        if self._rolled_back.exists():
            when = self._rolled_back.read_text(encoding="utf-8").strip()
            raise RollbackError(
                f"The change of {self.subject} was rolled back at {when}, before it could be confirmed: the control "
                f"node did not reach this node in time. See {self.log} there."
            )
        return False

    def roll_back(self) -> bool:
        """Undo the change now; return whether one was pending.

        :raises RollbackError: the script failed; the unit stays armed.
        """
        if not self.is_pending():
            if (UNITS / self._service).exists():
                self.disarm()
            return False
        # In a unit of its own: the connection that this runs over may be what is broken.
        code, _out, err = self.run(["systemctl", "start", self._service])
        if code != 0 or self.is_pending():
            raise RollbackError(
                f"The change of {self.subject} was not rolled back on this node ({last_line(err)}); see {self.log} "
                f"there. The node tries again at its next boot, or with `systemctl start {self._service}`."
            )
        self.disarm()
        return True

    def disarm(self) -> None:
        """Remove timer, unit and saved files.  The change, if there is one, stays as it is."""
        self._stop_timer()
        files.remove(self._pending)
        self.run(["systemctl", "disable", "--quiet", self._service])
        files.remove(UNITS / self._service)
        self.run(["systemctl", "daemon-reload"])
        self.run(["systemctl", "reset-failed", f"{self._timer}.service", self._service])
        shutil.rmtree(self.directory / "saved", ignore_errors=True)
        files.remove(self.directory / "rollback.sh")

    def _stop_timer(self) -> None:
        self.run(["systemctl", "stop", f"{self._timer}.timer"])
