#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_wheels
short_description: Download the wheels that the locks of an image name
version_added: 0.1.0
description:
  - Brings the wheels of every locked step of an image into a directory of the control node, so that the head needs no
    package index to build the image.
  - Files that are there with the locked size and SHA-256 are kept. A download continues where an earlier one ended,
    and gets its name after its hash was checked.
  - A wheel that is on no index is fetched by the address of its step; its hash is returned to be recorded, and another
    file under the same address is refused later. One that cannot be had is a warning, for the image can be built
    without it.
  - Progress is shown every few seconds.
options:
  locks_dir:
    description: Directory of the locks, the collection's own unless given.
    type: path
  wheels_dir:
    description: Directory on the control node.
    type: path
    required: true
  mirror:
    description: Address that takes the place of C(https://files.pythonhosted.org) in the addresses of the locks.
    type: str
    default: ""
  digests:
    description: Digests of wheels by address as they were recorded; another one is refused.
    type: dict
    default: {}
  relock:
    description: Whether a wheel by address may have another digest than the recorded one.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.image
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Download the wheels of an image
  gb10.cluster.image_wheels:
    name: vllm-node
    images: "{{ gb10_images }}"
    wheels_dir: ~/wheels
  run_once: true
"""

RETURN = r"""
files:
  description: Files that were downloaded, or would be in check mode.
  returned: always
  type: list
  elements: str
mib:
  description: Size of these files in MiB.
  returned: always
  type: float
digests:
  description: Digest of each wheel by address, to be recorded.
  returned: always
  type: dict
errors:
  description: One sentence for each problem.
  returned: failure
  type: list
  elements: str
"""
