#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_wait
short_description: Wait for a deployment or a job on Kubernetes
version_added: 0.2.0
description:
  - Prints a line at each change, and ends when the deployment is ready, when it cannot get ready, or when nothing goes
    on any more. A failure names its cause, which is read in states, events and logs.
options:
  what:
    description:
      - What is waited for. V(gone) waits until a deployment and its pods have gone, V(workers) until a deployment whose
        workers were deleted serves again.
    type: str
    choices: [graph, workers, job, gone]
    required: true
  name:
    description: Name of the deployment or job.
    type: str
    required: true
  namespace:
    description: Its namespace.
    type: str
    required: true
  stall_seconds:
    description: Seconds without any change, in states and in logs, after which the wait fails.
    type: float
    default: 1800.0
  passing_seconds:
    description: Seconds for which a cause is tolerated that may pass, such as a node that has yet to come.
    type: float
    default: 300.0
  every_seconds:
    description: Seconds between two looks.
    type: float
    default: 5.0
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
"""

EXAMPLES = r"""
- name: Wait for the deployment
  gb10.cluster.dynamo_wait:
    what: graph
    name: ultra-agg-b200-chat-mtp
    namespace: ultra
"""

RETURN = r"""
line:
  description: The last line.
  returned: when waited
  type: str
"""
