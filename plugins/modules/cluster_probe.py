#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_probe
short_description: Watch every rank of a served model and verify that it yields tokens
version_added: 0.1.0
description:
  - Runs on all ranks of a model in one task. On every node it reads the rank as M(gb10.cluster.rank_state)
    does, on the head also the API as M(gb10.cluster.health_probe) does, and every host sees all reports.
  - With O(wait=true) the task goes on as long as any rank makes progress, and ends on all hosts within
    seconds when a rank dies, when the model serves, or when nothing has moved for O(stall_seconds).
  - All hosts fail together, so that a C(rescue) runs on all of them; the head's message and that of the
    ranks concerned hold the diagnosis.
  - All ranks must be in the play, and C(forks) must not be fewer than the ranks. Not to be used with
    C(serial), C(throttle), C(until), a loop, or a strategy other than V(linear).
options:
  head:
    description: Inventory name of the head, which holds rank 0 and the API.
    type: str
    required: true
  ranks:
    description: Inventory names of all ranks, the head among them. Other hosts of the play are skipped.
    type: list
    elements: str
    required: true
  addresses:
    description: Fabric address by node name, so that a line that Ray forwarded names its own node.
    type: dict
  wait:
    description: Whether to wait for a settled state and to fail unless it is V(ready).
    type: bool
    default: true
  stall_seconds:
    description: Seconds without progress on any rank after which a start counts as stuck.
    type: float
    default: 600
  poll_seconds:
    description: Longest time between two looks at a node.
    type: float
    default: 5
  restarts_allowed:
    description:
      - How many times each unit may end and be restarted by systemd during the wait, when no log shows a cause
        that the next run will meet again.
    type: int
    default: 0
seealso:
  - module: gb10.cluster.rank_state
  - module: gb10.cluster.health_probe
extends_documentation_fragment:
  - gb10.cluster.probe
  - gb10.cluster.probe.api
  - gb10.cluster.attributes.connected
attributes:
  check_mode:
    details: Looks once, without waiting and without failing.
"""

EXAMPLES = r"""
- name: Verify that the model serves
  gb10.cluster.cluster_probe:
    name: my-model
    served_name: qwen3.5-397b
    head: gx10-1
    ranks: [gx10-1, gx10-2, gx10-3, gx10-4]
    mtp_tokens: 2
    rdma: true
  become: true
"""

RETURN = r"""
state:
  description: V(absent), V(starting), V(ready), V(wrong_model), V(degraded), V(dead) or V(wedged).
  returned: always
  type: str
  sample: ready
phase:
  description: Phase of the start that the head's log shows.
  returned: when the head has reported
  type: str
  sample: load
progress:
  description: The phase in words, with its count.
  returned: when the head has reported
  type: str
  sample: loading weights, 3 of 10
seconds:
  description: Seconds since the start of the head's unit.
  returned: always
  type: float
stalled:
  description: Whether the start made no progress for O(stall_seconds).
  returned: always
  type: bool
ranks:
  description: State of each node.
  returned: when the head has reported
  type: dict
diagnosis:
  description: Explanations, the likeliest first, each with node, name, cause, remedy and line.
  returned: when the head has reported
  type: list
  elements: dict
warnings_found:
  description: What does not stop the engine but is worth knowing, in the same form.
  returned: when the head has reported
  type: list
  elements: dict
summary:
  description: The state in one sentence.
  returned: always
  type: str
missing:
  description: Ranks that had not reported when another one's death ended the wait.
  returned: always
  type: list
  elements: str
rank:
  description: This node's rank as M(gb10.cluster.rank_state) returns it.
  returned: success
  type: dict
api:
  description: Health, models, canaries and metrics of the API.
  returned: success, on the head
  type: dict
tail:
  description: The newest lines of the log of the head and of the ranks concerned.
  returned: failure
  type: list
  elements: str
"""
