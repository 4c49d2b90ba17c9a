#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_file
short_description: Keep a random secret in a file that root alone reads
version_added: 0.1.0
description:
  - Without O(value) a secret of 256 random bits is created on the node when the file is missing or holds less, and
    whatever it holds is returned. With O(value) the file holds that.
  - The file has mode 0600. Register the result with C(no_log).
options:
  path:
    description: The file. A missing parent directory is created with mode 0755.
    type: path
    required: true
  value:
    description: What the file must hold, as another node returned it.
    type: str
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  check_mode:
    details: Creates nothing, and returns an empty secret where one would be created.
"""

EXAMPLES = r"""
- name: Read the key of the head, or create it
  gb10.cluster.secret_file:
    path: /etc/gb10/engine/tether.key
  when: inventory_hostname == groups['head'][0]
  register: key
  no_log: true

- name: Write the key of the head on the others
  gb10.cluster.secret_file:
    path: /etc/gb10/engine/tether.key
    value: "{{ hostvars[groups['head'][0]].key.secret }}"
  no_log: true
"""

RETURN = r"""
secret:
  description: What the file holds, 64 hexadecimal digits when it was created here.
  returned: success
  type: str
"""

import secrets
import stat
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

CHARS = 64


def read(path: Path) -> str:
    """Return what the file holds without white space around it; nothing when it is missing."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "required": True}, "value": {"type": "str", "no_log": True}},
        supports_check_mode=True,
    )
    path, value = Path(module.params["path"]), module.params["value"]
    try:
        have = read(path)
        wanted = value or (have if len(have) >= CHARS else "" if module.check_mode else secrets.token_hex(CHARS // 2))
        changed = have != wanted or not have or stat.S_IMODE(path.stat().st_mode) != 0o600
        if changed and not module.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write(path, wanted + "\n", 0o600)
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be read or written: {error.strerror or error}.")
    module.exit_json(changed=changed, secret=wanted)


if __name__ == "__main__":
    main()
