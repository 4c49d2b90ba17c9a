# SPDX-License-Identifier: Apache-2.0
"""Jinja filters about results of many nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._node.rejections import rejections


def by_host(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], variable: str) -> dict[str, Any]:
    """Return the hosts' values of a variable; a host without it is left out."""
    return {str(host): hostvars[host][variable] for host in hosts if variable in hostvars[host]}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"by_host": by_host, "rejections": rejections}
