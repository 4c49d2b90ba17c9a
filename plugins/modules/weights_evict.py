#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_evict
short_description: Remove models and leftovers that gb10.cluster.weights_tree chose
version_added: 0.1.0
description:
  - Removes directories below the root of all models. A model must carry a manifest of ours at that moment; anything
    else but a leftover of a stopped transfer is refused.
options:
  root:
    description: Directory of all models on this node.
    type: path
    required: true
  names:
    description: Directories below O(root), as RV(gb10.cluster.weights_tree#module:evict) names them.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Remove models to make room
  gb10.cluster.weights_evict:
    root: /var/lib/gb10/weights
    names: "{{ read.evict }}"
"""

RETURN = r"""
evicted:
  description: What was removed, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights


def refusal(root: Path, name: str) -> str | None:
    """Return why a directory must not be removed, or None."""
    error = weights.path_error(name)
    if error:
        return error
    if name.startswith(".incoming/"):
        return None
    if not (root / name / weights.STAMP).is_file():
        return f"{root / name} carries no manifest of ours, so it is not removed."
    return None


def evict(folder: Path) -> None:
    """Remove a model; its stamp goes first, so that what an interruption leaves does not count as complete."""
    (folder / weights.STAMP).unlink(missing_ok=True)
    shutil.rmtree(folder)
    for above in (folder.parent, folder.parent.parent):
        try:
            if above.name == ".incoming" or above.parent.name == ".incoming":
                above.rmdir()
        except OSError:
            return


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    there = [name for name in module.params["names"] if (root / name).is_dir()]
    errors = [error for error in (refusal(root, name) for name in there) if error]
    if errors:
        module.fail_json(msg="\n".join(errors))
    if not module.check_mode:
        for name in there:
            try:
                evict(root / name)
            except OSError as problem:
                module.fail_json(msg=f"{root / name} could not be removed: {problem.filename}: {problem.strerror}.")
    before = "".join(f"{name}\n" for name in there)
    module.exit_json(changed=bool(there), evicted=there, diff={"before": before, "after": ""})


if __name__ == "__main__":
    main()
