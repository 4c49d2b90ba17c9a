#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_check
short_description: Verify an engine image, or refuse it
version_added: 0.1.0
description:
  - Runs the image without a network, compares the versions inside it with O(assertions), imports what the engine
    imports, and runs each mod's probe.
  - An image that passes is recorded under its identity; nothing else may be distributed or started.
  - For an image that does not, the task fails with cause and remedy, and the image is tagged C(refused-...), so that
    nothing can be started by its name.
options:
  python:
    description: The interpreter inside the image.
    type: str
    default: python3
  assertions:
    description: >-
      Distribution → exact version, or comparisons such as C(>=5.0.0). C(torch_cuda) is the CUDA version
      that torch was built for.
    type: dict
    required: true
  imports:
    description: Modules that must import.
    type: list
    elements: str
    default: [torch, vllm, vllm.engine.arg_utils]
  probes:
    description: Python sources that must exit 0 inside the image, by mod.
    type: dict
    default: {}
  nccl_floor:
    description:
      - The lowest version of the NCCL that torch loads, as C(ncclGetVersion) returns it. Empty for a model of one
        node. A torch without CUDA is not checked.
    type: str
    default: ""
  nccl_below_floor:
    description: What to do with an image whose NCCL is older.
    type: str
    choices: [refuse, warn]
    default: refuse
extends_documentation_fragment:
  - gb10.cluster.image.node
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Verify the image
  gb10.cluster.image_check:
    tag: gb10/vllm-node:0123456789ab
    python: /opt/vllm/bin/python
    assertions:
      torch: 2.11.0+cu130
      torch_cuda: "13.0"
"""

RETURN = r"""
identity:
  description: The verified identity.
  returned: success
  type: str
versions:
  description: What was found inside the image.
  returned: when the image was run
  type: dict
errors:
  description: Each assertion that failed, a sentence each.
  returned: failure
  type: list
  elements: str
"""

import json
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records
from ansible_collections.gb10.cluster.plugins.module_utils._image.asserts import PROBE, nccl_problem, verdict
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity


def inside(module: AnsibleModule, tag: str, python: str, code: str, *args: str) -> tuple[Any, ...]:
    """Run Python source inside the image, without network, and return (exit code, stdout, stderr)."""
    result: tuple[int, str, str] = module.run_command(
        ["docker", "run", "--rm", "--network", "none", "--entrypoint", python, tag, "-c", code, *args]
    )
    return result


def refuse(module: AnsibleModule, tag: str) -> str:
    """Move the tag of a wrong image out of the way and return its new name."""
    name, mark = tag.rsplit(":", 1)
    refused = f"{name}:refused-{mark}"
    module.run_command(["docker", "tag", tag, refused])
    module.run_command(["docker", "rmi", tag])
    return refused


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "python": {"type": "str", "default": "python3"},
            "assertions": {"type": "dict", "required": True},
            "imports": {"type": "list", "elements": "str", "default": ["torch", "vllm", "vllm.engine.arg_utils"]},
            "probes": {"type": "dict", "default": {}},
            "nccl_floor": {"type": "str", "default": ""},
            "nccl_below_floor": {"type": "str", "choices": ["refuse", "warn"], "default": "refuse"},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
        },
        supports_check_mode=True,
    )
    tag, state_dir = module.params["tag"], module.params["state_dir"]
    if module.get_bin_path("docker") is None:
        if module.check_mode:
            module.exit_json(changed=True, msg="Docker is not installed yet; the image would be checked.")
        module.fail_json(
            msg="Docker is not installed on this node; run playbooks/provision.yml first.", errors=["no docker"]
        )
    code, out, err = module.run_command(["docker", "image", "inspect", tag])
    if code != 0:
        if module.check_mode:
            module.exit_json(changed=True, msg=f"{tag} is not built yet; it would be checked.")
        module.fail_json(msg=f"{tag} is not on this node: {err.strip()}", errors=[err.strip()])
    mark = identity(json.loads(out)[0])
    known = records.read(state_dir, tag)
    wanted = {
        "identity": mark,
        "assertions": module.params["assertions"],
        "imports": module.params["imports"],
        "probes": sorted(module.params["probes"]),
    }
    floor, tolerated = module.params["nccl_floor"], module.params["nccl_below_floor"] == "warn"
    versions = known.get("versions", {})
    if all(known.get(key) == value for key, value in wanted.items()):
        problem = nccl_problem(tag, versions, floor)
        # A record of before that check does not know the version.
        if not problem or (tolerated and "nccl" in versions):
            if problem:
                module.warn(problem)
            module.exit_json(changed=False, identity=mark, versions=versions)
    if module.check_mode:
        module.exit_json(changed=True, identity=mark)

    names = ",".join(module.params["assertions"])
    code, out, err = inside(module, tag, module.params["python"], PROBE, names, ",".join(module.params["imports"]))
    answered = re.search(r"^gb10-image-probe (.*)$", out, re.MULTILINE)
    if code != 0 or answered is None:
        module.fail_json(msg=f"{tag} does not run: exit code {code}: {(err or out).strip()[-1500:]}", errors=[err])
    answer = json.loads(answered.group(1) if answered else "{}")
    errors = verdict(tag, module.params["assertions"], answer["found"], answer["errors"])
    problem = nccl_problem(tag, answer["found"], floor)
    if problem and tolerated:
        module.warn(problem)
    elif problem:
        errors.append(problem)
    for mod, source in module.params["probes"].items():
        code, out, err = inside(module, tag, module.params["python"], source)
        if code != 0:
            errors.append(f"{tag}: the probe of mod '{mod}' fails: {(err or out).strip()[-500:]}")
    if errors:
        refused = refuse(module, tag)
        module.fail_json(
            msg="\n".join([*errors, f"It is kept as {refused} and cannot be distributed or started."]),
            errors=errors,
            versions=answer["found"],
        )
    records.write(state_dir, tag, {**wanted, "versions": answer["found"]})
    module.exit_json(changed=True, identity=mark, versions=answer["found"])


if __name__ == "__main__":
    main()
