#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_digest
short_description: Read which digest a tag of a registry has, and refuse a moved tag
version_added: 0.1.0
description:
  - Asks the registry of an image reference for the digest of its tag, with the login of Docker's client configuration.
  - With O(locked), fails when the tag has another digest now; both are named.
  - When the registry does not answer, and the Docker Engine of this node has the image with the locked digest, the
    locked digest is returned.
options:
  reference:
    description: C([host/]name[:tag]).
    type: str
    required: true
  locked:
    description: The digest that the tag had when it was locked.
    type: str
    default: ""
  lock_file:
    description: File of the control node that holds the lock, for the message.
    type: str
    default: ""
  present:
    description: Whether the image with the locked digest is at hand in another way; the registry need not answer then.
    type: bool
    default: false
  docker_config:
    description: Docker's client configuration on this node.
    type: path
    default: ~/.docker/config.json
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read the digest of a tag
  gb10.cluster.image_digest:
    reference: vllm/vllm-openai:v0.30.0
  register: found
"""

RETURN = r"""
digest:
  description: The digest, C(sha256:) and 64 digits.
  returned: success
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import remote
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "locked": {"type": "str", "default": ""},
            "lock_file": {"type": "str", "default": ""},
            "present": {"type": "bool", "default": False},
            "docker_config": {"type": "path", "default": "~/.docker/config.json"},
        },
        supports_check_mode=True,
    )
    want = module.params
    reference = remote.parse(want["reference"])
    if reference is None:
        module.fail_json(msg=f"'{want['reference']}' is not an image reference such as vllm/vllm-openai:v0.30.0.")
        return
    locked = want["locked"]
    try:
        digest = remote.digest_of_tag(reference, Path(want["docker_config"]))
    except ImageError as problem:
        pinned = remote.Reference(reference.host, reference.name, reference.tag, locked).pinned
        docker = module.get_bin_path("docker")
        here = want["present"] or (
            docker is not None and module.run_command([docker, "image", "inspect", pinned])[0] == 0
        )
        if not locked or not here:
            module.fail_json(msg=str(problem))
        digest = locked
    if locked and digest != locked:
        module.fail_json(
            msg=f"{want['reference']} has the digest {digest} now; {want['lock_file'] or 'the lock'} has {locked}: the "
            "tag was moved. Nothing was pulled. To accept the new image, run again with -e image_relock=true; to keep "
            f"the locked one, name it as {reference.name}@{locked} in the recipe."
        )
    module.exit_json(changed=False, digest=digest)


if __name__ == "__main__":
    main()
