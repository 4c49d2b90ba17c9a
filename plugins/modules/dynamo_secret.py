#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_secret
short_description: Write a secret into a Kubernetes cluster
version_added: 0.2.0
description:
  - Writes one value, or a Docker config.json, from memory into a secret. It is on no command line, in no diff and in no
    result.
options:
  name:
    description: Name of the secret.
    type: str
    required: true
  namespace:
    description: Namespace of the secret.
    type: str
    required: true
  key:
    description: Key of the value.
    type: str
    default: ""
  env:
    description: Name of the environment variable on the control node that has the value; without it nothing is written.
    type: str
    default: ""
  docker_config:
    description: A Docker config.json on the control node, instead of O(key) and O(env).
    type: path
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
"""

EXAMPLES = r"""
- name: Write the token
  gb10.cluster.dynamo_secret:
    name: hf-token-secret
    namespace: ultra
    key: HF_TOKEN
    env: HF_TOKEN
"""

RETURN = r"""
changed:
  description: Whether the secret was written.
  returned: always
  type: bool
"""
