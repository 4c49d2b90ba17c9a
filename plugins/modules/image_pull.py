#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_pull
short_description: Bring a verified image to a node
version_added: 0.1.0
description:
  - Makes this node's Docker Engine pull the layers that it is missing, by digest, from the head's registry, and accepts
    the image only when its identity is the verified one.
  - The image gets its name after that check, so that a partial image is never taken for a complete one.
  - Runs as a transient systemd unit that goes on when the control node goes away; layers that the engine has unpacked
    are kept.
  - While it runs, the bytes that each node has received are shown every few seconds.
options:
  source:
    description: What to pull, C(address:port/name@digest), as M(gb10.cluster.image_offer) returns it.
    type: str
    required: true
  identity:
    description: The verified identity. Unknown in check mode on a fresh cluster.
    type: str
    required: true
  layers:
    description: C(digest) and C(file_bytes) of each layer, for what is shown.
    type: list
    elements: dict
    default: []
  certificates:
    description: >-
      File name of each certificate that opens the registry → its content in Base64. They stay on the node, for root
      only, until M(gb10.cluster.image_offer) with O(gb10.cluster.image_offer#module:state=absent).
    type: dict
    default: {}
  record:
    description: What else to keep in the record, such as the versions that were found inside the image.
    type: dict
    default: {}
  stall_seconds:
    description: The pull is given up after so many seconds without a byte received or unpacked.
    type: int
    default: 600
  program:
    description: The program V(image) on this node, as M(gb10.cluster.program) installs it.
    type: path
    required: true
  step:
    description: Used by the action plugin alone, which runs the module twice.
    type: str
    choices: [start, finish]
    default: start
  pulled:
    description: Used by the action plugin alone; the name under which the image arrived.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.image.node
  - gb10.cluster.attributes.connected
"""

EXAMPLES = r"""
- name: Pull the missing parts of the image
  gb10.cluster.image_pull:
    tag: gb10/vllm-node:0123456789ab
    source: "{{ offer.source }}"
    layers: "{{ offer.layers }}"
    identity: "{{ head.identity }}"
    certificates: "{{ certificates }}"
    program: "{{ lookup('gb10.cluster.program', 'image') }}"
"""

RETURN = r"""
received_mib:
  description: What was received, in MiB.
  returned: when it was pulled
  type: float
seconds:
  description: How long it took.
  returned: when it was pulled
  type: float
"""

import base64
import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records
from ansible_collections.gb10.cluster.plugins.module_utils._image.certificates import accept
from ansible_collections.gb10.cluster.plugins.module_utils._image.records import PULL_STATUS, PULL_UNIT
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity


def held(module: AnsibleModule, name: str) -> str:
    """Return the identity under which this node holds an image, or an empty string."""
    code, out, _err = module.run_command(["docker", "image", "inspect", name])
    return identity(json.loads(out)[0]) if code == 0 else ""


def record(want: dict[str, Any]) -> None:
    records.write(want["state_dir"], want["tag"], {**want["record"], "identity": want["identity"], "from": "head"})


def start(module: AnsibleModule, want: dict[str, Any]) -> None:
    """Start the pull, in place of one that an earlier run left."""
    Path(PULL_STATUS).parent.mkdir(mode=0o755, exist_ok=True)
    module.run_command(["systemctl", "stop", f"{PULL_UNIT}.service"])
    module.run_command(["systemctl", "reset-failed", f"{PULL_UNIT}.service"])
    Path(PULL_STATUS).unlink(missing_ok=True)
    accept(
        want["source"].partition("/")[0],
        {name: base64.b64decode(text).decode() for name, text in want["certificates"].items()},
    )
    sizes = ",".join(f"{layer['digest'][7:19]}:{layer['file_bytes']}" for layer in want["layers"])
    words = ["--source", want["source"], "--layers", sizes, "--status", PULL_STATUS]
    service = ["systemd-run", "--unit", PULL_UNIT, "--collect", "--property", "Nice=5"]
    module.run_command([*service, "python3", want["program"], "image", "pull", *words], check_rc=True)


def finish(module: AnsibleModule, want: dict[str, Any]) -> None:
    """Give the image its name if it is the verified one, and no name otherwise."""
    mark = held(module, want["pulled"])
    if mark == want["identity"]:
        module.run_command(["docker", "tag", want["pulled"], want["tag"]], check_rc=True)
    module.run_command(["docker", "rmi", want["pulled"]])
    if mark != want["identity"]:
        module.fail_json(
            msg=f"{want['pulled']} arrived with identity {mark[:16] or 'none'}, verified is {want['identity'][:16]}: "
            "it is not the same image. It was removed; run the playbook again."
        )
    record(want)
    module.exit_json(changed=True)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "identity": {"type": "str", "required": True},
            "layers": {"type": "list", "elements": "dict", "default": []},
            "certificates": {"type": "dict", "default": {}, "no_log": True},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "record": {"type": "dict", "default": {}},
            "stall_seconds": {"type": "int", "default": 600},
            "program": {"type": "path", "required": True},
            "step": {"type": "str", "choices": ["start", "finish"], "default": "start"},
            "pulled": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    want = module.params
    if module.check_mode:
        module.exit_json(changed=True, running=False)
    if want["step"] == "finish":
        finish(module, want)
    if held(module, want["tag"]) == want["identity"]:
        record(want)
        module.exit_json(changed=True, running=False, received_mib=0.0, seconds=0.0)
    start(module, want)
    module.exit_json(changed=True, running=True)


if __name__ == "__main__":
    main()
