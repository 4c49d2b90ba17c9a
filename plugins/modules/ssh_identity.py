#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_identity
short_description: Give a user a key for one purpose, and read the node's own host keys
version_added: 0.1.0
description:
  - Makes an Ed25519 key pair for a user where there is none, and returns its public half together with the public host
    keys of the node, so that other nodes can know both.
  - As the host keys are read over the connection that Ansible has verified, nobody has to trust on first use.
options:
  user:
    description: Owner of the key; the user who logged in, when empty.
    type: str
    default: ""
  name:
    description: File name of the key below the user's C(.ssh).
    type: str
    default: gb10_fabric
  comment:
    description: Comment of the key.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Make the node's key for the fabric
  gb10.cluster.ssh_identity:
    comment: "gb10 fabric {{ inventory_hostname }}"
  become: true
  register: identity
"""

RETURN = r"""
user:
  description: Owner of the key.
  returned: success
  type: str
path:
  description: The private key's path.
  returned: success
  type: str
public_key:
  description: Type and public key, without comment; empty in check mode when there is no key yet.
  returned: success
  type: str
host_keys:
  description: The node's public host keys, type and key.
  returned: success
  type: list
  elements: str
"""

import os
import pwd
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def public_part(path: Path) -> str:
    """Return type and key of a public key file, without its comment."""
    return " ".join(path.read_text(encoding="utf-8").split()[:2])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "default": ""},
            "name": {"type": "str", "default": "gb10_fabric"},
            "comment": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    user = module.params["user"] or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        module.fail_json(msg=f"There is no user {user} on this node to own the fabric's SSH key.")
    directory = Path(account.pw_dir) / ".ssh"
    path = directory / module.params["name"]
    public = path.with_name(path.name + ".pub")
    changed = not path.exists()
    if changed and not module.check_mode:
        if not directory.exists():
            directory.mkdir(mode=0o700)
            os.chown(directory, account.pw_uid, account.pw_gid)
        # Made under another name: a run that is cut short leaves no half key behind.
        fresh = directory / f".{path.name}.new"
        for leftover in (fresh, fresh.with_name(fresh.name + ".pub")):
            leftover.unlink(missing_ok=True)
        module.run_command(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", module.params["comment"], "-f", str(fresh)],
            check_rc=True,
        )
        for made, place in ((fresh.with_name(fresh.name + ".pub"), public), (fresh, path)):
            os.chown(made, account.pw_uid, account.pw_gid)
            made.replace(place)
    elif path.exists() and not public.exists() and not module.check_mode:
        _code, text, _err = module.run_command(["ssh-keygen", "-y", "-f", str(path)], check_rc=True)
        public.write_text(text, encoding="utf-8")
        os.chown(public, account.pw_uid, account.pw_gid)
    module.exit_json(
        changed=changed,
        user=user,
        path=str(path),
        public_key=public_part(public) if public.exists() else "",
        host_keys=[public_part(key) for key in sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub"))],
        diff={
            "before": "",
            "after": f"{path}\n" if changed else "",
            "before_header": "SSH keys",
            "after_header": "SSH keys",
        },
    )


if __name__ == "__main__":
    main()
