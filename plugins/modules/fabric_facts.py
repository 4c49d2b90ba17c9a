#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_facts
short_description: Find a machine's fabric ports by driver and PCI address
version_added: 0.1.0
description:
  - Reads sysfs, C(ip), and what is there of C(nmcli), C(networkctl) and C(netplan); needs root for nothing but some
    GID tables. Groups the network devices into ports and twins, with RDMA devices, GIDs, link rate, PCIe lanes,
    MTU and addresses.
  - Names what is wrong on this machine's own side. What lies between machines is the matter of
    M(gb10.cluster.fabric_ping).
  - Changes nothing.
options:
  drivers:
    description: Kernel drivers whose network devices are the fabric's.
    type: list
    elements: str
    default: [mlx5_core]
  interfaces:
    description: >-
      Network devices that are taken instead, each as a port of its own, in this order. An address stands for the
      device that carries it.
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
    description: Return what was read as it was read, to be attached to a report or made a test case.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
author:
  - The gb10.cluster developers (@gb10-cluster)
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
  description: What is wrong, each with C(level) (V(WARN) or V(FAIL)), C(what) and C(remedy).
  returned: success
  type: list
  elements: dict
control:
  description: C(client) and C(server) address of the SSH connection that this came over; empty when there is none.
  returned: success
  type: dict
capture:
  description: What was read, by source.
  returned: when O(capture=true)
  type: dict
"""

import os
import subprocess
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import findings, parse_capture, to_dict
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import kho_fault, parse_meminfo

SYS = Path("/sys")
NETDEV_FILES = ("address", "carrier", "flags", "mtu", "operstate", "speed")
DEVICE_FILES = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width", "vendor", "device")
HCA_FILES = ("fw_ver", "node_guid")
HCA_PORT_FILES = ("link_layer", "phys_state", "rate", "state")


def read(path: Path) -> str | None:
    """Return a file's text; None where the kernel has nothing to say (a speed without carrier)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def run(*argv: str) -> str:
    """Return what a program prints; an empty string when it is absent or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


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


def collect() -> dict[str, str]:
    """Return everything that ``parse_capture`` reads, and the meminfo that shows the KHO fault."""
    tree: dict[str, str] = {}

    def put(path: Path, text: str | None) -> None:
        if text is not None:
            tree[str(path.relative_to(SYS))] = text

    for netdev in sorted((SYS / "class/net").iterdir()):
        for name in NETDEV_FILES:
            put(netdev / name, read(netdev / name))
        device = netdev / "device"
        if not device.exists():
            continue
        put(device, str(device.resolve()))
        put(device / "driver", str((device / "driver").resolve()) if (device / "driver").exists() else None)
        for name in DEVICE_FILES:
            put(device / name, read(device / name))
        for hca in sorted((device / "infiniband").glob("*")):
            put(hca, "")
    for hca in sorted((SYS / "class/infiniband").glob("*")):
        for name in HCA_FILES:
            put(hca / name, read(hca / name))
        port = hca / "ports/1"
        for name in HCA_PORT_FILES:
            put(port / name, read(port / name))
        for gid in sorted((port / "gids").glob("*")):
            value = read(gid)
            if value and value.strip("0:"):
                put(gid, value)
                for attribute in ("types", "ndevs"):
                    put(port / "gid_attrs" / attribute / gid.name, read(port / "gid_attrs" / attribute / gid.name))
    tree["ip"] = run("ip", "-json", "address", "show")
    tree["nmcli"] = run("nmcli", "--terse", "--fields", "DEVICE,STATE", "device")
    tree["networkctl"] = run("networkctl", "--json=short", "list") or run("networkctl", "--no-legend", "list")
    tree["netplan"] = run("sh", "-c", "command -v netplan")
    for unit in ("NetworkManager.service", "systemd-networkd.service"):
        tree[f"active/{unit}"] = run("systemctl", "is-active", unit).strip()
    tree["meminfo"] = read(Path("/proc/meminfo")) or ""
    return tree


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
