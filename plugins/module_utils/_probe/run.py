# SPDX-License-Identifier: Apache-2.0
"""Starts commands for `probe_io` through a module's run_command, with the C locale and no shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import Run

NOT_FOUND = 127


def runner(module: Any) -> Run:
    """A `Run` for this AnsibleModule; a command that is not installed gives exit status 127."""

    def run(command: Sequence[str]) -> tuple[int, str, str]:
        path = module.get_bin_path(command[0], required=False)
        if not path:
            return NOT_FOUND, "", f"{command[0]} is not installed"
        status, out, err = module.run_command(
            [path, *command[1:]],
            check_rc=False,
            environ_update={"LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
            errors="surrogate_then_replace",
        )
        return int(status), str(out), str(err)

    return run
