#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: program
short_description: Install a program of this collection on a node
version_added: 0.1.0
description:
  - Installs what runs on a node outside of Ansible's modules, as one file that Python runs. It is built on the control
    node from the collection's own code, and its name carries its digest.
  - An archive that exists is never written again, so that a process that runs from one is not disturbed by a newer one.
  - Archives that no unit file, process, open file or container's mount refers to are removed, those younger than an
    hour excepted; programs of earlier releases likewise.
  - The lookup P(gb10.cluster.program#lookup) returns the path for unit files.
options:
  program:
    description: Name of the program.
    type: str
    required: true
  directory:
    description: Where programs are installed.
    type: path
    default: /usr/local/lib/gb10
  file:
    description: Set by the action plugin. Name of the archive.
    type: str
  data:
    description: Set by the action plugin. The archive, encoded as Base64.
    type: str
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Install the periodic health check
  gb10.cluster.program:
    program: watch
"""

RETURN = r"""
path:
  description: Where the archive is.
  returned: success
  type: str
  sample: /usr/local/lib/gb10/gb10-watch-0123456789ab.pyz
removed:
  description: What was removed (or would be, in check mode) because nothing refers to it any more.
  returned: success
  type: list
  elements: path
  sample: [/usr/local/lib/gb10/gb10-watch-ba9876543210.pyz]
"""

import base64
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import diff
from ansible_collections.gb10.cluster.plugins.module_utils._program import archive


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "str", "required": True},
            "directory": {"type": "path", "default": archive.DIRECTORY},
            "file": {"type": "str"},
            # Not a secret: 100 kB of it would go into the node's log at every call otherwise.
            "data": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["directory"]) / (module.params["file"] or "")
    if not archive.NAME.fullmatch(path.name):
        module.fail_json(msg="The name of the archive is missing: gb10.cluster.program needs its action plugin.")
    missing = not path.exists()
    # The action plugin then sends the archive.
    if missing and not module.params["data"] and not module.check_mode:
        module.exit_json(missing=True)
    gone: list[Path] = []
    try:
        if missing and not module.check_mode:
            archive.install(path, base64.b64decode(module.params["data"]))
        elif not missing:
            archive.verify(path)
            if not module.check_mode:
                # The hour counts from when it was last asked for.
                os.utime(path)
        gone = archive.candidates(path.parent, path.name, time.time())
        if gone:
            places = [Path(each) for each in (*archive.UNIT_DIRECTORIES, archive.CONTAINERS)]
            gone = archive.unused(gone, archive.mentions(Path("/proc"), places))
        if not module.check_mode:
            archive.remove(gone)
    except archive.ArchiveError as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"{path.parent}: {error.strerror or error}; nothing runs from a half-written archive.")
    module.exit_json(
        changed=missing or bool(gone),
        path=str(path),
        removed=[str(each) for each in gone],
        diff=diff(str(path.parent), "".join(f"{each}\n" for each in gone), f"{path}\n" if missing else ""),
    )


if __name__ == "__main__":
    main()
