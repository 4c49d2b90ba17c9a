#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_move
short_description: Run a node's part of a transfer of weights
version_added: 0.1.0
description:
  - With O(state=started) the node serves the pieces that it has and fetches those that it lacks, in a transient systemd
    unit, on addresses of the fabric, for the cluster's nodes and who knows the token. The unit ends when it is told to,
    or when nobody has asked for it for O(lease_s).
  - With O(state=read) it tells how far the node is, after O(wait_s) at the latest.
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
  root:
    description: Directory of all models on this node.
    type: path
  manifest:
    description: The manifest made at the source.
    type: dict
    default: {}
  complete:
    description: Whether this node is whole, and only serves.
    type: bool
    default: false
  lacking:
    description: Files that this node lacks.
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
  patience_s:
    description: Without any progress for so long the node gives up, in seconds.
    type: int
    default: 120
  lease_s:
    description: Without any question for so long the unit ends, in seconds.
    type: int
    default: 300
  wait_s:
    description: With O(state=read), how long to wait for an end, in seconds.
    type: int
    default: 0
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details: The unit is transient and never counts as a change.
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Serve what is there and fetch the rest from the members before
  gb10.cluster.weights_move:
    state: started
    root: /var/lib/gb10/weights
    manifest: "{{ source.manifest }}"
    lacking: "{{ read.lacking }}"
    chain: [gx10-1, gx10-2]
    name: "{{ inventory_hostname }}"
    addresses: {gx10-1: 192.168.100.1, gx10-2: 192.168.100.2}
    port: 5081
    token: "{{ transfer_token }}"

- name: Tell how far the node is
  gb10.cluster.weights_move:
    state: read
    wait_s: 5
"""

RETURN = r"""
status:
  description:
    - C(state) (moving, placing, whole, failed or none), C(message), C(have_bytes), C(total_bytes), C(fetched_bytes),
      C(local_bytes), C(served_bytes), C(by_source), C(source), C(idle_s), C(cpu_s).
  returned: success
  type: dict
"""

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import mover as weights_mover

UNIT = "gb10-weights"
RUN_DIR = weights_mover.RUN_DIR
PACKAGE = "ansible_collections/gb10/cluster/plugins/module_utils/_weights"


def read_status(run_dir: Path) -> dict[str, Any]:
    """Return what the unit last said of itself."""
    try:
        found: dict[str, Any] = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"state": "none", "message": "", "have_bytes": 0, "total_bytes": 0, "idle_s": 0.0, "source": ""}
    return found


def lay_out(run_dir: Path, job: dict[str, Any]) -> list[str]:
    """Write what the unit runs; return its command."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    library = run_dir / "lib" / PACKAGE
    library.mkdir(parents=True, exist_ok=True)
    for part in (weights, weights_mover):
        name = part.__name__.rsplit(".", 1)[-1]
        (library / f"{name}.py").write_text(inspect.getsource(part), encoding="utf-8")
    (run_dir / "status.json").unlink(missing_ok=True)
    (run_dir / "lease").touch()
    path = run_dir / "job.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(job), encoding="utf-8")
    return [sys.executable, "-B", "-m", f"{PACKAGE.replace('/', '.')}.mover", str(path)]


def start(module: AnsibleModule) -> None:
    """Start the unit, unless the one of this run is there."""
    want = module.params
    names = (
        "root",
        "manifest",
        "complete",
        "lacking",
        "port",
        "token",
        "pieces",
        "streams",
        "patience_s",
        "lease_s",
        "run",
    )
    place = (want["chain"], want["name"], want["addresses"], want["port"], want["tunnels"], want["scatter"])
    job = {**{name: want[name] for name in names}, **weights.plan_node(*place), "run_dir": str(RUN_DIR)}
    command = lay_out(RUN_DIR, job)
    words = ["systemd-run", "--quiet", "--collect", "--unit", UNIT, "--setenv", f"PYTHONPATH={RUN_DIR / 'lib'}"]
    for each in ("Restart=on-failure", "RestartSec=1", "NoNewPrivileges=yes", "CPUWeight=50"):
        words += ["--property", each]
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    module.run_command([*words, *command], check_rc=True)
    deadline = time.monotonic() + 15
    while read_status(RUN_DIR)["state"] == "none":
        if time.monotonic() > deadline:
            module.fail_json(msg=f"The unit {UNIT} did not start: {journal(module)}")
        time.sleep(0.1)


def journal(module: AnsibleModule) -> str:
    """Return the unit's last words."""
    _code, out, _err = module.run_command(["journalctl", "-u", UNIT, "-n", "15", "--no-pager", "-o", "cat"])
    return str(out).strip()[-1500:]


def is_active(module: AnsibleModule) -> bool:
    """Return whether the unit runs or is about to start again."""
    _code, out, _err = module.run_command(["systemctl", "is-active", f"{UNIT}.service"])
    return str(out).strip() in ("active", "activating")


def read(module: AnsibleModule) -> dict[str, Any]:
    """Return how far the unit is, after a while or when it is at an end."""
    deadline = time.monotonic() + module.params["wait_s"]
    while True:
        status = read_status(RUN_DIR)
        if status["state"] in ("whole", "failed"):
            return status
        if not is_active(module):
            status = read_status(RUN_DIR)
            if status["state"] not in ("whole", "failed"):
                status.update(state="failed", message=f"The unit {UNIT} ended by itself: {journal(module)}")
            return status
        if time.monotonic() > deadline:
            return status
        time.sleep(0.2)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "read", "stopped"], "required": True},
            "run": {"type": "str", "default": ""},
            "root": {"type": "path"},
            "manifest": {"type": "dict", "default": {}},
            "complete": {"type": "bool", "default": False},
            "lacking": {"type": "list", "elements": "str", "default": []},
            "chain": {"type": "list", "elements": "str", "default": []},
            "name": {"type": "str"},
            "addresses": {"type": "dict", "default": {}},
            "port": {"type": "int"},
            "tunnels": {"type": "int", "default": 0},
            "scatter": {"type": "bool", "default": False},
            "pieces": {"type": "path"},
            "streams": {"type": "int", "default": 8},
            "token": {"type": "str", "default": "", "no_log": True},
            "patience_s": {"type": "int", "default": 120},
            "lease_s": {"type": "int", "default": 300},
            "wait_s": {"type": "int", "default": 0},
        },
        required_if=[("state", "started", ["root", "manifest", "chain", "name", "addresses", "port", "token"])],
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, status=read_status(RUN_DIR))
    if module.params["state"] == "read":
        if RUN_DIR.is_dir():
            (RUN_DIR / "lease").touch()
        module.exit_json(changed=False, status=read(module))
    status = read_status(RUN_DIR)
    module.run_command(["systemctl", "stop", f"{UNIT}.service"])
    if module.params["state"] == "started":
        start(module)
        status = read_status(RUN_DIR)
    elif RUN_DIR.is_dir():
        # The token goes with the transfer.
        for name in ("job.json", "lease", "status.json"):
            (RUN_DIR / name).unlink(missing_ok=True)
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
