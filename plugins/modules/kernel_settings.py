#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Keep kernel settings in a file and in the running kernel
version_added: 0.1.0
description:
  - Writes a file under C(/etc/sysctl.d) and sets the values in C(/proc/sys), in one step.
  - A setting that is in the file and differs in the kernel is set again, and reported as a change.
  - Needs no C(sysctl) program on the node.
options:
  path:
    description: The file; all of its content is managed by this module.
    type: path
    required: true
  values:
    description: Settings by their dotted names.
    type: dict
    required: true
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Keep the engine's memory from being swapped out
  gb10.cluster.kernel_settings:
    path: /etc/sysctl.d/90-gb10.conf
    values:
      vm.swappiness: 1
"""

RETURN = r"""
file_changed:
  description: Whether the file differed.
  returned: success
  type: bool
live_changed:
  description: Settings that differed in the running kernel.
  returned: success
  type: list
  elements: str
  sample: [vm.swappiness]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import sysctl_path

PROC_SYS = Path("/proc/sys")
HEADER = "# Managed by gb10.cluster; changes made here are overwritten.\n"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    wanted = {name: " ".join(str(value).split()) for name, value in module.params["values"].items()}
    text = HEADER + "".join(f"{name} = {value}\n" for name, value in sorted(wanted.items()))
    before_text = path.read_text(encoding="utf-8") if path.exists() else ""

    live: dict[str, str] = {}
    for name in wanted:
        try:
            live[name] = " ".join((PROC_SYS / sysctl_path(name)).read_text(encoding="utf-8").split())
        except OSError as error:
            module.fail_json(
                msg=(
                    f"This kernel has no setting {name} ({error.strerror}: {PROC_SYS / sysctl_path(name)}). "
                    "Load the kernel module that adds it, or remove it from the settings."
                )
            )
    stale = sorted(name for name in wanted if live[name] != wanted[name])
    if not module.check_mode:
        if before_text != text:
            files.make_directories(path.parent)
            files.write(path, text)
        for name in stale:
            files.keep("sysctls", name, live[name])
            try:
                (PROC_SYS / sysctl_path(name)).write_text(wanted[name], encoding="utf-8")
            except OSError as error:
                module.fail_json(
                    msg=(
                        f"{name} is {live[name]} and cannot be set to {wanted[name]}: {error.strerror}. "
                        "In a container the kernel's settings belong to its host; "
                        "set host_sysctl: false there."
                    )
                )
    module.exit_json(
        changed=before_text != text or bool(stale),
        file_changed=before_text != text,
        live_changed=stale,
        diff=[
            files.diff(str(path), before_text, text),
            files.diff(
                "running kernel",
                "".join(f"{name} = {live[name]}\n" for name in stale),
                "".join(f"{name} = {wanted[name]}\n" for name in stale),
            ),
        ],
    )


if __name__ == "__main__":
    main()
