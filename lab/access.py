# SPDX-License-Identifier: Apache-2.0
"""How the control node reaches the nodes: files under ``.lab/<name>/``, rendered by pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from lab.plan import NodePlan

USER = "ansible"


def known_hosts(nodes: Sequence[NodePlan], host_keys: Mapping[str, Sequence[str]]) -> str:
    """Return a known_hosts file: every key of every node under its name and both addresses.

    host_keys: {host name: lines of its /etc/ssh/ssh_host_*_key.pub}.
    """
    lines: list[str] = []
    for node in nodes:
        for line in host_keys.get(node.host, ()):
            kind, key = line.split()[:2]
            lines.append(f"{node.host},{node.mgmt},{node.fabric} {kind} {key}")
    return "".join(line + "\n" for line in lines)


def ssh_config(nodes: Sequence[NodePlan], state: Path) -> str:
    """Return an ssh_config that knows the nodes by name and verifies their keys strictly."""
    blocks = [
        f"Host {node.host} {node.mgmt}\n"
        f"    HostName {node.mgmt}\n"
        f"    User {USER}\n"
        f"    IdentityFile {state}/id_ed25519\n"
        "    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {state}/known_hosts\n"
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    ConnectTimeout 10\n"
        "    LogLevel ERROR\n"
        for node in nodes
    ]
    return "\n".join(blocks)


def hosts_json(name: str, nodes: Sequence[NodePlan], state: Path) -> str:
    """Return hosts.json: what other programs need to know of the lab."""
    document = {
        "name": name,
        "user": USER,
        "identity_file": str(state / "id_ed25519"),
        "known_hosts": str(state / "known_hosts"),
        "ssh_config": str(state / "ssh_config"),
        "hosts": [
            {
                "name": node.host,
                "index": node.index,
                "ansible_host": str(node.mgmt),
                "gb10_fabric_address": str(node.fabric),
                "container": node.container,
            }
            for node in nodes
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def inventory(nodes: Sequence[NodePlan], state: Path) -> str:
    """Return a YAML inventory of the lab: group gx10 with the children head and workers."""

    def block(group: str, members: Sequence[NodePlan]) -> list[str]:
        lines = [f"        {group}:"]
        if not members:
            return [f"        {group}: {{}}"]
        lines.append("          hosts:")
        for node in members:
            lines += [
                f"            {node.host}:",
                f"              ansible_host: {node.mgmt}",
                f"              gb10_fabric_address: {node.fabric}",
            ]
        return lines

    return "\n".join(
        [
            "---",
            "all:",
            "  children:",
            "    gx10:",
            "      vars:",
            f"        ansible_user: {USER}",
            f"        ansible_ssh_private_key_file: {state}/id_ed25519",
            "        ansible_ssh_common_args: >-",
            f"          -o UserKnownHostsFile={state}/known_hosts",
            "          -o GlobalKnownHostsFile=/dev/null",
            "          -o StrictHostKeyChecking=yes",
            "          -o IdentitiesOnly=yes",
            "      children:",
            *block("head", nodes[:1]),
            *block("workers", nodes[1:]),
            "",
        ]
    )


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file completely or not at all, and only if it differs."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.write(path, text, mode)
