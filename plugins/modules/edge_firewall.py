#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# pylint: disable=duplicate-code  # fabric_apply writes and reads files alike, until both use one mechanism

from __future__ import annotations

DOCUMENTATION = r"""
module: edge_firewall
short_description: Close a node's ports to everything but its cluster and its services, with automatic rollback
version_added: 0.1.0
description:
  - Manages one nftables table of its own, C(inet gb10), and touches no other.
  - Accepts replies to the node's own connections, SSH on every port where an SSH server listens or this very
    connection came in, ICMP, DHCP and mDNS replies, the open ports, and on the fabric's devices everything that the
    cluster's members send. The rest is rejected.
  - The table is checked with C(nft --check), loaded in one transaction, and rolled back by the node unless
    O(state=confirmed) follows in time. Only a confirmed table is loaded at the next boot.
  - RDMA does not pass through the kernel's firewall. This module neither blocks nor slows it.
options:
  state:
    description:
      - V(read) returns the node's fabric devices, its addresses there, its SSH ports, and the owner's listeners.
      - V(applied) loads the table and arms the rollback; V(confirmed) makes it permanent; V(rolled_back) rolls back at
        once; V(absent) removes the table.
    type: str
    choices: [read, applied, confirmed, rolled_back, absent]
    default: applied
  fabric_address:
    description: The node's own address on the fabric.
    type: str
    default: ""
  interfaces:
    description: The fabric's devices, instead of those of O(drivers). An address selects the device that has it.
    type: list
    elements: str
    default: []
  drivers:
    description: Kernel drivers whose devices are the fabric's.
    type: list
    elements: str
    default: [mlx5_core]
  management_address:
    description: Address by which the control node reaches this node; a device with it is open to both sides.
    type: str
    default: ""
  members:
    description: Addresses of all members of the cluster on the fabric.
    type: list
    elements: str
    default: []
  open_ports:
    description: TCP ports that are open to everybody but on the fabric.
    type: list
    elements: int
    default: []
  ssh_ports:
    description: SSH ports besides those that are found.
    type: list
    elements: int
    default: []
  bridges:
    description: >-
      Devices of this node's own containers, as nftables names them. Those of Docker's networks are found and added.
    type: list
    elements: str
    default: []
  bridge_ports:
    description: TCP ports that are open to this node's own containers.
    type: list
    elements: int
    default: []
  mdns:
    description: Whether queries for names ending in C(.local) are accepted.
    type: bool
    default: true
  rules:
    description: Rules in nftables' syntax; they come after loopback, replies and SSH, and before everything else.
    type: list
    elements: str
    default: []
  rollback_after_seconds:
    description: Seconds after which a table that was not confirmed is rolled back.
    type: int
    default: 60
    aliases: [rollback_after_s]
extends_documentation_fragment:
  - gb10.cluster.attributes
attributes:
  check_mode:
    details: The rules are checked where nftables is installed.
"""

EXAMPLES = r"""
- name: Close the node
  gb10.cluster.edge_firewall:
    fabric_address: "{{ gb10_fabric_address }}"
    members: [192.168.100.1, 192.168.100.2]
    open_ports: [8000]
  become: true

- name: Confirm the table
  gb10.cluster.edge_firewall:
    state: confirmed
  become: true
"""

RETURN = r"""
fabric:
  description: The devices of the fabric, those of them that are its alone, the node's addresses there, its SSH ports.
  returned: when O(state=read) or O(state=applied)
  type: dict
  sample: {devices: [enp1s0f0np0], closed: [enp1s0f0np0], addresses: [192.168.100.1], ssh_ports: [22]}
owner:
  description: >-
    What the owner of the node has. C(firewalls), units of other firewalls that are active; they continue to apply.
    C(closed), listeners that the table closes to everything except members; empty when the
    table is loaded already.
  returned: when O(state=read)
  type: dict
  sample: {firewalls: [ufw.service], closed: ["445/tcp (smbd)"]}
pending:
  description: Whether a table now waits for its confirmation.
  returned: success
  type: bool
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._edge.firewall import (
    FAMILY,
    REMOVE,
    TABLE,
    Fabric,
    FirewallError,
    Wanted,
    connection_port,
    default_devices,
    fabric_result,
    find_fabric,
    listening_ssh_ports,
    normal,
    parse_devices,
    refusal,
    rollback_commands,
    table_text,
    unit_text,
)
from ansible_collections.gb10.cluster.plugins.module_utils._edge.owner import (
    FIREWALLS,
    closed,
    docker_bridges,
    parse_listeners,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.renamed import renamed
from ansible_collections.gb10.cluster.plugins.module_utils._node.rollback import Rollback, RollbackError

KEPT = Path("/etc/gb10/edge/firewall.nft")
DIRECTORY = Path("/var/lib/gb10/edge")
PENDING = DIRECTORY / "pending.nft"
LIVE = DIRECTORY / "live"
UNIT = Path("/etc/systemd/system/gb10-firewall.service")


def command_line(pid: int) -> str:
    """Return the command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def read(path: Path) -> str:
    """Return a file's text; empty when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Node:
    """This node as the module finds and changes it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.nft = module.get_bin_path("nft", opt_dirs=["/usr/sbin"]) or ""
        self.rollback = Rollback(
            "the firewall", DIRECTORY, "gb10-firewall-rollback", lambda command: self.run(*command)
        )

    def run(self, *command: str, check: bool = False) -> tuple[int, str, str]:
        code, out, err = self.module.run_command(list(command), check_rc=check, environ_update={"LC_ALL": "C"})
        return int(code), str(out), str(err)

    def fabric(self) -> Fabric:
        """Return which of the node's devices are the fabric's."""
        params = self.module.params
        drivers = {
            path.name: (path / "device" / "driver").resolve().name
            for path in Path("/sys/class/net").iterdir()
            if (path / "device" / "driver").exists()
        }
        devices = parse_devices(self.run("ip", "-json", "address", "show", check=True)[1], drivers)
        management = {
            params["management_address"],
            *default_devices(self.run("ip", "-json", "route", "show", "default")[1]),
        }
        return find_fabric(
            devices, params["interfaces"], params["drivers"], params["fabric_address"], management - {""}
        )

    def ssh_ports(self) -> set[int]:
        """Return the ports on which SSH is served here, with that of this very connection."""
        listening = self.run("ss", "-Hltnp")[1]
        waiting = self.run("systemctl", "show", "ssh.socket", "sshd.socket", "--property=Listen")[1]
        active = self.run("systemctl", "is-active", "ssh.socket", "sshd.socket")[1]
        ports = listening_ssh_ports(listening, waiting if "active" in active.split() else "", command_line)
        ports |= set(self.module.params["ssh_ports"])
        # sudo takes the variable out of its command's environment, but not out of its own.
        pid = os.getpid()
        while pid > 1:
            try:
                came_by = connection_port(Path(f"/proc/{pid}/environ").read_bytes())
                status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            except OSError:
                break
            if came_by:
                ports.add(came_by)
            pid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), 0)
        return ports

    def docker_bridges(self) -> list[str]:
        """Return the devices of Docker's own networks; none without Docker."""
        docker = self.module.get_bin_path("docker")
        if docker is None:
            return []
        ids = self.run(docker, "network", "ls", "--quiet", "--no-trunc", "--filter", "driver=bridge")[1].split()
        return docker_bridges(self.run(docker, "network", "inspect", *ids)[1]) if ids else []

    def owner(self, ssh_ports: set[int]) -> dict[str, list[str]]:
        """Return which firewalls of the owner's are active, and which listeners the table is about to close."""
        params = self.module.params
        active = [unit for unit in FIREWALLS if self.run("systemctl", "is-active", unit)[1].strip() == "active"]
        shut = []
        if not self.loaded():
            listeners = parse_listeners(self.run("ss", "-Hltunp")[1])
            shut = closed(listeners, ssh_ports, params["open_ports"], params["mdns"])
        return {"firewalls": active, "closed": [each.phrase() for each in shut]}

    def loaded(self) -> str:
        """Return the table as the kernel has it, in a comparable form; empty when it has none."""
        if not self.nft:
            return ""
        code, out, _err = self.run(self.nft, "--stateless", "list", "table", FAMILY, TABLE)
        return normal(out) if code == 0 else ""

    def unit_text(self) -> str:
        return unit_text(self.nft or "/usr/sbin/nft", str(KEPT))

    def enabled(self) -> bool:
        return self.run("systemctl", "is-enabled", UNIT.name)[1].strip() == "enabled"

    def validate(self, text: str) -> None:
        """Fail when nft refuses a copy of the file, with its complaint."""
        with tempfile.NamedTemporaryFile("w", prefix="gb10-firewall-", suffix=".nft", encoding="utf-8") as copy:
            copy.write(text)
            copy.flush()
            code, out, err = self.run(self.nft, "--check", "--file", copy.name)
        if code != 0:
            self.module.fail_json(msg=f"nft refuses the table, nothing was changed: {refusal(err or out)}")

    def apply(self) -> dict[str, Any]:
        """Load the wanted table, with the rollback armed."""
        params = self.module.params
        fabric, ssh_ports = self.fabric(), self.ssh_ports()
        try:
            text = table_text(
                Wanted(
                    ssh_ports=sorted(ssh_ports),
                    open_ports=params["open_ports"],
                    fabric=fabric.devices,
                    closed=fabric.closed,
                    members=params["members"],
                    bridges=sorted({*params["bridges"], *self.docker_bridges()}) if params["bridge_ports"] else [],
                    bridge_ports=params["bridge_ports"],
                    mdns=params["mdns"],
                    rules=params["rules"],
                )
            )
        except FirewallError as error:
            self.module.fail_json(msg=f"{error} Nothing was changed.")
        if not self.module.check_mode:
            self.rollback.roll_back()
        before = read(KEPT)
        loaded = self.loaded()
        result: dict[str, Any] = {"fabric": fabric_result(fabric, ssh_ports), "pending": False, "changed": False}
        kept = before == text and loaded != "" and loaded == read(LIVE).strip()
        if kept and not self.rollback.is_pending() and self.enabled() and read(UNIT) == self.unit_text():
            return result
        result["changed"] = True
        result["diff"] = files.diff(str(KEPT), before, text)
        if before == text:
            result["diff"]["before"] = "the table is not loaded as it was written, or not at boot\n"
            result["diff"]["after"] = "the table is loaded as it was written, and at boot\n"
        if self.nft:
            self.validate(text)
        if self.module.check_mode:
            return result
        if not self.nft:
            self.module.fail_json(msg="There is no nft on this node; install the package nftables.")
        commands = rollback_commands(self.nft, str(KEPT) if before else "")
        self.rollback.arm(params["rollback_after_seconds"], commands, [PENDING])
        files.write(PENDING, text, 0o600)
        code, out, err = self.run(self.nft, "-f", str(PENDING))
        if code != 0:
            self.rollback.disarm()
            files.remove(PENDING)
            self.module.fail_json(msg=f"nft did not load the table, nothing was changed: {refusal(err or out)}")
        result["pending"] = True
        return result

    def confirm(self) -> None:
        """Keep the table that is loaded, and have it loaded at boot."""
        if not self.rollback.confirm():
            return
        KEPT.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write(LIVE, self.loaded() + "\n", 0o600)
        files.write(KEPT, read(PENDING), 0o600)
        files.write(UNIT, self.unit_text())
        for command in (
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--quiet", UNIT.name],
            ["systemctl", "start", UNIT.name],
        ):
            code, _out, err = self.run(*command)
            if code != 0:
                self.module.fail_json(msg=f"The firewall is loaded, but not for the next boot: {err.strip()}")
        files.remove(PENDING)

    def remove(self) -> bool:
        """Remove the table, its unit and its files; return whether there were any."""
        there = [path for path in (KEPT, UNIT, PENDING, LIVE) if path.exists()]
        if not there and not self.loaded():
            return False
        if not self.module.check_mode:
            self.rollback.disarm()
            if UNIT.exists():
                self.run("systemctl", "disable", "--now", UNIT.name)
            if self.loaded():
                self.run(self.nft, REMOVE, check=True)
            for path in there:
                files.remove(path)
            self.run("systemctl", "daemon-reload")
        return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["read", "applied", "confirmed", "rolled_back", "absent"],
                "default": "applied",
            },
            "fabric_address": {"type": "str", "default": ""},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "drivers": {"type": "list", "elements": "str", "default": ["mlx5_core"]},
            "management_address": {"type": "str", "default": ""},
            "members": {"type": "list", "elements": "str", "default": []},
            "open_ports": {"type": "list", "elements": "int", "default": []},
            "ssh_ports": {"type": "list", "elements": "int", "default": []},
            "bridges": {"type": "list", "elements": "str", "default": []},
            "bridge_ports": {"type": "list", "elements": "int", "default": []},
            "mdns": {"type": "bool", "default": True},
            "rules": {"type": "list", "elements": "str", "default": []},
            "rollback_after_seconds": {"type": "int", "default": 60, **renamed("rollback_after_s")},
        },
        supports_check_mode=True,
    )
    node = Node(module)
    state = module.params["state"]
    try:
        if state == "read":
            ssh_ports = node.ssh_ports()
            result = {
                "changed": False,
                "fabric": fabric_result(node.fabric(), ssh_ports),
                "owner": node.owner(ssh_ports),
            }
        elif state == "applied":
            result = node.apply()
        elif state == "absent":
            before = read(KEPT)
            changed = node.remove()
            result = {"changed": changed, "diff": {"before": before if changed else "", "after": ""}}
        elif module.check_mode:
            result = {"changed": state == "rolled_back" and node.rollback.is_pending()}
        elif state == "rolled_back":
            result = {"changed": node.rollback.roll_back()}
        else:
            node.confirm()
            # Confirming is the end of the change that was reported already, not another one.
            result = {"changed": False}
    except RollbackError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**{"pending": node.rollback.is_pending(), **result})


if __name__ == "__main__":
    main()
