#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_check
short_description: Check what a Kubernetes cluster must have for a target
version_added: 0.2.0
description:
  - Reads the API's version, the platform's resources and operator, this user's rights, free GPUs on one node, RDMA
    resource, runtime class, storage, secrets and what else serves in the namespace. Changes nothing.
  - Prints a line for each and fails with all problems at once, each with its remedy.
options:
  token_env:
    description: Name of the environment variable on the control node with a Hugging Face token.
    type: str
    default: HF_TOKEN
  pull_secret_given:
    description: Whether a pull secret will be written into the namespace.
    type: bool
    default: false
  replace:
    description: Whether another deployment in the namespace may be replaced.
    type: bool
    default: true
  keep_others:
    description: Whether other deployments keep their GPUs.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
  - gb10.cluster.kubernetes.target
"""

EXAMPLES = r"""
- name: Check the cluster
  gb10.cluster.dynamo_check:
    specs: "{{ specs }}"
    target: agg-b200-chat-mtp
    settings: {namespace: ultra}
"""

RETURN = r"""
target:
  description: What the filter P(gb10.cluster.dynamo_target#filter) returns.
  returned: success
  type: dict
problems:
  description: A sentence for each problem.
  returned: success
  type: list
  elements: str
notes:
  description: A sentence for each thing that is worth knowing.
  returned: success
  type: list
  elements: str
namespace_exists:
  description: Whether the namespace exists.
  returned: success
  type: bool
before:
  description: The live deployment of the target's name, as it can be applied again; empty where there is none.
  returned: success
  type: list
  elements: dict
others:
  description: The other deployments of this collection in the namespace, as they can be applied again.
  returned: success
  type: list
  elements: dict
"""
