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
      - V(started) starts O(unit); M(gb10.cluster.engine_swap) enables it once the engine is verified.
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
  swap:
    description: >-
      With V(alone) and V(started), the swap that this is a step of, as M(gb10.cluster.engine_swap) returned it. Once
      the nodes have rolled it back nothing is stopped or started, and the module fails.
    type: str
    default: ""
  record:
    description: >-
      With O(state=stopped), what to record as the active model; an empty one removes it, and keeps the record of the
      model that was last verified.
    type: dict
extends_documentation_fragment:
  - gb10.cluster.engine
  - gb10.cluster.attributes
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
swap:
  description: >-
    Models, state, head and stall of the swap that this node takes part in and that is not decided on all nodes, with a
    sentence; empty when there is none.
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

from contextlib import nullcontext
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import PLACES, SwapError, reported, swap_at
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import UnitError, is_busy


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "alone", "started", "stopped"], "default": "read"},
            "unit": {"type": "str", "default": ""},
            "restart": {"type": "bool", "default": False},
            "swap": {"type": "str", "default": ""},
            "record": {"type": "dict"},
            **PLACES,
        },
        supports_check_mode=True,
    )
    want = module.params
    unit = want["unit"]
    swap = swap_at(module.run_command, want)
    node = swap.units
    try:
        units, record = node.states(), node.record()
    except UnitError as error:
        module.fail_json(msg=str(error))
    running = [name for name, state in units.items() if is_busy(state)]
    to_stop: list[str] = []
    to_start: list[str] = []
    if want["state"] == "alone":
        to_stop = [name for name in running if name != unit or want["restart"]]
    elif want["state"] == "stopped":
        to_stop = [name for name in running if not unit or name == unit]
    elif want["state"] == "started":
        if unit not in units and not module.check_mode:
            module.fail_json(msg=f"{unit} is not rendered on this node; it takes no part in this model.")
        if not units.get(unit, {}).get("active"):
            to_start = [unit]
    new_record = want["record"] if want["record"] is not None and want["state"] == "stopped" else record
    changed = bool(to_stop or to_start or new_record != record)
    if not module.check_mode:
        try:
            with swap.locked() if want["swap"] else nullcontext():
                swap.require_pending(want["swap"])
                if to_start or to_stop:
                    node.reload()
                for name in to_stop:
                    node.stop(name)
                for name in to_start:
                    node.start(name)
                node.write_record(new_record)
        except (SwapError, UnitError) as error:
            module.fail_json(msg=str(error))

    def lines(states: dict[str, Any], model: dict[str, Any]) -> str:
        text = "".join(f"{name}: {state}\n" for name, state in sorted(states.items()))
        return text + f"active model: {model.get('model', 'none')}\n"

    before = {name: "running" if name in running else "stopped" for name in units}
    after = {**before, **dict.fromkeys(to_stop, "stopped"), **dict.fromkeys(to_start, "running")}
    module.exit_json(
        changed=changed,
        units=units,
        record=record,
        swap=reported(swap.read()),
        stopped=to_stop,
        started=to_start,
        diff={"before": lines(before, record), "after": lines(after, new_record)},
    )


if __name__ == "__main__":
    main()
