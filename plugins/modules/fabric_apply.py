#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_apply
short_description: Configure a node's fabric ports with automatic rollback
version_added: 0.1.0
description:
  - With O(state=applied) it validates the files of a plan on a copy, saves what is there, arms a timer that rolls the
    change back, then writes the files and makes them effective. When an address or default route off the fabric is
    missing afterwards, or a planned address does not appear, it rolls back at once.
  - With O(state=confirmed) it disarms the timer. Before that, the node must be reached over a new connection.
  - With O(state=rolled_back) it rolls back at once.
  - A change that was not confirmed is rolled back at the next boot, and before the next change.
options:
  state:
    description: What to do.
    type: str
    choices: [applied, confirmed, rolled_back]
    default: applied
  backend:
    description: What configures the network. Required with O(state=applied).
    type: str
    choices: [netplan, NetworkManager, networkd]
  files:
    description: Files with C(path), C(content), C(mode). Files of ours that are not among them are removed.
    type: list
    elements: dict
    default: []
  links:
    description: Planned devices with C(netdev), C(addresses), C(mtu_bytes), C(routes).
    type: list
    elements: dict
    default: []
  own_address:
    description: Address on a device of its own (in a ring).
    type: str
    default: ""
  own_device:
    description: That device.
    type: str
    default: gb10
  disable:
    description: Files of the owner's that configure the same devices; they are renamed to C(*.gb10-disabled).
    type: list
    elements: path
    default: []
  rollback_after_seconds:
    description: Seconds after which an unconfirmed change is rolled back.
    type: int
    default: 120
    aliases: [rollback_after_s]
  settle_seconds:
    description: Seconds within which the planned addresses must appear, and the others be back.
    type: int
    default: 20
    aliases: [settle_s]
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Configure the fabric's ports
  gb10.cluster.fabric_apply:
    backend: netplan
    files: "{{ files }}"
    links: "{{ links }}"
  become: true

- name: Confirm the change
  gb10.cluster.fabric_apply:
    state: confirmed
  become: true
"""

RETURN = r"""
pending:
  description: Whether a change now waits for its confirmation.
  returned: success
  type: bool
differences:
  description: How the live devices differed from the plan.
  returned: when O(state=applied)
  type: list
  elements: str
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.apply import (
    Device,
    apply_commands,
    defines,
    drift,
    kept,
    keyfile_defines,
    lost,
    parse_devices,
    rollback_commands,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_networkctl
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_systemctl_show
from ansible_collections.gb10.cluster.plugins.module_utils._node.renamed import renamed
from ansible_collections.gb10.cluster.plugins.module_utils._node.rollback import Rollback, RollbackError, last_line

DIRECTORY = Path("/var/lib/gb10/fabric")
#: Where files of ours may lie from an earlier plan.
OURS = (
    "/etc/netplan/90-gb10-*.yaml",
    "/etc/systemd/network/10-gb10-*",
    "/etc/NetworkManager/system-connections/gb10-*.nmconnection",
    "/etc/sysctl.d/91-gb10-fabric.conf",
)


def keep_unit(module: AnsibleModule, unit: str) -> None:
    """Note for the teardown whether a unit was enabled and ran before its first change."""
    _code, out, _err = module.run_command(["systemctl", "show", unit, "--property=UnitFileState,ActiveState"])
    shown = parse_systemctl_show(out)
    files.keep("units", unit, {"enabled": shown.get("UnitFileState", ""), "active": shown.get("ActiveState", "")})


def put_aside(path: Path, aside: Path) -> None:
    """Rename a definition of the owner's; the teardown gives it back under its name."""
    found = files.read(path)
    files.keep_file(aside, found[0] if found else b"")
    files.keep_file(path, None)
    path.replace(aside)


def live(module: AnsibleModule) -> dict[str, Device]:
    _code, addresses, _err = module.run_command(["ip", "-json", "address", "show"], check_rc=True)
    _code, routes, _err = module.run_command(["ip", "route", "show", "table", "main"], check_rc=True)
    return parse_devices(addresses, routes)


def given_up(module: AnsibleModule, netdevs: list[str]) -> list[str]:
    """Return a phrase for each device that networkd failed to configure and left alone."""
    program = module.get_bin_path("networkctl")
    if program is None:
        return []
    code, out, _err = module.run_command([program, "--no-legend", "list"])
    states = parse_networkctl(out) if code == 0 else {}
    return [f"networkd has given up on {name}" for name in netdevs if states.get(name) == "failed"]


def read(path: Path) -> str | None:
    """Return a file's text, or None when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def stale_files(wanted: set[str]) -> list[Path]:
    """Return our files of an earlier plan that the new one has no use for."""
    root = Path("/")
    found = [path for pattern in OURS for path in root.glob(pattern.lstrip("/"))]
    return [path for path in found if str(path) not in wanted]


def validate_netplan(module: AnsibleModule, wanted: list[dict[str, str]], gone: list[Path]) -> None:
    """Fail when netplan refuses a copy of its files with the new one among them."""
    with tempfile.TemporaryDirectory(prefix="gb10-netplan-") as copy:
        for place in ("etc/netplan", "lib/netplan", "run/netplan"):
            source = Path("/") / place
            if source.is_dir():
                shutil.copytree(source, Path(copy) / place)
        for path in gone:
            (Path(copy) / str(path).lstrip("/")).unlink(missing_ok=True)
        for item in wanted:
            if item["path"].startswith("/etc/netplan/"):
                target = Path(copy) / item["path"].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                files.write(target, item["content"], int(item["mode"], 8))
        code, out, err = module.run_command(["netplan", "generate", "--root-dir", copy])
    if code != 0:
        module.fail_json(msg=f"netplan refuses the plan, nothing was changed: {last_line(err or out)}")


def refuse_foreign_definitions(module: AnsibleModule, links: list[dict[str, Any]], disabled: set[str]) -> None:
    """Fail when another file configures the same devices: netplan would merge both, NetworkManager choose one."""
    netdevs = [str(link["netdev"]) for link in links]
    macs = {str(link["netdev"]): str(link.get("mac", "")) for link in links}
    by_nm = [str(link["netdev"]) for link in links if link.get("manager") == "NetworkManager"]
    both: dict[Path, list[str]] = {}
    for path in sorted(Path("/etc/netplan").glob("*.yaml")):
        if not path.name.startswith("90-gb10-"):
            both[path] = defines(read(path) or "", netdevs, macs)
    for path in sorted(Path("/etc/NetworkManager/system-connections").glob("*.nmconnection")):
        both[path] = keyfile_defines(read(path) or "", by_nm, macs)
    for path, names in both.items():
        if names and str(path) not in disabled:
            module.fail_json(
                msg=(
                    f"{path} configures {', '.join(names)} too, and both configurations would be in effect. Remove the "
                    f"device from it, or have the file renamed with fabric_disable_files: [{path}]."
                )
            )


def await_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition once a second; return whether it became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def missing(differences: list[str]) -> list[str]:
    """Return the differences without those that are merely an address too many."""
    return [each for each in differences if not each.endswith("which is not planned")]


def apply(module: AnsibleModule, rollback: Rollback) -> dict[str, Any]:
    """Bring the node to the plan; fails, rolled back, when that does not work."""
    parameters = module.params
    wanted: list[dict[str, str]] = parameters["files"]
    links: list[dict[str, Any]] = parameters["links"]
    netdevs = [str(link["netdev"]) for link in links]
    own_address, own_device = parameters["own_address"], parameters["own_device"]
    own = own_device if own_address else ""
    if not module.check_mode:
        rollback.roll_back()
    if parameters["backend"] == "netplan":
        refuse_foreign_definitions(module, links, set(parameters["disable"]))
    disabled = [path for path in map(Path, parameters["disable"]) if path.exists()]
    gone = [*stale_files({item["path"] for item in wanted}), *disabled]
    texts = {item["path"]: read(Path(item["path"])) for item in wanted}
    fresh = [item for item in wanted if texts[item["path"]] != item["content"]]
    before = live(module)
    abandoned = given_up(module, netdevs)
    differences = drift(links, own_address, own_device, before) + abandoned
    diff = [files.diff(item["path"], texts[item["path"]] or "", item["content"]) for item in fresh]
    diff += [files.diff(str(path), read(path) or "", "") for path in gone]
    if differences:
        live_diff = "".join(f"{it}\n" for it in differences)
        diff.append(files.diff("live devices, as they differ from the plan", live_diff, ""))
    result: dict[str, Any] = {
        "changed": bool(fresh or gone or differences),
        "pending": False,
        "differences": differences,
        "diff": diff,
    }
    if not result["changed"]:
        return result
    if parameters["backend"] == "netplan":
        validate_netplan(module, wanted, gone)
    if module.check_mode:
        return result

    aside = {path: path.with_name(path.name + ".gb10-disabled") for path in disabled}
    ours = [*netdevs, own] if own else netdevs
    rollback.arm(
        parameters["rollback_after_seconds"],
        rollback_commands(parameters["backend"], before, ours, own),
        [*aside.values(), *(Path(item["path"]) for item in fresh), *gone],
    )
    try:
        for item in fresh:
            files.make_directories(Path(item["path"]).parent)
            files.write(item["path"], item["content"], int(item["mode"], 8))
        for path in gone:
            if path in aside:
                put_aside(path, aside[path])
            else:
                files.remove(path)
        commands = apply_commands(parameters["backend"], links, own, bool(fresh or gone), bool(abandoned))
        if any(item["path"].startswith("/etc/sysctl.d/") for item in fresh):
            commands.append(["sysctl", "--quiet", "--load", "/etc/sysctl.d/91-gb10-fabric.conf"])
        for command in commands:
            if command[:2] == ["systemctl", "enable"]:
                keep_unit(module, command[-1])
            code, out, err = module.run_command(command)
            if code != 0:
                raise RuntimeError(f"{' '.join(command)} failed: {last_line(err or out)}")
        settle = parameters["settle_seconds"]
        await_true(lambda: not missing(drift(links, own_address, own_device, live(module))), settle)
        # networkd leaves addresses alone that somebody else has put there.
        for link in links:
            now = live(module).get(link["netdev"])
            for cidr in now.addresses if now else ():
                if ":" not in cidr and cidr not in link["addresses"]:
                    module.run_command(["ip", "address", "delete", cidr, "dev", link["netdev"]])
        others = kept(before, ours)
        if not await_true(lambda: not lost(others, live(module)), settle):
            hint = (
                "; another netplan file may never have been applied before"
                if parameters["backend"] == "netplan"
                else ""
            )
            raise RuntimeError(f"the change removed {', '.join(lost(others, live(module)))}{hint}")
        if not await_true(lambda: not drift(links, own_address, own_device, live(module)), settle):
            raise RuntimeError("; ".join(drift(links, own_address, own_device, live(module))))
    except (RuntimeError, OSError) as error:
        try:
            rollback.roll_back()
            state = "Files and addresses are as they were before."
        except RollbackError as stuck:
            state = str(stuck)
        module.fail_json(
            msg=f"The fabric's new configuration does not work on this node: {error}. {state}",
            **{**result, "changed": False},
        )
    result["pending"] = True
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["applied", "confirmed", "rolled_back"], "default": "applied"},
            "backend": {"type": "str", "choices": ["netplan", "NetworkManager", "networkd"]},
            "files": {"type": "list", "elements": "dict", "default": []},
            "links": {"type": "list", "elements": "dict", "default": []},
            "own_address": {"type": "str", "default": ""},
            "own_device": {"type": "str", "default": "gb10"},
            "disable": {"type": "list", "elements": "path", "default": []},
            "rollback_after_seconds": {"type": "int", "default": 120, **renamed("rollback_after_s")},
            "settle_seconds": {"type": "int", "default": 20, **renamed("settle_s")},
        },
        required_if=[("state", "applied", ["backend"])],
        supports_check_mode=True,
    )
    rollback = Rollback("the fabric's configuration", DIRECTORY, "gb10-fabric-rollback", module.run_command)
    state = module.params["state"]
    try:
        if state == "applied":
            result = apply(module, rollback)
        elif module.check_mode:
            result = {"changed": state == "rolled_back" and rollback.is_pending(), "pending": rollback.is_pending()}
        elif state == "rolled_back":
            result = {"changed": rollback.roll_back(), "pending": False}
        else:
            rollback.confirm()
            # Confirming is the end of the change that was reported already, not another one.
            result = {"changed": False, "pending": False}
    except RollbackError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
