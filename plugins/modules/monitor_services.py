#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: monitor_services
short_description: Keep services running with the files that are on the disk now
version_added: 0.1.0
description:
  - A service that does not run is started. One that started before a file of O(services[].restart) was written is
    restarted; one that was neither started nor reloaded since a file of O(services[].reload) was written is reloaded.
    Everything else is left alone.
  - What is to be done follows from the node alone, not from what this run has written, so that a run that was killed
    between writing and reloading is made good by the next one.
options:
  services:
    description: The services, in the order in which they are cared for.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit.
        type: str
        required: true
      restart:
        description: Files that are read at the start alone, such as the command line.
        type: list
        elements: path
        default: []
      reload:
        description: Files that are read again on a reload.
        type: list
        elements: path
        default: []
  stamps:
    description: Where the time of each reload is kept; it need not outlive a boot.
    type: path
    default: /run/gb10-monitor
attributes:
  check_mode:
    description: Can run in check mode, in which it tells what would be done with the files that are there.
    support: full
  diff_mode:
    description: Shows what is done with each service.
    support: full
  idempotent:
    description: A service that runs with the files of now is left alone.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Run Prometheus with its configuration of now
  gb10.cluster.monitor_services:
    services:
      - name: prometheus.service
        restart: [/etc/default/prometheus]
        reload: [/etc/gb10/monitor/prometheus.yml, /etc/gb10/monitor/rules.yml]
"""

RETURN = r"""
actions:
  description: Unit → what was (or in check mode would be) done; C(none), C(enable), C(start), C(reload) or C(restart).
  returned: success
  type: dict
  sample: {"prometheus.service": "reload"}
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "InactiveExitTimestampMonotonic")


def newest(paths: Iterable[str]) -> float:
    """Return when the youngest of the files was written, in seconds of the epoch; 0 when there is none."""
    times = [0.0]
    for path in map(Path, paths):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)


def action(state: Mapping[str, str], started_s: float, reloaded_s: float, restart_s: float, reload_s: float) -> str:
    """Return what a service needs, from what systemd says of it and the times of its files."""
    if state.get("ActiveState") not in ("active", "activating", "reloading"):
        return "start"
    if restart_s > started_s:
        return "restart"
    if reload_s > max(started_s, reloaded_s):
        return "reload"
    return "none" if state.get("UnitFileState") == "enabled" else "enable"


def show(module: AnsibleModule, unit: str) -> dict[str, str]:
    """Return the properties of a unit."""
    _code, out, _err = module.run_command(["systemctl", "show", unit, f"--property={','.join(PROPERTIES)}"])
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def call(module: AnsibleModule, verb: str, *units: str) -> None:
    """Run one verb of systemctl; fails with what it and the journal say."""
    code, _out, err = module.run_command(["systemctl", verb, *units])
    if code != 0:
        _code, journal, _err = module.run_command(
            [
                "journalctl",
                "--unit",
                units[-1] if units else "init.scope",
                "--lines",
                "10",
                "--no-pager",
                "--output",
                "cat",
            ]
        )
        module.fail_json(msg=f"systemctl {' '.join([verb, *units])} failed: {err.strip()}\n{journal.strip()[-1500:]}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "restart": {"type": "list", "elements": "path", "default": []},
                    "reload": {"type": "list", "elements": "path", "default": []},
                },
            },
            "stamps": {"type": "path", "default": "/run/gb10-monitor"},
        },
        supports_check_mode=True,
    )
    stamps = Path(module.params["stamps"])
    actions: dict[str, str] = {}
    for service in module.params["services"]:
        unit = service["name"]
        state = show(module, unit)
        if state.get("NeedDaemonReload") == "yes" and not module.check_mode:
            call(module, "daemon-reload")
        if state.get("LoadState") == "not-found" and not module.check_mode:
            call(module, "daemon-reload")
            state = show(module, unit)
            if state.get("LoadState") == "not-found":
                module.fail_json(msg=f"There is no unit {unit} on this node, although what brings it was installed.")
        monotonic_us = int(state.get("InactiveExitTimestampMonotonic") or 0)
        started_s = time.time() - time.monotonic() + monotonic_us / 1e6
        stamp = stamps / unit
        what = action(state, started_s, newest([str(stamp)]), newest(service["restart"]), newest(service["reload"]))
        actions[unit] = what
        if module.check_mode or what == "none":
            continue
        if state.get("UnitFileState") != "enabled":
            call(module, "enable", unit)
        if what == "reload":
            stamps.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Written before the reload: a file that changes meanwhile asks for another one.
            fresh = stamps / f".{unit}"
            fresh.touch()
            call(module, "reload", unit)
            fresh.replace(stamp)
        elif what != "enable":
            call(module, what, unit)
    changed = {unit: what for unit, what in actions.items() if what != "none"}
    module.exit_json(
        changed=bool(changed),
        actions=actions,
        diff={"before": "", "after": "".join(f"{unit}: {what}\n" for unit, what in changed.items())},
    )


if __name__ == "__main__":
    main()
