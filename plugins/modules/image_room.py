#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_room
short_description: Check that an image fits a node's disks before it is distributed
version_added: 0.1.0
description:
  - Computes which layers of an image are missing on the node, and the space that they take while they arrive.
  - Fails with the node's name and the shortfall when they do not fit.
options:
  node:
    description: The node's name, for the message.
    type: str
    required: true
  layers:
    description: C(diff_id), C(bytes) unpacked and C(file_bytes) compressed of each layer, from the base up.
    type: list
    elements: dict
    required: true
  copied_mib:
    description: Size in MiB of archives that are copied to V(image-archives/) below O(state_dir) first.
    type: float
    default: 0
extends_documentation_fragment:
  - gb10.cluster.image.node
  - gb10.cluster.image.room
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Check that the image fits
  gb10.cluster.image_room:
    tag: gb10/vllm-node:0123456789ab
    node: "{{ inventory_hostname }}"
    layers: "{{ offer.layers }}"
    reserve_gib: 10
"""

RETURN = r"""
missing:
  description: Diff ids of the layers that are missing on the node.
  returned: success
  type: list
  elements: str
missing_mib:
  description: What has to be sent to the node, in MiB.
  returned: success
  type: float
"""

import json
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB, MIB, chain_ids
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import (
    images_root,
    missing_layers,
    no_room,
    room_needed,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.files import existing


def held_chains(module: AnsibleModule, root: Path, wanted: list[str]) -> set[str]:
    """Return the chain ids of layers that this node has, those of an interrupted pull included."""
    overlay2 = root / "image" / "overlay2" / "layerdb" / "sha256"
    held = {chain for chain in wanted if (overlay2 / chain.partition(":")[2]).is_dir()}
    _code, out, _err = module.run_command(["docker", "image", "ls", "--quiet", "--no-trunc"])
    if out.split():
        _code, out, _err = module.run_command(["docker", "image", "inspect", *sorted(set(out.split()))])
        for image in json.loads(out or "[]"):
            held.update(chain_ids(image["RootFS"].get("Layers") or []))
    return held


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "node": {"type": "str", "required": True},
            "layers": {"type": "list", "elements": "dict", "required": True},
            "copied_mib": {"type": "float", "default": 0},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "reserve_gib": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    want = module.params
    if module.get_bin_path("docker") is None and module.check_mode:
        module.exit_json(changed=False, missing=[], missing_mib=0.0)
    code, out, err = module.run_command(["docker", "info", "--format", "{{.DockerRootDir}}\n{{json .DriverStatus}}"])
    if code != 0:
        module.fail_json(msg=f"{want['node']}: the Docker Engine does not answer: {err.strip()}")
    containerd = module.get_bin_path("containerd")
    config = module.run_command([containerd, "config", "dump"])[1] if containerd else ""
    root, spool = map(existing, (Path(images_root(out, config)), Path(want["state_dir"]) / records.ARCHIVES))
    held = held_chains(module, Path(out.partition("\n")[0]), chain_ids(layer["diff_id"] for layer in want["layers"]))
    missing = missing_layers(want["layers"], held)
    below_docker, below_spool = room_needed(missing), int(want["copied_mib"] * MIB)
    disks = [(str(root), below_docker, shutil.disk_usage(root).free)]
    if root.stat().st_dev == spool.stat().st_dev:
        disks = [(str(root), below_docker + below_spool, disks[0][2])]
    else:
        disks.append((str(spool), below_spool, shutil.disk_usage(spool).free))
    problems = no_room(want["node"], want["tag"], disks, int(want["reserve_gib"] * GIB))
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(
        changed=False,
        missing=[layer["diff_id"] for layer in missing],
        missing_mib=round(sum(layer["file_bytes"] for layer in missing) / MIB, 1),
    )


if __name__ == "__main__":
    main()
