#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_hub
short_description: Download a revision of a model from a hub, the files that vLLM needs
version_added: 0.1.0
description:
  - Asks the hub for the commit that the revision names and for the files of that commit, and fetches those that vLLM
    needs and that are missing, several side by side, each resumed where it stopped.
  - A file takes its place when it has the hash that the hub publishes for it, sha256 for large files and git's own for
    small ones.
  - With O(state=planned) nothing is put in its place; the module returns what would be downloaded, and how long it
    takes at the rate that O(measure_seconds) of the download gave.
  - Needs nothing but the node's Python; the same on the control node and on a node that reaches the hub.
options:
  state:
    description: Whether to download, or to find out what a download would take.
    type: str
    choices: [present, planned]
    default: present
  measure_seconds:
    description: With O(state=planned), how long to download for measuring; what has come is kept. Not in check mode.
    type: float
    default: 5.0
  repo:
    description: C(organisation/repository).
    type: str
    required: true
  revision:
    description: A commit, a branch or a tag. Only a commit is the same next time.
    type: str
    default: main
  path:
    description: The directory that the files go to.
    type: path
    required: true
  endpoint:
    description: Where the hub is.
    type: str
    default: https://huggingface.co
  serve:
    description: Options of vLLM that decide which files it reads, as in M(gb10.cluster.weights_manifest).
    type: dict
    default: {}
  token:
    description: Token for models that need one. It goes to the endpoint's own host only.
    type: str
    default: ""
  streams:
    description: How many files are fetched side by side.
    type: int
    default: 4
  reserve_gib:
    description: Free space that must remain on the file system.
    type: float
    default: 2.0
extends_documentation_fragment:
  - gb10.cluster.weights
  - gb10.cluster.attributes.no_diff
attributes:
  check_mode:
    details: Reads the hub's list of files only.
"""

EXAMPLES = r"""
- name: Fetch the pinned revision
  gb10.cluster.weights_hub:
    repo: organisation/model
    revision: 0123456789abcdef0123456789abcdef01234567
    path: ~/models/organisation/model
    token: "{{ gb10_hf_token }}"
"""

RETURN = r"""
commit:
  description: The commit that the revision names.
  returned: success
  type: str
missing:
  description: Files that were missing.
  returned: success
  type: list
  elements: str
missing_bytes:
  description: Their size.
  returned: success
  type: int
rate_bytes_per_s:
  description: The rate of the hub, 0 when it was not measured.
  returned: with O(state=planned)
  type: int
report:
  description: What will be downloaded, how large it is and how long it takes, as a sentence.
  returned: with O(state=planned)
  type: str
  sample: "organisation/model from https://huggingface.co: 17 files, 18.2 GiB; about 4 min 03 s at 80.5 MB/s."
fetched_bytes:
  description: Bytes that were downloaded.
  returned: success
  type: int
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import existing
from ansible_collections.gb10.cluster.plugins.module_utils._weights import hub as weights_hub
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store
from ansible_collections.gb10.cluster.plugins.module_utils._weights.hub import Hub, HubError


def root_of(folder: Path) -> Path:
    """Return the root of all models from where one is downloaded to: ``<root>[/.incoming]/organisation/repository``."""
    root = folder.parent.parent
    return root.parent if root.name == store.INCOMING else root


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "planned"], "default": "present"},
            "measure_seconds": {"type": "float", "default": 5.0},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "path": {"type": "path", "required": True},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "serve": {"type": "dict", "default": {}},
            "token": {"type": "str", "default": "", "no_log": True},
            "streams": {"type": "int", "default": 4},
            "reserve_gib": {"type": "float", "default": 2.0},
            "beside": {"type": "list", "elements": "dict", "default": [], "options": store.BESIDE},
        },
        supports_check_mode=True,
    )
    want = module.params
    folder = Path(want["path"])
    planned = want["state"] == "planned"
    hub = Hub(want["endpoint"], want["repo"], want["revision"], want["token"])
    try:
        commit, files = hub.files()
        needed = weights_hub.needed_files(hub, commit, files, folder, want["serve"])
        # A plan compares sizes alone; the download reads what is there.
        right = weights_hub.has_size if planned else weights_hub.is_right
        with ThreadPoolExecutor(max_workers=want["streams"]) as pool:
            there = dict(zip(needed, pool.map(lambda name: right(folder / name, files[name]), needed), strict=True))
        missing = [name for name in needed if not there[name]]
        missing_bytes = sum(files[name].size for name in missing)
        result = {"commit": commit, "missing": missing, "missing_bytes": missing_bytes, "fetched_bytes": 0}
        arrived = weights_hub.arrived_bytes(folder, missing)
        if missing:
            free = shutil.disk_usage(existing(folder)).free
            later = store.beside_bytes(root_of(folder), want["beside"])
            short = missing_bytes - arrived + later + int(want["reserve_gib"] * 2**30) - free
            if short > 0:
                what = " and ".join([want["repo"], *(each["repo"] for each in want["beside"] if later)])
                raise HubError(
                    f"{folder} is {weights.amount(short)} short of room for {what}, with {want['reserve_gib']} "
                    "GiB to remain. Make room there."
                )
        if planned:
            rate = 0.0
            if missing and not module.check_mode:
                largest = sorted(missing, key=lambda name: -files[name].size)[: want["streams"]]
                rate = weights_hub.measure(hub, commit, files, largest, folder, want["measure_seconds"])
            said = weights_hub.report(want["repo"], hub.base, len(missing), missing_bytes, arrived, rate)
            module.exit_json(changed=False, rate_bytes_per_s=round(rate), report=said, **result)
        if missing and not module.check_mode:
            with ThreadPoolExecutor(max_workers=want["streams"]) as pool:
                jobs = pool.map(lambda name: weights_hub.download(hub, commit, name, files[name], folder), missing)
                result["fetched_bytes"] = sum(jobs)
    except HubError as problem:
        module.fail_json(msg=str(problem))
    except HTTPException as problem:
        module.fail_json(msg=f"{want['repo']}: {hub.base} broke off ({type(problem).__name__}); run again.")
    except OSError as problem:
        module.fail_json(msg=f"{want['repo']} into {folder}: {problem.filename or ''} {problem.strerror or problem}.")
    module.exit_json(changed=bool(missing), **result)


if __name__ == "__main__":
    main()
