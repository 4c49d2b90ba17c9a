# SPDX-License-Identifier: Apache-2.0
"""Options that the modules of the probe share."""

from __future__ import annotations


class ModuleDocFragment:
    """The rank's options, in `LOOK` those of one look at it, in `API` those of the API and its canaries."""

    DOCUMENTATION = r"""
options:
  name:
    description: Name of the model; unit and container are called C(vllm-<name>) unless given.
    type: str
    required: true
  unit:
    description: Exact name of the systemd unit.
    type: str
  container:
    description: Exact name of the container.
    type: str
  tail_lines:
    description: How many of the newest lines of each log to return.
    type: int
    default: 20
"""

    LOOK = r"""
options:
  node:
    description: Name to report as this node's; its host name unless given.
    type: str
  seen_pulse:
    description: The RV(pulse) of an earlier report; a state that differs from it is reported at once.
    type: list
    elements: str
"""

    API = r"""
options:
  served_name:
    description: Name under which the model must be listed.
    type: str
    required: true
  url:
    description: Scheme, address and port of the API, as seen from the node that is asked.
    type: str
    default: http://127.0.0.1:8000
  proxy_port:
    description: >-
      Port of the proxy in front of the API, which must answer as well once the engine does; V(0) without one.
    type: int
    default: 0
  api_key:
    description: Value of C(VLLM_API_KEY), sent in a header only.
    type: str
  validate_certs:
    description: Whether a TLS certificate of the API is checked.
    type: bool
    default: true
  ca_path:
    description: File on the node that is asked with the certificate authority to check it against.
    type: path
  runner:
    description: >-
      V(pooling) for a model that generates nothing: it must answer with an embedding, with scores or with classes of
      the right shape, in place of a completion.
    type: str
    choices: [generate, pooling]
    default: generate
  canary:
    description: Whether to ask for completions; only O(canary=true) verifies that the model yields tokens.
    type: bool
    default: true
  canary_tokens:
    description: Tokens that the completion canary asks for.
    type: int
    default: 8
  silence_seconds:
    description: Seconds without a byte after which a completion counts as yielding none.
    type: int
    default: 120
  tool_call:
    description: Whether the model must answer with a tool call that the tool call parser understands.
    type: bool
    default: false
  reasoning:
    description: Whether the reasoning parser must return reasoning.
    type: bool
    default: false
  needle_tokens:
    description: Length in tokens of a text in whose middle a password is hidden; V(0) leaves this canary out.
    type: int
    default: 0
  mtp_tokens:
    description: Speculative tokens that the engine's log must show; V(0) expects none and checks nothing.
    type: int
    default: 0
  rdma:
    description: Whether NCCL's log, where it names the network, must name RDMA.
    type: bool
    default: false
"""
