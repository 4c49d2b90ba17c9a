# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.route import Held, held_by, outgoing

ADDRESSES = json.dumps(
    [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
        {"ifname": "enp1s0f0np0", "addr_info": [{"local": "192.168.250.1", "prefixlen": 30}, {"family": "x"}]},
        {"ifname": "gb10", "addr_info": [{"local": "10.77.0.1", "prefixlen": 32}]},
        {"ifname": "off"},
    ]
)


def test_held_by() -> None:
    assert held_by(ADDRESSES, "10.77.0.1") == Held("gb10", 32)
    assert held_by(ADDRESSES, "10.77.0.1").routed
    assert not held_by(ADDRESSES, "192.168.250.1").routed
    assert held_by(ADDRESSES, "10.77.0.9") == Held("")
    assert held_by("", "10.77.0.9") == Held("")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As iproute2 6.1 prints it for an address behind a neighbour.
        (
            '[{"dst":"10.77.0.2","from":"10.77.0.1","gateway":"192.168.250.2","dev":"enp1s0f0np0","flags":[],"uid":0}]',
            ("enp1s0f0np0", ""),
        ),
        (
            '[{"type":"local","dst":"10.77.0.1","dev":"lo","prefsrc":"10.77.0.1","flags":[],"cache":["local"]}]',
            ("", "the address is on this node itself"),
        ),
        ("", ("", "there is no route to it")),
        ("RTNETLINK answers: Network is unreachable", ("", "there is no route to it")),
    ],
)
def test_outgoing(text: str, expected: tuple[str, str]) -> None:
    assert outgoing(text) == expected
