#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# pylint: disable=duplicate-code  # fabric_apply writes and reads files alike, until both use one mechanism

from __future__ import annotations

DOCUMENTATION = r"""
module: edge_firewall
short_description: Close a node to all but its cluster and what it serves, with a way back
version_added: 0.1.0
description:
  - Keeps one nftables table of its own, C(inet gb10), and touches no other.
  - Lets in what answers connections of the node itself, SSH on every port where an SSH server waits or this very
    connection came in, ICMP, DHCP's and mDNS' answers, the open ports, and on the fabric's devices whatever the
    cluster's members send. The rest is refused.
  - The table is checked with C(nft --check), loaded in one transaction, and taken back by a timer on the node unless
    O(state=confirmed) follows in time. Only a confirmed table is loaded at the next boot.
  - RDMA does not pass through the kernel's firewall. It is not closed by this, and not slowed.
options:
  state:
    description:
      - V(read) tells the node's devices of the fabric, its addresses there and its SSH ports.
      - V(applied) brings the table to what is wanted and starts the timer; V(confirmed) keeps it; V(rolled_back)
        goes back at once; V(absent) removes the table.
    type: str
    choices: [read, applied, confirmed, rolled_back, absent]
    default: applied
  fabric_address:
    description: The node's own address on the fabric.
    type: str
    default: ""
  interfaces:
    description: Devices that are the fabric's, instead of those by driver. An address stands for its device.
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
    description: Ports of SSH beside those that are found.
    type: list
    elements: int
    default: []
  bridges:
    description: Devices of this node's own containers, as nftables names them; what comes from them is let in.
    type: list
    elements: str
    default: []
  mdns:
    description: Whether names ending in C(.local) are answered for.
    type: bool
    default: true
  rules:
    description: Rules in nftables' words that come before all but loopback, answers and SSH.
    type: list
    elements: str
    default: []
  rollback_after_s:
    description: Seconds after which a table that was not confirmed is taken back.
    type: int
    default: 60
extends_documentation_fragment:
  - gb10.cluster.attributes
attributes:
  check_mode:
    details: The rules are checked where nftables is installed.
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Close the node
  gb10.cluster.edge_firewall:
    fabric_address: "{{ gb10_fabric_address }}"
    members: [192.168.100.1, 192.168.100.2]
    open_ports: [8000]
  become: true

- name: Keep it
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
    TABLE,
    Fabric,
    FirewallError,
    Wanted,
    connection_port,
    default_devices,
    find_fabric,
    listening_ssh_ports,
    normal,
    parse_devices,
    refusal,
    rollback_script,
    table_text,
    told,
)

KEPT = Path("/etc/gb10/edge/firewall.nft")
DIRECTORY = Path("/var/lib/gb10/edge")
PENDING = DIRECTORY / "pending.nft"
LIVE = DIRECTORY / "live"
SCRIPT = DIRECTORY / "rollback.sh"
ROLLED_BACK = DIRECTORY / "rolled-back"
UNIT = Path("/etc/systemd/system/gb10-firewall.service")
TIMER = "gb10-firewall-rollback"
REMOVE = f"add table {FAMILY} {TABLE}; delete table {FAMILY} {TABLE}"
UNIT_TEXT = """\
# Written by gb10.cluster.
[Unit]
Description=What of this node may be reached from where (nftables table {family} {table})
DefaultDependencies=no
After=local-fs.target nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
# That service begins with `flush ruleset`, which takes every table with it.
PartOf=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {kept}
ExecReload={nft} -f {kept}
ExecStop={nft} "{remove}"

[Install]
WantedBy=sysinit.target nftables.service
"""


def write(path: Path, text: str, mode: int) -> None:
    """Write a file beside its place and rename it there."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).chmod(mode)
    Path(name).replace(path)


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

    def run(self, *command: str, check: bool = False) -> tuple[int, str, str]:
        """Run a command in the C locale."""
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
        ports = listening_ssh_ports(listening, waiting if "active" in active.split() else "")
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

    def loaded(self) -> str:
        """Return the table as the kernel has it, in a comparable form; empty when it has none."""
        if not self.nft:
            return ""
        code, out, _err = self.run(self.nft, "--stateless", "list", "table", FAMILY, TABLE)
        return normal(out) if code == 0 else ""

    def unit_text(self) -> str:
        """Return the unit that loads the table at boot."""
        return UNIT_TEXT.format(family=FAMILY, table=TABLE, nft=self.nft or "/usr/sbin/nft", kept=KEPT, remove=REMOVE)

    def enabled(self) -> bool:
        """Whether the table is loaded at boot."""
        return self.run("systemctl", "is-enabled", UNIT.name)[1].strip() == "enabled"

    def validate(self, text: str) -> None:
        """Let nft judge a copy of the file; fails with what it refuses."""
        handle, name = tempfile.mkstemp(prefix="gb10-firewall-", suffix=".nft")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as copy:
                copy.write(text)
            code, out, err = self.run(self.nft, "--check", "--file", name)
        finally:
            Path(name).unlink(missing_ok=True)
        if code != 0:
            self.module.fail_json(msg=f"nft refuses the table, nothing was changed: {refusal(err or out)}")

    def arm(self) -> None:
        """Prepare what takes the change back."""
        self.disarm()
        ROLLED_BACK.unlink(missing_ok=True)
        write(SCRIPT, rollback_script(str(DIRECTORY), self.nft, str(KEPT) if KEPT.exists() else ""), 0o700)
        code, _out, err = self.run(
            "systemd-run", "--quiet", "--collect", f"--unit={TIMER}",
            f"--on-active={self.module.params['rollback_after_s']}", "--timer-property=AccuracySec=1s",
            "/bin/sh", str(SCRIPT),
        )  # fmt: skip
        if code != 0:
            self.module.fail_json(msg=f"The way back could not be prepared, nothing was changed: {err.strip()}")

    def disarm(self) -> None:
        """Stop the timer."""
        self.run("systemctl", "stop", f"{TIMER}.timer")
        self.run("systemctl", "reset-failed", f"{TIMER}.timer", f"{TIMER}.service")

    def apply(self) -> dict[str, Any]:
        """Bring the table to what is wanted, with the timer running."""
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
                    bridges=params["bridges"],
                    mdns=params["mdns"],
                    rules=params["rules"],
                )
            )
        except FirewallError as error:
            self.module.fail_json(msg=f"{error} Nothing was changed.")
        before = read(KEPT)
        loaded = self.loaded()
        result: dict[str, Any] = {"fabric": told(fabric, ssh_ports), "pending": False, "changed": False}
        kept = before == text and loaded != "" and loaded == read(LIVE).strip()
        if kept and not PENDING.exists() and self.enabled() and read(UNIT) == self.unit_text():
            return result
        result["changed"] = True
        result["diff"] = {"before": before, "after": text, "before_header": str(KEPT), "after_header": str(KEPT)}
        if before == text:
            result["diff"]["before"] = "the table is not loaded as it was written, or not at boot\n"
            result["diff"]["after"] = "the table is loaded as it was written, and at boot\n"
        if self.nft:
            self.validate(text)
        if self.module.check_mode:
            return result
        if not self.nft:
            self.module.fail_json(msg="There is no nft on this node; install the package nftables.")
        self.arm()
        write(PENDING, text, 0o600)
        code, out, err = self.run(self.nft, "-f", str(PENDING))
        if code != 0:
            self.disarm()
            PENDING.unlink(missing_ok=True)
            self.module.fail_json(msg=f"nft did not load the table, nothing was changed: {refusal(err or out)}")
        result["pending"] = True
        return result

    def confirm(self) -> None:
        """Keep the table that is loaded, and have it loaded at boot."""
        if not PENDING.exists():
            if ROLLED_BACK.exists():
                self.module.fail_json(
                    msg=(
                        "The firewall's new table was taken back before it could be confirmed: the control node did "
                        f"not reach this node in time ({read(ROLLED_BACK).strip()})."
                    )
                )
            return
        self.disarm()
        write(LIVE, self.loaded() + "\n", 0o600)
        write(KEPT, read(PENDING), 0o600)
        write(UNIT, self.unit_text(), 0o644)
        for command in (
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--quiet", UNIT.name],
            ["systemctl", "start", UNIT.name],
        ):
            code, _out, err = self.run(*command)
            if code != 0:
                self.module.fail_json(msg=f"The firewall is loaded, but not for the next boot: {err.strip()}")
        PENDING.unlink(missing_ok=True)
        SCRIPT.unlink(missing_ok=True)

    def roll_back(self) -> bool:
        """Go back now; return whether there was something to go back from."""
        if not PENDING.exists():
            return False
        self.disarm()
        code, out, err = self.run("/bin/sh", str(SCRIPT))
        if code != 0:
            self.module.fail_json(
                msg=(
                    f"The firewall's new table is still loaded on this node, nft did not take it back: "
                    f"{refusal(err or out)}. Run `sh {SCRIPT}` there as root, or restart it: it is not loaded at boot."
                )
            )
        return True

    def remove(self) -> bool:
        """Take the table, its unit and its files away; return whether there were any."""
        there = [path for path in (KEPT, UNIT, PENDING, SCRIPT, LIVE, ROLLED_BACK) if path.exists()]
        if not there and not self.loaded():
            return False
        if not self.module.check_mode:
            self.disarm()
            if UNIT.exists():
                self.run("systemctl", "disable", "--now", UNIT.name)
            if self.loaded():
                self.run(self.nft, REMOVE, check=True)
            for path in there:
                path.unlink(missing_ok=True)
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
            "mdns": {"type": "bool", "default": True},
            "rules": {"type": "list", "elements": "str", "default": []},
            "rollback_after_s": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    node = Node(module)
    state = module.params["state"]
    if state == "read":
        module.exit_json(changed=False, pending=PENDING.exists(), fabric=told(node.fabric(), node.ssh_ports()))
    if state == "applied":
        module.exit_json(**node.apply())
    if state == "absent":
        before = read(KEPT)
        changed = node.remove()
        module.exit_json(changed=changed, pending=False, diff={"before": before if changed else "", "after": ""})
    if module.check_mode:
        module.exit_json(changed=False, pending=PENDING.exists())
    if state == "rolled_back":
        module.exit_json(changed=node.roll_back(), pending=False)
    node.confirm()
    # Confirming is the end of the change that was reported already, not another one.
    module.exit_json(changed=False, pending=False)


if __name__ == "__main__":
    main()
