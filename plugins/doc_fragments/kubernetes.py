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
