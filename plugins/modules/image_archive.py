#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_archive
short_description: Write an image of a node's store as an OCI archive, or bring archives into the store
version_added: 0.1.0
description:
  - An archive is one tar file that C(docker load) takes. It stays in V(image-archives/) below O(state_dir) only while
    it is on its way to or from the control node.
  - Space is checked before anything is written or copied.
options:
  state:
    description:
      - V(written) writes the archive of O(tag) from the store.
      - V(expected) returns which of O(archives) hold layers that the store is missing.
      - V(imported) brings the layers of O(archives), which are in V(image-archives/) now, and the image's manifest into
        the store.
      - V(absent) removes V(image-archives/).
    type: str
    choices: [written, expected, imported, absent]
    required: true
  tag:
    description: The image.
    type: str
    required: true
  node:
    description: The node's name, for messages.
    type: str
    default: this node
  archives:
    description: C(file), C(bytes) and C(diff_ids) of each archive, the image's own first.
    type: list
    elements: dict
    default: []
  shared:
    description: Diff id of each layer that another archive of the control node holds → C(archive), C(digest), C(type)
      and C(bytes).
    type: dict
    default: {}
  record:
    description: What is recorded of the verified image, kept in the archive.
    type: dict
    default: {}
  level:
    description: Compression level of zstd for layers in the store.
    type: int
    default: 1
  reserve_gib:
    description: What must stay free, in GiB.
    type: float
    default: 0
  state_dir:
    description: Directory of this collection on the node.
    type: path
    default: /var/lib/gb10
  program:
    description: >-
      The program V(image) on this node, as M(gb10.cluster.program) installs it. Not needed with O(state=expected) and
      O(state=absent).
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details:
      - Archives on a node are on their way, and the store is a cache; neither counts as a change.
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Write the archive
  gb10.cluster.image_archive:
    state: written
    tag: gb10/vllm-node:0123456789ab
    program: "{{ lookup('gb10.cluster.program', 'image') }}"
"""

RETURN = r"""
path:
  description: The archive on the node.
  returned: with O(state=written)
  type: str
sha256:
  description: SHA-256 of the file.
  returned: with O(state=written)
  type: str
files:
  description: File names of the archives that are needed; empty when the store has every layer.
  returned: with O(state=expected)
  type: list
  elements: str
mib:
  description: Size in MiB of what was written or is needed.
  returned: with O(state=written) and O(state=expected)
  type: float
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records, store
from ansible_collections.gb10.cluster.plugins.module_utils._image.archive import archive_file
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    GIB,
    MIB,
    ImageError,
    manifest_from_json,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import archive_bytes, no_room


def require_room(module: AnsibleModule, needed: int) -> None:
    """Fail with the shortfall when so many bytes do not fit below the state directory."""
    want = module.params
    folder = want["state_dir"]
    disks = [(folder, needed, shutil.disk_usage(folder).free)]
    problems = no_room(want["node"], want["tag"], disks, int(want["reserve_gib"] * GIB))
    if problems:
        module.fail_json(msg="\n".join(problems))


def run(module: AnsibleModule, words: list[str], data: str | None = None) -> str:
    """Run a verb of the program and return its output."""
    command = ["python3", module.params["program"], "image", *words]
    code, out, err = module.run_command(command, data=data)
    if code != 0:
        module.fail_json(msg=f"{module.params['node']}: {err.strip()[-2000:]}")
    return str(out)


def written(module: AnsibleModule, images: Path, folder: Path) -> dict[str, Any]:
    """Write the archive of the image."""
    want = module.params
    try:
        manifest = manifest_from_json((images / "images" / tag_file(want["tag"])).read_text(encoding="utf-8"))
    except (ImageError, OSError) as problem:
        module.fail_json(msg=f"{want['tag']} is not in {images}: {problem}")
        return {}
    require_room(
        module, archive_bytes(layer.file_bytes for layer in manifest.distinct if layer.diff_id not in want["shared"])
    )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = folder / archive_file(want["tag"])
    data = json.dumps({"record": want["record"], "shared": want["shared"]})
    out = run(module, ["archive", "--image", want["tag"], "--store", str(images), "--file", str(path)], data)
    found = json.loads(out[out.index("{") :])
    return {"path": str(path), "sha256": found["sha256"], "mib": round(found["bytes"] / MIB, 1)}


def expected(module: AnsibleModule, images: Path) -> dict[str, Any]:
    """Return which archives hold layers that the store is missing."""
    archives = module.params["archives"]
    diff_ids = {diff_id for archive in archives for diff_id in archive["diff_ids"]}
    held = {diff_id for diff_id in diff_ids if store.known_layer(images / "layers", diff_id) is not None}
    needed = [
        archive for number, archive in enumerate(archives) if not number or not held.issuperset(archive["diff_ids"])
    ]
    # The image's own archive has its configuration; an image that the store knows completely needs none.
    if held.issuperset(diff_ids) and (images / "images" / tag_file(module.params["tag"])).is_file():
        needed = []
    total = sum(int(archive["bytes"]) for archive in needed)
    # What arrives, and its layers as the store keeps them.
    require_room(module, 2 * total)
    return {"files": [archive["file"] for archive in needed], "mib": round(total / MIB, 1)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["written", "expected", "imported", "absent"], "required": True},
            "tag": {"type": "str", "required": True},
            "node": {"type": "str", "default": "this node"},
            "archives": {"type": "list", "elements": "dict", "default": []},
            "shared": {"type": "dict", "default": {}},
            "record": {"type": "dict", "default": {}},
            "level": {"type": "int", "default": 1},
            "reserve_gib": {"type": "float", "default": 0},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "program": {"type": "path"},
        },
        required_if=[
            ("state", "written", ["program"]),
            ("state", "expected", ["archives"]),
            ("state", "imported", ["program", "archives"]),
        ],
        supports_check_mode=True,
    )
    want = module.params
    images, folder = Path(want["state_dir"]) / records.STORE, Path(want["state_dir"]) / records.ARCHIVES
    result: dict[str, Any] = {"changed": False}
    if module.check_mode:
        module.exit_json(**result, files=[], mib=0.0)
    if want["state"] == "absent":
        shutil.rmtree(folder, ignore_errors=True)
    elif want["state"] == "written":
        result.update(written(module, images, folder))
    else:
        images.mkdir(mode=0o755, parents=True, exist_ok=True)
        if want["state"] == "expected":
            result.update(expected(module, images))
        else:
            files = [str(folder / archive["file"]) for archive in want["archives"]]
            present = [path for path in files if Path(path).is_file()]
            options = ["--image", want["tag"], "--store", str(images), "--level", str(want["level"])]
            run(module, ["import", *options, *present])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
