#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_backup
short_description: Back up images on the control node and verify them
version_added: 0.1.0
description:
  - A backup is a directory that holds each layer once, under its diff id, whatever the number of images that contain
    it, and one manifest per image, written when all of its layers are there and verified.
  - Runs on the control node; the layers themselves are copied by rsync between the steps.
options:
  state:
    description:
      - V(missing) returns which layers of O(manifest) the directory does not have; damaged ones are removed and count
        as missing.
      - V(present) writes the manifest after every layer was verified.
      - V(verified) reads the backup of O(tag) and verifies it.
    type: str
    choices: [missing, present, verified]
    required: true
  directory:
    description: Directory of the backup on the control node.
    type: path
    required: true
  tag:
    description: The image.
    type: str
    required: true
  manifest:
    description: The image as its store describes it, JSON.
    type: str
  record:
    description: What is recorded of the verified image, including its C(identity).
    type: dict
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Verify the backup
  gb10.cluster.image_backup:
    state: verified
    directory: ~/gb10-images
    tag: gb10/vllm-node:0123456789ab
  delegate_to: localhost
"""

RETURN = r"""
files:
  description: File names of layers; with O(state=missing) those that are missing, else all of the image.
  returned: success
  type: list
  elements: str
mib:
  description: Size of these layers in MiB.
  returned: success
  type: float
manifest:
  description: The image as its store describes it, JSON.
  returned: with O(state=verified)
  type: str
record:
  description: What is recorded of the verified image.
  returned: with O(state=verified)
  type: dict
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB, ImageError, Layer, tag_file
from ansible_collections.gb10.cluster.plugins.module_utils._image.store import damaged
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def kept_tags(folder: Path) -> list[str]:
    """Return the images that a directory holds."""
    found = (files.read_json(path).get("tag") for path in sorted(folder.glob("*.json")))
    return [str(tag) for tag in found if tag]


def read(module: AnsibleModule, path: Path, tag: str) -> dict[str, Any]:
    """Return the manifest of a backup, or fail and name what there is instead."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["tag"] == tag and kept["layers"] and kept["record"]["identity"]:
            return kept
    except FileNotFoundError:
        there = ", ".join(kept_tags(path.parent)) or "no image"
        module.fail_json(
            msg=f"There is no backup of {tag} in {path.parent.parent} on the control node; it holds {there}. "
            "Name one of these with -e image_tag=..., or build the image with playbooks/image.yml."
        )
    except (ValueError, KeyError, TypeError, OSError) as problem:
        module.fail_json(
            msg=f"{path} is not the manifest of a backup ({problem!r}). Run playbooks/backup_image.yml again."
        )
    module.fail_json(msg=f"{path} describes another image than {tag}. Run playbooks/backup_image.yml again.")
    return {}


def names_of(layers: list[Layer]) -> str:
    """Return the layers for a message."""
    return ", ".join(layer.diff_id[:19] for layer in layers)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["missing", "present", "verified"], "required": True},
            "directory": {"type": "path", "required": True},
            "tag": {"type": "str", "required": True},
            "manifest": {"type": "str"},
            "record": {"type": "dict"},
        },
        required_if=[("state", "missing", ["manifest"]), ("state", "present", ["manifest", "record"])],
        supports_check_mode=True,
    )
    want = module.params
    base = Path(want["directory"])
    folder = base / "layers"
    path = base / "images" / tag_file(want["tag"])
    try:
        kept = read(module, path, want["tag"]) if want["state"] == "verified" else json.loads(want["manifest"])
        record = kept.pop("record", want["record"])
        layers = list({layer["diff_id"]: Layer(**layer) for layer in kept["layers"]}.values())
    except (ImageError, ValueError, KeyError, TypeError, AttributeError) as problem:
        module.fail_json(msg=f"The manifest of {want['tag']} cannot be used, nothing was changed: {problem}")
    wrong = damaged(folder, layers)
    changed = False
    if want["state"] == "verified" and wrong:
        module.fail_json(
            msg=f"The backup of {want['tag']} in {base} is damaged: {names_of(wrong)} is missing or was altered. "
            "Nothing was restored. Run playbooks/backup_image.yml while a node still holds the image."
        )
    if want["state"] == "missing":
        layers = wrong
        if not module.check_mode:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o755, exist_ok=True)
            for layer in wrong:
                files.remove(folder / layer.file)
    elif want["state"] == "present" and not module.check_mode:
        if wrong:
            module.fail_json(
                msg=f"{names_of(wrong)} of {want['tag']} did not arrive intact in {folder}. The image does not count "
                "as backed up; run the playbook again."
            )
        text = json.dumps({**kept, "record": record}, indent=1, sort_keys=True)
        changed = not path.is_file() or path.read_text(encoding="utf-8") != text
        if changed:
            files.write(path, text)
    module.exit_json(
        changed=changed,
        files=[layer.file for layer in layers],
        mib=round(sum(layer.file_bytes for layer in layers) / MIB, 1),
        manifest=json.dumps(kept),
        record=record or {},
    )


if __name__ == "__main__":
    main()
