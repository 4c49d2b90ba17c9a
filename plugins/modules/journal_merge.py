#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: journal_merge
short_description: Print the journals of several nodes as one
version_added: 0.1.0
description:
  - Merges what M(gb10.cluster.node_journal) read on each node by time, each line with its node's name, and prints the
    result or writes it to a file. Times are those of the nodes' own clocks, in UTC.
  - Runs on the control node alone.
options:
  reports:
    description: RV(gb10.cluster.node_journal#module:entries) by node.
    type: dict
    required: true
  problems:
    description: Why a node's journal could not be read, by node; printed above the lines.
    type: dict
    default: {}
  file:
    description: File on the control node that gets the lines instead of the terminal.
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Print one log of all ranks
  gb10.cluster.journal_merge:
    reports: "{{ reports }}"
  run_once: true
"""

RETURN = r"""
lines:
  description: How many lines there were.
  returned: success
  type: int
"""
