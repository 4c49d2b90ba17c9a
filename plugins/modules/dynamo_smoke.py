#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_smoke
short_description: Send the published request to a deployment and check its answer
version_added: 0.2.0
description:
  - Asks for the served models, sends the request of the model's file byte for byte, and sends it once more with a
    parameter that the frontend must refuse. Goes through the API server's proxy of the service, or to O(url).
options:
  smoke:
    description: C(body), the request with the served name as C(${MODEL_ID}), and C(refused), the parameter.
    type: dict
    required: true
  model:
    description: The served name.
    type: str
    required: true
  service:
    description: Name of the frontend's service.
    type: str
    required: true
  port:
    description: Its port.
    type: int
    default: 8000
  namespace:
    description: Its namespace.
    type: str
    required: true
  url:
    description: Where the frontend answers, instead of the proxy.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
"""

EXAMPLES = r"""
- name: Send the smoke test
  gb10.cluster.dynamo_smoke:
    smoke: "{{ model_spec.dynamo.smoke }}"
    model: "{{ model_spec.repo }}"
    service: ultra-agg-b200-chat-mtp-frontend
    namespace: ultra
"""

RETURN = r"""
answer:
  description: The text of the answer.
  returned: success
  type: str
refused:
  description: Whether the parameter was refused.
  returned: success
  type: bool
"""
