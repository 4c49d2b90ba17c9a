#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_object
short_description: Apply one object to a Kubernetes cluster when it differs, or delete it
version_added: 0.2.0
description:
  - Lets the server make what an apply would result in (dry run, which also asks its webhooks), compares that with
    what is there, and applies only when they differ. Server-side apply with the field manager C(gb10.cluster).
  - A job that ended without success is deleted and made again.
options:
  object:
    description: The object. To delete, O(object) needs C(kind) and C(metadata) alone.
    type: dict
    required: true
  state:
    description: Whether the object is to be there.
    type: str
    choices: [present, absent]
    default: present
  create_only:
    description: Leave an object alone that is there.
    type: bool
    default: false
  dry_run:
    description: Ask the server whether it would accept the object; reports no change.
    type: bool
    default: false
  force:
    description: Take fields that another manager owns.
    type: bool
    default: false
  selector:
    description: With O(state=absent), delete all of the kind with these labels, except the one that O(object) names.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.cluster_state
  - gb10.cluster.kubernetes
"""

EXAMPLES = r"""
- name: Apply the deployment
  gb10.cluster.dynamo_object:
    object: "{{ objects['40-graph.yaml'] }}"
"""

RETURN = r"""
object:
  description: The object as the server has it, or would have it.
  returned: when present
  type: dict
removed:
  description: Names of what was deleted.
  returned: when absent
  type: list
  elements: str
"""
