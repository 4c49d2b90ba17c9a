#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_check
short_description: Let the vLLM of an image check a model's whole configuration before anything is stopped
version_added: 0.1.0
description:
  - Runs the candidate image without weights in memory, without a GPU's memory and without a network, and lets
    its vLLM parse the final C(vllm serve) command and build the engine's configuration from it.
  - A refusal shows vLLM's own sentence and this collection's. Nothing of the running model is touched.
  - An accepted configuration is remembered by a digest of image, command and environment, and not asked again.
options:
  model:
    description: The model's name, for messages.
    type: str
    required: true
  image:
    description: The image.
    type: str
    required: true
  python:
    description: The interpreter inside the image.
    type: str
    default: python3
  argv:
    description: The whole command, from C(vllm serve) on.
    type: list
    elements: str
    required: true
  env:
    description: The engine's environment, without secrets.
    type: dict
    default: {}
  weights:
    description: The model's directory on the node.
    type: path
    required: true
  mounted_at:
    description: Where the command expects that directory.
    type: str
    required: true
  beside:
    description: Other directories on the node that the command needs, with where it expects each.
    type: dict
    default: {}
  docker_args:
    description: More arguments of C(docker run), such as a limit of memory.
    type: list
    elements: str
    default: []
  program:
    description: The installed program C(check), see M(gb10.cluster.program); run by I(python) inside the image.
    type: path
    required: true
  records_dir:
    description: Where accepted configurations are remembered.
    type: path
    required: true
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  check_mode:
    details: Asks in check mode too, since asking changes nothing, but remembers nothing.
"""

EXAMPLES = r"""
- name: Check the configuration in the candidate image
  gb10.cluster.engine_check:
    model: my-model
    image: gb10/vllm-node:0123456789ab
    argv: [vllm, serve, /root/.cache/huggingface/org/repo, --max-model-len, "4096"]
    weights: /var/lib/gb10/weights/org/repo
    mounted_at: /root/.cache/huggingface/org/repo
    program: "{{ lookup('gb10.cluster.program', 'check') }}"
    records_dir: /var/lib/gb10/checks
"""

RETURN = r"""
asked:
  description: Whether the image was run; false when this configuration was accepted before.
  returned: success
  type: bool
verdict:
  description: What vLLM answered, with I(architecture) and I(max_model_len) when it accepted.
  returned: when the image was run
  type: dict
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine import verdict as answers
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "image": {"type": "str", "required": True},
            "python": {"type": "str", "default": "python3"},
            "argv": {"type": "list", "elements": "str", "required": True},
            "env": {"type": "dict", "default": {}},
            "weights": {"type": "path", "required": True},
            "mounted_at": {"type": "str", "required": True},
            "beside": {"type": "dict", "default": {}},
            "docker_args": {"type": "list", "elements": "str", "default": []},
            "program": {"type": "path", "required": True},
            "records_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    want = module.params
    env = {name: str(value) for name, value in want["env"].items()}
    code, out, err = (
        module.run_command(["docker", "image", "inspect", want["image"]])
        if module.get_bin_path("docker")
        else (1, "", "there is no docker on this node")
    )
    missing = [each for each in (want["weights"], *want["beside"], want["program"]) if not Path(each).exists()]
    if code != 0 or missing:
        reason = err.strip() if code != 0 else f"{missing[0]} is missing"
        if module.check_mode:
            module.exit_json(changed=False, asked=False, msg=f"Would be asked once it can be: {reason}.")
        module.fail_json(msg=f"{want['image']} cannot check {want['model']}: {reason}. Run playbooks/site.yml.")
    mark = answers.digest(identity(json.loads(out)[0]), want["argv"], env, want["program"])
    record = Path(want["records_dir"]) / f"{mark}.json"
    if record.is_file():
        module.exit_json(changed=False, asked=False)
    command = ["docker", "run", "--rm", "--interactive", "--network", "none", *want["docker_args"]]
    for source, target in {want["weights"]: want["mounted_at"], **want["beside"]}.items():
        command += ["--volume", f"{source}:{target}:ro"]
    command += ["--volume", f"{want['program']}:{want['program']}:ro", "--entrypoint", want["python"]]
    code, out, err = module.run_command(
        [*command, want["image"], want["program"], "check"], data=json.dumps({"argv": want["argv"], "env": env})
    )
    try:
        verdict = answers.parse(out, err, code)
    except answers.NoVerdictError as error:
        module.fail_json(
            msg=f"{want['image']} gave no verdict on {want['model']}: {error}. Nothing was stopped or changed; "
            "engine_config_check: false starts it without this check."
        )
    if not verdict["ok"]:
        said = {**verdict, "error": answers.vllm_words(verdict["error"])}
        module.fail_json(msg=answers.refusal(want["model"], want["image"], verdict), verdict=said)
    if not module.check_mode:
        record.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(record, {"model": want["model"], "image": want["image"], **verdict})
    module.exit_json(changed=False, asked=True, verdict=verdict)


if __name__ == "__main__":
    main()
