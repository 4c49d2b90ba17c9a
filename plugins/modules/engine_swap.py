#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_swap
short_description: Swap the served model with automatic rollback
version_added: 0.1.0
description:
  - Arms a node before the previous engine is stopped, and commits or rolls back once the new one is verified or has
    failed. An armed node that hears nothing more of the control node returns to the previous model, also across a loss
    of power; the head decides and the other nodes ask it.
  - Arm, commit and roll back on the head first, then on the others; then end the swap on all with O(state=absent).
    Without that the nodes end it themselves.
options:
  state:
    description:
      - V(armed) installs what rolls back.
      - V(committed) enables the unit of O(after) on a node that takes part in it, stops and disables every other engine
        and records O(after) as the active model. Fails when the nodes have rolled back already.
      - V(rolled_back) does the same with O(before).
      - V(absent) ends a swap and leaves what runs as it is.
    type: str
    choices: [armed, committed, rolled_back, absent]
    required: true
  swap:
    description: >-
      Identity of the swap, as RV(swap) of the head returned it. Empty on the head with O(state=armed), and where
      nothing was armed because there was no previous model.
    type: str
    default: ""
  node:
    description: Name of this node.
    type: str
    default: ""
  head:
    description: Name of the node that decides.
    type: str
    default: ""
  peers:
    description: Names of the other nodes that take part.
    type: list
    elements: str
    default: []
  address:
    description: This node's address on the fabric; the head's guard is asked from it.
    type: str
    default: ""
  head_address:
    description: The head's address on the fabric.
    type: str
    default: ""
  port:
    description: Port on O(head_address) at which the head's guard answers.
    type: int
    default: 29601
  key:
    description: File with the key that the nodes of a deployment share.
    type: path
    default: /etc/gb10/engine/tether.key
  before:
    description: Active record of the previous model; empty when there was none.
    type: dict
    default: {}
  after:
    description: Active record of the new model.
    type: dict
    default: {}
  program:
    description: Path of the program archive C(swap).
    type: path
    default: ""
  stall_seconds:
    description: The head rolls back after this long without a commit and without progress of the start.
    type: float
    default: 900
  restarts_allowed:
    description: After more restarts of a rank nothing counts as progress.
    type: int
    default: 2
extends_documentation_fragment:
  - gb10.cluster.engine
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details: Arming again replaces the swap that was armed before.
    support: partial
"""

EXAMPLES = r"""
- name: Arm the rollback on the head
  gb10.cluster.engine_swap:
    state: armed
    node: gx10-1
    head: gx10-1
    peers: [gx10-2]
    head_address: 10.211.0.11
    before: "{{ active_record }}"
    after: "{{ new_record }}"
    program: "{{ lookup('gb10.cluster.program', 'swap') }}"
  register: armed

- name: Commit the verified model
  gb10.cluster.engine_swap:
    state: committed
    swap: "{{ armed.swap }}"
    node: gx10-1
    after: "{{ new_record }}"
"""

RETURN = r"""
swap:
  description: Identity of the swap.
  returned: always
  type: str
by_nodes:
  description: With O(state=rolled_back), whether the nodes had rolled back already.
  returned: always
  type: bool
stopped:
  description: Units that were stopped.
  returned: always
  type: list
  elements: str
started:
  description: Units that were started, enabled or both.
  returned: always
  type: list
  elements: str
"""

import secrets
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine import swap as swaps
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import UnitError


def decide(swap: swaps.Swap, params: dict[str, Any]) -> dict[str, Any]:
    """Commit or roll back on this node; return what was done.  Hold the lock.

    :raises SwapError: a commit comes too late.
    :raises UnitError: systemd refused.
    """
    state, identity = params["state"], params["swap"]
    found = swap.read()
    armed = bool(identity) and found.get("id") == identity
    by_nodes = armed and found["state"] == swaps.ROLLED_BACK and found["by_nodes"]
    elsewhere = not armed and identity and swap.units.record() != swaps.outcome(params)[1]
    if state == swaps.COMMITTED and (by_nodes or elsewhere):
        note = swaps.note_of(found) if by_nodes else swap.read_note()
        raise swaps.SwapError(
            swaps.rolled_back_sentence(note)
            if note
            else f"The swap to {params['after'].get('model')} is not armed on this node any more; run it again."
        )
    if armed and not by_nodes:
        found = swap.decide(found, state, "the control node decided", by_nodes=False)
    elif not armed:
        found = {**params, "id": identity}
    stopped, started = swap.apply(found)
    if armed:
        # Its guard reports that to the head, which ends the swap once all have, should no control node end it before.
        swap.write({**found, "applied": True})
    return {"stopped": stopped, "started": started, "by_nodes": by_nodes}


def would_change(swap: swaps.Swap, params: dict[str, Any]) -> bool:
    """Return whether the module would change anything, for check mode."""
    if params["state"] == "armed":
        return True
    if params["state"] == "absent":
        return bool(swap.read())
    unit, record = swaps.outcome(params)
    shown = swap.units.states().get(unit, {}) if unit else {"enabled": True}
    return bool(swap.read()) or swap.units.record() != record or not shown.get("enabled")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["armed", "committed", "rolled_back", "absent"], "required": True},
            "swap": {"type": "str", "default": ""},
            "node": {"type": "str", "default": ""},
            "head": {"type": "str", "default": ""},
            "peers": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str", "default": ""},
            "head_address": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 29601},
            "key": {"type": "path", "default": "/etc/gb10/engine/tether.key", "no_log": False},
            "before": {"type": "dict", "default": {}},
            "after": {"type": "dict", "default": {}},
            "program": {"type": "path", "default": ""},
            "stall_seconds": {"type": "float", "default": 900},
            "restarts_allowed": {"type": "int", "default": 2},
            **swaps.PLACES,
        },
        required_if=[
            ("state", "armed", ["node", "head", "after", "program"]),
            ("state", "committed", ["node", "after"]),
            ("state", "rolled_back", ["node"]),
        ],
        supports_check_mode=True,
    )
    params = module.params
    swap = swaps.swap_at(module.run_command, params)
    result: dict[str, Any] = {"swap": params["swap"], "by_nodes": False, "stopped": [], "started": []}
    try:
        if module.check_mode:
            module.exit_json(changed=would_change(swap, params), **result)
        before = swap.units.record()
        with swap.locked():
            if params["state"] == "armed":
                result["swap"] = params["swap"] or secrets.token_hex(8)
                swap.arm(swaps.describe(result["swap"], params, time.time()), params["program"])
                changed = True
            elif params["state"] == "absent":
                changed = swap.disarm()
            else:
                result.update(decide(swap, params))
                changed = bool(result["stopped"] or result["started"] or swap.units.record() != before)
    except (swaps.SwapError, UnitError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The swap cannot be written to disk: {error}.")
    module.exit_json(changed=changed, **result)


if __name__ == "__main__":
    main()
