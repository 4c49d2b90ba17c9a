#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_facts
short_description: Find a machine's fabric ports by driver and PCI address
version_added: 0.1.0
description:
  - Reads sysfs, C(ip), and C(nmcli), C(networkctl) and C(netplan) where they are installed; needs root only for some
    GID tables. Groups the network devices into ports and twins, with RDMA devices, GIDs, link rate, PCIe lanes,
    MTU and addresses.
  - Reports faults on this machine's own side. M(gb10.cluster.fabric_ping) tests what lies between machines.
  - Changes nothing.
options:
  drivers:
    description: Kernel drivers whose network devices are the fabric's.
    type: list
    elements: str
    default: [mlx5_core]
  interfaces:
    description: >-
      Network devices to use instead, each as a port of its own, in this order. An address selects the device that has
      it.
    type: list
    elements: str
    default: []
  mtu:
    description: MTU in bytes that devices in use must have; V(0) for any.
    type: int
    default: 9000
  speed_mbps:
    description: What links must have negotiated; V(0) for anything.
    type: int
    default: 200000
  rdma:
    description: Whether RDMA must work.
    type: bool
    default: true
  capture:
    description: Whether to return the unparsed input, to attach to a report or to make a test case of.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Find the fabric's ports
  gb10.cluster.fabric_facts:
  become: true
  register: fabric
"""

RETURN = r"""
machine:
  description: >-
    C(ports) (each with C(key) and C(netdevs) ordered by PCI domain: C(name), C(pci), C(mac), C(mtu_bytes), C(carrier),
    C(speed_mbps), C(lanes), C(lanes_max), C(addresses), C(manager), C(hca) with C(state), C(rate_gbps), C(gids)),
    C(other) addresses off the fabric, C(backend) that configures the network.
  returned: success
  type: dict
findings:
  description: Faults, each with C(level) (V(WARN) or V(FAIL)), C(what) and C(remedy).
  returned: success
  type: list
  elements: dict
control:
  description: C(client) and C(server) address of the SSH connection that this task uses; empty when there is none.
  returned: success
  type: dict
capture:
  description: The unparsed input by source.
  returned: when O(capture=true)
  type: dict
"""

import os
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.capture import collect, read
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.findings import findings
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture, to_dict
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import kho_fault, parse_meminfo


def control() -> dict[str, str]:
    """Return both ends of the SSH connection that an ancestor of this process belongs to."""
    pid = os.getpid()
    while pid > 1:
        environment = read(Path(f"/proc/{pid}/environ")) or ""
        for variable in environment.split("\0"):
            if variable.startswith("SSH_CONNECTION="):
                words = variable.partition("=")[2].split()
                return {"client": words[0], "server": words[2]}
        stat = read(Path(f"/proc/{pid}/stat")) or ""
        # The name in parentheses may hold blanks.
        pid = int(stat.rpartition(")")[2].split()[1]) if ")" in stat else 0
    return {}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "drivers": {"type": "list", "elements": "str", "default": ["mlx5_core"]},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "mtu": {"type": "int", "default": 9000},
            "speed_mbps": {"type": "int", "default": 200000},
            "rdma": {"type": "bool", "default": True},
            "capture": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    tree = collect()
    machine = parse_capture(tree, module.params["drivers"], module.params["interfaces"])
    found = findings(
        machine,
        mtu_bytes=module.params["mtu"],
        speed_mbps=module.params["speed_mbps"],
        rdma=module.params["rdma"],
        kho_fault=kho_fault(parse_meminfo(tree["meminfo"])),
    )
    module.exit_json(
        changed=False,
        machine=to_dict(machine),
        findings=[asdict(each) for each in found],
        control=control(),
        **({"capture": tree} if module.params["capture"] else {}),
    )


if __name__ == "__main__":
    main()
