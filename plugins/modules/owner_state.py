#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: owner_state
short_description: Keep what a machine was before its first change, and give it back
version_added: 0.1.0
description:
  - With O(state=kept) it notes links, accounts and the host name before their first change. Files, kernel settings,
    services and packages are noted by the modules that change them.
  - With O(state=restored) it stops and disables the units of this collection, gives back every file, link, kernel
    setting and service that was noted, removes the files, packages and accounts that did not exist before, and removes
    the notes once nothing is left over.
  - What somebody changed after this collection did is left as it is, and reported in RV(left).
options:
  state:
    description: What to do.
    type: str
    choices: [kept, restored]
    default: kept
  links:
    description: With O(state=kept), symbolic links that are about to be changed.
    type: list
    elements: path
    default: []
  accounts:
    description: With O(state=kept), accounts that are about to be created or changed.
    type: list
    elements: str
    default: []
  hostname:
    description: With O(state=kept), whether the host name is about to be changed.
    type: bool
    default: false
  packages:
    description: With O(state=restored), whether packages that were installed by this collection are removed.
    type: bool
    default: true
  roles:
    description:
      - With O(state=restored), give back what these roles changed and leave the rest; everything when empty.
      - A role that another one uses is refused without it, before anything is changed.
    type: list
    elements: str
    choices: [edge, engine, fabric, monitor, watch]
    default: []
extends_documentation_fragment:
  - gb10.cluster.attributes
attributes:
  diff_mode:
    details: Shows what is given back and what is left.
"""

EXAMPLES = r"""
- name: Keep the default target before it is changed
  gb10.cluster.owner_state:
    links: [/etc/systemd/system/default.target]
  become: true

- name: Give the machine back
  gb10.cluster.owner_state:
    state: restored
  become: true

- name: Take away the monitoring alone
  gb10.cluster.owner_state:
    state: restored
    roles: [monitor]
  become: true
"""

RETURN = r"""
done:
  description: What was (or in check mode would be) given back or removed.
  returned: with O(state=restored)
  type: list
  elements: str
  sample: ["/etc/docker/daemon.json: restored."]
left:
  description: What was left as it is, and why.
  returned: with O(state=restored)
  type: list
  elements: str
"""

import grp
import platform
import pwd
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_systemctl_show, unit_names
from ansible_collections.gb10.cluster.plugins.module_utils._node.restore import (
    OWNED,
    belongs,
    remove_empty,
    restore_file,
    restore_link,
    restore_sysctl,
    unit_verbs,
    users_left,
)

PROC_SYS = Path("/proc/sys")


def account_groups(name: str) -> list[str] | None:
    """Return the supplementary groups of an account, sorted; None when there is no such account."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return None
    return sorted(group.gr_name for group in grp.getgrall() if name in group.gr_mem)


def keep(module: AnsibleModule) -> bool:
    """Note links, accounts and the host name; return whether there was something new to note."""
    noted = files.read_json(files.BEFORE / "manifest.json")
    wanted: list[tuple[str, str, Any]] = [("names", "hostname", platform.node())] if module.params["hostname"] else []
    wanted += [
        ("links", path, str(Path(path).readlink()) if Path(path).is_symlink() else None)
        for path in module.params["links"]
    ]
    wanted += [("accounts", name, account_groups(name)) for name in module.params["accounts"]]
    fresh = [each for each in wanted if each[1] not in noted.get(each[0], {})]
    if not module.check_mode:
        for kind, name, value in fresh:
            files.keep(kind, name, value)
    return bool(fresh)


class Restore:
    """Gives a machine back; collects what it did and what it left."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.roles: list[str] = module.params["roles"]
        noted = files.read_json(files.BEFORE / "manifest.json")
        self.manifest = {
            kind: {name: entry for name, entry in entries.items() if belongs(name, self.roles)}
            for kind, entries in noted.items()
        }
        self.done: list[str] = []
        self.left: list[str] = []

    def run(self, *command: str) -> None:
        """Run a command that changes something; what fails is left and reported."""
        if self.check:
            return
        code, out, err = self.module.run_command(list(command), environ_update={"DEBIAN_FRONTEND": "noninteractive"})
        if code != 0:
            self.left.append(f"{' '.join(command)} failed: {(err or out).strip()[-300:]}")

    def note(self, done: str, left: str = "") -> None:
        self.done += [done] if done else []
        self.left += [left] if left else []

    def stop_ours(self) -> None:
        listed = ["systemctl", "list-unit-files", "--plain", "--no-legend", "gb10-*", "vllm-*"]
        _code, out, _err = self.module.run_command(listed)
        for unit in unit_names(out):
            if "@." not in unit and belongs(unit, self.roles):
                self.run("systemctl", "disable", "--now", unit)
                self.note(f"{unit}: stopped and disabled.")

    def services(self) -> None:
        for unit, before in sorted(self.manifest.get("units", {}).items()):
            _code, out, _err = self.module.run_command(
                ["systemctl", "show", unit, "--property=UnitFileState,ActiveState"]
            )
            now = parse_systemctl_show(out)
            for verb in unit_verbs(before, now.get("UnitFileState", ""), now.get("ActiveState", "")):
                self.run("systemctl", verb, unit)
                self.note(f"systemctl {verb} {unit}")

    def packages(self) -> None:
        """Remove the packages that were installed by this collection, and take back its marks."""
        names = sorted(self.manifest.get("packages", {}))
        _code, out, _err = self.module.run_command(
            ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n"]
        )
        present = {line.split()[1] for line in out.splitlines() if line[1:2] == "i"}
        names = [name for name in names if name in present]
        automatic = sorted(present & set(self.manifest.get("automatic", {})))
        if automatic:
            self.run("apt-mark", "auto", *automatic)
            self.note(f"packages marked as automatically installed again: {', '.join(automatic)}")
        if names:
            self.run("apt-get", "--yes", "--quiet", "purge", *names)
            self.note(f"packages removed: {', '.join(names)}")

    def accounts(self) -> None:
        """Remove the accounts that did not exist before (their homes stay), and give the others their groups back."""
        for name, before in sorted(self.manifest.get("accounts", {}).items()):
            now = account_groups(name)
            if before is None and now is not None:
                self.run("userdel", name)
                self.note(f"account {name}: removed; its home stays.")
            elif before is not None and now is not None and before != now:
                self.run("usermod", "--groups", ",".join(before), name)
                self.note(f"account {name}: groups {', '.join(before) or 'none'} again.")

    def own(self) -> list[Path]:
        """Return what this collection alone uses."""
        if not self.roles:
            return [Path(path) for path in files.OWN]
        return [Path(files.OWN[0]) / name for role in self.roles for name in OWNED[role].own]

    def everything(self, with_packages: bool) -> None:
        """Give the machine back, or what the roles changed that are named."""
        self.stop_ours()
        for name, value in sorted(self.manifest.get("sysctls", {}).items()):
            self.note(*restore_sysctl(name, value, PROC_SYS, self.check))
        if with_packages:
            self.packages()
        for path, entry in sorted(self.manifest.get("files", {}).items()):
            try:
                self.note(*restore_file(path, entry, self.check))
            except OSError as error:
                self.left.append(f"{path}: {error.strerror}")
        for path, target in sorted(self.manifest.get("links", {}).items()):
            done = restore_link(path, target, self.check)
            self.note(done)
            if done and path.endswith("/swap.target"):
                self.run("swapon", "--all")
        hostname = self.manifest.get("names", {}).get("hostname", "")
        if hostname and hostname != platform.node():
            self.run("hostnamectl", "set-hostname", hostname)
            self.note(f"host name: {hostname} again.")
        self.accounts()
        for path in self.own():
            if path.exists():
                if not self.check and path.is_dir():
                    shutil.rmtree(path)
                elif not self.check:
                    path.unlink()
                self.note(f"{path}: removed.")
        for path in remove_empty(list(self.manifest.get("directories", {})), self.check):
            self.note(f"{path}: empty, removed.")
        if self.done:
            self.run("systemctl", "daemon-reload")
        self.services()
        if self.manifest and not self.left and not self.check and not self.roles:
            shutil.rmtree(files.BEFORE)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["kept", "restored"], "default": "kept"},
            "links": {"type": "list", "elements": "path", "default": []},
            "accounts": {"type": "list", "elements": "str", "default": []},
            "hostname": {"type": "bool", "default": False},
            "packages": {"type": "bool", "default": True},
            "roles": {"type": "list", "elements": "str", "choices": sorted(OWNED), "default": []},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "kept":
        # A note of what was there is no change of the machine.
        keep(module)
        module.exit_json(changed=False)
    if users := users_left(module.params["roles"]):
        module.fail_json(
            msg=" ".join(
                f"{role} cannot be removed while {' and '.join(names)} needs it." for role, names in users.items()
            )
            + " Nothing was changed. Name these roles as well, or none to give everything back."
        )
    restore = Restore(module)
    restore.everything(module.params["packages"])
    module.exit_json(
        changed=bool(restore.done),
        done=restore.done,
        left=restore.left,
        diff={
            "before": "",
            "after": "".join(f"{line}\n" for line in [*restore.done, *(f"left: {line}" for line in restore.left)]),
        },
    )


if __name__ == "__main__":
    main()
