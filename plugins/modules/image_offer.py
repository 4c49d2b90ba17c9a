#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_offer
short_description: Offer an image to the other nodes while it is distributed
version_added: 0.1.0
description:
  - Brings the layers of an image into a store, each once and compressed, and serves the store read-only on one address
    to the nodes that are named, as a transient systemd unit.
  - Layers that the store holds are verified and not compressed again, except for damaged ones.
  - With O(state=absent) the unit is stopped; the layers are kept for the next run.
options:
  state:
    description: V(present) stores and offers, V(stored) only stores, V(absent) stops the offer.
    type: str
    choices: [present, stored, absent]
    default: present
  tag:
    description: The image.
    type: str
    required: true
  state_dir:
    description: Directory of this collection on the node; the store is V(image-store/) below it.
    type: path
    default: /var/lib/gb10
  transport:
    description: With V(tarball) nothing is stored; the image is streamed from the Docker Engine.
    type: str
    choices: [layers, tarball]
    default: layers
  address:
    description: The address to listen on, one of the fabric.
    type: str
  port:
    description: The port to listen on.
    type: int
  allow:
    description: Addresses that may fetch; every one when empty.
    type: list
    elements: str
    default: []
  level:
    description: Compression level of zstd.
    type: int
    default: 1
  read:
    description: >-
      How layers are read. V(overlay2) reads the Docker Engine's own files; V(save) runs C(docker save), which makes a
      temporary copy of the image first; V(auto) takes the first where it is possible.
    type: str
    choices: [auto, overlay2, save]
    default: auto
  program:
    description: >-
      The program V(image) on this node, as M(gb10.cluster.program) installs it. Not needed with O(state=absent).
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details:
      - The unit is transient and the store a cache; neither counts as a change.
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Offer the image on the fabric
  gb10.cluster.image_offer:
    tag: gb10/vllm-node:0123456789ab
    program: "{{ lookup('gb10.cluster.program', 'image') }}"
    address: 192.168.100.1
    port: 5080
    allow: [192.168.100.2, 192.168.100.3]
"""

RETURN = r"""
url:
  description: Where the image is offered.
  returned: with O(state=present)
  type: str
layers:
  description: C(diff_id), C(bytes) as a tar, C(file_bytes) compressed and C(sha256) of each layer, from the base up.
  returned: when the image was stored
  type: list
  elements: dict
manifest:
  description: The image as the store describes it, JSON.
  returned: when the image was stored
  type: str
seconds:
  description: Seconds that it took to bring the image into the store.
  returned: when the image was stored
  type: float
"""

import json
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records

SERVICE = f"{records.OFFER_UNIT}.service"


def listens(address: str, port: int) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def command(want: dict[str, Any], verb: str, options: dict[str, Any]) -> list[str]:
    """Return the command of a verb of the program."""
    words = [str(word) for option in options.items() for word in option]
    return ["python3", want["program"], "image", verb, "--image", want["tag"], *words]


def store(module: AnsibleModule, want: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Bring the image into the store and return what it consists of."""
    if module.get_bin_path("zstd") is None:
        module.fail_json(msg="zstd is not installed on this node; the image role installs it.")
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    started = time.monotonic()
    options = {"--store": folder, "--level": want["level"], "--read": want["read"]}
    code, out, err = module.run_command(command(want, "export", options))
    if code != 0:
        module.fail_json(msg=f"{want['tag']} cannot be offered: {err.strip()[-2000:]}")
    text = out[out.index("{") :]
    return {
        "layers": json.loads(text)["layers"],
        "manifest": text,
        "seconds": round(time.monotonic() - started, 1),
    }


def offer(module: AnsibleModule, want: dict[str, Any], folder: Path) -> None:
    """Start the unit and wait until it answers, for as long as it runs."""
    listen = f"{want['address']}:{want['port']}"
    module.run_command(["systemctl", "reset-failed", SERVICE])
    options = {"--store": folder, "--listen": listen, "--allow": ",".join(want["allow"])}
    service = ["systemd-run", "--unit", records.OFFER_UNIT, "--collect", "--property", "Nice=5"]
    module.run_command([*service, *command(want, "offer", options)], check_rc=True)
    while True:
        # Liveness first: a unit that ends after this look has not been waiting for its port.
        running = module.run_command(["systemctl", "is-active", "--quiet", SERVICE])[0] == 0
        if listens(want["address"], want["port"]):
            return
        if not running:
            break
        time.sleep(0.1)
    _code, out, _err = module.run_command(["journalctl", "-u", records.OFFER_UNIT, "-n", "15", "--no-pager"])
    module.fail_json(msg=f"The image is not offered at {listen}; the unit's journal: {out.strip()[-1500:]}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "stored", "absent"], "default": "present"},
            "tag": {"type": "str", "required": True},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "transport": {"type": "str", "choices": ["layers", "tarball"], "default": "layers"},
            "address": {"type": "str"},
            "port": {"type": "int"},
            "allow": {"type": "list", "elements": "str", "default": []},
            "level": {"type": "int", "default": 1},
            "read": {"type": "str", "choices": ["auto", "overlay2", "save"], "default": "auto"},
            "program": {"type": "path"},
        },
        required_if=[("state", "present", ["address", "port", "program"]), ("state", "stored", ["program"])],
        supports_check_mode=True,
    )
    want = module.params
    folder = Path(want["state_dir"]) / records.STORE
    result: dict[str, Any] = {"changed": False, "layers": []}
    if want["state"] == "present":
        result["url"] = f"http://{want['address']}:{want['port']}"
    if module.check_mode:
        module.exit_json(**result)
    if want["state"] != "stored":
        module.run_command(["systemctl", "stop", SERVICE])
    if want["state"] != "absent" and want["transport"] == "layers":
        result.update(store(module, want, folder))
    if want["state"] == "present":
        offer(module, want, folder)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
