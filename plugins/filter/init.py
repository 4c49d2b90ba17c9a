# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the role init."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._init import propose


def init_addresses(text: str | Sequence[str]) -> list[str]:
    """Return the addresses in a text or a list; see init_addresses.yml."""
    return propose.addresses_from(text or "")


def init_earlier(inventory: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an earlier hosts.yml without the boxes that nobody filled in; see init_earlier.yml."""
    return propose.filled_in(inventory or {})


def init_proposal(boxes: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any], subnet: str = "") -> dict[str, Any]:
    """Return the proposed inventory; see init_proposal.yml."""
    return propose.as_dict(propose.propose(boxes, earlier or {}, subnet))


def init_login(earlier: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
    """Return how the boxes are reached; see init_login.yml."""
    return propose.login(earlier or {}, asked)


def init_document(
    proposal: Mapping[str, Any], earlier: Mapping[str, Any], variables: Mapping[str, str], model: str
) -> dict[str, Any]:
    """Return the content of hosts.yml; see init_document.yml."""
    return propose.document(proposal, earlier or {}, variables, model)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "init_addresses": init_addresses,
            "init_earlier": init_earlier,
            "init_proposal": init_proposal,
            "init_login": init_login,
            "init_document": init_document,
        }
