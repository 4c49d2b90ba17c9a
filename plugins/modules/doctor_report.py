#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_report
short_description: Judge what the nodes of a cluster say of themselves
version_added: 0.1.0
description:
  - Turns what other modules found on each node into checks with V(OK), V(WARN) or V(FAIL) and a remedy, compares the
    nodes line by line, and prints one table per node and one for the cluster.
  - Runs on the control node alone.
options:
  told:
    description: >-
      By node, C(node) (M(gb10.cluster.node_facts) with C(detail)), C(fabric) (M(gb10.cluster.fabric_facts)),
      C(ping) (M(gb10.cluster.fabric_ping)), C(skew) (M(gb10.cluster.clock_skew)), C(slow) (sentences about throughput).
      A node without C(node) did not answer; C(error) may say why.
    type: dict
    required: true
  limits:
    description: By node, what is healthy.
    type: dict
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
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Print the diagnosis
  gb10.cluster.doctor_report:
    told: "{{ told }}"
    limits: "{{ limits }}"
    fail_on: warn
  run_once: true
"""

RETURN = r"""
report:
  description: C(level), C(counts), C(nodes) and C(cluster), each check with C(name), C(value), C(level), C(remedy).
  returned: success
  type: dict
"""
