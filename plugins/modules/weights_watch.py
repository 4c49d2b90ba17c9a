#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_watch
short_description: Watch a node's part of a transfer, and give it the control node's files
version_added: 0.1.0
description:
  - Runs on the control node for each node that gb10.cluster.weights_move has been started on. It prints a line with
    bytes, rate and time left, reports a node that receives nothing or does not answer, and returns when its copy
    is complete.
  - With O(origin) the control node is the node's source for as long as this runs, piece by piece over SSH connections
    of their own; what is at the source is only read.
options:
  name:
    description: The node's name in what is printed.
    type: str
    required: true
  manifest:
    description: The manifest made at the source.
    type: dict
    required: true
  complete:
    description: Whether the node's copy was complete before; then there is nothing to watch.
    type: bool
    required: true
  changes:
    description: Whether what is transferred counts as a change.
    type: bool
    default: true
  origin:
    description: What gb10.cluster.weights_manifest returned about the source; empty when other nodes are the source.
    type: dict
    default: {}
  port:
    description: The port on the node's loopback at which it asks for the control node's files.
    type: int
    required: true
  tunnels:
    description:
      - How many SSH connections carry the files, at O(port) and the ports after it. Each is bound by one core on
        either side.
    type: int
    default: 2
  token:
    description: What those who ask must know.
    type: str
    required: true
  every_s:
    description: Interval of the progress lines, in seconds.
    type: int
    default: 10
  stalled_s:
    description: A node that receives nothing for so long is reported, in seconds.
    type: int
    default: 8
extends_documentation_fragment:
  - gb10.cluster.attributes.connected
"""

EXAMPLES = r"""
- name: Wait until every node's copy is complete
  gb10.cluster.weights_watch:
    name: "{{ inventory_hostname }}"
    manifest: "{{ source.manifest }}"
    complete: "{{ read.complete }}"
    origin: "{{ source.origin }}"
    port: 5082
    token: "{{ transfer_token }}"
"""

RETURN = r"""
status:
  description: What gb10.cluster.weights_move says of the node at the end.
  returned: success
  type: dict
seconds:
  description: How long it took.
  returned: success
  type: float
"""
