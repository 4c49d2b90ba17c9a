#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_apply
short_description: Configure a node's fabric ports, and go back by itself unless that is confirmed
version_added: 0.1.0
description:
  - With O(state=applied) it writes the files of a plan and makes them effective, after it has validated them on a copy,
    saved what was there and armed a timer that puts everything back. An address or default route off the fabric
    that is gone afterwards, or a planned address that does not appear, brings everything back at once.
  - With O(state=confirmed) it disarms the timer. To get there the control node must have reached the node anew.
  - With O(state=rolled_back) it goes back at once.
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
    description: Files of the owner's that configure the same devices and are moved aside.
    type: list
    elements: path
    default: []
  rollback_after_s:
    description: Seconds after which an unconfirmed change is taken back.
    type: int
    default: 120
  settle_s:
    description: Seconds within which the planned addresses must appear, and the others be back.
    type: int
    default: 20
extends_documentation_fragment:
  - gb10.cluster.attributes
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Configure the fabric's ports
  gb10.cluster.fabric_apply:
    backend: netplan
    files: "{{ files }}"
    links: "{{ links }}"
  become: true

- name: Keep the change
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
  description: In what the live devices differed from the plan.
  returned: when O(state=applied)
  type: list
  elements: str
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.apply import (
    Backup,
    Device,
    apply_commands,
    defines,
    drift,
    kept,
    lost,
    parse_devices,
    rollback_script,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_networkctl

DIRECTORY = Path("/var/lib/gb10/fabric")
PENDING = DIRECTORY / "pending"
ROLLED_BACK = DIRECTORY / "rolled-back"
SCRIPT = DIRECTORY / "rollback.sh"
LOG = DIRECTORY / "rollback.log"
UNIT = Path("/etc/systemd/system/gb10-fabric-rollback.service")
TIMER = "gb10-fabric-rollback-timer"
#: Where files of ours may lie from an earlier plan.
OURS = (
    "/etc/netplan/90-gb10-*.yaml",
    "/etc/systemd/network/10-gb10-*",
    "/etc/NetworkManager/system-connections/gb10-*.nmconnection",
    "/etc/sysctl.d/91-gb10-fabric.conf",
)
UNIT_TEXT = f"""\
# Written by gb10.cluster; there only while a change of the fabric is not confirmed.
[Unit]
Description=Take back an unconfirmed change of the fabric
ConditionPathExists={PENDING}
After=network.target

[Service]
Type=oneshot
ExecStart=/bin/sh {SCRIPT}

[Install]
WantedBy=multi-user.target
"""


def live(module: AnsibleModule) -> dict[str, Device]:
    """Return all network devices as they are now."""
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


def validate_netplan(module: AnsibleModule, files: list[dict[str, str]], gone: list[Path]) -> None:
    """Let netplan judge a copy of its files with the new one among them."""
    with tempfile.TemporaryDirectory(prefix="gb10-netplan-") as copy:
        for place in ("etc/netplan", "lib/netplan", "run/netplan"):
            source = Path("/") / place
            if source.is_dir():
                shutil.copytree(source, Path(copy) / place)
        for path in gone:
            (Path(copy) / str(path).lstrip("/")).unlink(missing_ok=True)
        for item in files:
            if item["path"].startswith("/etc/netplan/"):
                write(Path(copy) / item["path"].lstrip("/"), item["content"], int(item["mode"], 8))
        code, out, err = module.run_command(["netplan", "generate", "--root-dir", copy])
    if code != 0:
        module.fail_json(msg=f"netplan refuses the plan, nothing was changed: {last_line(err or out)}")


def refuse_foreign_definitions(module: AnsibleModule, netdevs: list[str], disabled: set[str]) -> None:
    """Fail when another netplan file configures the same devices: netplan would merge both."""
    for path in sorted(Path("/etc/netplan").glob("*.yaml")):
        if path.name.startswith("90-gb10-") or str(path) in disabled:
            continue
        both = defines(read(path) or "", netdevs)
        if both:
            module.fail_json(
                msg=(
                    f"{path} configures {', '.join(both)} too, and netplan would merge both files. Take them "
                    f"out of it, or have it moved aside with fabric_disable_files: [{path}]."
                )
            )


def arm(module: AnsibleModule, script: str, seconds: int) -> None:
    """Install what takes the change back: at boot, and after ``seconds``."""
    write(SCRIPT, script, 0o700)
    write(UNIT, UNIT_TEXT, 0o644)
    write(PENDING, f"{int(time.time())}\n", 0o644)
    ROLLED_BACK.unlink(missing_ok=True)
    for command in (
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--quiet", UNIT.name],
        [
            "systemd-run", "--quiet", f"--unit={TIMER}", f"--on-active={seconds}", "--timer-property=AccuracySec=1s",
            "systemctl", "start", UNIT.name,
        ],
    ):  # fmt: skip
        code, _out, err = module.run_command(command)
        if code != 0:
            disarm(module)
            module.fail_json(msg=f"The way back could not be prepared, nothing was changed: {err.strip()}")


def disarm(module: AnsibleModule) -> None:
    """Remove what would take the change back."""
    module.run_command(["systemctl", "stop", f"{TIMER}.timer"])
    PENDING.unlink(missing_ok=True)
    module.run_command(["systemctl", "disable", "--quiet", UNIT.name])
    UNIT.unlink(missing_ok=True)
    module.run_command(["systemctl", "daemon-reload"])
    module.run_command(["systemctl", "reset-failed", f"{TIMER}.service", f"{TIMER}.timer", UNIT.name])


def roll_back(module: AnsibleModule) -> str:
    """Go back now, if there is something to go back from; return a sentence when that failed."""
    if not PENDING.exists():
        return ""
    # In a unit of its own: the connection that this runs over may be what is broken.
    code, _out, err = module.run_command(["systemctl", "start", UNIT.name])
    if code != 0 or PENDING.exists():
        return (
            f"This node did not go back to what was before ({last_line(err)}): see {LOG} there. It tries again when it "
            f"boots, or with `systemctl start {UNIT.name}`."
        )
    disarm(module)
    return ""


def await_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask a condition once a second; return whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def last_line(text: str) -> str:
    """Return the last line that says something; of a traceback that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def lacking(differences: list[str]) -> list[str]:
    """Return those differences that are not merely something too much."""
    return [each for each in differences if not each.endswith("which is not planned")]


def shown(name: str, before: str, after: str) -> dict[str, str]:
    """Return one entry of a diff."""
    return {"before": before, "after": after, "before_header": name, "after_header": name}


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Bring the node to the plan; fails after having gone back when that does not work out."""
    parameters = module.params
    files: list[dict[str, str]] = parameters["files"]
    links: list[dict[str, Any]] = parameters["links"]
    netdevs = [str(link["netdev"]) for link in links]
    own_address, own_device = parameters["own_address"], parameters["own_device"]
    stuck = "" if module.check_mode else roll_back(module)
    if stuck:
        module.fail_json(msg=f"A change of the fabric was never confirmed. {stuck}")
    if parameters["backend"] == "netplan":
        refuse_foreign_definitions(module, netdevs, set(parameters["disable"]))
    disabled = [path for path in map(Path, parameters["disable"]) if path.exists()]
    gone = [*stale_files({item["path"] for item in files}), *disabled]
    texts = {item["path"]: read(Path(item["path"])) for item in files}
    fresh = [item for item in files if texts[item["path"]] != item["content"]]
    before = live(module)
    abandoned = given_up(module, netdevs)
    differences = drift(links, own_address, own_device, before) + abandoned
    diff = [shown(item["path"], texts[item["path"]] or "", item["content"]) for item in fresh]
    diff += [shown(str(path), read(path) or "", "") for path in gone]
    if differences:
        diff.append(shown("live devices, as they differ from the plan", "".join(f"{it}\n" for it in differences), ""))
    result: dict[str, Any] = {
        "changed": bool(fresh or gone or differences),
        "pending": False,
        "differences": differences,
        "diff": diff,
    }
    if not result["changed"]:
        return result
    if parameters["backend"] == "netplan":
        validate_netplan(module, files, gone)
    if module.check_mode:
        return result

    backups = []
    saved = DIRECTORY / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir(mode=0o700, parents=True)
    aside = {path: path.with_name(path.name + ".gb10-disabled") for path in disabled}
    backups += [Backup(str(path), "") for path in aside.values()]
    for number, path in enumerate([*(Path(item["path"]) for item in fresh), *gone]):
        place = saved / str(number)
        if path.exists():
            shutil.copy2(path, place)
        backups.append(Backup(str(path), str(place) if path.exists() else ""))
    ours = [*netdevs, own_device] if own_address else netdevs
    script = rollback_script(
        backups, parameters["backend"], before, ours, own_device if own_address else "", str(DIRECTORY)
    )
    arm(module, script, parameters["rollback_after_s"])
    try:
        for item in fresh:
            write(Path(item["path"]), item["content"], int(item["mode"], 8))
        for path in gone:
            if path in aside:
                path.replace(aside[path])
            else:
                path.unlink(missing_ok=True)
        commands = apply_commands(
            parameters["backend"], links, own_device if own_address else "", bool(fresh or gone), bool(abandoned)
        )
        if any(item["path"].startswith("/etc/sysctl.d/") for item in fresh):
            commands.append(["sysctl", "--quiet", "--load", "/etc/sysctl.d/91-gb10-fabric.conf"])
        for command in commands:
            code, out, err = module.run_command(command)
            if code != 0:
                raise RuntimeError(f"{' '.join(command)} failed: {last_line(err or out)}")
        await_true(lambda: not lacking(drift(links, own_address, own_device, live(module))), parameters["settle_s"])
        # networkd leaves addresses alone that somebody else has put there.
        for link in links:
            now = live(module).get(link["netdev"])
            for cidr in now.addresses if now else ():
                if ":" not in cidr and cidr not in link["addresses"]:
                    module.run_command(["ip", "address", "delete", cidr, "dev", link["netdev"]])
        others = kept(before, ours)
        if not await_true(lambda: not lost(others, live(module)), parameters["settle_s"]):
            hint = (
                "; another netplan file may never have been applied before"
                if parameters["backend"] == "netplan"
                else ""
            )
            raise RuntimeError(f"the change took away {', '.join(lost(others, live(module)))}{hint}")
        if not await_true(lambda: not drift(links, own_address, own_device, live(module)), parameters["settle_s"]):
            raise RuntimeError("; ".join(drift(links, own_address, own_device, live(module))))
    except (RuntimeError, OSError) as error:
        stuck = roll_back(module)
        module.fail_json(
            msg=(
                f"The fabric's new configuration does not hold on this node: {error}. "
                + (stuck or "Files and addresses are back as they were before.")
            ),
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
            "rollback_after_s": {"type": "int", "default": 120},
            "settle_s": {"type": "int", "default": 20},
        },
        required_if=[("state", "applied", ["backend"])],
        supports_check_mode=True,
    )
    if module.params["state"] == "applied":
        module.exit_json(**apply(module))
    if module.params["state"] == "rolled_back":
        pending = PENDING.exists()
        stuck = "" if module.check_mode else roll_back(module)
        if stuck:
            module.fail_json(msg=stuck)
        module.exit_json(changed=pending, pending=False)
    if not PENDING.exists() and ROLLED_BACK.exists() and not module.check_mode:
        module.fail_json(
            msg=(
                "The change of the fabric was taken back before it could be confirmed: the control node did not reach "
                f"this node in time. See {LOG} there."
            )
        )
    pending = PENDING.exists()
    if pending and not module.check_mode:
        disarm(module)
        shutil.rmtree(DIRECTORY / "saved", ignore_errors=True)
    # Confirming is the end of the change that was reported already, not another one.
    module.exit_json(changed=False, pending=False)


if __name__ == "__main__":
    main()
