#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_registry
short_description: Offer an image's layers on the fabric for as long as they move
version_added: 0.1.0
description:
  - Runs the distribution's C(docker-registry) as a transient systemd unit that listens on one address,
    and pushes an image into it. Layers that it holds from an earlier run are not sent again.
  - With O(state=absent) the unit is stopped; the layers stay on disk for the next run.
options:
  state:
    description: Whether the registry runs.
    type: str
    choices: [present, absent]
    default: present
  address:
    description: The address to listen on, one of the fabric.
    type: str
    required: true
  port:
    description: The port to listen on.
    type: int
    required: true
  data_dir:
    description: Where the layers are kept.
    type: path
    required: true
  push:
    description: The image to push.
    type: str
attributes:
  check_mode:
    description: Can run in check mode, in which nothing is started.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: >-
      The unit is transient: it never counts as a change. A push of layers that are there moves nothing.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Offer the layers on the fabric
  gb10.cluster.image_registry:
    address: 192.168.100.1
    port: 5080
    data_dir: /var/lib/gb10/registry
    push: gb10/vllm-node:0123456789ab
"""

RETURN = r"""
seconds:
  description: How long the push took.
  returned: when an image was pushed
  type: float
"""

import json
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

UNIT = "gb10-registry"


def answers(url: str) -> bool:
    """Return whether a registry answers at the address."""
    try:
        with open_url(url, timeout=2, use_proxy=False) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def start(module: AnsibleModule, address: str, port: int, data_dir: str) -> None:
    """Start the registry unless it answers, and wait until it does."""
    url = f"http://{address}:{port}/v2/"
    if answers(url):
        return
    binary = module.get_bin_path("docker-registry") or module.fail_json(
        msg="There is no docker-registry on this node; the image role installs it from the distribution's packages."
    )
    run_dir = Path("/run/gb10")
    run_dir.mkdir(mode=0o755, exist_ok=True)
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": data_dir}},
        "http": {"addr": f"{address}:{port}"},
    }
    settings = run_dir / "registry.yml"
    settings.write_text(json.dumps(config), encoding="utf-8")
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    module.run_command(
        ["systemd-run", "--unit", UNIT, "--collect", "--property", "Nice=5", binary, "serve", str(settings)],
        check_rc=True,
    )
    for _attempt in range(100):
        if answers(url):
            return
        time.sleep(0.1)
    _code, out, _err = module.run_command(["journalctl", "-u", UNIT, "-n", "15", "--no-pager"])
    module.fail_json(msg=f"The registry does not answer at {url}: {out.strip()[-1500:]}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "data_dir": {"type": "path", "required": True},
            "push": {"type": "str"},
        },
        supports_check_mode=True,
    )
    want = module.params
    if module.check_mode:
        module.exit_json(changed=False)
    if want["state"] == "absent":
        module.run_command(["systemctl", "stop", f"{UNIT}.service"])
        module.exit_json(changed=False)
    start(module, want["address"], want["port"], want["data_dir"])
    if not want["push"]:
        module.exit_json(changed=False)
    remote = f"{want['address']}:{want['port']}/{want['push']}"
    started = time.monotonic()
    module.run_command(["docker", "tag", want["push"], remote], check_rc=True)
    code, out, err = module.run_command(["docker", "push", "--quiet", remote])
    module.run_command(["docker", "rmi", remote])
    if code != 0:
        hint = (
            " The Docker Engine takes this registry for one with TLS: gb10_fabric_subnets must hold its subnet."
            if "HTTP response to HTTPS" in err
            else ""
        )
        module.fail_json(msg=f"The push of {want['push']} to {remote} failed: {(err or out).strip()[-1500:]}{hint}")
    module.exit_json(changed=False, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
