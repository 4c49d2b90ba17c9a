#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: prepared_data
short_description: Let an image make data that a model needs, complete or not at all
version_added: 0.2.0
description:
  - Runs a command in a container of an image, without a network. What it writes counts as made only when the command
    ended well and has written something; what an interrupted run left is removed and made anew.
  - The result is what M(gb10.cluster.weights_manifest) lists and M(gb10.cluster.weights_move) brings to every member.
  - Data that was made by the same O(key) and has not been moved yet is left as it is.
options:
  repo:
    description: Name of the data, and its directory below O(root).
    type: str
    required: true
  root:
    description: Directory of all models on this node.
    type: path
    required: true
  key:
    description: Names what the data is made from; data of another key is made anew.
    type: str
    required: true
  image:
    description: The image.
    type: str
    required: true
  command:
    description: What runs in it; it writes below C(/gb10-output).
    type: list
    elements: str
    required: true
  env:
    description: Variables of the command.
    type: dict
    default: {}
  mounts:
    description: Directories on the node that the command reads, with where it expects each.
    type: dict
    default: {}
  docker_args:
    description: More arguments of C(docker run), for example a limit of its memory.
    default: []
    elements: str
    type: list
  size_gib:
    description: Size of the data in GiB, for which there must be room.
    type: float
    required: true
  reserve_gib:
    description: Free space that must remain on the file system.
    type: float
    default: 2.0
  stall_seconds:
    description: The command is ended when it has written neither data nor output for so long.
    type: int
    default: 1800
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Make the tables of the model
  gb10.cluster.prepared_data:
    repo: gb10-prepared/my-model.tables
    root: /var/lib/gb10/weights
    key: 0123456789abcdef
    image: gb10/vllm-node:0123456789ab
    command: [python3, -m, make_tables, /root/.cache/huggingface/org/repo, /gb10-output]
    mounts: {/var/lib/gb10/weights/org/repo: /root/.cache/huggingface/org/repo}
    size_gib: 48
"""

RETURN = r"""
path:
  description: Where the data is until it is moved to its place.
  returned: success
  type: str
bytes:
  description: What it occupies.
  returned: when it was made
  type: int
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import prepared, store


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "image": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "env": {"type": "dict", "default": {}},
            "mounts": {"type": "dict", "default": {}},
            "docker_args": {"type": "list", "elements": "str", "default": []},
            "size_gib": {"type": "float", "required": True},
            "reserve_gib": {"type": "float", "default": 2.0},
            "stall_seconds": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    want = module.params
    error = weights.path_error(want["repo"])
    if error:
        module.fail_json(msg=error)
    made = Path(want["root"]) / store.INCOMING / want["repo"]
    if files.read_json(made / weights.MADE).get("key") == want["key"]:
        module.exit_json(changed=False, path=str(made))
    here = module.get_bin_path("docker") and module.run_command(["docker", "image", "inspect", want["image"]])[0] == 0
    absent = [each for each in want["mounts"] if not Path(each).is_dir()]
    if module.check_mode and (absent or not here):
        module.exit_json(changed=True, path=str(made), msg=f"{want['repo']} would be made.")
    if not here:
        module.fail_json(
            msg=f"{want['image']}, which makes {want['repo']}, is not on this node: run playbooks/image.yml."
        )
    if absent:
        module.fail_json(msg=f"{want['repo']} is made from {absent[0]}, which is not on this node.")
    half = made.with_name(f"{made.name}.half")
    free = shutil.disk_usage(files.existing(made)).free + sum(files.used_bytes(each) for each in (made, half))
    short = int((want["size_gib"] + want["reserve_gib"]) * 2**30) - free
    if short > 0:
        module.fail_json(
            msg=f"{want['root']} is {weights.amount(short)} short of room for {want['repo']}, {want['size_gib']:g} GiB"
            f", with {want['reserve_gib']:g} GiB to remain. Make room there, or point gb10_weights_root elsewhere."
        )
    if module.check_mode:
        module.exit_json(changed=True, path=str(made))
    for each in (made, half):
        if each.exists():
            shutil.rmtree(each)
    half.mkdir(parents=True)
    wrong = prepared.make(want, half)
    if wrong:
        shutil.rmtree(half)
        module.fail_json(msg=f"{want['repo']} could not be made by `{' '.join(want['command'])}`: {wrong}")
    files.write_json(half / weights.MADE, {"key": want["key"]})
    half.rename(made)
    module.exit_json(changed=True, path=str(made), bytes=files.used_bytes(made))


if __name__ == "__main__":
    main()
