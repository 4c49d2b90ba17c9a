#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_archive
short_description: Write an image of a node's registry as an OCI archive, or load one from archives
version_added: 0.1.0
description:
  - An archive is one tar file that C(docker load) takes. It stays in V(image-archives/) below O(state_dir) only while
    it is on its way to or from the control node.
options:
  state:
    description:
      - V(written) writes the archive of O(tag) from the storage of the registry; space is checked before.
      - V(loaded) loads the image from O(archives), which are in V(image-archives/) now, into the Docker Engine, and
        records it as verified when it is the one of O(record).
      - V(absent) removes V(image-archives/).
    type: str
    choices: [written, loaded, absent]
    required: true
  archives:
    description: C(file) of each archive, the image's own first.
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
  node:
    description: The node's name, for messages.
    type: str
    default: this node
extends_documentation_fragment:
  - gb10.cluster.image.node
  - gb10.cluster.image.room
  - gb10.cluster.attributes.no_diff
attributes:
  idempotent:
    details:
      - Archives on a node are on their way; they do not count as a change.
"""

EXAMPLES = r"""
- name: Write the archive
  gb10.cluster.image_archive:
    state: written
    tag: gb10/vllm-node:0123456789ab
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
mib:
  description: Size in MiB of what was written.
  returned: with O(state=written)
  type: float
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import archive, records, registry
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB, MIB, ImageError, file_sha256
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import archive_bytes, no_room
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity


def written(module: AnsibleModule, folder: Path) -> dict[str, Any]:
    want = module.params
    storage = Path(want["state_dir"]) / records.REGISTRY
    image = registry.read(storage, want["tag"])
    if image is None:
        raise ImageError(f"{want['tag']} is not in {storage}. Run the playbook again.")
    needed = archive_bytes(blob.bytes for blob in image.distinct if blob.diff_id not in want["shared"])
    disks = [(want["state_dir"], needed, shutil.disk_usage(want["state_dir"]).free)]
    if problems := no_room(want["node"], want["tag"], disks, int(want["reserve_gib"] * GIB)):
        module.fail_json(msg="\n".join(problems))
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = folder / archive.archive_file(want["tag"])
    archive.write_archive(path, image, storage, want["record"], want["shared"])
    return {"path": str(path), "sha256": file_sha256(path), "mib": round(path.stat().st_size / MIB, 1)}


def loaded(module: AnsibleModule, folder: Path) -> None:
    """Load the image, and record it when it is the one of the archive."""
    want = module.params
    archive.load([folder / each["file"] for each in want["archives"]], want["tag"])
    code, out, _err = module.run_command(["docker", "image", "inspect", want["tag"]])
    found = identity(json.loads(out)[0]) if code == 0 else ""
    if found != want["record"].get("identity"):
        module.run_command(["docker", "rmi", want["tag"]])
        module.fail_json(
            msg=f"{want['node']}: {want['tag']} was loaded with identity {found[:16] or 'none'}, its archive has "
            f"{str(want['record'].get('identity'))[:16]}. It was removed; run the playbook again."
        )
    records.write(want["state_dir"], want["tag"], {**want["record"], "from": "archive"})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["written", "loaded", "absent"], "required": True},
            "tag": {"type": "str", "required": True},
            "node": {"type": "str", "default": "this node"},
            "archives": {"type": "list", "elements": "dict", "default": []},
            "shared": {"type": "dict", "default": {}},
            "record": {"type": "dict", "default": {}},
            "reserve_gib": {"type": "float", "default": 0},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
        },
        required_if=[("state", "loaded", ["archives", "record"])],
        supports_check_mode=True,
    )
    want = module.params
    folder = Path(want["state_dir"]) / records.ARCHIVES
    result: dict[str, Any] = {"changed": want["state"] == "loaded"}
    if module.check_mode:
        module.exit_json(**result, mib=0.0)
    try:
        if want["state"] == "absent":
            shutil.rmtree(folder, ignore_errors=True)
        elif want["state"] == "written":
            result.update(written(module, folder))
        else:
            loaded(module, folder)
    except (ImageError, OSError) as problem:
        module.fail_json(msg=f"{want['node']}: {problem}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
