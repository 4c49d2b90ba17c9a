# SPDX-License-Identifier: Apache-2.0
"""What a node's network is before a change, what is missing after it, and the commands of its rollback; pure."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Devices that come and go with containers; a change of the fabric neither keeps nor judges them.
TRANSIENT = re.compile(r"^(lo|docker\d*|br-|veth|cni|flannel|tailscale|wg)")


@dataclass(frozen=True)
class Device:
    """A network device as ``ip`` shows it: ``addresses`` in CIDR notation, without scope link and scope host."""

    name: str
    up: bool
    carrier: bool
    mtu_bytes: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...] = ()


def parse_devices(addresses_json: str, routes: str) -> dict[str, Device]:
    """Return the devices from ``ip -json address show`` and ``ip route show table main``.

    Routes are kept as ``ip`` prints them, so that they can be given back to it.
    """
    by_device: dict[str, list[str]] = {}
    for line in routes.splitlines():
        found = re.search(r"\bdev (\S+)", line)
        if found:
            # States, not settings: ip would refuse them.
            words = [word for word in line.split() if word not in ("linkdown", "dead", "onlink", "offload")]
            by_device.setdefault(found.group(1), []).append(" ".join(words))
    result = {}
    for link in json.loads(addresses_json or "[]"):
        name = link["ifname"]
        result[name] = Device(
            name=name,
            up="UP" in link.get("flags", []),
            carrier="LOWER_UP" in link.get("flags", []),
            mtu_bytes=int(link.get("mtu", 0)),
            addresses=tuple(
                f"{entry['local']}/{entry['prefixlen']}"
                for entry in link.get("addr_info", [])
                if entry.get("scope") not in ("link", "host") and "local" in entry
            ),
            routes=tuple(by_device.get(name, ())),
        )
    return result


def kept(devices: Mapping[str, Device], ours: Sequence[str]) -> dict[str, Device]:
    """Return the devices that a change of ``ours`` must leave as they are."""
    return {
        name: device
        for name, device in devices.items()
        if name not in ours and not TRANSIENT.match(name) and device.addresses
    }


def lost(before: Mapping[str, Device], now: Mapping[str, Device]) -> list[str]:
    """Return a phrase for each address or default route of ``before`` that is gone."""
    gone = []
    for name, device in before.items():
        current = now.get(name)
        have = set(current.addresses) if current else set()
        gone += [f"{cidr} of {name}" for cidr in device.addresses if cidr not in have]
        via = {_target(route) for route in (current.routes if current else ())}
        gone += [
            f"the default route by way of {name}"
            for route in device.routes
            if route.startswith("default") and _target(route) not in via
        ]
    return gone


def _target(route: str) -> tuple[str, ...]:
    """Return what makes a route the same one: destination and gateway; metrics may differ."""
    words = route.split()
    gateway = words[words.index("via") + 1] if "via" in words else ""
    return words[0], gateway


def drift(
    links: Sequence[Mapping[str, Any]], own_address: str, own_device: str, now: Mapping[str, Device]
) -> list[str]:
    """Return a phrase for each way in which the live devices differ from the plan.

    A device without carrier cannot get its address from networkd; a missing one there is no difference.
    """
    differences = []
    for link in links:
        device = now.get(link["netdev"])
        if device is None:
            differences.append(f"there is no device {link['netdev']}")
            continue
        if not device.carrier:
            continue
        wanted, have = set(link["addresses"]), {cidr for cidr in device.addresses if ":" not in cidr}
        differences += [f"{link['netdev']} is missing {cidr}" for cidr in sorted(wanted - have)]
        differences += [f"{link['netdev']} has {cidr}, which is not planned" for cidr in sorted(have - wanted)]
        if device.mtu_bytes != link["mtu_bytes"]:
            differences.append(f"{link['netdev']} has an MTU of {device.mtu_bytes} instead of {link['mtu_bytes']}")
        have_routes = {_target(route) for route in device.routes}
        differences += [
            f"{link['netdev']} is missing the route to {route['to']}"
            for route in link.get("routes", ())
            if (route["to"].removesuffix("/32"), route["via"]) not in have_routes
        ]
    if own_address:
        device = now.get(own_device)
        if device is None or own_address not in device.addresses:
            differences.append(f"{own_device} is missing {own_address}")
    return differences


def flush_commands(netdevs: Sequence[str]) -> list[list[str]]:
    """Return the commands that take all addresses off.

    networkd 252 floods itself with requests, and then gives the device up ("Numerical result out of range"), when
    it is told to configure an address that it is just removing; what is already gone need not be removed.
    """
    return [["ip", "address", "flush", "dev", name, "scope", "global"] for name in netdevs]


def apply_commands(
    backend: str, links: Sequence[Mapping[str, Any]], own_device: str, fresh: bool, given_up: bool
) -> list[list[str]]:
    """Return the commands that make the files of a backend effective.

    Args:
        backend: netplan, NetworkManager or networkd.
        links: the planned devices.
        own_device: the device of the node's own address, or empty.
        fresh: whether any file changed.
        given_up: whether networkd has given up on one of the devices.
    """
    netdevs = [str(link["netdev"]) for link in links]
    if backend == "netplan":
        return [["netplan", "apply"]]
    if backend == "NetworkManager":
        names = [f"gb10-{name}" for name in netdevs] + (["gb10-node"] if own_device else [])
        return [
            ["nmcli", "connection", "reload"],
            *(["nmcli", "--wait", "20", "connection", "up", name] for name in names),
        ]
    enable = ["systemctl", "enable", "--now", "systemd-networkd.service"]
    if fresh:
        # Started just now it has read the files already, and the reload does nothing.
        return [*flush_commands(netdevs), enable, ["networkctl", "reload"]]
    if given_up:
        return [enable, *flush_commands(netdevs), *(["networkctl", "reconfigure", name] for name in netdevs)]
    # The files are as they should be and only the devices are not: set right what somebody has set wrong.
    return [enable, *(command for link in links for command in _repair(link))]


def _repair(link: Mapping[str, Any]) -> list[list[str]]:
    name = str(link["netdev"])
    return [
        ["ip", "link", "set", "dev", name, "mtu", str(link["mtu_bytes"]), "up"],
        *(["ip", "address", "replace", cidr, "dev", name] for cidr in link["addresses"]),
        *(
            ["ip", "route", "replace", route["to"], "via", route["via"], "dev", name, "src", route["source"]]
            for route in link.get("routes", ())
        ),
    ]


def undo_commands(backend: str) -> list[list[str]]:
    """Return the commands that make the restored files effective."""
    if backend == "netplan":
        return [["netplan", "apply"]]
    if backend == "NetworkManager":
        return [["nmcli", "connection", "reload"]]
    return [["networkctl", "reload"]]


def rollback_commands(backend: str, before: Mapping[str, Device], ours: Sequence[str], own_device: str) -> list[str]:
    """Return the shell lines that bring live addresses back once the files are restored.

    First the tool that reads the files, then every address and route that was there, by hand: a tool that applies more
    than our files (an owner's file that was never applied) must not have the last word.

    :param backend: netplan, NetworkManager or networkd.
    :param before: the devices as they were before the change.
    :param ours: names of the devices that the change configures.
    :param own_device: the device of the node's own address, or empty.
    """
    lines = []
    if backend == "networkd":
        lines += [shlex.join(command) for command in flush_commands([name for name in sorted(before) if name in ours])]
    lines += [shlex.join(command) for command in undo_commands(backend)]
    if own_device and own_device not in before:
        lines.append(f"ip link delete {shlex.quote(own_device)} || true")
    restore = [
        "surplus() {",
        '    ip -oneline address show dev "$1" scope global | while read -r _ _ _ cidr _; do',
        '        case " $2 " in *" $cidr "*) ;; *) ip address delete "$cidr" dev "$1" ;; esac',
        "    done",
        "}",
        "restore() {",
    ]
    for name in sorted(before):
        device = before[name]
        quoted = shlex.quote(name)
        if name in ours:
            # One by one: an address that stays must not be gone for a moment, networkd would give the device up.
            restore.append(f"    surplus {quoted} {shlex.quote(' '.join(device.addresses))}")
            restore.append(f"    ip link set dev {quoted} mtu {device.mtu_bytes} {'up' if device.up else 'down'}")
        elif TRANSIENT.match(name) or not device.addresses:
            continue
        restore += [f"    ip address replace {shlex.quote(cidr)} dev {quoted}" for cidr in device.addresses]
        # Routes by way of a gateway need the directly attached ones first.
        ordered = sorted(device.routes, key=lambda route: " via " in f" {route} ")
        restore += [f"    ip route replace {' '.join(map(shlex.quote, route.split()))}" for route in ordered]
    return [
        *lines,
        *restore,
        "    :",
        "}",
        "# networkd and NetworkManager go on working after their command has returned, and what is done by hand",
        "# meanwhile confuses them.",
        "for pause in 3 3 4; do sleep $pause; restore; done",
    ]


#: A key of netplan's that names devices, with its value in brackets, on the lines below it, or alone.
_MATCH = re.compile(
    r"(?m)(?:^|[\s{,])(name|macaddress|driver|interfaces|connection\.interface-name)\s*:"
    r"(?:[ \t]*(\[[^\]]*\]|[^\s#,}\[][^#,}\n]*)|[ \t]*((?:\n\s*-[ \t]+\S+)+))"
)
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
#: A key of a NetworkManager keyfile that binds a profile to devices.
_BOUND = re.compile(r"(?m)^(interface-name|mac-address)\s*=\s*(\S+)\s*$")


def _matches(name: str, mac: str, patterns: Sequence[tuple[str, str]]) -> bool:
    """Whether a device is among those that (key, pattern) name: by MAC address, by driver, or by its name."""
    mine = {"macaddress": mac.lower(), "mac-address": mac.lower(), "driver": "mlx5_core"}
    return any(
        bool(own) and fnmatch.fnmatchcase(own, word.lower() if key in mine else word)
        for key, word in patterns
        for own in [mine.get(key, name)]
    )


def defines(text: str, netdevs: Sequence[str], macs: Mapping[str, str] | None = None) -> list[str]:
    """Return those devices that a netplan file configures: by a section of their name, by `match:`, or in a bond.

    Files that NetworkManager writes call their sections NM-<uuid> and name the device in `match:` or in what is passed
    through to it.

    :param macs: MAC address by device, for sections that match by it.
    """
    text = _COMMENT.sub("", text)
    patterns: list[tuple[str, str]] = [
        (key, word.strip(" \t\n\"'-" if lines else " \t\"'"))
        for key, value, lines in _MATCH.findall(text)
        for word in (lines.split("\n") if lines else value.strip("[] ").split(","))
        if word.strip()
    ]
    return [
        name
        for name in netdevs
        if re.search(rf"(?m)(?:^\s+|[{{,]\s*)[\"']?{re.escape(name)}[\"']?\s*:", text)
        or _matches(name, (macs or {}).get(name, ""), patterns)
    ]


def keyfile_defines(text: str, netdevs: Sequence[str], macs: Mapping[str, str] | None = None) -> list[str]:
    """Return those devices that a NetworkManager keyfile is bound to: by name, by pattern, or by MAC address."""
    bound = [(key, word) for key, value in _BOUND.findall(text) for word in value.split(";") if word]
    return [name for name in netdevs if _matches(name, (macs or {}).get(name, ""), bound)]
