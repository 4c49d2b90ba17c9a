#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_tree
short_description: Make a node's copy of a model whole, or tell what it lacks
version_added: 0.1.0
description:
  - With O(state=read) it tells which files of the manifest are lacking; nothing is changed.
  - With O(state=present) the lacking files come from the incoming directory (copied there before) or from
    O(url) (ranges are resumed), are held against their hashes, and take their place by rename. A stamp
    with the manifest is written last.
options:
  state:
    description: What to do.
    type: str
    choices: [read, present]
    default: read
  root:
    description: Directory of all models on this node.
    type: path
    required: true
  manifest:
    description: The manifest made at the source.
    type: dict
    required: true
  url:
    description: Where a node that is whole serves O(root), e.g. C(http://192.168.100.1:5081).
    type: str
  streams:
    description: How many files are fetched side by side.
    type: int
    default: 4
  reserve_gib:
    description: Free space that must remain on the file system.
    type: float
    default: 2.0
attributes:
  check_mode:
    description: Can run in check mode, in which nothing is fetched.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: A tree that carries the manifest's stamp is left alone.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Tell what is lacking
  gb10.cluster.weights_tree:
    root: /var/lib/gb10/weights
    manifest: "{{ source.manifest }}"
"""

RETURN = r"""
complete:
  description: Whether the tree is whole.
  returned: always
  type: bool
lacking:
  description: Files of the manifest that are not there.
  returned: always
  type: list
  elements: str
lacking_bytes:
  description: Their size.
  returned: always
  type: int
free_bytes:
  description: Free space where the models live.
  returned: always
  type: int
incoming:
  description: Where files are put before they are whole.
  returned: always
  type: str
fetched_bytes:
  description: Bytes that came over the network.
  returned: O(state=present)
  type: int
"""

import hashlib
import json
import os
import shutil
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gb10.cluster.plugins.module_utils import weights

BLOCK = 4 * 2**20


def existing(folder: Path) -> Path:
    """Return the nearest directory above that exists."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def look(root: Path, manifest: dict[str, Any]) -> tuple[Any, ...]:
    """Return (whether the stamp vouches for all, lacking paths, lacking bytes, free bytes)."""
    tree = root / manifest["repo"]
    stamp = None
    if (tree / weights.STAMP).is_file():
        try:
            stamp = json.loads((tree / weights.STAMP).read_text(encoding="utf-8"))
        except ValueError:
            stamp = None
    sizes = {
        file["path"]: (tree / file["path"]).stat().st_size
        for file in manifest["files"]
        if (tree / file["path"]).is_file()
    }
    unstamped = weights.lacking(manifest, sizes, stamp)
    hashes = {file["path"]: file for file in manifest["files"]}
    # Files of the right length that no stamp vouches for (copied by hand, or the stamp was removed) are read through:
    # what has its hash is not fetched again.
    doubtful = [path for path in unstamped if sizes.get(path) == hashes[path]["size"]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = dict(zip(doubtful, pool.map(sha256, [tree / path for path in doubtful]), strict=True))
    lacking = [path for path in unstamped if found.get(path) != hashes[path]["sha256"]]
    lacking_bytes = sum(hashes[path]["size"] for path in lacking)
    return not unstamped, lacking, lacking_bytes, shutil.disk_usage(existing(root)).free


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fetch(url: str, file: dict[str, Any], part: Path) -> int:
    """Bring a partial file to its full length and return the bytes received."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    if have > file["size"]:
        part.unlink()
        have = 0
    if have == file["size"] and part.is_file():
        return 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    received = 0
    with open_url(url, headers=headers, timeout=30, use_proxy=False) as reply:
        mode = "ab" if reply.status == 206 else "wb"
        with part.open(mode) as handle:
            while True:
                block = reply.read(BLOCK)
                if not block:
                    break
                handle.write(block)
                received += len(block)
    return received


def bring(file: dict[str, Any], source: str, incoming: Path) -> int:
    """Make one file of the manifest whole below ``incoming``; return the bytes received.

    :raises ValueError: when it does not have its hash after it was fetched twice.
    """
    path = incoming / file["path"]
    received = 0
    for attempt in range(2):
        if source:
            received += fetch(f"{source}/{urllib.parse.quote(file['path'])}", file, path)
        if path.is_file() and path.stat().st_size == file["size"] and sha256(path) == file["sha256"]:
            return received
        if not source:
            raise ValueError(f"{file['path']} did not arrive whole; run the playbook again and it is sent again.")
        if attempt == 0 and path.is_file():
            path.unlink()
    raise ValueError(
        f"{file['path']} has the wrong hash after two fetches from {source}: the source itself is damaged."
    )


def install(root: Path, manifest: dict[str, Any], lacking: list[str], incoming: Path) -> None:
    """Move the proven files to their place and stamp the tree."""
    tree = root / manifest["repo"]
    tree.mkdir(parents=True, exist_ok=True)
    stamp = tree / weights.STAMP
    if stamp.is_file():
        stamp.unlink()
    for name in lacking:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (incoming / name).replace(target)
    temporary = tree / f"{weights.STAMP}.tmp"
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    temporary.replace(stamp)
    shutil.rmtree(incoming, ignore_errors=True)
    # Directories above that another model's transfer still needs are not empty and stay.
    for folder in list(incoming.parents)[: len(Path(manifest["repo"]).parts)]:
        try:
            folder.rmdir()
        except OSError:
            break


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "present"], "default": "read"},
            "root": {"type": "path", "required": True},
            "manifest": {"type": "dict", "required": True},
            "url": {"type": "str"},
            "streams": {"type": "int", "default": 4},
            "reserve_gib": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    manifest = module.params["manifest"]
    incoming = root / ".incoming" / manifest["repo"]
    complete, lacking, lacking_bytes, free = look(root, manifest)
    state = {
        "complete": complete,
        "lacking": lacking,
        "lacking_bytes": lacking_bytes,
        "free_bytes": free,
        "incoming": str(incoming),
    }
    arrived = sum(path.stat().st_blocks * 512 for path in incoming.rglob("*") if path.is_file())
    short = lacking_bytes - arrived + int(module.params["reserve_gib"] * 2**30) - free
    if lacking and short > 0:
        module.fail_json(
            msg=f"{os.uname().nodename}: {root} has {free / 2**30:.1f} GiB free and {manifest['repo']} still needs "
            f"{(lacking_bytes - arrived) / 2**30:.1f} GiB with {module.params['reserve_gib']} GiB to remain: "
            f"{short / 2**30:.1f} GiB short. Remove a model that is not needed, or point gb10_weights_root elsewhere.",
            **state,
        )
    if module.params["state"] == "read" or complete:
        module.exit_json(changed=False, **state)
    if module.check_mode:
        module.exit_json(changed=True, **state)
    source = f"{module.params['url'].rstrip('/')}/{manifest['repo']}" if module.params["url"] else ""
    wanted = [file for file in manifest["files"] if file["path"] in lacking]
    try:
        with ThreadPoolExecutor(max_workers=module.params["streams"]) as pool:
            received = sum(pool.map(lambda file: bring(file, source, incoming), wanted))
    except (ValueError, OSError) as problem:
        module.fail_json(msg=f"{manifest['repo']}: {problem}", **state)
    install(root, manifest, lacking, incoming)
    state.update(complete=True, lacking=[], lacking_bytes=0)
    module.exit_json(changed=True, fetched_bytes=received, **state)


if __name__ == "__main__":
    main()
