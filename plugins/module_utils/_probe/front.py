# SPDX-License-Identifier: Apache-2.0
"""Where clients reach the API, the proxy in front of the engine or its own port, and whether it asks for a key.

Pure: `client.probe_front` asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import CAUSE
from ansible_collections.gb10.cluster.plugins.module_utils._probe.states import Diagnosis

#: What nginx itself answers when the engine does not.
_NOT_REACHED = (502, 503, 504)


def front_problem(front: Mapping[str, Any], node: str) -> Diagnosis | None:
    """Return why clients do not reach an engine that serves; None when they do, or when it does not serve either.

    :param front: as `client.probe_front` gives it; empty when nobody asked.
    """
    status = int(front.get("status", 0))
    if not front.get("proxied") or front.get("engine") != 200 or (status and status not in _NOT_REACHED):
        return None
    how = f"answers HTTP {status}" if status else f"does not answer ({front.get('error') or 'no reason given'})"
    return Diagnosis(
        node=node,
        name="proxy_down",
        kind=CAUSE,
        cause=f"The engine answers on loopback, and the proxy on port {front['port']} {how}: no client reaches it.",
        remedy="Run playbooks/edge.yml. The proxy's log: journalctl -u gb10-edge.",
    )


def open_sentence(front: Mapping[str, Any], node: str) -> str:
    """Return what is said of an API that asks for no key; empty when it does, or does not answer."""
    if not front.get("open"):
        return ""
    return (
        f"The API on port {front['port']} of {node} asks for no key: whoever reaches the port can use it. "
        "Set VLLM_API_KEY and run playbooks/serve.yml."
    )
