#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_table
short_description: Print what each model of the catalogue would be on a cluster
version_added: 0.2.0
description:
  - Prints one table, or one JSON document, with the boxes, the context, the published speed and the image of each
    model, and whether it fits on the nodes of this inventory. The tightest of a model's nodes decides.
  - Runs on the control node alone.
options:
  specs:
    description: C(model_spec) dictionaries.
    type: list
    elements: dict
    required: true
  images:
    description: The image catalogue.
    type: dict
    required: true
  nodes:
    description: All nodes of the inventory, the head first.
    type: list
    elements: str
    required: true
  memory_gib:
    description: MemTotal in GiB by node, of those that answered.
    type: dict
    required: true
  json:
    description: V(true) or V(-) prints JSON instead of the table; a path writes JSON there as well.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Print the models
  gb10.cluster.model_table:
    specs: "{{ q('ansible.builtin.fileglob', 'group_vars/model_*.yml') | gb10.cluster.model_specs }}"
    images: "{{ gb10_images }}"
    nodes: [gx10-1]
    memory_gib: {gx10-1: 119.7}
  run_once: true
"""

RETURN = r"""
models:
  description:
    - One row a model, the largest that fits first, with C(name), C(repo), C(revision), C(nodes), C(size_gib),
      C(context), C(image), C(vllm_version), C(vllm_is_fork), C(decode_one), C(decode_peak), C(status) and
      C(source) of C(provenance), C(verdict), C(reason) and C(basis) (C(computed) from the shape, or C(measured)
      from a published cache).
    - C(decode_one) and C(decode_peak) are points that a source published; nothing was measured by this project.
  returned: success
  type: list
  elements: dict
nodes:
  description: MemTotal in GiB by node; null for one that did not answer.
  returned: success
  type: dict
"""
