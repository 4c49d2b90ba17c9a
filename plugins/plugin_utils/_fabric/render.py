# SPDX-License-Identifier: Apache-2.0
"""A node's plan as the files of netplan, NetworkManager or systemd-networkd; pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import NODE_DEVICE

HEADER = "# Managed by gb10.cluster; changes made here are overwritten.\n"
NETPLAN = "/etc/netplan/90-gb10-fabric.yaml"
NETWORKD = "/etc/systemd/network"
NETWORK_MANAGER = "/etc/NetworkManager/system-connections"
SYSCTL = "/etc/sysctl.d/91-gb10-fabric.conf"
#: NetworkManager wants a UUID per connection; derived from the name, so that a second run writes the same.
_NAMESPACE = uuid.UUID("6f0c1a4e-1c75-5b0e-9a52-6f2f5b1f0a10")

Link = Mapping[str, Any]


def render(node: Mapping[str, Any], backend: str) -> list[dict[str, str]]:
    """Return the files, each with ``path``, ``content`` and ``mode``.

    Args:
        node: one node of ``Plan.to_dict()``.
        backend: netplan, NetworkManager or networkd.

    Raises:
        ValueError: the backend is none of these.
    """
    links: Sequence[Link] = node["links"]
    own: str = node.get("own_address", "")
    if backend == "netplan":
        files = [{"path": NETPLAN, "content": _netplan(links, own), "mode": "0600"}]
    elif backend == "networkd":
        files = [
            {"path": f"{NETWORKD}/10-gb10-{link['netdev']}.network", "content": _networkd(link), "mode": "0644"}
            for link in links
        ]
        if own:
            files += [
                {
                    "path": f"{NETWORKD}/10-gb10-node.netdev",
                    "content": f"{HEADER}[NetDev]\nName={NODE_DEVICE}\nKind=dummy\n",
                    "mode": "0644",
                },
                {
                    "path": f"{NETWORKD}/10-gb10-node.network",
                    "content": f"{HEADER}[Match]\nName={NODE_DEVICE}\n\n[Network]\nAddress={own}\n",
                    "mode": "0644",
                },
            ]
    elif backend == "NetworkManager":
        files = [
            {"path": f"{NETWORK_MANAGER}/gb10-{link['netdev']}.nmconnection", "content": _keyfile(link), "mode": "0600"}
            for link in links
        ]
        if own:
            files.append(
                {"path": f"{NETWORK_MANAGER}/gb10-node.nmconnection", "content": _node_keyfile(own), "mode": "0600"}
            )
    else:
        raise ValueError(
            f"The network is configured by {backend or 'nothing that is known'}, not by netplan, NetworkManager or "
            "systemd-networkd. Start one of them, or set fabric_backend."
        )
    if node.get("forward"):
        files.append({"path": SYSCTL, "content": f"{HEADER}net.ipv4.ip_forward = 1\n", "mode": "0644"})
    return files


def _netplan(links: Sequence[Link], own: str) -> str:
    lines = [HEADER.rstrip(), "network:", "  version: 2", "  ethernets:"]
    for link in links:
        renderer = "NetworkManager" if link.get("manager") == "NetworkManager" else "networkd"
        lines += [
            f"    # {link['peer']}",
            f"    {link['netdev']}:",
            f"      renderer: {renderer}",
            "      dhcp4: false",
            "      dhcp6: false",
            "      accept-ra: false",
            "      link-local: []",
            "      optional: true",
            # What listens on the fabric's address must be able to start before the other end is up.
            *(["      ignore-carrier: true"] if renderer == "networkd" else []),
            f"      mtu: {link['mtu_bytes']}",
            "      addresses:",
            *(f"        - {cidr}" for cidr in link["addresses"]),
        ]
        if link["routes"]:
            lines.append("      routes:")
        for route in link["routes"]:
            lines += [
                f"        - to: {route['to']}",
                f"          via: {route['via']}",
                f"          from: {route['source']}",
            ]
    if own:
        lines += ["  dummy-devices:", f"    {NODE_DEVICE}:", "      addresses:", f"        - {own}"]
    return "\n".join(lines) + "\n"


def _networkd(link: Link) -> str:
    lines = [
        f"{HEADER}# {link['peer']}",
        "[Match]",
        f"Name={link['netdev']}",
        "",
        "[Link]",
        f"MTUBytes={link['mtu_bytes']}",
        "RequiredForOnline=no",
        "",
        "[Network]",
        "DHCP=no",
        "IPv6AcceptRA=no",
        "LinkLocalAddressing=no",
        # What listens on the fabric's address must be able to start before the other end is up.
        "ConfigureWithoutCarrier=yes",
        *(f"Address={cidr}" for cidr in link["addresses"]),
    ]
    for route in link["routes"]:
        lines += [
            "",
            "[Route]",
            f"Destination={route['to']}",
            f"Gateway={route['via']}",
            f"PreferredSource={route['source']}",
        ]
    return "\n".join(lines) + "\n"


def _keyfile(link: Link) -> str:
    name = f"gb10-{link['netdev']}"
    lines = [
        f"{HEADER}# {link['peer']}",
        "[connection]",
        f"id={name}",
        f"uuid={uuid.uuid5(_NAMESPACE, name)}",
        "type=ethernet",
        f"interface-name={link['netdev']}",
        "autoconnect-priority=100",
        "",
        "[ethernet]",
        f"mtu={link['mtu_bytes']}",
        "",
        "[ipv4]",
        "method=manual",
        *(f"address{number}={cidr}" for number, cidr in enumerate(link["addresses"], start=1)),
        "never-default=true",
    ]
    for number, route in enumerate(link["routes"], start=1):
        lines += [f"route{number}={route['to']},{route['via']}", f"route{number}_options=src={route['source']}"]
    return "\n".join([*lines, "", "[ipv6]", "method=disabled"]) + "\n"


def _node_keyfile(own: str) -> str:
    name = "gb10-node"
    return "\n".join(
        [
            HEADER.rstrip(),
            "[connection]",
            f"id={name}",
            f"uuid={uuid.uuid5(_NAMESPACE, name)}",
            "type=dummy",
            f"interface-name={NODE_DEVICE}",
            "",
            "[ipv4]",
            "method=manual",
            f"address1={own}",
            "",
            "[ipv6]",
            "method=disabled",
            "",
        ]
    )


def table(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the plan as aligned lines: node, device, addresses, MTU, what is at the other end."""
    rows = [("NODE", "DEVICE", "ADDRESS", "MTU", "TO")]
    for name, node in nodes.items():
        if node.get("own_address"):
            rows.append((name, NODE_DEVICE, node["own_address"], "", "the node itself"))
        rows += [
            (name, link["netdev"], " ".join(link["addresses"]), str(link["mtu_bytes"]), link["peer"])
            for link in node["links"]
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
