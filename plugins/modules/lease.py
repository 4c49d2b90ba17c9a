#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lease
short_description: Let one run at a time change a cluster
version_added: 0.2.0
description:
  - Takes leases on the head for this run of C(ansible-playbook), all of them or none. A run that meets the lease of
    another one fails with who holds it, from where, with what and since when.
  - As long as the run lives, a process on the control node renews its leases every 20 seconds. It ends them when the
    run ends, also when the run is killed. When the control node itself is gone, its leases end 180 seconds of the
    head's running time after the last renewal.
  - A lease of a run that is known to have ended, because its process on this same control node is gone, does not count.
  - Within one run, leases that the run holds are not asked for again.
options:
  state:
    description:
      - V(held) takes the leases. V(read) reports who holds them. V(released) is what the process beside the run does
        after its end.
    type: str
    choices: [read, held, released]
    default: held
  scopes:
    description:
      - V(deployment) is what a model's engine consists of, V(cluster) the host, the fabric and the images beneath it.
    type: list
    elements: str
    choices: [deployment, cluster]
    default: [deployment, cluster]
  take_over:
    description:
      - Take the leases from a run that holds them. That run is stopped at its next renewal, for which this one waits.
    type: bool
    default: false
  holder:
    description: Given by the action plugin. Who asks, with C(run), C(who), C(where), C(what) and C(process).
    type: dict
    default: {}
  ended:
    description: Given by the action plugin. Runs whose process is known to have ended.
    type: list
    elements: str
    default: []
  folder:
    description: Where leases are kept on the head.
    type: path
    default: /run/gb10/lease
extends_documentation_fragment:
  - gb10.cluster.attributes.connected
attributes:
  check_mode:
    details: Takes no lease, and warns of the run that holds one.
"""

EXAMPLES = r"""
- name: Take the lease of the deployment
  gb10.cluster.lease:
    scopes: [deployment]
    take_over: "{{ take_over | default(false) }}"
  run_once: true
  delegate_to: "{{ groups['head'] | first }}"
  become: true
"""

RETURN = r"""
record:
  description: >-
    The model that was last verified, as the head has it recorded; empty when there is none. Nothing changes it from
    here on but this run.
  returned: when the head was asked
  type: dict
holders:
  description: Leases of other runs that hold, and with O(take_over=true) those that were taken over.
  returned: always
  type: list
  elements: dict
  contains:
    scope:
      description: What is leased.
      type: str
    who:
      description: User of the control node.
      type: str
    where:
      description: Name of the control node.
      type: str
    what:
      description: The playbook.
      type: str
    since:
      description: When the lease was taken, by the head's clock, ISO 8601.
      type: str
    seconds:
      description: How long ago that was, by the head's running time.
      type: float
    renewed_seconds:
      description: How long ago the lease was renewed.
      type: float
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record
from ansible_collections.gb10.cluster.plugins.module_utils._node import lease


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "held", "released"], "default": "held"},
            "scopes": {
                "type": "list",
                "elements": "str",
                "choices": list(lease.SCOPES),
                "default": list(lease.SCOPES),
            },
            "take_over": {"type": "bool", "default": False},
            "holder": {"type": "dict", "default": {}},
            "ended": {"type": "list", "elements": "str", "default": []},
            "folder": {"type": "path", "default": str(lease.FOLDER)},
        },
        supports_check_mode=True,
    )
    want = module.params
    folder, run = Path(want["folder"]), str(want["holder"].get("run", ""))
    changed = False
    try:
        if want["state"] == "read" or module.check_mode:
            holders = lease.live(folder, run, want["scopes"])
        elif not run:
            module.fail_json(msg="gb10.cluster.lease needs its action plugin, which gives the run a name.")
        elif want["state"] == "released":
            changed, holders = lease.release(folder, run), []
        else:
            changed, holders = lease.hold(
                folder, want["scopes"], want["holder"], ended=want["ended"], take_over=want["take_over"]
            )
    except OSError as error:
        module.fail_json(msg=f"The leases in {folder} cannot be read or written: {error.strerror or error}.")
    module.exit_json(changed=changed, holders=holders, record=record.last_verified(record.ACTIVE))


if __name__ == "__main__":
    main()
