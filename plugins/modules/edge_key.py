#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: edge_key
short_description: Write the keys that the proxy in front of the API accepts
version_added: 0.1.0
description:
  - Writes a configuration for nginx, readable by root alone, that knows the key of this run and the key of the engine
    that serves on this node. While the two differ, because the engine gets its new key at its next start, both are
    accepted; the engine itself still checks its own.
  - Removes it when there is neither key. No key is returned or shown.
options:
  api_key:
    description: The key of this run; empty when it has none.
    type: str
    default: ""
  path:
    description: The file.
    type: path
    default: /etc/gb10/edge/key.conf
  record_path:
    description: The active record of the engine, beside which its environment is.
    type: path
    default: /etc/gb10/engine/active.json
extends_documentation_fragment:
  - gb10.cluster.attributes
  - gb10.cluster.attributes.no_diff
"""

EXAMPLES = r"""
- name: Write the keys that the proxy accepts
  gb10.cluster.edge_key:
    api_key: "{{ gb10_api_key }}"
"""

RETURN = r"""
keyed:
  description: Whether a key is asked for.
  returned: success
  type: bool
accepted:
  description: How many keys are accepted.
  returned: success
  type: int
"""

import os
import stat
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._edge.proxy import accepted, key_map
from ansible_collections.gb10.cluster.plugins.module_utils._engine import record
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "api_key": {"type": "str", "default": "", "no_log": True},
            "path": {"type": "path", "default": "/etc/gb10/edge/key.conf"},
            "record_path": {"type": "path", "default": "/etc/gb10/engine/active.json"},
        },
        supports_check_mode=True,
    )
    path, active = Path(module.params["path"]), Path(module.params["record_path"])
    model = str(files.read_json(active).get("model", ""))
    keys = accepted(module.params["api_key"], record.api_key(active, model) if model else "")
    wanted = key_map(keys).encode() if keys else None
    try:
        found = files.read(path)
        have = (found[0], stat.S_IMODE(found[1].st_mode), found[1].st_uid) if found else None
        changed = have != ((wanted, 0o600, os.geteuid()) if wanted else None)
        if changed and not module.check_mode:
            if wanted is None:
                files.remove(path)
            else:
                files.make_directories(path.parent)
                files.write(path, wanted, 0o600, os.geteuid(), os.getegid())
    except OSError as error:
        module.fail_json(msg=f"{path} could not be read or written: {error.strerror or error}.")
    module.exit_json(changed=changed, keyed=bool(keys), accepted=len(keys))


if __name__ == "__main__":
    main()
