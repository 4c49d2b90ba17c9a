# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from ansible_collections.gb10.cluster.plugins.module_utils._edge.owner import (
    Listener,
    closed,
    docker_bridges,
    parse_listeners,
)

# Lines of `ss -Hltunp` of iproute2 6.1 with the listeners of a desktop, libvirt and Samba.
SS = """\
udp   UNCONN 0      0            0.0.0.0:5353       0.0.0.0:*    users:(("avahi-daemon",pid=700,fd=12))
udp   UNCONN 0      0      192.168.122.1:53         0.0.0.0:*    users:(("dnsmasq",pid=1200,fd=5))
udp   UNCONN 0      0     0.0.0.0%virbr0:67         0.0.0.0:*    users:(("dnsmasq",pid=1200,fd=3))
udp   UNCONN 0      0      10.0.0.5%eth0:68         0.0.0.0:*    users:(("systemd-network",pid=500,fd=18))
udp   UNCONN 0      0      127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=600,fd=13))
tcp   LISTEN 0      128          0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=900,fd=3))
tcp   LISTEN 0      50                 *:445              *:*    users:(("smbd",pid=1300,fd=29))
tcp   LISTEN 0      50              [::]:445           [::]:*    users:(("smbd",pid=1300,fd=28))
tcp   LISTEN 0      4096           [::1]:631           [::]:*    users:(("cupsd",pid=800,fd=6))
tcp   LISTEN 0      4096       127.0.0.1:631        0.0.0.0:*    users:(("cupsd",pid=800,fd=7))
tcp   LISTEN 0      4096         0.0.0.0:8000       0.0.0.0:*
garbage
"""


def test_listeners_that_the_table_closes_are_named() -> None:
    found = parse_listeners(SS)
    assert [each.port for each in found] == [22, 53, 67, 68, 445, 5353, 8000]
    shut = closed(found, ssh_ports=[22], open_ports=[8000], mdns=True)
    assert [each.phrase() for each in shut] == ["53/udp (dnsmasq)", "67/udp (dnsmasq on virbr0)", "445/tcp (smbd)"]
    assert Listener("udp", 5353, "avahi-daemon") in closed(found, [22], [8000], mdns=False)
    assert closed([Listener("tcp", 9, "")], [], [], mdns=True)[0].phrase() == "9/tcp (unknown process)"
    assert parse_listeners("") == []


def test_only_dockers_own_bridges() -> None:
    networks = [
        {"Name": "bridge", "Id": "aa" * 32, "Driver": "bridge",
         "Options": {"com.docker.network.bridge.name": "docker0"}},
        {"Name": "mine", "Id": "0123456789ab" + "0" * 52, "Driver": "bridge", "Options": {}},
        {"Name": "null", "Id": "bb" * 32, "Driver": "bridge", "Options": None},
        {"Name": "host", "Id": "cc" * 32, "Driver": "host"},
        {"Name": "odd", "Driver": "bridge"},
    ]  # fmt: skip
    assert docker_bridges(json.dumps(networks)) == ["br-0123456789ab", "br-bbbbbbbbbbbb", "docker0"]
    assert docker_bridges("") == []
    assert docker_bridges("Error response from daemon") == []
