# SPDX-License-Identifier: Apache-2.0
"""Filter about the inventory that a model is planned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import placeholder_errors


def placeholders(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each host whose address is a placeholder; see placeholders.yml."""
    return placeholder_errors({str(host): hostvars[host].get("ansible_host", host) for host in hosts})


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"placeholders": placeholders}
