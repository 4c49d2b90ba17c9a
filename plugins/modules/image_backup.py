#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_backup
short_description: Keep images as OCI archives on the control node and verify them
version_added: 0.1.0
description:
  - Each image is one OCI archive that C(docker load) takes, with its SHA-256 beside it (C(sha256sum --check)). A layer
    that another archive of the directory holds may be left out; the archive names the other one then.
  - An archive gets its name after every byte of it was verified.
  - Runs on the control node; the archives themselves are copied by rsync between the steps.
options:
  state:
    description:
      - V(missing) returns whether the archive of O(tag) is complete, and which layers other archives hold. Fails when
        an archive of O(layers) would not fit the disk.
      - V(present) verifies the archive in V(incoming/) and gives it its name.
      - V(verified) verifies the archive of O(tag) and those that it shares layers with.
    type: str
    choices: [missing, present, verified]
    required: true
  directory:
    description: Directory of the archives on the control node.
    type: path
    required: true
  tag:
    description: The image.
    type: str
    required: true
  layers:
    description: C(diff_id) and C(file_bytes) of each layer of the image, from the base up.
    type: list
    elements: dict
    default: []
  record:
    description: What is recorded of the verified image, including its C(identity).
    type: dict
    default: {}
  share:
    description: Whether layers that another archive holds are left out.
    type: bool
    default: true
  sha256:
    description: The digest that the archive had on the node.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.image.room
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Verify the archive
  gb10.cluster.image_backup:
    state: verified
    directory: ~/gb10-images
    tag: gb10/vllm-node:0123456789ab
  delegate_to: localhost
"""

RETURN = r"""
complete:
  description: Whether the archive is there and verified.
  returned: success
  type: bool
file:
  description: File name of the image's archive.
  returned: success
  type: str
shared:
  description: Diff id of each layer that another archive holds → C(archive), C(digest), C(type) and C(bytes).
  returned: with O(state=missing)
  type: dict
archives:
  description: C(file), C(bytes) and C(diff_ids) of each archive that the image needs, its own first.
  returned: with O(state=verified)
  type: list
  elements: dict
layers:
  description: C(diff_id), C(file_bytes) and at most C(bytes) unpacked of each layer, from the base up.
  returned: with O(state=verified)
  type: list
  elements: dict
mib:
  description: Size of these archives in MiB.
  returned: with O(state=verified)
  type: float
record:
  description: What is recorded of the verified image; C(identity) alone for an archive from elsewhere.
  returned: with O(state=verified)
  type: dict
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image.archive import (
    INCOMING,
    Archive,
    accept,
    archive_file,
    check_archive,
    read_archive,
    verified_archive,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB, MIB, ImageError
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import archive_bytes, no_room
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: How much larger a layer is taken to be unpacked: engine images were 3.1 times as large as their layers.
UNPACKED = 4


def with_shared(path: Path) -> list[Archive]:
    """Verify an archive and those that it shares layers with; return them, the image's own first.

    :raises ImageError: one of them is damaged, missing, or does not hold the layer.
    """
    image = verified_archive(path)
    others = [verified_archive(path.with_name(name)) for name in sorted(set(image.shared.values()))]
    held = {blob.digest for archive in others for blob in archive.own}
    for digest, name in image.shared.items():
        if digest not in held:
            raise ImageError(f"{path} refers to {digest[:19]} in {name}, which does not hold it.")
    return [image, *others]


def offered(directory: Path, own: str, diff_ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return where other archives of the directory hold layers intact: diff id → archive, digest, type and bytes."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("*.tar")):
        try:
            blobs = [blob for blob in read_archive(path).own if blob.diff_id in diff_ids and blob.diff_id not in found]
            if path.name == own or not blobs:
                continue
            verified_archive(path)
        except ImageError:
            continue
        found.update({blob.diff_id: {**asdict(blob), "archive": path.name} for blob in blobs})
    return found


def missing(module: AnsibleModule, path: Path) -> dict[str, Any]:
    """Return whether the archive is complete, and what others hold of the image."""
    want = module.params
    diff_ids = [layer["diff_id"] for layer in want["layers"]]
    try:
        kept = with_shared(path)[0]
        same = [blob.diff_id for blob in kept.blobs] == diff_ids and (want["share"] or not kept.shared)
        complete = same and kept.record == want["record"]
    except ImageError:
        complete = False
    shared = offered(path.parent, path.name, set(diff_ids)) if want["share"] and not complete else {}
    if not complete:
        folder = path.parent / INCOMING
        if not module.check_mode:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        sizes = {layer["diff_id"]: int(layer["file_bytes"]) for layer in want["layers"]}
        needed = archive_bytes(size for diff_id, size in sizes.items() if diff_id not in shared)
        disks = [(str(path.parent), needed, shutil.disk_usage(files.existing(folder)).free)]
        problems = no_room("the control node", want["tag"], disks, int(want["reserve_gib"] * GIB))
        if problems:
            module.fail_json(msg="\n".join(problems))
    return {"complete": complete, "shared": shared}


def present(module: AnsibleModule, path: Path) -> None:
    want = module.params
    arrived = path.parent / INCOMING / path.name
    try:
        _archive, found = check_archive(arrived)
        if found != want["sha256"]:
            raise ImageError(f"{arrived} has SHA-256 {found[:16]}, on the node it has {want['sha256'][:16]}.")
    except ImageError as problem:
        files.delete(arrived)
        module.fail_json(
            msg=f"{want['tag']} did not arrive intact: {problem} It was removed and does not count as backed up; run "
            "the playbook again."
        )
    accept(arrived, path, want["sha256"])


def verified(module: AnsibleModule, path: Path) -> dict[str, Any]:
    """Return what the image needs, or fail and name what there is instead."""
    want = module.params
    if not path.is_file():
        there = []
        for other in sorted(path.parent.glob("*.tar")):
            try:
                there.append(read_archive(other).tag or other.name)
            except ImageError:
                continue
        module.fail_json(
            msg=f"There is no archive of {want['tag']} in {path.parent} on the control node; it holds "
            f"{', '.join(there) or 'no image'}. Name one of these with -e image_tag=..., or build the image with "
            "playbooks/image.yml and back it up."
        )
    try:
        archives = with_shared(path)
    except ImageError as problem:
        module.fail_json(
            msg=f"The archive of {want['tag']} cannot be used: {problem} Nothing was sent to any node. Run "
            "playbooks/backup_image.yml while a node still holds the image."
        )
        return {}
    image = archives[0]
    if image.record and image.record.get("identity") != image.identity:
        module.fail_json(msg=f"{path} records another identity than that of its image. Write it again.")
    found = [
        {
            "file": archive.path.name,
            "bytes": archive.path.stat().st_size,
            "diff_ids": sorted({blob.diff_id for blob in archive.own} & {blob.diff_id for blob in image.blobs}),
        }
        for archive in archives
    ]
    return {
        "complete": True,
        "archives": found,
        # A layer's size unpacked is not known before it is unpacked.
        "layers": [
            {
                "diff_id": blob.diff_id,
                "file_bytes": blob.bytes,
                "bytes": blob.bytes * (1 if blob.digest == blob.diff_id else UNPACKED),
            }
            for blob in image.blobs
        ],
        "mib": round(sum(archive.path.stat().st_size for archive in archives) / MIB, 1),
        "record": {**image.record, "identity": image.identity},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["missing", "present", "verified"], "required": True},
            "directory": {"type": "path", "required": True},
            "tag": {"type": "str", "required": True},
            "layers": {"type": "list", "elements": "dict", "default": []},
            "record": {"type": "dict", "default": {}},
            "share": {"type": "bool", "default": True},
            "sha256": {"type": "str", "default": ""},
            "reserve_gib": {"type": "float", "default": 0},
        },
        required_if=[("state", "missing", ["layers"]), ("state", "present", ["sha256"])],
        supports_check_mode=True,
    )
    want = module.params
    path = Path(want["directory"]) / archive_file(want["tag"])
    result: dict[str, Any] = {"changed": want["state"] == "present", "file": path.name, "complete": True}
    if want["state"] == "missing":
        result.update(missing(module, path))
    elif want["state"] == "verified":
        result.update(verified(module, path))
    elif not module.check_mode:
        present(module, path)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
