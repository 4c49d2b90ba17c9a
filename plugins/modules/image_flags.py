#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_flags
short_description: Read the options and variables that the vLLM of an image knows
version_added: 0.2.0
description:
  - Runs C(scripts/vllm_flags.py) inside the image, without a network, and returns the table that it prints. It is what
    M(gb10.cluster.serve_args) takes as O(gb10.cluster.serve_args#module:image_table), and says what the build runs on.
  - An image whose vLLM does not answer gives a warning and no table; its options are then checked by the image itself
    before the start (M(gb10.cluster.engine_check)).
options:
  tag:
    description: The image that is asked.
    required: true
    type: str
  python:
    description: The interpreter inside the image.
    type: str
    default: python3
  script:
    description: Text of C(scripts/vllm_flags.py).
    type: str
    required: true
  docker_args:
    description: More arguments of C(docker run); without a GPU a CUDA build of vLLM builds no parser.
    type: list
    elements: str
    default: []
  known:
    description: Identity of the image whose table is already kept; that one is not read again.
    type: str
    default: ""
  vllm_version:
    description: The version that the image is said to have; another one gives a warning.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read the options that the image knows
  gb10.cluster.image_flags:
    tag: gb10/fork:0123456789ab
    script: "{{ lookup('ansible.builtin.file', 'scripts/vllm_flags.py') }}"
    docker_args: [--runtime, nvidia, --memory, 8g]
  register: flags
"""

RETURN = r"""
table:
  description: >-
    The table, with the identity of its image as C(image) and what its vLLM is built for as C(device) (V(cuda), V(cpu),
    or empty for anything else); empty when it is known or cannot be read.
  returned: always
  type: dict
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity

#: With this line a table begins, whatever vLLM has printed before.
BEGIN = '{\n  "vllm"'


def read_table(out: str) -> dict[str, Any]:
    """Return the table from what the script printed.

    :raises ValueError: it is not there, or has not the form of one.
    """
    at = out.find(BEGIN)
    if at < 0:
        raise ValueError("it printed no table")
    table = json.JSONDecoder().raw_decode(out[at:])[0]
    if not (isinstance(table.get("vllm"), str) and table.get("options") and isinstance(table.get("env"), dict)):
        raise ValueError("its table has no version, options or variables")
    return dict(table)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "python": {"type": "str", "default": "python3"},
            "script": {"type": "str", "required": True},
            "docker_args": {"type": "list", "elements": "str", "default": []},
            "known": {"type": "str", "default": ""},
            "vllm_version": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    want = module.params
    tag = want["tag"]
    code, out = 1, ""
    if module.get_bin_path("docker"):
        code, out, _err = module.run_command(["docker", "image", "inspect", tag])
    mark = identity(json.loads(out)[0]) if code == 0 else ""
    if not mark or mark == want["known"]:
        module.exit_json(changed=False, table={})
    command = ["docker", "run", "--rm", "--interactive", "--network", "none", *want["docker_args"]]
    command += ["--env", "VLLM_LOGGING_LEVEL=ERROR", "--entrypoint", want["python"], tag, "-", "dump"]
    code, out, err = module.run_command(command, data=want["script"])
    try:
        if code != 0:
            raise ValueError(f"exit code {code}: {err.strip()[-300:] or 'without output'}")
        table = read_table(out)
    except ValueError as problem:
        module.warn(
            f"{tag} did not give the table of its options ({problem}); they are compared with those of a release, and "
            "the image itself checks them before the start."
        )
        module.exit_json(changed=False, table={})
    if want["vllm_version"] not in ("", table["vllm"]):
        module.warn(f"{tag} has vLLM {table['vllm']}; its recipe says vllm_version {want['vllm_version']}.")
    module.exit_json(changed=False, table={**table, "source": tag, "image": mark})


if __name__ == "__main__":
    main()
