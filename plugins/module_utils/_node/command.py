# SPDX-License-Identifier: Apache-2.0
"""Run a command on a node.  Standard library only: for programs; a module has run_command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

NOT_FOUND = 127
TIMED_OUT = 124


def run(command: Sequence[str], timeout_seconds: float = 60.0) -> tuple[int, str, str]:
    """Run a command without a shell, in the C locale; never raises.

    :returns: (exit status, standard output, standard error); status 127 for a command that is not installed or cannot
        be started, 124 for one that did not end in time and was killed.
    """
    try:
        done = subprocess.run(
            list(command),
            check=False,
            capture_output=True,
            timeout=timeout_seconds,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except FileNotFoundError:
        return NOT_FOUND, "", f"{command[0]} is not installed"
    except OSError as error:
        return NOT_FOUND, "", f"{command[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "", f"{command[0]} did not end within {timeout_seconds:g} s"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
