#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: owner_facts
short_description: Read what on a machine belongs to its owner
version_added: 0.1.0
description:
  - Reads sessions, containers, services, listening ports, accounts, network definitions and Docker's settings that this
    collection did not create.
  - Needs nothing on the machine but Python and systemd.
options: {}
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read what belongs to the owner
  gb10.cluster.owner_facts:
  become: true
  register: owner
"""

RETURN = r"""
owner:
  description: What was found.
  returned: success
  type: dict
  contains:
    hostname:
      description: Name of the machine.
      type: str
    desktop_sessions:
      description: Users who are logged in to a desktop.
      type: list
      elements: str
    containers:
      description: Running containers that are not of this collection.
      type: list
      elements: str
    log_driver:
      description: Log driver that daemon.json names; empty without one.
      type: str
    daemon_keys:
      description: Keys of daemon.json.
      type: list
      elements: str
    services:
      description: Kind → active units, for firewalls, virtualisation, file sharing, remote desktops and VPNs.
      type: dict
      sample: {"Samba": ["smbd.service"]}
    listeners:
      description: TCP ports that other machines reach, with their processes.
      type: list
      elements: str
      sample: ["0.0.0.0:445 (smbd)"]
    accounts:
      description: Accounts of people (user id from 1000 on, with a login shell).
      type: list
      elements: str
    networks:
      description: Files of netplan and NetworkManager that are not of this collection.
      type: list
      elements: str
"""

import platform
import pwd
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import unit_names
from ansible_collections.gb10.cluster.plugins.module_utils._node.files import read_json
from ansible_collections.gb10.cluster.plugins.module_utils._node.listeners import listeners
from ansible_collections.gb10.cluster.plugins.module_utils._node.owner import (
    desktop_sessions,
    foreign_definitions,
    is_ours,
    services,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.services import parse_show

ROOT = Path("/")


def run(module: AnsibleModule, *argv: str) -> str:
    """Return what a command prints; an empty string when it is not installed or fails."""
    if shutil.which(argv[0]) is None:
        return ""
    code, out, _err = module.run_command(list(argv))
    return str(out) if code == 0 else ""


def sessions(module: AnsibleModule) -> list[dict[str, str]]:
    names = [line.split()[0] for line in run(module, "loginctl", "list-sessions", "--no-legend").splitlines() if line]
    # Each by itself: for one that has ended since, loginctl would leave out those that follow it.
    show = ("loginctl", "show-session", "--property=Name,Type,Class,State")
    return [found for name in names for found in parse_show(run(module, *show, name))]


def accounts() -> list[str]:
    return sorted(
        each.pw_name
        for each in pwd.getpwall()
        if 1000 <= each.pw_uid < 60000 and not each.pw_shell.endswith(("nologin", "false"))
    )


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    units = unit_names(
        run(module, "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service")
    )
    ufw = ROOT / "etc/ufw/ufw.conf"
    if "ufw.service" in units and not (ufw.exists() and "ENABLED=yes" in ufw.read_text(encoding="utf-8")):
        # The unit is active on every Ubuntu; only this setting turns the firewall on.
        units.remove("ufw.service")
    rows = run(module, "docker", "container", "ls", "--no-trunc", "--format", "{{.ID}} {{.Names}}").splitlines()
    containers = dict(row.split(None, 1) for row in rows)
    config = read_json(ROOT / "etc/docker/daemon.json")
    networks = [
        str(path)
        for place, pattern in (("etc/netplan", "*.yaml"), ("etc/NetworkManager/system-connections", "*"))
        for path in (ROOT / place).glob(pattern)
    ]
    module.exit_json(
        changed=False,
        owner={
            "hostname": platform.node(),
            "desktop_sessions": desktop_sessions(sessions(module)),
            "containers": sorted(name for name in containers.values() if not is_ours(name)),
            "log_driver": str(config.get("log-driver", "")),
            "daemon_keys": sorted(config),
            "services": services(units),
            "listeners": [
                f"{each['address']}:{each['port']} ({each['process'] or 'unknown'})"
                for each in listeners(containers)
                if not is_ours(each["container"])
            ],
            "accounts": accounts(),
            "networks": foreign_definitions(networks),
        },
    )


if __name__ == "__main__":
    main()
