#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_identity
short_description: Create a user's SSH key for one purpose, and read the node's host keys
version_added: 0.1.0
description:
  - Creates an Ed25519 key pair for a user where there is none, and returns its public key together with the public host
    keys of the node, for the other nodes' C(authorized_keys) and C(known_hosts).
  - The host keys are read over the connection that Ansible has verified, so that no trust on first use is needed.
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
  state:
    description: V(absent) removes the key pair.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - gb10.cluster.attributes
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
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

SSHD_DIR = Path("/etc/ssh")


def public_part(text: str) -> str:
    """Return type and key of a public key's text, without its comment."""
    return " ".join(text.split()[:2])


def key_pair(module: AnsibleModule, private: bytes | None) -> tuple[bytes, bytes]:
    """Return private and public key, made new or completed, in a directory that nobody else can enter."""
    with tempfile.TemporaryDirectory(prefix="gb10-ssh-") as place:
        path = Path(place, "key")
        if private is None:
            module.run_command(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", module.params["comment"], "-f", str(path)],
                check_rc=True,
            )
            return path.read_bytes(), path.with_suffix(".pub").read_bytes()
        files.write(path, private, 0o600)
        _code, public, _err = module.run_command(["ssh-keygen", "-y", "-f", str(path)], check_rc=True)
        return private, public.encode()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "default": ""},
            "name": {"type": "str", "default": "gb10_fabric"},
            "comment": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    user = module.params["user"] or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        module.fail_json(msg=f"There is no user {user} on this node to own the fabric's SSH key.")
    path = Path(account.pw_dir) / ".ssh" / module.params["name"]
    public_path = path.with_name(path.name + ".pub")
    if module.params["state"] == "absent":
        there = [each for each in (path, public_path) if os.path.lexists(each)]
        for each in there if not module.check_mode else ():
            files.remove(each)
        module.exit_json(changed=bool(there), user=user, path=str(path), public_key="", host_keys=[])
    try:
        found, found_public = files.read(path), files.read(public_path)
        private, public = (each[0] if each else None for each in (found, found_public))
        missing = [str(each) for each, content in ((public_path, public), (path, private)) if content is None]
        if missing and not module.check_mode:
            private, public = key_pair(module, private)
            files.make_directories(path.parent)
            # The private key last: a run that is killed in between makes a new pair.
            files.write(public_path, public, 0o644, account.pw_uid, account.pw_gid)
            if found is None:
                files.write(path, private, 0o600, account.pw_uid, account.pw_gid)
    except OSError as error:
        module.fail_json(msg=f"The SSH key {path} could not be read or written: {error.strerror} ({error.filename})")
    if found is None and module.check_mode:
        public = None
    module.exit_json(
        changed=bool(missing),
        user=user,
        path=str(path),
        public_key=public_part(public.decode()) if public else "",
        host_keys=[public_part(key.read_text(encoding="utf-8")) for key in sorted(SSHD_DIR.glob("ssh_host_*_key.pub"))],
        diff=files.diff("SSH keys", "", "".join(f"{each}\n" for each in missing)),
    )


if __name__ == "__main__":
    main()
