#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_move
short_description: Run a node's part of a transfer of weights
version_added: 0.1.0
description:
  - With O(state=started) the node serves the pieces that it has and fetches those that are missing, in a transient
    systemd unit that runs O(program), on addresses of the fabric, for the cluster's nodes and who knows the token. The
    unit ends when it is stopped, or when nobody has asked for it for O(lease_s).
  - With O(state=read) it reports the node's progress, after O(wait_s) at the latest.
options:
  state:
    description: What to do.
    type: str
    choices: [started, read, stopped]
    required: true
  run:
    description: Names the transfer; a unit of another one is replaced.
    type: str
    default: ""
  program:
    description: The archive with the program, as M(gb10.cluster.program) returned it for C(weights).
    type: path
  root:
    description: Directory of all models on this node.
    type: path
  manifest:
    description: The manifest made at the source.
    type: dict
    default: {}
  complete:
    description: Whether this node's copy is complete, so that it only serves.
    type: bool
    default: false
  missing:
    description: Files that are missing on this node or damaged.
    type: list
    elements: str
    default: []
  chain:
    description: The members in the order in which the weights go through them.
    type: list
    elements: str
    default: []
  name:
    description: This member.
    type: str
  addresses:
    description: By member, an address on the fabric, or a list of them, one a rail.
    type: dict
    default: {}
  port:
    description: The port to listen on at one's own addresses.
    type: int
  tunnels:
    description: How many ports of the loopback, from the one after O(port), lead to the control node's files.
    type: int
    default: 0
  scatter:
    description: Whether each member takes its share from the control node and the rest from the other members.
    type: bool
    default: false
  pieces:
    description: A file on this node with the pieces' hashes, where the manifest was made here.
    type: path
  streams:
    description: How many pieces are fetched side by side.
    type: int
    default: 8
  token:
    description: What those who ask must know.
    type: str
    default: ""
  stall_s:
    description: After so long without any progress the node gives up, in seconds.
    type: int
    default: 120
  lease_s:
    description: After so long without any request the unit ends, in seconds.
    type: int
    default: 300
  wait_s:
    description: With O(state=read), how long to wait for the end of the transfer, in seconds.
    type: int
    default: 0
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details: The unit is transient and never counts as a change.
"""

EXAMPLES = r"""
- name: Serve what is there and fetch the rest from the members before
  gb10.cluster.weights_move:
    state: started
    program: "{{ program.path }}"
    root: /var/lib/gb10/weights
    manifest: "{{ source.manifest }}"
    missing: "{{ read.missing }}"
    chain: [gx10-1, gx10-2]
    name: "{{ inventory_hostname }}"
    addresses: {gx10-1: 192.168.100.1, gx10-2: 192.168.100.2}
    port: 5081
    token: "{{ transfer_token }}"

- name: Report the node's progress
  gb10.cluster.weights_move:
    state: read
    wait_s: 5
"""

RETURN = r"""
status:
  description:
    - C(state) (moving, placing, complete, failed or none), C(message), C(have_bytes), C(total_bytes), C(fetched_bytes),
      C(local_bytes), C(served_bytes), C(by_source), C(source), C(idle_s), C(cpu_s).
  returned: success
  type: dict
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store

UNIT = "gb10-weights"
RUN_DIR = store.RUN_DIR
ENDED = ("complete", "failed")
#: A program that ended so often before its first status does not start.
MAX_RESTARTS = 3
STARTED_NEEDS = ["program", "root", "manifest", "chain", "name", "addresses", "port", "token"]
#: What goes into the job as it was given.
JOB_NAMES = (
    "root", "manifest", "complete", "missing", "port", "token", "pieces", "streams", "stall_s", "lease_s", "run",
)  # fmt: skip


def read_status(run_dir: Path) -> dict[str, Any]:
    """Return what the unit last reported of itself; ``state`` is ``none`` when it has not reported yet."""
    none = {"state": "none", "message": "", "have_bytes": 0, "total_bytes": 0, "idle_s": 0.0, "source": ""}
    return {**none, **files.read_json(run_dir / "status.json")}


def lay_out(run_dir: Path, job: dict[str, Any]) -> None:
    """Write what the unit reads; the token in it is root's alone."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    files.remove(run_dir / "status.json")
    (run_dir / "lease").touch()
    files.write_json(run_dir / "job.json", job, mode=0o600)


def start(module: AnsibleModule) -> None:
    """Start the unit and wait until it has reported its first status."""
    want = module.params
    place = (want["chain"], want["name"], want["addresses"], want["port"], want["tunnels"], want["scatter"])
    job = {**{name: want[name] for name in JOB_NAMES}, **weights.plan_node(*place), "run_dir": str(RUN_DIR)}
    lay_out(RUN_DIR, job)
    words = ["systemd-run", "--quiet", "--collect", "--unit", UNIT]
    for each in ("Restart=on-failure", "RestartSec=1", "NoNewPrivileges=yes", "CPUWeight=50"):
        words += ["--property", each]
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    command = [sys.executable, "-I", "-B", want["program"], "move", f"{RUN_DIR}/job.json"]
    module.run_command([*words, *command], check_rc=True)
    cpu, moved_at = None, time.monotonic()
    while True:
        # Liveness first, then the last word: a unit that ends in between has said it by now.
        unit = show(module)
        if read_status(RUN_DIR)["state"] != "none":
            return
        if not is_alive(unit) or int(unit.get("NRestarts") or 0) >= MAX_RESTARTS:
            module.fail_json(msg=f"The unit {UNIT} did not start: {journal(module)}")
        # A start that uses no processor time makes no progress, however slow the machine is.
        used = cpu_ticks(unit)
        if used != cpu:
            cpu, moved_at = used, time.monotonic()
        elif time.monotonic() - moved_at > want["stall_s"]:
            module.fail_json(
                msg=f"The unit {UNIT} started and did nothing for {want['stall_s']} s; look at the node's disk and at "
                f"`journalctl -u {UNIT}`: {journal(module)}"
            )
        time.sleep(0.1)


def journal(module: AnsibleModule) -> str:
    _code, out, _err = module.run_command(["journalctl", "-u", UNIT, "-n", "15", "--no-pager", "-o", "cat"])
    return str(out).strip()[-1500:]


def show(module: AnsibleModule) -> dict[str, str]:
    """Return what systemd knows of the unit: ActiveState, NRestarts, MainPID."""
    words = ["systemctl", "show", f"{UNIT}.service", "--property", "ActiveState,NRestarts,MainPID"]
    _code, out, _err = module.run_command(words)
    return dict(line.split("=", 1) for line in str(out).splitlines() if "=" in line)


def is_alive(unit: dict[str, str]) -> bool:
    """Return whether the unit runs or is about to start again; no answer of a busy systemd counts as yes."""
    return unit.get("ActiveState", "active") in ("active", "activating")


def cpu_ticks(unit: dict[str, str]) -> tuple[str, int]:
    """Return (main process, processor time that it has used, in clock ticks)."""
    pid = unit.get("MainPID", "0")
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return pid, 0
    return pid, int(stat[11]) + int(stat[12])


def read(module: AnsibleModule) -> dict[str, Any]:
    """Return the unit's status, after a while or when it is at an end."""
    deadline = time.monotonic() + module.params["wait_s"]
    while True:
        # Liveness first, then the last word: a unit that ends in between has said it by now.
        alive = is_alive(show(module))
        status = read_status(RUN_DIR)
        if status["state"] in ENDED:
            return status
        if not alive:
            status.update(state="failed", message=f"The unit {UNIT} ended unexpectedly: {journal(module)}")
            return status
        if time.monotonic() > deadline:
            return status
        time.sleep(0.2)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "read", "stopped"], "required": True},
            "run": {"type": "str", "default": ""},
            "program": {"type": "path"},
            "root": {"type": "path"},
            "manifest": {"type": "dict", "default": {}},
            "complete": {"type": "bool", "default": False},
            "missing": {"type": "list", "elements": "str", "default": []},
            "chain": {"type": "list", "elements": "str", "default": []},
            "name": {"type": "str"},
            "addresses": {"type": "dict", "default": {}},
            "port": {"type": "int"},
            "tunnels": {"type": "int", "default": 0},
            "scatter": {"type": "bool", "default": False},
            "pieces": {"type": "path"},
            "streams": {"type": "int", "default": 8},
            "token": {"type": "str", "default": "", "no_log": True},
            "stall_s": {"type": "int", "default": 120},
            "lease_s": {"type": "int", "default": 300},
            "wait_s": {"type": "int", "default": 0},
        },
        required_if=[("state", "started", STARTED_NEEDS)],
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, status=read_status(RUN_DIR))
    if module.params["state"] == "read":
        if RUN_DIR.is_dir():
            (RUN_DIR / "lease").touch()
        module.exit_json(changed=False, status=read(module))
    module.run_command(["systemctl", "stop", f"{UNIT}.service"])
    if module.params["state"] == "started":
        start(module)
    status = read_status(RUN_DIR)
    if module.params["state"] == "stopped" and RUN_DIR.is_dir():
        # The token goes with the transfer.
        shutil.rmtree(RUN_DIR)
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
