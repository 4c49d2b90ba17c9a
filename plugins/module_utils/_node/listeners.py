# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of this machine, with their processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_tcp_listeners
from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu import container_id


def read_text(path: str) -> str:
    """Return the file's text, or an empty string when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def listeners(containers: Mapping[str, str], read: Callable[[str], str] = read_text) -> list[dict[str, Any]]:
    """Return the TCP sockets that other machines can reach: ``address``, ``port``, ``process``, ``container``.

    :param containers: names of the running containers by their full ids.
    :param read: returns a file's text, or an empty string when it cannot be read.
    """
    found = [
        each for name in ("tcp", "tcp6") for each in parse_tcp_listeners(read(f"/proc/net/{name}")) if not each.loopback
    ]
    wanted = {f"socket:[{each.inode}]": ("", "") for each in found}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
            if target in wanted:
                process = link.parent.parent
                container = containers.get(container_id((process / "cgroup").read_text(encoding="utf-8")), "")
                wanted[target] = ((process / "comm").read_text(encoding="utf-8").strip(), container)
        except OSError:
            continue
    rows = {(each.address, each.port): wanted[f"socket:[{each.inode}]"] for each in found}
    return [
        {"address": address, "port": port, "process": process, "container": container}
        for (address, port), (process, container) in sorted(rows.items())
    ]
