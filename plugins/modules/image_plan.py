#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_plan
short_description: Plan what an engine image is built from
version_added: 0.1.0
description:
  - Resolves an image's recipe and its lineage, checks that every wheel is present with the pinned
    name and hash, renders the Dockerfile and computes the fingerprint of all inputs.
  - Runs on the control node alone. All errors are reported at once.
options:
  mods:
    description: The mods to apply as the last layer, in order.
    type: list
    elements: str
    default: []
  mods_dir:
    description: Directory of the mods; the collection's own unless given.
    type: path
  overlays_dir:
    description: Directory of overlay files; the collection's own unless given.
    type: path
  digests:
    description:
      - Image reference → digest. A base that is a tag is built from its digest.
      - For a tag that is missing here, C(digest) is empty, and the image's tag and fingerprint are C(unbuilt).
    type: dict
    default: {}
  locks_dir:
    description:
      - Directory of the locks, the collection's own unless given. A step with C(lock=true) installs the wheels of
        C(<image>.<step>.txt), each with its hash.
    type: path
  wheels_dir:
    description:
      - Directory on the control node that holds wheels. Those of a locked step are taken from there when all of them
        are there; otherwise the head downloads them from its package index.
    type: path
    required: true
  require_wheels:
    description:
      - Whether a wheel or base archive that is missing on the control node is an error.
      - With V(false) it is only reported in C(missing), and the image's tag and fingerprint are C(unbuilt).
    type: bool
    default: true
  context_dir:
    description: Where to lay out the build context, as links. Nothing is written in check mode.
    type: path
extends_documentation_fragment:
  - gb10.cluster.image
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Plan the image of the model
  gb10.cluster.image_plan:
    name: vllm-node
    images: "{{ gb10_images }}"
    mods: [gpu-mem-util-gb]
    wheels_dir: ~/wheels
  run_once: true
"""

RETURN = r"""
image_plan:
  description: >-
    Name, C(tag), C(fingerprint), C(dockerfile), C(files) with their sha256, C(wheels), C(assertions),
    C(base), C(base_archive), C(reference), C(digest), C(context_mib) and C(download_mib) of the image, C(missing),
    a sentence for each file that is missing on the control node, and C(notes), a sentence for each optional wheel that
    the image is built without.
  returned: success
  type: dict
errors:
  description: One sentence for each problem.
  returned: failure
  type: list
  elements: str
"""
