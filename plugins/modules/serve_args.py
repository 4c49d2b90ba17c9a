#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: serve_args
short_description: Turn a dictionary into the argument list of vllm serve
version_added: 0.1.0
description:
  - Checks every option and every C(VLLM_*) variable against the version of vLLM in the image and
    returns the exact argument list, in the order of the dictionary.
  - Refuses unknown, abbreviated and removed options, wrong types and choices (also those that
    vLLM's own parser lets through and that end a start minutes later), options that contradict
    each other, options of a mod that the model does not list, and variables that this version
    does not know. All errors are reported at once, with the nearest right name and the versions
    that have it.
  - Runs on the control node alone; no host is contacted.
options:
  serve:
    description:
      - Long option names without dashes, and their values.
      - V(true) sets a switch and V(false) turns it off, in the spelling that this version has.
        Dictionaries and lists become JSON where the option takes JSON.
    type: dict
    required: true
  vllm_version:
    description:
      - Version of vLLM in the image, suffixes included.
      - Without a table of exactly this version the same release is taken, or the nearest below,
        and a note says so.
    type: str
    required: true
  upstream:
    description:
      - The release that a fork of vLLM is based on. The image's options and variables are then compared with that
        release's, and what it does not have is noted and left to the image's own vLLM.
    type: str
    default: ""
  image_table:
    description:
      - File with the table of options that the image itself gave, see M(gb10.cluster.image_flags). If it exists, it is
        the one that is used, and nothing is left open.
    type: path
    default: ""
  model:
    description: What RV(command) shows as the model.
    type: str
    default: MODEL
  env:
    description: Environment of the engine.
    type: dict
    default: {}
  mods:
    description: Mods that the image is built with; their options are accepted.
    type: list
    elements: str
    default: []
  mods_dir:
    description: Directories that are searched for mods before the collection's own.
    type: list
    elements: path
    default: []
  tables_dir:
    description: Directories with tables of options, read before those of the collection.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Check the options of a model
  gb10.cluster.serve_args:
    vllm_version: 0.22.1
    model: organisation/model
    mods: [gpu-mem-util-gb]
    env:
      VLLM_FLASHINFER_ALLREDUCE_BACKEND: trtllm
    serve:
      tensor-parallel-size: 4
      gpu-memory-utilization-gb: 108
      enable-prefix-caching: true
      speculative-config:
        method: nemotron_h_mtp
        num_speculative_tokens: 3
  register: checked

- name: Show the effective command
  ansible.builtin.debug:
    var: checked.command
"""

RETURN = r"""
args:
  description: The arguments after the model.
  returned: success
  type: list
  elements: str
  sample: ["--tensor-parallel-size", "4", "--enable-prefix-caching"]
command:
  description: The effective command, quoted for a shell.
  returned: success
  type: str
env:
  description: The environment, every value as text.
  returned: success
  type: dict
notes:
  description: What is accepted but worth a word, a sentence each.
  returned: success
  type: list
  elements: str
table:
  description: Version of the table that was used.
  returned: success
  type: str
  sample: 0.22.1
errors:
  description: Each thing that is wrong, a sentence each.
  returned: failure
  type: list
  elements: str
"""
