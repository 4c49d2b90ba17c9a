#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_pull
short_description: Bring a proven image to a node
version_added: 0.1.0
description:
  - Fetches what this node lacks of an image from an offer, and takes it only when its identity is the proven one.
  - The image gets its name after it was checked, so that one that is half there is never taken for whole.
  - Runs as a transient systemd unit that outlives a control node that goes away; what arrived is kept, and the
    next run goes on from there.
  - While it runs, the bytes that each node has received are shown every few seconds.
options:
  tag:
    description: The image.
    type: str
    required: true
  source:
    description: Where it is offered, C(http://address:port).
    type: str
    required: true
  identity:
    description: The proven identity. Unknown in check mode on a fresh cluster.
    type: str
    required: true
  transport:
    description: >-
      V(layers) moves what is lacking, resumably; V(tarball) streams the whole image into C(docker load) and
      needs no listener on the node.
    type: str
    choices: [layers, tarball]
    default: layers
  spool_dir:
    description: Where compressed layers arrive; empty again when the image is there.
    type: path
    required: true
  records_dir:
    description: Where to record the verified identity.
    type: path
    required: true
  proof:
    description: What else to keep in the record, such as the versions that were found inside the image.
    type: dict
    default: {}
  stall_seconds:
    description: Given up after so long without a byte received or unpacked.
    type: int
    default: 600
  agent:
    description: The image agent on this node.
    type: path
    default: /usr/local/lib/gb10/image_agent.py
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
  - gb10.cluster.attributes.connected
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Pull what is lacking
  gb10.cluster.image_pull:
    tag: gb10/vllm-node:0123456789ab
    source: http://192.168.100.1:5080
    identity: "{{ head.identity }}"
    spool_dir: /var/lib/gb10/incoming
    records_dir: /var/lib/gb10/images
"""

RETURN = r"""
received_mib:
  description: What was received, in MiB.
  returned: when it was pulled
  type: float
refetched:
  description: Diff ids of layers that arrived damaged, or lay damaged on the node, and were fetched again.
  returned: when it was pulled
  type: list
  elements: str
seconds:
  description: How long it took.
  returned: when it was pulled
  type: float
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image.store import tag_file
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity

UNIT = "gb10-image-pull"
STATUS = "/run/gb10/image-pull.json"


def held(module: AnsibleModule, name: str) -> str:
    """Return the identity under which this node holds an image, or an empty string."""
    code, out, _err = module.run_command(["docker", "image", "inspect", name])
    return identity(json.loads(out)[0]) if code == 0 else ""


def record(tag: str, mark: str, records_dir: str, proof: dict[str, Any] | None = None) -> None:
    """Write down that this identity is a proven one."""
    folder = Path(records_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / tag_file(tag)
    temporary = path.with_suffix(".tmp")
    known = {**(proof or {}), "identity": mark, "tag": tag, "from": "head"}
    temporary.write_text(json.dumps(known, indent=2), encoding="utf-8")
    temporary.replace(path)


def start(module: AnsibleModule, want: dict[str, Any]) -> None:
    """Start the agent, in the place of one that an earlier run left."""
    if module.get_bin_path("zstd") is None:
        module.fail_json(msg="There is no zstd on this node; the image role installs it.")
    Path(STATUS).parent.mkdir(mode=0o755, exist_ok=True)
    module.run_command(["systemctl", "stop", f"{UNIT}.service"])
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    Path(STATUS).unlink(missing_ok=True)
    options = {
        "--image": want["tag"],
        "--source": want["source"],
        "--transport": want["transport"],
        "--spool": want["spool_dir"],
        "--status": STATUS,
    }
    words = [word for option in options.items() for word in option]
    service = ["systemd-run", "--unit", UNIT, "--collect", "--property", "Nice=5"]
    module.run_command([*service, "python3", want["agent"], "pull", *words], check_rc=True)


def finish(module: AnsibleModule, want: dict[str, Any]) -> None:
    """Give the image its name if it is the proven one, and no name otherwise."""
    mark = held(module, want["pulled"])
    if mark == want["identity"] and want["pulled"] != want["tag"]:
        module.run_command(["docker", "tag", want["pulled"], want["tag"]], check_rc=True)
    if mark != want["identity"] or want["pulled"] != want["tag"]:
        module.run_command(["docker", "rmi", want["pulled"]])
    if mark != want["identity"]:
        module.fail_json(
            msg=f"{want['pulled']} arrived as {mark[:16] or 'nothing'}, proven is {want['identity'][:16]}: it is not "
            "the same image. Nothing was named by it; run the playbook again."
        )
    record(want["tag"], want["identity"], want["records_dir"], want["proof"])
    module.exit_json(changed=True)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "identity": {"type": "str", "required": True},
            "transport": {"type": "str", "choices": ["layers", "tarball"], "default": "layers"},
            "spool_dir": {"type": "path", "required": True},
            "records_dir": {"type": "path", "required": True},
            "proof": {"type": "dict", "default": {}},
            "stall_seconds": {"type": "int", "default": 600},
            "agent": {"type": "path", "default": "/usr/local/lib/gb10/image_agent.py"},
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
        record(want["tag"], want["identity"], want["records_dir"], want["proof"])
        module.exit_json(changed=True, running=False, received_mib=0.0, refetched=[], seconds=0.0)
    start(module, want)
    module.exit_json(changed=True, running=True)


if __name__ == "__main__":
    main()
