#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_backup
short_description: Keep images on the control node, and prove that they are whole
version_added: 0.1.0
description:
  - A backup is a directory with each layer once, under its diff id, whatever the number of images that have it,
    and one manifest an image, written when all of its layers are there and right.
  - Runs on the control node; the layers themselves are copied by rsync between the steps.
options:
  state:
    description:
      - V(lacking) tells which layers the directory needs for O(manifest); damaged ones are removed and count as
        lacking.
      - V(present) writes the manifest after every layer was verified.
      - V(verified) reads the backup of O(tag) and verifies it.
    type: str
    choices: [lacking, present, verified]
    required: true
  directory:
    description: Where images are kept on the control node.
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
    description: What is recorded of the proven image, its C(identity) among it.
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
  description: Names of layers; with O(state=lacking) those that are lacking, else all of the image.
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
  description: What is recorded of the proven image.
  returned: with O(state=verified)
  type: dict
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image.store import MIB, layer_file, tag_file


def sound(folder: Path, layer: dict[str, Any]) -> bool:
    """Return whether a layer is in a directory and is what its manifest says."""
    path = folder / layer_file(layer["diff_id"])
    try:
        if path.stat().st_size != layer["file_bytes"]:
            return False
        with path.open("rb") as handle:
            digest = hashlib.sha256()
            while chunk := handle.read(MIB):
                digest.update(chunk)
        return digest.hexdigest() == str(layer["sha256"])
    except OSError:
        return False


def unsound(folder: Path, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the layers, each once, that are not in a directory or not as they should be."""
    distinct = list({layer["diff_id"]: layer for layer in layers}.values())
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        right = list(pool.map(lambda layer: sound(folder, layer), distinct))
    return [layer for layer, whole in zip(distinct, right, strict=True) if not whole]


def kept_tags(folder: Path) -> list[str]:
    """Return the images that a directory holds."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(str(json.loads(path.read_text(encoding="utf-8"))["tag"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def read(module: AnsibleModule, path: Path, tag: str) -> dict[str, Any]:
    """Return the kept manifest of an image, or fail with what there is instead."""
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
        module.fail_json(msg=f"{path} is not a backup's manifest ({problem!r}). Run playbooks/backup_image.yml again.")
    module.fail_json(msg=f"{path} describes another image than {tag}. Run playbooks/backup_image.yml again.")
    return {}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["lacking", "present", "verified"], "required": True},
            "directory": {"type": "path", "required": True},
            "tag": {"type": "str", "required": True},
            "manifest": {"type": "str"},
            "record": {"type": "dict"},
        },
        required_if=[("state", "lacking", ["manifest"]), ("state", "present", ["manifest", "record"])],
        supports_check_mode=True,
    )
    want = module.params
    base = Path(want["directory"])
    folder = base / "layers"
    path = base / "images" / tag_file(want["tag"])
    if want["state"] == "verified":
        kept = read(module, path, want["tag"])
        wrong = unsound(folder, kept["layers"])
        if wrong:
            names = ", ".join(layer["diff_id"][:19] for layer in wrong)
            module.fail_json(
                msg=f"The backup of {want['tag']} in {base} is damaged: {names} is missing or not what it was. "
                "Nothing was restored. Run playbooks/backup_image.yml while a node still holds the image."
            )
        record = kept.pop("record")
    else:
        kept = json.loads(want["manifest"])
        wrong = unsound(folder, kept["layers"])
        record = want["record"]
    changed = False
    layers = list({layer["diff_id"]: layer for layer in kept["layers"]}.values())
    if want["state"] == "lacking":
        layers = wrong
        if not module.check_mode:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            (base / "images").mkdir(mode=0o755, exist_ok=True)
            for layer in wrong:
                (folder / layer_file(layer["diff_id"])).unlink(missing_ok=True)
    elif want["state"] == "present" and not module.check_mode:
        if wrong:
            names = ", ".join(layer["diff_id"][:19] for layer in wrong)
            module.fail_json(
                msg=f"{names} of {want['tag']} did not arrive in {folder} as it was sent. The image does not count as "
                "kept; run the playbook again."
            )
        text = json.dumps({**kept, "record": record}, indent=1, sort_keys=True)
        changed = not path.is_file() or path.read_text(encoding="utf-8") != text
        if changed:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    module.exit_json(
        changed=changed,
        files=[layer_file(layer["diff_id"]) for layer in layers],
        mib=round(sum(layer["file_bytes"] for layer in layers) / MIB, 1),
        manifest=json.dumps(kept),
        record=record or {},
    )


if __name__ == "__main__":
    main()
