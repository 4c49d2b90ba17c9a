#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Write a set of small files on a node in one step
version_added: 0.1.0
description:
  - Compares each file with what is on the node and writes those that differ, each through an optional validation
    command, a temporary file and an atomic rename.
  - Every file is validated before the first one is written, so that one bad file leaves all as they were.
  - A file may also be managed in part, as one block between two marker lines.
  - No symbolic link of another user than root is followed, neither for reading nor for writing.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: >-
          Where the file belongs. A missing directory above it is created with the owner of the one above and mode 0755,
          or 0700 below a home directory.
        type: path
        required: true
      content:
        description: >-
          The whole text, or the block's text when O(files[].marker) is given. Ignored when O(files[].state=absent).
        type: str
        default: ""
      mode:
        description: Octal permissions as a string. A file that is managed in part keeps its own.
        type: str
        default: "0644"
      owner:
        description: Owning user; root unless given.
        type: str
        default: root
      group:
        description: Owning group; root unless given, and the owner's own when empty.
        type: str
        default: root
      state:
        description: V(absent) removes the file, or the block when O(files[].marker) is given.
        type: str
        choices: [present, absent]
        default: present
      marker:
        description: >-
          Own only the lines between C(# BEGIN <marker>) and C(# END <marker>); the rest of the file is left alone.
        type: str
      merge:
        description: >-
          V(json) merges O(files[].content), a JSON object, into the object in the file: dictionaries are merged,
          entries that are missing in a list are added, null removes a key.
        type: str
        choices: [json]
      validate:
        description: >-
          Command that gets the temporary file in place of C(%s) and must exit 0. Skipped when its program is absent.
        type: str
      secret:
        description: Keep the content out of the diff.
        type: bool
        default: false
  root:
    description:
      - Directory that stands for V(/), to show on another machine what a node would be given.
      - The files in it belong to the user who runs the module, whatever O(files[].owner) and O(files[].group) say.
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Configure journald and earlyoom
  gb10.cluster.node_files:
    files:
      - path: /etc/systemd/journald.conf.d/10-gb10.conf
        content: |
          [Journal]
          SystemMaxUse=2G
      - path: /etc/hosts
        marker: gb10.cluster fabric
        content: "10.211.0.11 gx10-1-fabric"
  register: node_files
"""

RETURN = r"""
changed_paths:
  description: Paths that were (or in check mode would be) written, re-owned or removed.
  returned: success
  type: list
  elements: str
  sample: [/etc/default/earlyoom]
"""

import grp
import os
import pwd
import shlex
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.json_merge import JsonMergeError, merge, parse, render
from ansible_collections.gb10.cluster.plugins.module_utils._node.text_block import with_block

SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "default": ""},
    "mode": {"type": "str", "default": "0644"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "marker": {"type": "str"},
    "merge": {"type": "str", "choices": ["json"]},
    "validate": {"type": "str"},
    "secret": {"type": "bool", "default": False},
}


def target(item: dict[str, Any], before: str | None) -> str | None:
    """Return the text that the file shall have; None means that it shall not exist."""
    if item["marker"]:
        block = None if item["state"] == "absent" else item["content"]
        if block is None and before is None:
            return None
        return with_block(before or "", item["marker"], block)
    if item["state"] == "absent":
        return None
    if item["merge"] == "json":
        have = parse(before or "", item["path"])
        want = merge(have, parse(item["content"], "the wanted content"))
        return before if have == want and before is not None else render(want)
    content: str = item["content"]
    return content if content.endswith("\n") or not content else content + "\n"


def ids(module: AnsibleModule, item: dict[str, Any]) -> tuple[int, int]:
    """Return the numeric owner and group; fails when the node does not know the names."""
    if module.params["root"]:
        return os.geteuid(), os.getegid()
    try:
        account = pwd.getpwnam(item["owner"])
        return account.pw_uid, grp.getgrnam(item["group"]).gr_gid if item["group"] else account.pw_gid
    except KeyError as error:
        if module.check_mode:
            # An account that an earlier task would have created.
            return -1, -1
        module.fail_json(msg=f"{item['path']}: {error.args[0]} on this node")
        raise


def validate(module: AnsibleModule, item: dict[str, Any], text: str) -> None:
    """Run the item's validation command on a temporary copy; fails with its output."""
    if not item["validate"]:
        return
    words = shlex.split(item["validate"])
    if shutil.which(words[0]) is None:
        return
    suffix = Path(item["path"]).suffix
    with tempfile.NamedTemporaryFile("wb", prefix="gb10-validate-", suffix=suffix) as copy:
        copy.write(text.encode("utf-8", "surrogateescape"))
        copy.flush()
        code, out, err = module.run_command([word.replace("%s", copy.name) for word in words])
    if code != 0:
        module.fail_json(
            msg=(
                f"{item['path']} was not written: {words[0]} refuses the new content "
                f"(exit code {code}): {(err or out).strip()}"
            )
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": SPEC},
            "root": {"type": "path"},
        },
        supports_check_mode=True,
    )
    work: list[tuple[Path, str | None, tuple[int, int, int]]] = []
    diffs: list[dict[str, str]] = []
    root = Path(module.params["root"] or "/")
    for item in module.params["files"]:
        path = root / item["path"].lstrip("/")
        try:
            found = files.read(path)
            before = found[0].decode("utf-8", "surrogateescape") if found else None
            after = target(item, before)
        except JsonMergeError as error:
            module.fail_json(msg=str(error))
        except OSError as error:
            module.fail_json(msg=f"{path} could not be read: {error.strerror}. Nothing was written.")
        have = (stat.S_IMODE(found[1].st_mode), found[1].st_uid, found[1].st_gid) if found else None
        want = (int(item["mode"], 8), *ids(module, item))
        if have is not None and (item["marker"] or item["merge"]):
            want = have
        if before == after and (after is None or have == want):
            continue
        if after is not None and after != before:
            validate(module, item, after)
        work.append((path, after, want))
        if before == after and have is not None:
            before, after = (f"mode {mode:04o}, owner {uid}, group {gid}\n" for mode, uid, gid in (have, want))
        elif item["secret"]:
            before, after = "<hidden>\n", "<hidden, changed>\n"
        diffs.append(files.diff(str(path), before or "", after or ""))
    if not module.check_mode:
        for path, text, (mode, uid, gid) in work:
            try:
                if text is None:
                    files.remove(path)
                else:
                    files.make_directories(path.parent)
                    files.write(path, text.encode("utf-8", "surrogateescape"), mode, uid, gid)
            except OSError as error:
                module.fail_json(msg=f"{path} could not be written: {error.strerror}")
    module.exit_json(changed=bool(work), changed_paths=[str(path) for path, _text, _want in work], diff=diffs)


if __name__ == "__main__":
    main()
