# SPDX-License-Identifier: Apache-2.0
"""ICMP echo and ARP packets: building them, reading the answers, and wording what came back.

Sizes are in bytes. ``IP_HEADER`` + ``ICMP_HEADER`` + payload is what a link's MTU must carry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IP_HEADER_BYTES = 20
ICMP_HEADER_BYTES = 8
ECHO_REQUEST = 8
ECHO_REPLY = 0


def payload_bytes(mtu_bytes: int) -> int:
    """Return the largest echo payload that one packet of this MTU carries."""
    return mtu_bytes - IP_HEADER_BYTES - ICMP_HEADER_BYTES


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(identifier: int, sequence: int, size_bytes: int) -> bytes:
    """Return an ICMP echo request with ``size_bytes`` of payload."""
    payload = bytes(index & 0xFF for index in range(size_bytes))
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence)
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum(head + payload), identifier, sequence) + payload


def is_reply(packet: bytes, identifier: int, sequence: int) -> bool:
    """Return whether an IPv4 packet is the answer to our echo request."""
    header_bytes = (packet[0] & 0x0F) * 4 if packet else 0
    body = packet[header_bytes:]
    if len(body) < ICMP_HEADER_BYTES:
        return False
    kind, code, _checksum, its_identifier, its_sequence = struct.unpack("!BBHHH", body[:8])
    return (kind, code, its_identifier, its_sequence) == (ECHO_REPLY, 0, identifier, sequence)


@dataclass(frozen=True)
class Probe:
    """What one node found out about one peer.

    ``sizes`` are the packet sizes that were tried, largest first, and whether each was answered;
    ``error`` is what the kernel refused, or empty.
    """

    peer: str
    address: str
    sizes: tuple[tuple[int, bool], ...]
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the largest packet was answered."""
        return bool(self.sizes) and self.sizes[0][1]

    @property
    def reachable(self) -> bool:
        """Whether any packet was answered."""
        return any(answered for _size, answered in self.sizes)


def sentence(source: str, source_address: str, probe: Probe) -> str:
    """Return what is wrong between ``source`` and the peer, and what to do; empty when nothing is."""
    if probe.ok:
        return ""
    pair = f"{source} ({source_address}) -> {probe.peer} ({probe.address})"
    if probe.reachable:
        wanted = probe.sizes[0][0]
        most = max(size for size, answered in probe.sizes if answered)
        return (
            f"{pair}: packets of {wanted} bytes do not pass, {most} bytes do. "
            f"Some hop's MTU is below {wanted}: compare `ip link` on both nodes, and the switch's ports."
        )
    why = f" ({probe.error})" if probe.error else ""
    return (
        f"{pair}: no reply{why}. Check that {probe.peer} is up, that its fabric link has carrier "
        f"(`ip -br link`), and that {probe.address} is on it (`ip -br address`)."
    )


ETHERTYPE_ARP = 0x0806
_ARP_HEAD = struct.pack("!HHBB", 1, 0x0800, 6, 4)


def arp_request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    """Return an Ethernet broadcast that asks who has an IPv4 address.

    Args:
        mac: six bytes of the asking device.
        sender: four bytes of its address; zeros ask without telling (RFC 5227).
        target: four bytes of the address that is asked for.
    """
    return (
        b"\xff" * 6
        + mac
        + struct.pack("!H", ETHERTYPE_ARP)
        + _ARP_HEAD
        + struct.pack("!H", 1)
        + mac
        + sender
        + bytes(6)
        + target
    )


def arp_answer(packet: bytes) -> tuple[bytes, str] | None:
    """Return address (four bytes) and MAC address of who answered; None for everything else."""
    if len(packet) < 42 or packet[12:20] != struct.pack("!H", ETHERTYPE_ARP) + _ARP_HEAD[:6]:
        return None
    if packet[20:22] != struct.pack("!H", 2):
        return None
    return packet[28:32], ":".join(f"{byte:02x}" for byte in packet[22:28])
