#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: services
short_description: Run services with the files that are on the disk now
version_added: 0.1.0
description:
  - Starts and enables a service that does not run, restarts one that runs with older content of a file of
    O(services[].restart), reloads one that runs with older content of a file of O(services[].reload), and leaves every
    other one alone.
  - What is to be done follows from the node alone, not from what this run has written, so that the next run makes good
    a run that was killed between writing a file and restarting its service. A service is compared with its files by the
    digests noted after the last action of this module, and by time where nothing was noted for its present start.
  - The manager's configuration is reloaded first, and only when systemd reports that a unit of O(services) changed.
options:
  services:
    description: The services, in the order in which they are handled.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit with its suffix.
        type: str
        required: true
      state:
        description:
          - V(started) enables and runs the unit. One without an C([Install]) section runs only.
          - V(stopped) disables and stops it; a unit that does not exist is stopped.
          - V(current) restarts or reloads the unit if it runs, and decides nothing else.
        type: str
        choices: [started, stopped, current]
        default: started
      restart:
        description: Files that are read at the start alone, such as the unit, its drop-ins or its command line.
        type: list
        elements: path
        default: []
      reload:
        description: Files that are read again on a reload.
        type: list
        elements: path
        default: []
  notes_dir:
    description: Directory in which the digests are noted; it need not outlive a boot.
    type: path
    default: /run/gb10/services
extends_documentation_fragment:
  - gb10.cluster.attributes
attributes:
  check_mode:
    details: Judges the files that are there now.
"""

EXAMPLES = r"""
- name: Run Prometheus with its present configuration
  gb10.cluster.services:
    services:
      - name: prometheus.service
        restart: [/etc/default/prometheus]
        reload: [/etc/gb10/monitor/prometheus.yml, /etc/gb10/monitor/rules.yml]

- name: Apply sshd's settings where sshd runs
  gb10.cluster.services:
    services:
      - name: ssh.service
        state: current
        restart: [/etc/systemd/system/ssh.service.d/10-gb10.conf]
"""

RETURN = r"""
actions:
  description: >-
    Unit → what was (or in check mode would be) done; C(none), C(enable), C(start), C(reload), C(restart), C(disable) or
    C(stop), two of them joined with C( + ).
  returned: success
  type: dict
  sample: {"prometheus.service": "reload"}
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from ansible_collections.gb10.cluster.plugins.module_utils._node.owner import is_ours
from ansible_collections.gb10.cluster.plugins.module_utils._node.services import (
    PROPERTIES,
    STOPPED,
    Files,
    actions,
    note,
    parse_show,
    read_files,
)

SPEC = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["started", "stopped", "current"], "default": "started"},
    "restart": {"type": "list", "elements": "path", "default": []},
    "reload": {"type": "list", "elements": "path", "default": []},
}


def show(module: AnsibleModule, names: list[str]) -> dict[str, dict[str, str]]:
    """Return the properties of each unit by the name that it was asked under."""
    code, out, err = module.run_command(["systemctl", "show", f"--property={','.join(PROPERTIES)}", "--", *names])
    found = parse_show(out)
    if code != 0 or len(found) != len(names):
        module.fail_json(msg=f"systemctl show {' '.join(names)} failed (exit code {code}): {(err or out).strip()}")
    return dict(zip(names, found, strict=True))


def call(module: AnsibleModule, verb: str, *units: str) -> None:
    """Run one verb of systemctl; fails with its output and the unit's last log lines."""
    code, _out, err = module.run_command(["systemctl", verb, *units])
    if code != 0:
        unit = units[-1] if units else "init.scope"
        log = ["journalctl", "--lines=10", "--no-pager", "--output=cat", f"--unit={unit}"]
        _code, journal, _err = module.run_command(log)
        module.fail_json(msg=f"systemctl {' '.join([verb, *units])} failed: {err.strip()}\n{journal.strip()[-1500:]}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "required": True, "options": SPEC},
            "notes_dir": {"type": "path", "default": "/run/gb10/services"},
        },
        supports_check_mode=True,
    )
    services = module.params["services"]
    notes = Path(module.params["notes_dir"])
    names = [service["name"] for service in services]
    done: dict[str, str] = {}
    units = show(module, names) if names else {}
    if not module.check_mode and any(
        unit.get("NeedDaemonReload") == "yes" or unit.get("LoadState") == "not-found" for unit in units.values()
    ):
        call(module, "daemon-reload")
        units = show(module, names)
    for service in services:
        name, wanted, unit = service["name"], service["state"], units[service["name"]]
        if wanted == "started" and unit.get("UnitFileState") in ("masked", "masked-runtime"):
            module.fail_json(msg=f"{name} is masked on this node and cannot start. Remedy: systemctl unmask {name}")
        if wanted == "started" and unit.get("LoadState") == "not-found" and not module.check_mode:
            module.fail_json(msg=f"There is no unit {name} on this node, although its package was installed.")
        # Read before the action: a file that changes meanwhile asks for another one.
        restart, reload = (
            (Files(), Files()) if wanted == STOPPED else (read_files(service[kind]) for kind in ("restart", "reload"))
        )
        noted = node_files.read_json(notes / f"{name}.json")
        verbs = actions(unit, wanted, restart, reload, noted, time.time() - time.monotonic())
        done[name] = " + ".join(verbs) or "none"
        if module.check_mode:
            continue
        if verbs and wanted != "current" and not is_ours(name):
            before = {"enabled": unit.get("UnitFileState", ""), "active": unit.get("ActiveState", "")}
            node_files.keep("units", name, before)
        for verb in verbs:
            call(module, verb, name)
        if wanted == STOPPED:
            node_files.remove(notes / f"{name}.json")
        elif service["restart"] or service["reload"]:
            fresh = note(show(module, [name])[name] if verbs else unit, restart, reload)
            if fresh["started_us"] and fresh != noted:
                notes.mkdir(mode=0o755, parents=True, exist_ok=True)
                node_files.write_json(notes / f"{name}.json", fresh, 0o600)
    changed = {name: what for name, what in done.items() if what != "none"}
    module.exit_json(
        changed=bool(changed),
        actions=done,
        diff=node_files.diff("services", "", "".join(f"{name}: {what}\n" for name, what in changed.items())),
    )


if __name__ == "__main__":
    main()
