#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_offer
short_description: Offer an image on the fabric for as long as it moves
version_added: 0.1.0
description:
  - Brings the layers of an image into a store, each once and compressed, and serves the store read-only
    on one address to the nodes that are named, as a transient systemd unit.
  - Layers that the store holds are verified and not made again; a damaged one is.
  - With O(state=absent) the unit is stopped; the layers stay for the next run.
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
  store_dir:
    description: Where the layers are kept.
    type: path
    required: true
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
    description: zstd's level.
    type: int
    default: 1
  read:
    description: >-
      How layers are read: V(overlay2) from the Docker Engine's own files, V(save) with C(docker save), which
      makes a temporary copy of the image first; V(auto) takes the first where it is possible.
    type: str
    choices: [auto, overlay2, save]
    default: auto
  agent:
    description: The image agent on this node.
    type: path
    default: /usr/local/lib/gb10/image_agent.py
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details: >-
      The unit is transient and the store a cache; neither counts as a change. A complete layer is left alone.
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Offer the image on the fabric
  gb10.cluster.image_offer:
    tag: gb10/vllm-node:0123456789ab
    store_dir: /var/lib/gb10/image-store
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
  description: How long it took to bring the image into the store.
  returned: when the image was stored
  type: float
"""

import json
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image.store import OFFER_UNIT


def listens(address: str, port: int) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def store(module: AnsibleModule, want: dict[str, Any]) -> dict[str, Any]:
    """Bring the image into the store and return what it is made of."""
    if module.get_bin_path("zstd") is None:
        module.fail_json(msg="There is no zstd on this node; the image role installs it.")
    started = time.monotonic()
    options = {"--image": want["tag"], "--store": want["store_dir"], "--level": want["level"], "--way": want["read"]}
    words = [str(word) for option in options.items() for word in option]
    code, out, err = module.run_command(["python3", want["agent"], "export", *words])
    if code != 0:
        module.fail_json(msg=f"{want['tag']} cannot be offered: {err.strip()[-2000:]}")
    text = out[out.index("{") :]
    return {
        "layers": json.loads(text)["layers"],
        "manifest": text,
        "seconds": round(time.monotonic() - started, 1),
    }


def offer(module: AnsibleModule, want: dict[str, Any]) -> None:
    """Start the unit and wait until it answers."""
    listen = f"{want['address']}:{want['port']}"
    module.run_command(["systemctl", "reset-failed", f"{OFFER_UNIT}.service"])
    options = {"--image": want["tag"], "--store": want["store_dir"], "--listen": listen}
    words = [str(word) for option in options.items() for word in option]
    service = ["systemd-run", "--unit", OFFER_UNIT, "--collect", "--property", "Nice=5"]
    module.run_command(
        [*service, "python3", want["agent"], "offer", *words, "--allow", ",".join(want["allow"])], check_rc=True
    )
    for _attempt in range(100):
        if listens(want["address"], want["port"]):
            return
        time.sleep(0.1)
    _code, out, _err = module.run_command(["journalctl", "-u", OFFER_UNIT, "-n", "15", "--no-pager"])
    module.fail_json(msg=f"The image is not offered at {listen}: {out.strip()[-1500:]}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "stored", "absent"], "default": "present"},
            "tag": {"type": "str", "required": True},
            "store_dir": {"type": "path", "required": True},
            "transport": {"type": "str", "choices": ["layers", "tarball"], "default": "layers"},
            "address": {"type": "str"},
            "port": {"type": "int"},
            "allow": {"type": "list", "elements": "str", "default": []},
            "level": {"type": "int", "default": 1},
            "read": {"type": "str", "choices": ["auto", "overlay2", "save"], "default": "auto"},
            "agent": {"type": "path", "default": "/usr/local/lib/gb10/image_agent.py"},
        },
        required_if=[("state", "present", ["address", "port"])],
        supports_check_mode=True,
    )
    want = module.params
    result: dict[str, Any] = {"changed": False, "layers": []}
    if want["state"] == "present":
        result["url"] = f"http://{want['address']}:{want['port']}"
    if module.check_mode:
        module.exit_json(**result)
    if want["state"] != "stored":
        module.run_command(["systemctl", "stop", f"{OFFER_UNIT}.service"])
    if want["state"] != "absent" and want["transport"] == "layers":
        Path(want["store_dir"]).mkdir(mode=0o755, parents=True, exist_ok=True)
        result.update(store(module, want))
    if want["state"] == "present":
        offer(module, want)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
