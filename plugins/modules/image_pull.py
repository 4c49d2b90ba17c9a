#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_pull
short_description: Pull a proven image from the head
version_added: 0.1.0
description:
  - Pulls what this node lacks of an image, and takes it only when its identity is the proven one.
  - The image gets its name after it was checked, so that a half-pulled one is never taken for whole.
options:
  tag:
    description: The image.
    type: str
    required: true
  registry:
    description: C(address:port) of the registry that offers it.
    type: str
    required: true
  identity:
    description: The proven identity, as the head has it. Unknown in check mode on a fresh cluster.
    type: str
    required: true
  records_dir:
    description: Where to record the verified identity.
    type: path
    required: true
attributes:
  check_mode:
    description: Can run in check mode, in which nothing is pulled.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: An image with this identity is not pulled again.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Pull what is lacking
  gb10.cluster.image_pull:
    tag: gb10/vllm-node:0123456789ab
    registry: 192.168.100.1:5080
    identity: "{{ head.identity }}"
    records_dir: /var/lib/gb10/images
"""

RETURN = r"""
seconds:
  description: How long the pull took.
  returned: when it was pulled
  type: float
"""

import json
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils.image_recipe import identity


def held(module: AnsibleModule, name: str) -> str:
    """Return the identity under which this node holds an image, or an empty string."""
    code, out, _err = module.run_command(["docker", "image", "inspect", name])
    return identity(json.loads(out)[0]) if code == 0 else ""


def record(tag: str, mark: str, records_dir: str) -> None:
    """Write down that this identity is a proven one."""
    folder = Path(records_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{tag.replace('/', '_').replace(':', '@')}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"identity": mark, "tag": tag, "from": "head"}, indent=2), encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "registry": {"type": "str", "required": True},
            "identity": {"type": "str", "required": True},
            "records_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    want = module.params
    if module.check_mode:
        module.exit_json(changed=True)
    started = time.monotonic()
    if held(module, want["tag"]) != want["identity"]:
        remote = f"{want['registry']}/{want['tag']}"
        code, out, err = module.run_command(["docker", "pull", "--quiet", remote])
        if code != 0:
            module.fail_json(msg=f"The pull of {remote} failed: {(err or out).strip()[-1500:]}")
        mark = held(module, remote)
        if mark == want["identity"]:
            module.run_command(["docker", "tag", remote, want["tag"]], check_rc=True)
        module.run_command(["docker", "rmi", remote])
        if mark != want["identity"]:
            module.fail_json(
                msg=f"{remote} arrived as {mark[:16]}, proven is {want['identity'][:16]}: it is not the same image. "
                "Nothing was named by it; run the playbook again."
            )
    record(want["tag"], want["identity"], want["records_dir"])
    module.exit_json(changed=True, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
