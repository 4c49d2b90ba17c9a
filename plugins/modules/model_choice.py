#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_choice
short_description: Choose the model that a run acts on
version_added: 0.2.0
description:
  - The model that the command line names (C(-e model=NAME)) is taken, and no node is contacted.
  - Otherwise the head is asked what was last verified, as the role C(engine) records it, and that is taken; where there
    is no record, the model that the inventory names. V(inventory) as a name stands for that.
  - Refuses a recorded model whose variables cannot take the place of those of the inventory's.
  - A head that cannot be reached is reported with the choice; a record that cannot be read fails.
options:
  catalogue:
    description: Directories with C(model_*.yml) files beside the collection's own.
    type: list
    elements: path
    default: []
  ask:
    description: Whether the head may be asked.
    type: bool
    default: true
  recipe:
    description: A recipe that this run serves in place of a model; then nothing is chosen here.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.connected
"""

EXAMPLES = r"""
- name: Choose the model of this run
  gb10.cluster.model_choice:
    catalogue: "{{ gb10_model_dirs }}"
  delegate_to: "{{ groups['head'] | first }}"
  run_once: true
  register: choice
"""

RETURN = r"""
choice:
  description: The model and where its name is from.
  returned: success
  type: dict
  contains:
    model:
      description: Its name.
      type: str
    source:
      description: In words, where the name is from.
      type: str
    group:
      description: The inventory group with the variables of this model.
      type: str
    record:
      description: What was last verified, where that decides the placement; empty where the command line does.
      type: dict
    recorded:
      description: What was last verified; empty when nothing was, or the head was not asked.
      type: dict
    asked:
      description: Whether the head answered.
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record


def main() -> None:
    """Return the record; the action plugin decides."""
    module = AnsibleModule(
        argument_spec={
            "catalogue": {"type": "list", "elements": "path", "default": []},
            "ask": {"type": "bool", "default": True},
            "recipe": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, record=record.last_verified(record.ACTIVE))


if __name__ == "__main__":
    main()
