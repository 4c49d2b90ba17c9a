#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Read which engine image a node holds
version_added: 0.1.0
description:
  - Reads the identity of an image (layer diff ids plus configuration, the same on every storage driver) and whether
    it was verified.
  - Reads only. On a node without Docker it returns V(docker=false) and does not fail.
options:
  units_dir:
    description: Directory of the engine units.
    type: path
    default: /etc/systemd/system
extends_documentation_fragment:
  - gb10.cluster.image.node
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read the image
  gb10.cluster.image_info:
    tag: gb10/vllm-node:0123456789ab
  register: found
"""

RETURN = r"""
architecture:
  description: The node's architecture as registries name it; empty where no Docker Engine answers.
  returned: always
  type: str
  sample: arm64
docker:
  description: Whether the Docker Engine answers.
  returned: always
  type: bool
present:
  description: Whether the image exists.
  returned: always
  type: bool
identity:
  description: Digest of layer diff ids and configuration; empty when the image does not exist.
  returned: always
  type: str
verified:
  description: Whether this very identity passed its checks.
  returned: always
  type: bool
size_mib:
  description: Unpacked size in MiB.
  returned: always
  type: float
record:
  description: What is recorded of this identity, such as the versions found inside; empty when it is not verified.
  returned: always
  type: dict
offered:
  description: Whether this node offers an image to other nodes or may pull one, as while one is distributed.
  returned: always
  type: bool
needed:
  description: Images that this node's engine units name, whether they run or not.
  returned: always
  type: list
  elements: str
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records
from ansible_collections.gb10.cluster.plugins.module_utils._image.certificates import accepted
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._image.retention import units_images
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity


def read_image(module: AnsibleModule, tag: str, state_dir: str) -> dict[str, Any]:
    state: dict[str, Any] = {"docker": False, "present": False, "identity": "", "verified": False, "size_mib": 0.0}
    state.update(record={}, architecture="")
    docker = module.get_bin_path("docker")
    if docker is None:
        return state
    code, out, _err = module.run_command([docker, "version", "--format", "{{.Server.Arch}}"])
    state.update(docker=code == 0, architecture=out.strip())
    if code != 0:
        return state
    code, out, _err = module.run_command([docker, "image", "inspect", tag])
    if code != 0:
        return state
    inspected = json.loads(out)[0]
    state.update(present=True, identity=identity(inspected), size_mib=round(inspected.get("Size", 0) / MIB, 1))
    record = records.read(state_dir, tag)
    if record.get("identity") == state["identity"]:
        state.update(verified=True, record=record)
    return state


def unit_texts(folder: Path) -> list[str]:
    """Return the text of each engine unit that this collection rendered."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("vllm-*.service"))]
    return [text for text in texts if text.startswith("# Rendered by gb10.cluster")]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "units_dir": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    code, _out, _err = module.run_command(["systemctl", "is-active", "--quiet", f"{records.OFFER_UNIT}.service"])
    module.exit_json(
        changed=False,
        offered=code == 0 or bool(accepted()),
        needed=units_images(unit_texts(Path(module.params["units_dir"]))),
        **read_image(module, module.params["tag"], module.params["state_dir"]),
    )


if __name__ == "__main__":
    main()
