#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_units
short_description: Start one engine unit on a node and stop every other
version_added: 0.1.0
description:
  - Knows the units that this collection rendered (C(vllm-<model>.service)) by the mark in their first
    line, and touches no other.
  - A stopped engine's container is removed by its exact name.
options:
  state:
    description:
      - V(read) reports what is there.
      - V(alone) stops and disables every other engine, and O(unit) itself with O(restart=true).
      - V(started) enables and starts O(unit).
      - V(stopped) stops and disables O(unit), or every engine without it.
    type: str
    choices: [read, alone, started, stopped]
    default: read
  unit:
    description: The engine that is meant.
    type: str
    default: ""
  restart:
    description: With O(state=alone), stop O(unit) too, because what it runs has changed.
    type: bool
    default: false
  record:
    description: >-
      With O(state=started) or O(state=stopped), what to record as the active model, and as the one that was last
      verified; an empty one removes the active record alone.
    type: dict
  units_dir:
    description: Where units are rendered.
    type: path
    default: /etc/systemd/system
  record_path:
    description: Where the active model is recorded.
    type: path
    default: /etc/gb10/engine/active.json
  run_dir:
    description: Where a start records what it found; a stopped engine's files there are removed.
    type: path
    default: /run/gb10/engine
extends_documentation_fragment:
  - gb10.cluster.attributes
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Stop whatever else is served
  gb10.cluster.engine_units:
    state: alone
    unit: vllm-my-model.service

- name: Start the rank
  gb10.cluster.engine_units:
    state: started
    unit: vllm-my-model.service
"""

RETURN = r"""
units:
  description: >-
    Unit → C(active), C(enabled) and C(stale) (started with other files than those on the disk), as they were found.
  returned: always
  type: dict
record:
  description: What is recorded as the active model; empty when nothing is.
  returned: always
  type: dict
stopped:
  description: Units that were stopped or would be.
  returned: always
  type: list
  elements: str
started:
  description: Units that were started or would be.
  returned: always
  type: list
  elements: str
"""

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record as record_of_model
from ansible_collections.gb10.cluster.plugins.module_utils._engine.started import stale
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_systemctl_show

MARK = "# Rendered by gb10.cluster"
PROPERTIES = "ActiveState,UnitFileState,NeedDaemonReload"


def known_units(folder: Path) -> list[str]:
    """Return the names of the engine units that this collection rendered."""
    found = []
    for path in sorted(folder.glob("vllm-*.service")):
        try:
            with path.open(encoding="utf-8") as handle:
                if handle.readline().startswith(MARK):
                    found.append(path.name)
        except OSError:
            continue
    return found


def show(module: AnsibleModule, unit: str) -> dict[str, Any]:
    """Return whether a unit is active (or about to be), enabled, and stale: running with older files."""
    _code, out, _err = module.run_command(["systemctl", "show", unit, f"--property={PROPERTIES}"])
    fields = parse_systemctl_show(out)
    model = unit.removeprefix("vllm-").removesuffix(".service")
    noted = Path(module.params["run_dir"], f"{model}.started")
    return {
        "active": fields.get("ActiveState") in ("active", "activating", "reloading"),
        "state": fields.get("ActiveState", ""),
        "enabled": fields.get("UnitFileState") == "enabled",
        "stale": fields.get("NeedDaemonReload") == "yes"
        or stale(noted, Path(module.params["units_dir"], unit), Path(module.params["record_path"]).parent),
    }


def stop(module: AnsibleModule, unit: str) -> None:
    """Stop and disable a unit, and remove its container by its exact name and what its starts left."""
    code, _out, err = module.run_command(["systemctl", "disable", "--now", unit])
    if code != 0:
        module.fail_json(msg=f"{unit} cannot be stopped: {err.strip()}")
    module.run_command(["systemctl", "reset-failed", unit])
    if module.get_bin_path("docker"):
        module.run_command(["docker", "rm", "--force", unit.removesuffix(".service")])
    model = unit.removeprefix("vllm-").removesuffix(".service")
    for suffix in ("env", "starts", "started"):
        Path(module.params["run_dir"], f"{model}.{suffix}").unlink(missing_ok=True)
    shutil.rmtree(Path(module.params["run_dir"], f"{model}.progress"), ignore_errors=True)


def start(module: AnsibleModule, unit: str) -> None:
    """Enable a unit and start it without waiting for it."""
    module.run_command(["systemctl", "reset-failed", unit])
    for command in (["systemctl", "enable", unit], ["systemctl", "start", "--no-block", unit]):
        code, _out, err = module.run_command(command)
        if code != 0:
            module.fail_json(msg=f"{' '.join(command)} failed: {err.strip()}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "alone", "started", "stopped"], "default": "read"},
            "unit": {"type": "str", "default": ""},
            "restart": {"type": "bool", "default": False},
            "record": {"type": "dict"},
            "units_dir": {"type": "path", "default": "/etc/systemd/system"},
            "record_path": {"type": "path", "default": "/etc/gb10/engine/active.json"},
            "run_dir": {"type": "path", "default": "/run/gb10/engine"},
        },
        supports_check_mode=True,
    )
    want = module.params
    unit = want["unit"]
    units = {name: show(module, name) for name in known_units(Path(want["units_dir"]))}
    record_path = Path(want["record_path"])
    record = files.read_json(record_path)
    running = [
        name for name, state in units.items() if state["active"] or state["enabled"] or state["state"] == "failed"
    ]
    to_stop: list[str] = []
    to_start: list[str] = []
    if want["state"] == "alone":
        to_stop = [name for name in running if name != unit or want["restart"]]
    elif want["state"] == "stopped":
        to_stop = [name for name in running if not unit or name == unit]
    elif want["state"] == "started":
        if unit not in units and not module.check_mode:
            module.fail_json(msg=f"{unit} is not rendered on this node; it takes no part in this model.")
        if not (units.get(unit, {}).get("active") and units[unit]["enabled"]):
            to_start = [unit]
    new_record = record
    if want["record"] is not None and want["state"] in ("started", "stopped"):
        new_record = want["record"]
    changed = bool(to_stop or to_start or new_record != record)
    if not module.check_mode:
        if to_start or to_stop:
            module.run_command(["systemctl", "daemon-reload"])
        for name in to_stop:
            stop(module, name)
        for name in to_start:
            start(module, name)
        if new_record != record:
            record_of_model.write(record_path, new_record)

    def lines(states: dict[str, Any], model: dict[str, Any]) -> str:
        text = "".join(f"{name}: {state}\n" for name, state in sorted(states.items()))
        return text + f"active model: {model.get('model', 'none')}\n"

    before = {name: "running" if name in running else "stopped" for name in units}
    after = {**before, **dict.fromkeys(to_stop, "stopped"), **dict.fromkeys(to_start, "running")}
    module.exit_json(
        changed=changed,
        units=units,
        record=record,
        stopped=to_stop,
        started=to_start,
        diff={"before": lines(before, record), "after": lines(after, new_record)},
    )


if __name__ == "__main__":
    main()
