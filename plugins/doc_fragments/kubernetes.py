# SPDX-License-Identifier: Apache-2.0
"""Which Kubernetes cluster, written once."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of every module that talks to a cluster."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: Path of a kubeconfig on the control node; empty for E(KUBECONFIG) or ~/.kube/config.
    type: path
    default: ""
  context:
    description: Context of the kubeconfig; empty for its current one.
    type: str
    default: ""
"""

    # Of a module that is given a target.
    TARGET = r"""
options:
  specs:
    description: The C(model_spec) of every model.
    type: list
    elements: dict
    required: true
  target:
    description: Name of the target.
    type: str
    required: true
  settings:
    description: What the owner decides, by the names of the role's variables without their prefix.
    type: dict
    required: true
"""
