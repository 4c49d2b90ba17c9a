#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_status
short_description: Show what a Kubernetes namespace serves
version_added: 0.2.0
description:
  - Prints deployments, jobs and claims of a namespace, with the cause of what is not ready. Changes nothing.
options:
  namespace:
    description: The namespace.
    type: str
    required: true
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
"""

EXAMPLES = r"""
- name: Show what serves
  gb10.cluster.dynamo_status:
    namespace: ultra
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: success
  type: list
  elements: str
"""
