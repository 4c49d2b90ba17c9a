#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_copy
short_description: Copy an image of a registry to an OCI archive on the control node, with skopeo
version_added: 0.1.0
description:
  - For nodes that have no way to a registry. Runs on the control node; skopeo is the distribution's package.
  - The manifest is compared with O(digest), the layers with the manifest, and every byte with its digest, before the
    archive gets its name. An archive that is there and verified is kept.
  - skopeo uses its own logins (C(skopeo login)) and the proxy of the environment.
options:
  reference:
    description: The image, C([host/]name[:tag]).
    type: str
    required: true
  digest:
    description: Digest of the image, or of its index of architectures.
    type: str
    required: true
  architecture:
    description: Architecture of the nodes, as registries name it.
    type: str
    required: true
  tag:
    description: The name under which the nodes get the image.
    type: str
    required: true
  directory:
    description: Directory of OCI archives on the control node.
    type: path
    required: true
extends_documentation_fragment:
  - gb10.cluster.image.room
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Copy the image from its registry
  gb10.cluster.image_copy:
    reference: vllm/vllm-openai:v0.30.0
    digest: "{{ gb10_image.digest }}"
    architecture: arm64
    tag: gb10/base:0123456789ab
    directory: ~/gb10-images
  delegate_to: localhost
"""

RETURN = r"""
file:
  description: File name of the archive.
  returned: success
  type: str
mib:
  description: Size of the layers that were copied, or would be in check mode, in MiB.
  returned: success
  type: float
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import remote, skopeo
from ansible_collections.gb10.cluster.plugins.module_utils._image.archive import (
    INCOMING,
    accept,
    add_older_manifest,
    archive_file,
    check_archive,
    verified_archive,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB, MIB, ImageError
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import no_room
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def inspect(module: AnsibleModule, program: str, reference: remote.Reference, digest: str) -> bytes:
    """Return the manifest that the registry has for a digest, byte for byte.

    :raises ImageError: the registry does not give it.
    """
    where = skopeo.source(reference, digest)
    command = [program, "inspect", "--raw", *skopeo.tls(reference, "tls-verify"), where]
    code, out, err = module.run_command(command, encoding=None)
    if code != 0:
        reason = err.decode(errors="replace").strip()[-500:]
        raise ImageError(
            f"skopeo does not get {where}: {reason}. Check the control node's way to the registry, its proxy "
            "(https_proxy), and `skopeo login`."
        )
    return bytes(out)


def copy(module: AnsibleModule, program: str, reference: remote.Reference, path: Path) -> float:
    """Copy the image into its archive; return the size of its layers in MiB.

    :raises ImageError: the registry does not give the image of the digest, or skopeo fails.
    """
    want = module.params
    where = skopeo.source(reference, want["digest"])
    digest = want["digest"]
    found = skopeo.manifest(inspect(module, program, reference, digest), digest, where)
    if chosen := skopeo.instance(found, want["architecture"], where):
        digest = chosen
        found = skopeo.manifest(inspect(module, program, reference, digest), digest, where)
    layers = skopeo.layers(found, where)
    size = sum(count for _digest, count in layers)
    folder = path.parent / INCOMING
    # skopeo collects the layers in a directory, then writes the archive.
    disks = [(str(path.parent), 2 * size, shutil.disk_usage(files.existing(folder)).free)]
    problems = no_room("the control node", where, disks, int(want["reserve_gib"] * GIB))
    if problems:
        raise ImageError(" ".join(problems))
    if module.check_mode:
        return size / MIB
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    arrived = folder / path.name
    files.delete(arrived)
    command = [program, "copy", "--quiet", "--retry-times", "3", *skopeo.tls(reference, "src-tls-verify")]
    command += [skopeo.source(reference, digest), f"oci-archive:{arrived}:{want['tag']}"]
    code, _out, err = module.run_command(command, environ_update={"TMPDIR": str(folder)})
    if code != 0:
        files.delete(arrived)
        raise ImageError(f"skopeo does not copy {where}: {err.strip()[-500:]}. Nothing of it was kept; run again.")
    add_older_manifest(arrived, want["tag"])
    archive, sha256 = check_archive(arrived)
    skopeo.require_layers([blob.digest for blob in archive.blobs], [name for name, _size in layers], where)
    accept(arrived, path, sha256)
    return size / MIB


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "digest": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "tag": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "reserve_gib": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    want = module.params
    reference = remote.parse(want["reference"])
    if reference is None:
        module.fail_json(msg=f"'{want['reference']}' is not an image reference such as vllm/vllm-openai:v0.30.0.")
        return
    path = Path(want["directory"]) / archive_file(want["tag"])
    if path.is_file():
        try:
            verified_archive(path)
            module.exit_json(changed=False, file=path.name, mib=0.0)
        except ImageError as problem:
            module.warn(f"{problem} It is copied again.")
    program = module.get_bin_path("skopeo")
    if program is None:
        module.fail_json(
            msg=f"skopeo is not installed on the control node, which is to copy {want['reference']} for nodes without "
            "a way out (image_pull_from: control). Install your distribution's package skopeo, or set image_pull_from: "
            "head where the head reaches the registry. Nothing was copied."
        )
    try:
        mib = copy(module, str(program), reference, path)
    except ImageError as problem:
        module.fail_json(msg=str(problem))
        return
    module.exit_json(changed=True, file=path.name, mib=round(mib, 1))


if __name__ == "__main__":
    main()
