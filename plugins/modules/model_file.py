#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Write a model file on the control node, and never over what its owner changed
version_added: 0.2.0
description:
  - Creates the file, or replaces one that still has the digest of its own lines.
  - A file that was changed by hand, or written by somebody else, is left alone and the task fails, unless O(replace) is
    set; the old file is then kept beside the new one.
  - Runs on the control node alone.
options:
  path:
    description: The file.
    type: path
    required: true
  content:
    description: Its text, as M(gb10.cluster.add_model) returns it.
    type: str
    required: true
  replace:
    description: Whether a file that was changed by hand may be replaced.
    type: bool
    default: false
  variable:
    description: The variable of a command line that sets O(replace), for the message.
    type: str
    default: add_model_replace
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
attributes:
  diff_mode:
    description: Shows what changes, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Write the model file
  gb10.cluster.model_file:
    path: "{{ added.path }}"
    content: "{{ added.content }}"
  run_once: true
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
backup:
  description: Where the old file is kept; empty where there was nothing to keep.
  returned: success
  type: str
"""
