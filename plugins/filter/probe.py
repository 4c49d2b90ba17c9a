# SPDX-License-Identifier: Apache-2.0
"""Filter that merges what the ranks and the head's probe report into the cluster's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe


def cluster_state(
    ranks: Sequence[Mapping[str, Any]],
    head: str,
    api: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
    addresses: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the merged state as a dictionary; see ``probe.merge``."""
    try:
        return probe.merge(ranks, api, head=head, expected=expected, nodes_by_address=addresses).as_dict()
    except (ValueError, KeyError, TypeError) as problem:
        raise AnsibleFilterError(f"cluster_state: {problem}") from problem


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cluster_state": cluster_state}
