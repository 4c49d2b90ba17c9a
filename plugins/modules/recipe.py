#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: recipe
short_description: Turn recipe files of other projects into the texts of model files
version_added: 0.2.0
description:
  - Reads recipes of eugr/spark-vllm-docker, sparkrun and vllm-project/recipes.
  - Each is checked as every model file is checked.
  - One recipe that cannot be served here fails the task; in a directory it gets its sentence in the report.
  - Runs on the control node alone, and writes nothing; M(gb10.cluster.model_file) writes.
options:
  recipe:
    description: A file, a directory, a checkout of a registry, C(<directory>:<recipe>) or C(<file>:<variant>).
    type: str
    required: true
  name:
    description: The model's name; empty for one that follows from the recipe's. Only for one recipe.
    type: str
    default: ""
  image:
    description: Image in place of the recipe's, a key of I(images) or a reference.
    type: str
    default: ""
  images:
    description: The known images by name.
    type: dict
    required: true
  directory:
    description: Directory of the model files.
    type: path
    required: true
  catalogue:
    description: More directories with model files; size and geometry come from one that serves the same repository.
    type: list
    elements: path
    default: []
  source_root:
    description: Directory of weights on the control node, for their size.
    type: str
    default: ""
  mods_dir:
    description: Directory of the mods that patches of a recipe become; the collection's own unless given.
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
"""

EXAMPLES = r"""
- name: Read the recipes
  gb10.cluster.recipe:
    recipe: ~/recipe-registry
    images: "{{ gb10_images }}"
    directory: "{{ inventory_dir }}/group_vars"
  run_once: true
  register: recipes
"""

RETURN = r"""
models:
  description: Each model with C(name), C(path) of its file and C(content), the file's text.
  returned: success
  type: list
  elements: dict
mods:
  description: Each file of a mod that patches became, with C(path) and C(content).
  returned: success
  type: list
  elements: dict
report:
  description: What was imported, what of it did not carry over and why, a line each.
  returned: success
  type: list
  elements: str
"""
