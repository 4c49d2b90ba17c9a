#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_keep
short_description: Protect images from a prune while no container uses them
version_added: 0.1.0
description:
  - C(docker image prune -a) removes each image that no container refers to, including that of an engine that was
    stopped a minute ago, or of one that has not been started yet. This module creates one container per image and
    never starts it; it costs no memory, and the image that it refers to counts as used.
  - The containers have the label V(gb10.keep); with C(label!=gb10.keep) among the C(pruneFilters) of the Docker
    client (the role gb10.cluster.host puts it there) C(docker system prune -a) and C(docker container prune) spare
    the containers themselves.
options:
  images:
    description: References of the images to protect. The task fails for an image that does not exist on the node.
    type: list
    elements: str
    required: true
  exclusive:
    description: Whether to remove the protection of all images that are not named.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Protect the images of both models
  gb10.cluster.docker_keep:
    images: ["vllm-node:latest", "vllm-node-mimo:latest"]
    exclusive: true
  become: true
"""

RETURN = r"""
kept:
  description: Image identifiers by reference.
  returned: success
  type: dict
"""

import json
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PREFIX = "gb10-keep-"
LABEL = "gb10.keep"


def container_name(image: str) -> str:
    return PREFIX + re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")


def docker(module: AnsibleModule, *arguments: str) -> str:
    """Run the docker client; return its output, or fail with its error."""
    code, out, err = module.run_command([module.get_bin_path("docker", required=True), *arguments])
    if code != 0:
        module.fail_json(msg=f"docker {arguments[0]} {arguments[1]} failed: {err.strip()}")
    return str(out)


def image_id(module: AnsibleModule, image: str) -> str:
    code, out, _err = module.run_command(
        [module.get_bin_path("docker", required=True), "image", "inspect", "--format", "{{.Id}}", image]
    )
    if code != 0:
        module.fail_json(
            msg=f"The image {image} does not exist on this node, so it cannot be protected. Distribute it first."
        )
    return str(out).strip()


def on_node(module: AnsibleModule, image: str) -> bool:
    """Return whether there is a Docker Engine, and the image in it."""
    program = module.get_bin_path("docker")
    return program is not None and module.run_command([program, "image", "inspect", image])[0] == 0


def keepers(module: AnsibleModule) -> dict[str, str]:
    """Return the image identifier that each of these containers refers to, by container name."""
    names = docker(module, "container", "ls", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()
    if not names:
        return {}
    found = json.loads(docker(module, "container", "inspect", *names))
    return {item["Name"].lstrip("/"): item["Image"] for item in found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "exclusive": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if module.check_mode and not all(on_node(module, image) for image in module.params["images"]):
        module.exit_json(changed=True, kept={}, msg="Would be protected once they exist.")
    kept = {image: image_id(module, image) for image in module.params["images"]}
    wanted = {container_name(image): (image, identifier) for image, identifier in kept.items()}
    have = keepers(module)
    # A container of an earlier build keeps gigabytes that nobody uses.
    stale = [name for name, identifier in have.items() if name in wanted and wanted[name][1] != identifier]
    if module.params["exclusive"]:
        stale += [name for name in have if name not in wanted]
    fresh = [name for name in wanted if name not in have or name in stale]
    if not module.check_mode:
        if stale:
            docker(module, "container", "rm", *stale)
        for name in fresh:
            docker(
                module, "container", "create", "--name", name, "--label", f"{LABEL}=true",
                "--network", "none", "--entrypoint", "/bin/true", wanted[name][0],
            )  # fmt: skip
    after = {**{name: value for name, value in have.items() if name not in stale}, **{n: wanted[n][1] for n in fresh}}
    result: dict[str, Any] = {
        "changed": bool(stale or fresh),
        "kept": kept,
        "diff": {
            "before": "".join(f"{name} {value}\n" for name, value in sorted(have.items())),
            "after": "".join(f"{name} {value}\n" for name, value in sorted(after.items())),
        },
    }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
