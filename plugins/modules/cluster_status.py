#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_status
short_description: Print what a cluster serves on one screen
version_added: 0.1.0
description:
  - Merges what M(gb10.cluster.node_status) reports for each node into the cluster's state, and prints one screen, or
    one JSON document. A node that did not answer is named.
  - Runs on the control node alone.
options:
  nodes:
    description: All nodes of the inventory, in order.
    type: list
    elements: str
    required: true
  head:
    description: The node that serves the API.
    type: str
    required: true
  reports:
    description: RV(gb10.cluster.node_status#module:status) by node, of those that answered.
    type: dict
    required: true
  problems:
    description: Why the others did not, by node.
    type: dict
    default: {}
  json:
    description: V(true) or V(-) prints JSON instead of the screen; a path writes JSON there as well.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Print what is served
  gb10.cluster.cluster_status:
    nodes: "{{ groups['gx10'] }}"
    head: "{{ groups['head'] | first }}"
    reports: "{{ reports }}"
  run_once: true
"""

RETURN = r"""
cluster:
  description: C(model), C(state), C(since), C(nodes), C(load), C(diagnosis), C(last_failure) and what else is known.
  returned: success
  type: dict
screen:
  description: The lines of the screen, for programs that show it themselves.
  returned: success
  type: list
  elements: str
"""
