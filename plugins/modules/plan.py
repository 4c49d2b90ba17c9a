#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Turn the chosen model into one checked plan
version_added: 0.1.0
description:
  - Merges the overrides into the model's dictionary, validates it, checks the inventory's
    addresses, and decides which nodes take part in which rank order.
  - Refuses a context that is longer than the geometry allows, and warns about settings with a known risk.
  - Runs on the control node alone; no host is contacted. All errors are reported at once.
options:
  model:
    description: The name that was asked for.
    type: str
  spec:
    description: The C(model_spec) that the inventory holds for it. Omitted or empty when there is none.
    type: dict
  recipe:
    description: >-
      A recipe file of eugr, sparkrun or vllm-project/recipes, C(<directory>:<recipe>) or C(<file>:<variant>); it takes
      the place of I(model) and I(spec). Refused together with C(-e model=).
    type: str
    default: ""
  source_root:
    description: Directory of weights on the control node, for the size of a recipe's model.
    type: str
    default: ""
  endpoint:
    description: The hub that is asked for the size of a model that names none; empty asks no hub.
    type: str
    default: ""
  token:
    description: Token for models that need one.
    type: str
    default: ""
  overrides:
    description: Merged into I(spec) for this run; V(null) removes a key.
    type: dict
    default: {}
  engine:
    description: >-
      Engine of a multi-node model for this run, whatever I(spec) and I(overrides) say; empty changes nothing.
    type: str
    choices: ["", native, ray]
    default: ""
  catalogue:
    description: More directories with C(model_*.yml) files beside the collection's own, to name the known models.
    type: list
    elements: path
    default: []
  images:
    description: The known images by name.
    type: dict
    required: true
  record:
    description: >-
      What was last verified on the head. A plan that serves the same model on other nodes or by another engine is
      refused, and overrides that only a command line had are used again; omitted or empty when the command line says
      where and how to serve.
    type: dict
    default: {}
  mods_dir:
    description: Directory of the mods; the collection's own unless given.
    type: path
  render_only:
    description: >-
      The plan is only shown, no node will be contacted for it: addresses may still be placeholders.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
attributes:
  diff_mode:
    description: Shows the options of the engine against the published ones.
    support: full
"""

EXAMPLES = r"""
- name: Plan the model
  gb10.cluster.plan:
    model: "{{ model }}"
    spec: "{{ model_spec | default(omit) }}"
    overrides: "{{ model_overrides | default({}) }}"
    images: "{{ gb10_images }}"
  run_once: true
"""

RETURN = r"""
plan:
  description: >-
    Model name, validated C(spec), systemd C(unit) and C(container), C(members) in rank order, C(idle) nodes,
    C(head), fabric C(addresses) by host, C(head_address), C(api_url), C(multi_node),
    C(vllm_version) of the image, C(vllm_upstream) (the release that a fork is based on; empty for none), and whether
    the image is taken as it is from a registry (C(image_pulled)), and the C(overrides) that are
    in no file.
  returned: success
  type: dict
overridden:
  description: What I(overrides) changed, a line each.
  returned: when I(overrides) are given
  type: list
  elements: str
  sample: ["serve.max-num-seqs: 6 -> 4"]
sizes:
  description: Where the size of a model that names none was read, or why it was not, a sentence each.
  returned: unless I(render_only)
  type: list
  elements: str
recipe:
  description: What the recipe became, and what of it did not carry over and why, a line each.
  returned: when I(recipe) is given
  type: list
  elements: str
errors:
  description: Each thing that is wrong, a sentence each.
  returned: failure
  type: list
  elements: str
"""
