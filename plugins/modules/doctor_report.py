#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_report
short_description: Diagnose the nodes of a cluster from what role doctor has read
version_added: 0.1.0
description:
  - Turns what the tasks of role doctor registered for each node into checks with V(OK), V(WARN) or V(FAIL) and a
    remedy, compares the nodes property by property, and prints one table per node and one for the cluster.
  - What is healthy is set by the variables of the roles doctor, fabric and host, for a node or for all; their
    defaults are read from those roles.
  - Runs on the control node alone.
options:
  nodes:
    description: Inventory names of the nodes. One that did not answer is reported as such.
    type: list
    elements: str
    required: true
  json:
    description: V(-) prints JSON instead of tables; a path writes JSON there as well.
    type: str
    default: ""
  fail_on:
    description: The level from which the task fails.
    type: str
    choices: [never, fail, warn]
    default: fail
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Print the diagnosis
  gb10.cluster.doctor_report:
    nodes: "{{ groups['gx10'] }}"
    fail_on: warn
  run_once: true
"""

RETURN = r"""
report:
  description: C(level), C(counts), C(nodes) and C(cluster), each check with C(name), C(value), C(level), C(remedy).
  returned: success
  type: dict
"""
