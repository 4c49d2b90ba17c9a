#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_ping
short_description: Ask every other node over the fabric, with packets that must not be fragmented
version_added: 0.1.0
description:
  - Checks that O(address) is on an interface of this node, and sends ICMP echo requests from that interface to
    every peer, with the don't-fragment bit and the whole size of the MTU.
  - A peer that answers a small packet but not a full one is told apart from one that does not answer.
  - Needs no program on the node; needs root (a raw socket). Changes nothing.
options:
  name:
    description: What this node is called in messages; its host name unless given.
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
    description: Packet size in bytes that must pass unfragmented. V(0) takes the interface's own MTU.
    type: int
    default: 0
  attempts:
    description: How often a peer is asked before it counts as silent.
    type: int
    default: 3
  timeout_s:
    description: Seconds to wait for one answer.
    type: float
    default: 1.0
  fail:
    description: Whether a missing address or a silent peer fails the task; otherwise it is only reported.
    type: bool
    default: true
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
author:
  - The gb10.cluster developers (@gb10-cluster)
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
interface_mtu:
  description: MTU of that interface in bytes.
  returned: always
  type: int
  sample: 9000
carrier:
  description: Whether that interface is up and has carrier.
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
    By address of this node and of every peer, the MAC addresses that answer for it. More than one node among them is
    a duplicate address.
  returned: always
  type: dict
peers:
  description: Per peer, C(address), C(ok), C(reachable), C(largest) packet answered in bytes, C(rtt_ms).
  returned: always
  type: dict
problems:
  description: A sentence for each thing that is wrong.
  returned: always
  type: list
  elements: str
"""

import ctypes
import errno
import ipaddress
import os
import socket
import struct
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

IP_MTU_DISCOVER = 10
#: Sets the don't-fragment bit and ignores what the kernel believes the path's MTU to be.
IP_PMTUDISC_PROBE = 3
SMALL_PACKET_BYTES = 84


class Ifaddrs(ctypes.Structure):
    """glibc's and musl's struct ifaddrs, as far as it is read here; ``next`` points to another one."""

    _fields_ = (
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("flags", ctypes.c_uint),
        ("address", ctypes.c_void_p),
    )


def interface_of(address: str) -> str:
    """Return the interface that carries an IPv4 address; an empty string when none does."""
    wanted = socket.inet_aton(address)
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    try:
        entry = first
        while entry:
            item = entry.contents
            if item.address:
                raw = ctypes.string_at(item.address, 8)
                (family,) = struct.unpack("=H", raw[:2])
                if family == socket.AF_INET and raw[4:8] == wanted:
                    return str(item.name.decode())
            entry = ctypes.cast(item.next, ctypes.POINTER(Ifaddrs))
        return ""
    finally:
        libc.freeifaddrs(first)


def has_carrier(interface: str) -> bool:
    """Return whether the interface is up and has carrier."""
    try:
        return Path(f"/sys/class/net/{interface}/carrier").read_text(encoding="ascii").strip() == "1"
    except OSError:  # the kernel answers EINVAL for an interface that is down
        return False


def ask(link: socket.socket, address: str, size_bytes: int, sequence: int, timeout_s: float) -> float | None:
    """Send one echo request; return the seconds until its answer, or None.

    Raises:
        OSError: the kernel refused to send.
    """
    identifier = os.getpid() & 0xFFFF
    started = time.monotonic()
    link.sendto(echo_request(identifier, sequence, payload_bytes(size_bytes)), (address, 0))
    while (left := started + timeout_s - time.monotonic()) > 0:
        link.settimeout(left)
        try:
            packet, (source, _port) = link.recvfrom(65536)
        except TimeoutError:
            return None
        if source == address and is_reply(packet, identifier, sequence):
            return time.monotonic() - started
    return None


def own_macs() -> list[str]:
    """Return the MAC addresses of all network devices of this node."""
    found = set()
    for path in Path("/sys/class/net").glob("*/address"):
        mac = path.read_text(encoding="ascii").strip()
        if mac.strip("0:"):
            found.add(mac)
    return sorted(found)


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
    """Ask one peer with each packet size until one is answered; return the finding and the round trip."""
    tried: list[tuple[int, bool]] = []
    error = ""
    rtt_s: float | None = None
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        link.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        link.bind((own, 0))
        for size in sizes:
            for attempt in range(attempts):
                try:
                    rtt_s = ask(link, address, size, len(tried) * attempts + attempt, timeout_s)
                except OSError as refused:
                    error = os.strerror(refused.errno or 0)
                    if refused.errno == errno.EMSGSIZE:
                        error = f"this node's own interface {interface} does not take {size} bytes"
                        break
                if rtt_s is not None:
                    break
            tried.append((size, rtt_s is not None))
            if rtt_s is not None:
                break
    return Probe(peer, address, tuple(tried), error), rtt_s


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "address": {"type": "str", "required": True},
            "peers": {"type": "dict", "required": True},
            "mtu": {"type": "int", "default": 0},
            "attempts": {"type": "int", "default": 3},
            "timeout_s": {"type": "float", "default": 1.0},
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
    problems: list[str] = []
    peers: dict[str, dict[str, Any]] = {}
    interface = interface_of(own)
    interface_mtu = 0
    carrier = False
    claimed: dict[str, list[str]] = {}
    if not interface:
        problems.append(
            f"{name} has no interface with its fabric address {own}. Check the cable or the link to the "
            "fabric, and gb10_fabric_address in the inventory (`ip -br address` shows what is there)."
        )
    else:
        interface_mtu = int(Path(f"/sys/class/net/{interface}/mtu").read_text(encoding="ascii"))
        carrier = has_carrier(interface)
        full = module.params["mtu"] or interface_mtu
        sizes = [full, *(size for size in (1500, SMALL_PACKET_BYTES) if size < full)]
        for peer, address in module.params["peers"].items():
            try:
                finding, rtt_s = probe(
                    interface, own, peer, address, sizes, module.params["attempts"], module.params["timeout_s"]
                )
            except PermissionError:
                module.fail_json(msg="A raw socket needs root: run this task with become: true.")
            problems.extend(filter(None, [sentence(name, own, finding)]))
            peers[peer] = {
                "address": address,
                "ok": finding.ok,
                "reachable": finding.reachable,
                "largest": max((size for size, answered in finding.sizes if answered), default=0),
                "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 3),
            }
        try:
            claimed = claims(interface, [own, *module.params["peers"].values()], module.params["timeout_s"])
        except PermissionError:
            module.fail_json(msg="A packet socket needs root: run this task with become: true.")
    result: dict[str, Any] = {
        "changed": False,
        "interface": interface,
        "interface_mtu": interface_mtu,
        "carrier": carrier,
        "address": own,
        "macs": own_macs(),
        "claims": claimed,
        "peers": peers,
        "problems": problems,
    }
    if problems and module.params["fail"]:
        module.fail_json(msg=" ".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
