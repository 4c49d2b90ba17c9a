#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_server
short_description: Serve a node's weights on the fabric for as long as they move
version_added: 0.1.0
description:
  - Runs the distribution's nginx as a transient systemd unit with a configuration of its own, read-only,
    without listings, on one address of the fabric, for the cluster's nodes alone.
options:
  state:
    description: Whether the server runs.
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
  root:
    description: The directory to serve.
    type: path
    required: true
  allow:
    description: The addresses that may fetch.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Can run in check mode, in which nothing is started.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: The unit is transient and never counts as a change.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Serve the weights on the fabric
  gb10.cluster.weights_server:
    address: 192.168.100.1
    port: 5081
    root: /var/lib/gb10/weights
    allow: [192.168.100.2]
"""

RETURN = r"""
url:
  description: Where the directory is served.
  returned: success
  type: str
"""

import socket
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

UNIT = "gb10-weights"
CONFIG = """\
daemon off;
user root;
worker_processes auto;
pid /run/gb10/weights.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  sendfile_max_chunk 4m;
  tcp_nopush on;
  types {{ }}
  default_type application/octet-stream;
  server {{
    listen {address}:{port} reuseport;
    root {root};
    autoindex off;
    if ($request_method !~ ^(GET|HEAD)$) {{ return 405; }}
{allow}
    deny all;
  }}
}}
"""


def listens(address: str, port: int) -> bool:
    """Return whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "root": {"type": "path", "required": True},
            "allow": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    want = module.params
    url = f"http://{want['address']}:{want['port']}"
    if module.check_mode:
        module.exit_json(changed=False, url=url)
    module.run_command(["systemctl", "stop", f"{UNIT}.service"])
    if want["state"] == "absent":
        module.exit_json(changed=False, url=url)
    nginx = module.get_bin_path("nginx") or module.fail_json(
        msg="There is no nginx on this node; the weights role installs it from the distribution's packages."
    )
    run_dir = Path("/run/gb10")
    run_dir.mkdir(mode=0o755, exist_ok=True)
    settings = run_dir / "weights-nginx.conf"
    settings.write_text(
        CONFIG.format(
            address=want["address"],
            port=want["port"],
            root=want["root"],
            allow="\n".join(f"    allow {address};" for address in want["allow"]),
        ),
        encoding="utf-8",
    )
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])
    module.run_command(["systemd-run", "--unit", UNIT, "--collect", nginx, "-c", str(settings)], check_rc=True)
    for _attempt in range(100):
        if listens(want["address"], want["port"]):
            module.exit_json(changed=False, url=url)
        time.sleep(0.1)
    _code, out, _err = module.run_command(["journalctl", "-u", UNIT, "-n", "15", "--no-pager"])
    module.fail_json(msg=f"The server does not answer at {url}: {out.strip()[-1500:]}")


if __name__ == "__main__":
    main()
