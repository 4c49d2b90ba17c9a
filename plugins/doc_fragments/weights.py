# SPDX-License-Identifier: Apache-2.0
"""Options that modules of the weights share."""

from __future__ import annotations


class ModuleDocFragment:
    """What lies beside the tree that a module is about."""

    DOCUMENTATION = r"""
options:
  beside:
    description:
      - Other trees of the same model that will lie below the same root. Room is kept for what of them is not there yet,
        and none of them is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      repo:
        description: C(organisation/repository).
        type: str
        required: true
      size_gib:
        description: Its size in GiB.
        type: float
        required: true
"""
