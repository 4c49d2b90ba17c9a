#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_neighbours
short_description: Discover which port is cabled to which, before there is any address
version_added: 0.1.0
description:
  - Sends an Ethernet broadcast with the node's name on each of the named devices a few times a second, and listens
    for those of the other nodes. When all nodes of a cluster run it at the same time, each learns which nodes are
    behind which of its ports, whatever addresses are set, or none.
  - The frames have the EtherType 0x88B5, which is reserved for private use, and never leave the link.
  - Changes nothing except that it switches on devices that are off, with O(raise_links=true).
options:
  name:
    description: Name of this node.
    type: str
    required: true
  cluster:
    description: Text that is the same on all nodes of this cluster and on no other.
    type: str
    required: true
  netdevs:
    description: Network devices to use.
    type: list
    elements: str
    required: true
  expect:
    description: Names of the other nodes. Listening ends early when each of them was heard.
    type: list
    elements: str
    default: []
  seconds:
    description: Longest time to listen, in seconds, from the start and from the first sign of each expected node.
    type: float
    default: 8.0
  raise_links:
    description: Whether to switch on devices that are off; not in check mode.
    type: bool
    default: true
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Discover how the nodes are cabled
  gb10.cluster.fabric_neighbours:
    name: "{{ inventory_hostname }}"
    cluster: desk
    netdevs: [enp1s0f0np0, enP2p1s0f0np0, enp1s0f1np1, enP2p1s0f1np1]
  become: true
  register: neighbours
"""

RETURN = r"""
neighbours:
  description: By own device, the list of C([node, device]) that were heard on it.
  returned: success
  type: dict
  sample: {"enp1s0f0np0": [["gx10-2", "enp1s0f0np0"]]}
down:
  description: Devices that are off and were not switched on.
  returned: success
  type: list
  elements: str
"""

import json
import re
import select
import socket
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

ETHERTYPE = 0x88B5
BROADCAST = b"\xff" * 6
MAGIC = "gb10.cluster"
INTERVAL_S = 0.25
#: What is taken for the name of a node or of a device: whoever is on the cable can send anything.
NAME = re.compile(r"[\w.:-]{1,253}")
#: A cable, or a switch of a cluster, has fewer ends; more names on one device are a flood.
MAX_NEIGHBOURS = 256
#: How long a node goes on after it has heard all: the others may have started later.
LINGER_S = 2.0


def is_up(netdev: str) -> bool:
    return bool(int(Path(f"/sys/class/net/{netdev}/flags").read_text(encoding="ascii"), 16) & 1)


def frame(netdev: str, name: str, cluster: str) -> bytes:
    """Return the Ethernet frame that announces us on a device."""
    mac = bytes.fromhex(Path(f"/sys/class/net/{netdev}/address").read_text(encoding="ascii").strip().replace(":", ""))
    payload = json.dumps({"magic": MAGIC, "cluster": cluster, "node": name, "netdev": netdev}).encode()
    return BROADCAST + mac + ETHERTYPE.to_bytes(2, "big") + payload.ljust(46, b" ")


def heard(packet: bytes, name: str, cluster: str) -> tuple[str, str] | None:
    """Return node and device of another member's announcement; None for everything else."""
    try:
        frame_data = json.loads(packet[14:].rstrip(b" \0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(frame_data, dict) or frame_data.get("magic") != MAGIC or frame_data.get("cluster") != cluster:
        return None
    node, netdev = str(frame_data.get("node")), str(frame_data.get("netdev"))
    return (node, netdev) if node != name and NAME.fullmatch(node) and NAME.fullmatch(netdev) else None


def listen(
    netdevs: list[str], name: str, cluster: str, expect: set[str], seconds: float
) -> dict[str, set[tuple[str, str]]]:
    """Announce and listen on all devices; return what was heard by device."""
    links: dict[socket.socket, str] = {}
    found: dict[str, set[tuple[str, str]]] = {netdev: set() for netdev in netdevs}
    try:
        for netdev in netdevs:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            links[link] = netdev
            link.bind((netdev, ETHERTYPE))
        started = time.monotonic()
        end, next_send = started + seconds, started
        met: set[str] = set()
        while links and (now := time.monotonic()) < end:
            if now >= next_send:
                next_send = now + INTERVAL_S
                for link, netdev in links.items():
                    try:
                        link.send(frame(netdev, name, cluster))
                    except OSError:  # no carrier: nobody to hear it
                        continue
            readable, _unused, _unused = select.select(
                list(links), [], [], max(0.0, min(next_send, end) - time.monotonic())
            )
            for link in readable:
                try:
                    neighbour = heard(link.recv(2048), name, cluster)
                except OSError:
                    continue
                if neighbour and len(found[links[link]]) < MAX_NEIGHBOURS:
                    found[links[link]].add(neighbour)
                    if neighbour[0] in expect - met:  # the others may begin as much later
                        met.add(neighbour[0])
                        end = time.monotonic() + seconds
            known = {node for each in found.values() for node, _netdev in each}
            if expect and expect <= known:
                end = min(end, now + LINGER_S)
                expect = set()
    finally:
        for link in links:
            link.close()
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "netdevs": {"type": "list", "elements": "str", "required": True},
            "expect": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "float", "default": 8.0},
            "raise_links": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    netdevs: list[str] = module.params["netdevs"]
    absent = [netdev for netdev in netdevs if not Path(f"/sys/class/net/{netdev}").exists()]
    if absent:
        module.fail_json(msg=f"There is no network device {', '.join(absent)} on {module.params['name']}.")
    down = [netdev for netdev in netdevs if not is_up(netdev)]
    if down and module.params["raise_links"] and not module.check_mode:
        for netdev in down:
            module.run_command(["ip", "link", "set", netdev, "up"], check_rc=True)
        down = []
    try:
        found = listen(
            [netdev for netdev in netdevs if netdev not in down],
            module.params["name"],
            module.params["cluster"],
            set(module.params["expect"]),
            module.params["seconds"],
        )
    except PermissionError:
        module.fail_json(msg="A packet socket needs root: run this task with become: true.")
    module.exit_json(
        changed=False,
        neighbours={netdev: sorted([list(each) for each in nodes]) for netdev, nodes in found.items()},
        down=down,
    )


if __name__ == "__main__":
    main()
