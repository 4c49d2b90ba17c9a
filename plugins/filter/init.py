# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the role init."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._init import propose


def init_addresses(text: str | Sequence[str]) -> list[str]:
    """Return the addresses in a text or a list; see init_addresses.yml."""
    return propose.addresses_from(text or "")


def init_proposal(boxes: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any], subnet: str = "") -> dict[str, Any]:
    """Return the proposed inventory; see init_proposal.yml."""
    return propose.as_dict(propose.propose(boxes, earlier or {}, subnet))


def init_models(
    specs: Sequence[Mapping[str, Any]], images: Mapping[str, Any], memory_gib: Sequence[float]
) -> list[dict[str, Any]]:
    """Return what each model would be on these boxes; see init_models.yml."""
    return propose.models_that_fit(specs, images, [float(each) for each in memory_gib])


def init_document(proposal: Mapping[str, Any], earlier: Mapping[str, Any], user: str, model: str) -> dict[str, Any]:
    """Return the content of hosts.yml; see init_document.yml."""
    return propose.document(proposal, earlier or {}, user, model)


class FilterModule:
    """Filters of the role init."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "init_addresses": init_addresses,
            "init_proposal": init_proposal,
            "init_models": init_models,
            "init_document": init_document,
        }
