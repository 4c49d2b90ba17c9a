# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.icmp import (
    Probe,
    arp_answer,
    arp_request,
    checksum,
    echo_request,
    is_reply,
    payload_bytes,
    sentence,
)

MAC = bytes.fromhex("020000000001")


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 8972])
def test_an_echo_request_has_a_sum_of_zero(size: int) -> None:
    packet = echo_request(7, 9, size)
    assert len(packet) == size + 8
    # A packet with its checksum in place sums up to nothing (RFC 1071).
    assert checksum(packet) == 0


def test_payload_of_an_mtu() -> None:
    assert payload_bytes(9000) == 8972


def reply(identifier: int, sequence: int, kind: int = 0) -> bytes:
    return bytes([0x46]) + bytes(23) + struct.pack("!BBHHH", kind, 0, 0, identifier, sequence) + b"payload"


def test_is_reply() -> None:
    assert is_reply(reply(7, 9), 7, 9)
    assert not is_reply(reply(7, 8), 7, 9)
    assert not is_reply(reply(6, 9), 7, 9)
    assert not is_reply(reply(7, 9, kind=8), 7, 9), "our own request, seen on the raw socket"
    assert not is_reply(b"", 7, 9)
    assert not is_reply(b"\x45" + bytes(20), 7, 9)


def test_sentence() -> None:
    assert sentence("a", "1.1.1.1", Probe("b", "1.1.1.2", ((9000, True),))) == ""
    small = sentence("a", "1.1.1.1", Probe("b", "1.1.1.2", ((9000, False), (1500, True))))
    assert small.startswith("a (1.1.1.1) -> b (1.1.1.2): packets of 9000 bytes do not pass, 1500 bytes do.")
    silent = sentence("a", "1.1.1.1", Probe("b", "1.1.1.2", ((9000, False), (84, False)), "Network is unreachable"))
    assert silent.startswith("a (1.1.1.1) -> b (1.1.1.2): no reply (Network is unreachable).")


def test_arp() -> None:
    request = arp_request(MAC, bytes(4), bytes([10, 0, 0, 2]))
    assert len(request) == 42
    assert request[:6] == b"\xff" * 6
    assert arp_answer(request) is None
    answer = bytearray(request)
    answer[20:22] = struct.pack("!H", 2)
    answer[22:28] = bytes.fromhex("020000000002")
    answer[28:32] = bytes([10, 0, 0, 2])
    assert arp_answer(bytes(answer)) == (bytes([10, 0, 0, 2]), "02:00:00:00:00:02")
    assert arp_answer(bytes(answer[:30])) is None
