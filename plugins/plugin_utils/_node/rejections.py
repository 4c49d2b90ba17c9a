# SPDX-License-Identifier: Apache-2.0
"""Whether a change that every node made under automatic rollback may be confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def rejections(
    nodes: Sequence[str], applied: Mapping[str, Mapping[str, Any]], reached: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return why a change must be rolled back, one sentence a node; empty when it may be confirmed.

    :param nodes: names of the nodes that were to make the change.
    :param applied: by node, the result of the module that made it; with `msg` when it failed, `unreachable` when the
        connection broke.
    :param reached: by node, the result of `wait_for_connection` over a new connection; likewise.
    """
    reasons = []
    for name in nodes:
        result, again = applied.get(name), reached.get(name, {})
        if again.get("unreachable") or again.get("msg"):
            reasons.append(f"{name}: no new SSH connection was possible after the change.")
        elif result is None or result.get("unreachable"):
            reasons.append(f"{name}: the connection broke during the change.")
        elif result.get("msg"):
            reasons.append(f"{name}: {result['msg']}")
    return reasons
