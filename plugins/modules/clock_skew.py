#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: clock_skew
short_description: Measure how far a node's clock is from the control node's
version_added: 0.1.0
description:
  - Asks the node for the time over the connection that is there, a few times, and takes the answer that came fastest.
  - Changes nothing.
options:
  samples:
    description: How often to ask.
    type: int
    default: 4
extends_documentation_fragment:
  - gb10.cluster.attributes.connected
"""

EXAMPLES = r"""
- name: Measure the clock
  gb10.cluster.clock_skew:
  register: skew
"""

RETURN = r"""
skew_s:
  description: Seconds by which the node's clock leads that of the control node.
  returned: success
  type: float
  sample: -0.0021
error_s:
  description: Seconds by which that may be off.
  returned: success
  type: float
  sample: 0.008
"""
