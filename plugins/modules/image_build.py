#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build
short_description: Build an engine image from its context
version_added: 0.1.0
description:
  - Builds O(tag) from a staged context unless an image with this tag and fingerprint exists.
  - The build's output goes line by line to O(log), for C(tail -f); on failure its last lines are returned.
options:
  tag:
    description: The image's name.
    type: str
    required: true
  fingerprint:
    description: Digest of all inputs; the image carries it as label C(gb10.fingerprint).
    type: str
    required: true
  context_dir:
    description: The build context on this node.
    type: path
    required: true
  base:
    description: The base image's name.
    type: str
    required: true
  base_archive:
    description: A root file system (tar) on this node, imported as O(base) when that does not exist.
    type: path
  base_name:
    description: Another name under which O(base) is on this node; nothing is pulled for it then.
    type: str
  network:
    description: Network mode of the build steps; with V(none) nothing can be fetched.
    type: str
    default: host
  log:
    description: File for the build's output.
    type: path
    required: true
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Build the image
  gb10.cluster.image_build:
    tag: "{{ image_plan.tag }}"
    fingerprint: "{{ image_plan.fingerprint }}"
    base: "{{ image_plan.base }}"
    context_dir: /var/lib/gb10/build/vllm-node
    log: /var/log/gb10/build-vllm-node.log
"""

RETURN = r"""
seconds:
  description: How long the build took.
  returned: when it was built
  type: float
"""

import json
import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def logged(module: AnsibleModule, command: list[str], log: Path) -> tuple[int, list[str]]:
    """Run a command with its output appended to a log as it comes; return (exit code, last 60 lines)."""
    shell = 'log=$1; shift; exec "$@" >>"$log" 2>&1'
    code, _out, _err = module.run_command(["/bin/sh", "-c", shell, "sh", str(log), *command])
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return code, lines[-60:]


def asked_registry(lines: list[str], base: str) -> bool:
    """Return whether a build ended because its builder looked for the base image in a registry."""
    name, _colon, tag = base.partition(":")
    return any("failed to do request" in line and f"/{name}/manifests/{tag}" in line for line in lines)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "tag": {"type": "str", "required": True},
            "fingerprint": {"type": "str", "required": True},
            "context_dir": {"type": "path", "required": True},
            "base": {"type": "str", "required": True},
            "base_archive": {"type": "path"},
            "base_name": {"type": "str"},
            "network": {"type": "str", "default": "host"},
            "log": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    want = module.params
    docker = module.get_bin_path("docker")
    if docker is None:
        if module.check_mode:
            module.exit_json(changed=True, msg="Docker is not installed yet; the image would be built.")
        module.fail_json(msg="Docker is not installed on this node; run playbooks/provision.yml first.")
    code, out, _err = module.run_command([docker, "image", "inspect", want["tag"]])
    if code == 0:
        labels = json.loads(out)[0]["Config"].get("Labels") or {}
        if labels.get("gb10.fingerprint") == want["fingerprint"]:
            module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True)

    log = Path(want["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    module.run_command_environ_update = {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    started = time.monotonic()
    code, _out, _err = module.run_command([docker, "image", "inspect", want["base"]])
    if code != 0 and want["base_archive"]:
        code, tail = logged(module, [docker, "import", want["base_archive"], want["base"]], log)
        if code != 0:
            module.fail_json(msg=f"{want['base_archive']} cannot be imported as a base image: " + "\n".join(tail))
    chosen = []
    if want["base_name"]:
        path = Path(want["context_dir"]) / "Dockerfile"
        text = path.read_text(encoding="utf-8")
        files.write(
            path.with_suffix(".local"),
            re.sub(
                rf"^FROM {re.escape(want['base'])}$", f"FROM {want['base_name']}", text, count=1, flags=re.MULTILINE
            ),
        )
        chosen = ["--file", str(path.with_suffix(".local"))]
    command = [docker, "build", "--network", want["network"], "--tag", want["tag"], *chosen, want["context_dir"]]
    code, tail = logged(module, command, log)
    if code != 0 and asked_registry(tail, want["base"]):
        # Seen once in many builds: the builder overlooks the base that was imported a moment ago, and asks Docker Hub.
        absent, _out, _err = module.run_command([docker, "image", "inspect", want["base"]])
        if not absent:
            code, tail = logged(module, command, log)
    if code != 0:
        module.fail_json(
            msg=f"The build of {want['tag']} failed (exit code {code}); its complete output is in {log} on this node:\n"
            + "\n".join(tail)
        )
    module.exit_json(changed=True, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
