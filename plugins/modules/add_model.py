#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: add_model
short_description: Work out the model file of a repository for this inventory
version_added: 0.2.0
description:
  - Reads the file list, config.json, the weight index, and the settings of tokenizer and generation, and no weights.
  - Works out size, geometry, the number of nodes, context and memory budget, chooses an image whose vLLM has the
    model's class, and takes parsers and options from what is published for that class.
  - Each value of RV(content) has its reason as a comment; what no source says is marked C(UNKNOWN) and left out.
  - Writes nothing; M(gb10.cluster.model_file) does. Runs on the control node alone; no node is contacted.
options:
  repo:
    description: C(organisation/name) on the hub, or a directory of the control node (it begins as a path does).
    type: str
    required: true
  revision:
    description: Branch, tag or commit; empty for the newest.
    type: str
    default: ""
  nodes:
    description: Number of nodes; 0 takes the fewest that hold a useful context.
    type: int
    default: 0
  name:
    description: Name for C(-e model=); empty takes it from the repository.
    type: str
    default: ""
  image:
    description: Key of O(images); empty takes the newest public one that has the model's class.
    type: str
    default: ""
  drafts:
    description:
      - What drafts tokens. Empty takes what is published for the class, where the repository has it.
      - V(heads) takes the heads of the checkpoint, V(drafter) a model beside it, V(none) nothing.
    type: str
    choices: ["", none, heads, drafter]
    default: ""
  task:
    description:
      - What the model is served for. Empty follows its class, its files and its name.
      - V(embed) and V(score) serve it as a pooling model.
    type: str
    choices: ["", generate, embed, score]
    default: ""
  overrides:
    description: Merged into the model, for what is the same for every model of a cluster.
    type: dict
    default: {}
  node_facts:
    description: Results of M(gb10.cluster.node_facts), the head's first; one without memory counts as not known.
    type: list
    elements: dict
    required: true
  memory_gib:
    description: Memory of every node in GiB, in place of O(node_facts); 0 for what they say.
    type: float
    default: 0.0
  images:
    description: The image catalogue.
    type: dict
    required: true
  directory:
    description: Directory that the file is meant for.
    type: path
    required: true
  catalogue:
    description: More directories with model files, for names and ports that are taken.
    type: list
    elements: path
    default: []
  endpoint:
    description: Where the hub is.
    type: str
    default: https://huggingface.co
  token:
    description: Token for models that need one. It goes to the endpoint's own host only.
    type: str
    default: ""
  source_root:
    description: Where the control node keeps models; a directory in O(repo) lies below it.
    type: path
    default: ~/models
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Work out the model file
  gb10.cluster.add_model:
    repo: organisation/model
    node_facts: "{{ groups['gx10'] | map('extract', hostvars, 'node_facts') }}"
    images: "{{ gb10_images }}"
    directory: "{{ inventory_dir }}/group_vars"
  run_once: true
  register: added
"""

RETURN = r"""
spec:
  description: The model_spec.
  returned: success
  type: dict
content:
  description: The text of the file.
  returned: success
  type: str
path:
  description: Where the file belongs.
  returned: success
  type: str
vllm_version:
  description: Version of vLLM in the image.
  returned: success
  type: str
report:
  description: The model in short, what one, two and four boxes would give, and what is not known; a line each.
  returned: success
  type: list
  elements: str
  sample: ["2 boxes: fits; 1830912 tokens of cache, 6.98 sequences of 262144 tokens at once."]
"""
