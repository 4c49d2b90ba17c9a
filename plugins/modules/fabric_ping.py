#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_ping
short_description: Ping every other node over the fabric with packets that must not be fragmented
version_added: 0.1.0
description:
  - Checks that O(address) is on an interface of this node, and sends ICMP echo requests from it to every peer, with the
    don't-fragment bit and the whole size of the MTU.
  - The packets are bound to the device that they must leave by. That is the interface with the address, or, when the
    prefix length there is 32 as in a ring, the device of the route to the peer. The MTU and carrier of that device are
    reported.
  - Distinguishes a peer that replies to a small packet only from one that does not reply.
  - Needs iproute2 and root (a raw socket). Changes nothing.
options:
  name:
    description: Name of this node in messages; its host name unless given.
    type: str
  address:
    description: This node's own address on the fabric.
    type: str
    required: true
  peers:
    description: The other nodes' fabric addresses by node name.
    type: dict
    required: true
  mtu:
    description: Packet size in bytes that must pass unfragmented. V(0) takes the outgoing device's own MTU.
    type: int
    default: 0
  attempts:
    description: Attempts before a peer counts as unreachable.
    type: int
    default: 3
  timeout_seconds:
    description: Seconds to wait for one reply.
    type: float
    default: 1.0
    aliases: [timeout_s]
  fail:
    description: Whether a missing address or an unreachable peer fails the task; otherwise it is only reported.
    type: bool
    default: true
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Reach every other node over the fabric
  gb10.cluster.fabric_ping:
    address: "{{ gb10_fabric_address }}"
    peers: {gx10-2: 10.211.0.12, gx10-3: 10.211.0.13}
    mtu: 9000
  become: true
"""

RETURN = r"""
interface:
  description: Interface that carries the address; empty when none does.
  returned: always
  type: str
  sample: enp1s0f0np0
devices:
  description: Devices that packets to the peers leave by, each with C(mtu_bytes) and C(carrier).
  returned: always
  type: dict
  sample: {enp1s0f0np0: {mtu_bytes: 9000, carrier: true}}
carrier:
  description: Whether any of them is up and has carrier.
  returned: always
  type: bool
address:
  description: This node's address, as given.
  returned: always
  type: str
macs:
  description: MAC addresses of this node's network devices.
  returned: always
  type: list
  elements: str
claims:
  description: >-
    By address of this node and of every peer, the MAC addresses that reply for it. More than one node among them is a
    duplicate address.
  returned: always
  type: dict
peers:
  description: Per peer, C(address), C(ok), C(reachable), C(largest) packet in bytes that got a reply, C(rtt_ms).
  returned: always
  type: dict
problems:
  description: A sentence for each thing that is wrong.
  returned: always
  type: list
  elements: str
"""

import contextlib
import errno
import ipaddress
import os
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.icmp import (
    ETHERTYPE_ARP,
    Probe,
    arp_answer,
    arp_request,
    echo_request,
    is_reply,
    payload_bytes,
    sentence,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.route import Held, held_by, outgoing
from ansible_collections.gb10.cluster.plugins.module_utils._node.renamed import renamed

IP_MTU_DISCOVER = 10
#: Sets the don't-fragment bit and ignores what the kernel believes the path's MTU to be.
IP_PMTUDISC_PROBE = 3
SMALL_PACKET_BYTES = 84
#: When the time is over, so many packets are read that have come meanwhile: this node may have been too busy for them.
LATE_PACKETS = 100


def has_carrier(interface: str) -> bool:
    try:
        return Path(f"/sys/class/net/{interface}/carrier").read_text(encoding="ascii").strip() == "1"
    except OSError:  # the kernel answers EINVAL for an interface that is down
        return False


def mtu_of(device: str) -> int:
    return int(Path(f"/sys/class/net/{device}/mtu").read_text(encoding="ascii"))


def ask(
    link: socket.socket, address: str, sizes: list[int], first: int, timeout_s: float, refused: dict[int, OSError]
) -> dict[int, float]:
    """Send an echo request of each size; return the seconds until the reply by size.

    Ends with the reply to the largest packet that was sent. ``refused`` gets the kernel's reasons by size.
    """
    identifier = os.getpid() & 0xFFFF
    started = time.monotonic()
    sent: dict[int, int] = {}
    for sequence, size in enumerate(sizes, first):
        try:
            link.sendto(echo_request(identifier, sequence, payload_bytes(size)), (address, 0))
            sent[sequence] = size
            refused.pop(size, None)
        except OSError as error:
            refused[size] = error
    answered: dict[int, float] = {}
    late = LATE_PACKETS
    while sent and max(sent.values()) not in answered and late:
        left = started + timeout_s - time.monotonic()
        late -= left <= 0
        link.settimeout(max(left, 0.001))
        try:
            packet, (source, _port) = link.recvfrom(65536)
        except TimeoutError:
            break
        for sequence, size in sent.items():
            if source == address and is_reply(packet, identifier, sequence):
                answered[size] = time.monotonic() - started
    return answered


def own_macs() -> list[str]:
    """Return the MAC addresses of all network devices of this node."""
    found = set()
    for path in Path("/sys/class/net").glob("*/address"):
        with contextlib.suppress(OSError):  # it is gone again: that of a container that ended
            found.add(path.read_text(encoding="ascii").strip())
    return sorted(mac for mac in found if mac.strip("0:"))


def claims(interface: str, addresses: list[str], timeout_s: float) -> dict[str, list[str]]:
    """Return who answers for each address on the link of an interface, by MAC address."""
    found: dict[str, set[str]] = {address: set() for address in addresses}
    mac = bytes.fromhex(
        Path(f"/sys/class/net/{interface}/address").read_text(encoding="ascii").strip().replace(":", "")
    )
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as link:
        link.bind((interface, ETHERTYPE_ARP))
        for _round in range(2):
            for address in addresses:
                try:
                    link.send(arp_request(mac, bytes(4), socket.inet_aton(address)))
                except OSError:  # no carrier: nobody can claim anything
                    return {address: [] for address in addresses}
            end = time.monotonic() + timeout_s / 2
            while (left := end - time.monotonic()) > 0:
                link.settimeout(left)
                try:
                    answer = arp_answer(link.recv(2048))
                except TimeoutError:
                    break
                if answer and (address := socket.inet_ntoa(answer[0])) in found:
                    found[address].add(answer[1])
    return {address: sorted(macs) for address, macs in found.items()}


def probe(
    interface: str, own: str, peer: str, address: str, sizes: list[int], attempts: int, timeout_s: float
) -> tuple[Probe, float | None]:
    """Ask one peer with all packet sizes at once; return the finding and the round trip of the largest that passed."""
    answered: dict[int, float] = {}
    refused: dict[int, OSError] = {}
    too_large: set[int] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        link.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        link.bind((own, 0))
        for attempt in range(attempts):
            answered |= ask(link, address, sizes, attempt * len(sizes), timeout_s, refused)
            too_large = {size for size, reason in refused.items() if reason.errno == errno.EMSGSIZE}
            if max(answered, default=0) >= max(set(sizes) - too_large, default=0):
                break
    error = ""
    for size, reason in refused.items():
        error = os.strerror(reason.errno or 0)
        if size in too_large:
            error = f"this node's own interface {interface} does not accept {size} bytes"
    largest = max(answered, default=0)
    tried = tuple((size, size in answered) for size in sizes if size >= largest)
    return Probe(peer, address, tried, error), answered.get(largest)


def ask_all(module: AnsibleModule, name: str, held: Held, result: dict[str, Any]) -> None:
    """Ping every peer by the device that packets to it leave by, and write what was found into the result.

    :raises PermissionError: without root.
    """
    own, timeout_seconds = module.params["address"], module.params["timeout_seconds"]
    by_device: dict[str, list[str]] = {} if held.routed else {held.device: []}
    for peer, address in module.params["peers"].items():
        device, why = held.device, ""
        if held.routed:
            device, why = outgoing(module.run_command(["ip", "-json", "route", "get", address, "from", own])[1])
        if device:
            by_device.setdefault(device, []).append(address)
            full = module.params["mtu"] or mtu_of(device)
            sizes = [full, *(size for size in (1500, SMALL_PACKET_BYTES) if size < full)]
            finding, rtt_s = probe(device, own, peer, address, sizes, module.params["attempts"], timeout_seconds)
        else:
            finding, rtt_s = Probe(peer, address, (), why), None
        result["problems"] += filter(None, [sentence(name, own, finding)])
        result["peers"][peer] = {
            "address": address,
            "device": device,
            "ok": finding.ok,
            "reachable": finding.reachable,
            "largest": max((size for size, answered in finding.sizes if answered), default=0),
            "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 3),
        }
    for device, addresses in by_device.items():
        result["devices"][device] = {"mtu_bytes": mtu_of(device), "carrier": has_carrier(device)}
        for address, macs in claims(device, [own, *addresses], timeout_seconds).items():
            result["claims"][address] = sorted({*result["claims"].get(address, []), *macs})
    result["carrier"] = any(device["carrier"] for device in result["devices"].values())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "address": {"type": "str", "required": True},
            "peers": {"type": "dict", "required": True},
            "mtu": {"type": "int", "default": 0},
            "attempts": {"type": "int", "default": 3},
            "timeout_seconds": {"type": "float", "default": 1.0, **renamed("timeout_s")},
            "fail": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    own: str = module.params["address"]
    for who, address in {module.params["name"] or "this node": own, **module.params["peers"]}.items():
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            module.fail_json(msg=f"The fabric address of {who} is {address!r}, which is not an IPv4 address.")
    name = module.params["name"] or socket.gethostname()
    held = held_by(module.run_command(["ip", "-json", "address", "show"], check_rc=True)[1], own)
    result: dict[str, Any] = {"interface": held.device, "address": own, "macs": own_macs(), "devices": {}, "claims": {}}
    result |= {"carrier": False, "peers": {}, "problems": []}
    if held.device:
        try:
            ask_all(module, name, held, result)
        except PermissionError:
            module.fail_json(msg="A raw socket needs root: run this task with become: true.")
    else:
        result["problems"].append(
            f"{name} has no interface with its fabric address {own}. Check the cable or the link to the "
            "fabric, and gb10_fabric_address in the inventory (`ip -br address` shows the addresses)."
        )
    if result["problems"] and module.params["fail"]:
        module.fail_json(msg=" ".join(result["problems"]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
