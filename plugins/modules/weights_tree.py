#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_tree
short_description: Compare a model tree with its manifest
version_added: 0.1.0
description:
  - Compares the model's directory with the manifest. A file that the tree's stamp names with the right hash and that
    has not been written since is taken as right; every other one is read and hashed.
  - Where room is short, decides which models would have to be removed, and fails where that does not suffice. Nothing
    is removed here.
options:
  root:
    description: Directory of all models on this node.
    type: path
    required: true
  repo:
    description: C(organisation/repository).
    type: str
    required: true
  manifest:
    description: The manifest made at the source. When it is empty, the module only reports which one the tree carries.
    type: dict
    default: {}
  verify:
    description: Whether to read and hash every file, whatever the stamp says.
    type: bool
    default: false
  reserve_gib:
    description: Free space that must remain on the file system.
    type: float
    default: 2.0
  evictable:
    description:
      - Models (C(organisation/repository), shell patterns) that may be removed, the one unused for longest first.
    type: list
    elements: str
    default: []
  keep:
    description: Models that stay even if O(evictable) names them.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - gb10.cluster.weights
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Find the missing files
  gb10.cluster.weights_tree:
    root: /var/lib/gb10/weights
    repo: "{{ source.manifest.repo }}"
    manifest: "{{ source.manifest }}"
"""

RETURN = r"""
complete:
  description: Whether the tree is complete, verified and carries the manifest's stamp.
  returned: with O(manifest)
  type: bool
open:
  description: Whether this node's part of an earlier transfer was never closed, as after a run that died.
  returned: with O(manifest)
  type: bool
changes:
  description: Whether transferring the weights would change anything that counts.
  returned: with O(manifest)
  type: bool
missing:
  description: Files of the manifest that are missing or damaged.
  returned: with O(manifest)
  type: list
  elements: str
missing_bytes:
  description: Their size.
  returned: with O(manifest)
  type: int
arrived_bytes:
  description: The part of it that an earlier run left.
  returned: with O(manifest)
  type: int
remaining_bytes:
  description: The part of it that has to be transferred.
  returned: with O(manifest)
  type: int
free_bytes:
  description: Free space where the models live.
  returned: with O(manifest)
  type: int
evict:
  description: Directories below O(root) that must be removed to make room, leftovers of other transfers first.
  returned: with O(manifest)
  type: list
  elements: str
leftovers:
  description: Directories below O(root) that stopped transfers of other models left, with their size in bytes.
  returned: with O(manifest)
  type: dict
intact:
  description: Whether all files of the stamp are there and right; those that were written since are read.
  returned: without O(manifest)
  type: bool
stamp:
  description: The manifest that the tree carries; empty when it carries none.
  returned: without O(manifest)
  type: dict
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store

ENGINE = Path("/etc/gb10/engine")
PROC = Path("/proc")


def found_marks(tree: Path, manifest: dict[str, Any]) -> dict[str, list[int]]:
    """Return the mark of each of the manifest's files that is there with its size."""
    paths = {file["path"]: tree / file["path"] for file in manifest["files"]}
    sizes = {file["path"]: file["size"] for file in manifest["files"]}
    return {
        name: store.mark(path) for name, path in paths.items() if path.is_file() and path.stat().st_size == sizes[name]
    }


def look(tree: Path, manifest: dict[str, Any], verify: bool) -> tuple[bool, bool, list[str]]:
    """Return (whether the tree is complete and its stamp says so, whether it carries the stamp, the missing files)."""
    stamp = files.read_json(tree / weights.STAMP)
    stamp = {} if weights.manifest_error(stamp) else stamp
    found = found_marks(tree, manifest)
    unverified = weights.unstamped(manifest, found, stamp, {} if verify else files.read_json(tree / weights.MARKS))
    hashes = {file["path"]: file["sha256"] for file in manifest["files"]}
    doubtful = [path for path in unverified if path in found]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = dict(zip(doubtful, pool.map(lambda path: store.sha256(tree / path), doubtful), strict=True))
    missing = [path for path in unverified if read.get(path) != hashes[path]]
    stamped = stamp.get("digest") == manifest["digest"] and (tree / weights.PIECES).is_file()
    # What was right on reading, without stamp or mark, only has to be noted.
    return stamped and not unverified and not verify, stamped, missing


def users(root: Path) -> dict[str, str]:
    """Return who uses each directory below the root: what is served here, and whatever has it mounted."""
    found: dict[str, str] = {}
    active = files.read_json(ENGINE / "active.json")
    if active.get("repo"):
        for folder in {str(root / active["repo"]), *active.get("mounted", [])}:
            found[folder] = f"the model that is served, {active.get('model')}"
    for path in sorted(ENGINE.glob("*.json")):
        launch = files.read_json(path)
        wants = Path("/etc/systemd/system/multi-user.target.wants") / f"vllm-{launch.get('model')}.service"
        if launch.get("weights") and wants.is_symlink():
            for each in (launch["weights"], *launch.get("beside", [])):
                found.setdefault(str(each), f"the unit {wants.name}")
    for path in PROC.glob("[0-9]*/mountinfo"):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            place = line.split()[3]
            for folder in root.glob("*/*"):
                if place.endswith(f"{root.name}/{folder.relative_to(root)}"):
                    found.setdefault(str(folder), f"process {path.parent.name}, which has it mounted")
    return found


def trees(root: Path, repo: str) -> list[weights.Tree]:
    using = users(root)
    found = []
    for folder in sorted(root.glob("*/*")):
        name = str(folder.relative_to(root))
        if name == repo or name.startswith(store.INCOMING) or not folder.is_dir() or folder.is_symlink():
            continue
        stamp = folder / weights.STAMP
        ours = bool(files.read_json(stamp).get("digest"))
        used_at_s = stamp.stat().st_mtime if ours else 0.0
        found.append(weights.Tree(name, files.used_bytes(folder), used_at_s, ours, using.get(str(folder), "")))
    return found


def leftovers(root: Path, repo: str) -> dict[str, int]:
    """Return what stopped transfers of other models left."""
    return {
        str(folder.relative_to(root)): files.used_bytes(folder)
        for folder in sorted((root / store.INCOMING).glob("*/*"))
        if str(folder.relative_to(root / store.INCOMING)) != repo
    }


def make_room(
    root: Path, repo: str, short_bytes: int, evictable: list[str], keep: list[str]
) -> tuple[list[str], int, str]:
    """Return (directories to remove, bytes that are still short then, why each other model stays)."""
    left = leftovers(root, repo)
    chosen: list[str] = []
    for name, size in left.items():
        if short_bytes > 0:
            chosen.append(name)
            short_bytes -= size
    if short_bytes <= 0:
        return chosen, 0, ""
    others = trees(root, repo)
    going, stays = weights.evict(others, short_bytes, evictable, keep)
    sizes = {tree.repo: tree.size_bytes for tree in others}
    said = "; ".join(f"{name} ({weights.amount(sizes[name])}): {why}" for name, why in sorted(stays.items()))
    if not going:
        return [], short_bytes, f" What stays: {said}." if said else ""
    return chosen + [tree.repo for tree in going], 0, ""


def target_error(root: Path) -> str | None:
    """Return why nothing can be put there, or None."""
    base = files.existing(root)
    if not base.is_dir():
        return f"{base} is not a directory, so no model can be put into {root}."
    if os.statvfs(base).f_flag & os.ST_RDONLY:
        return (
            f"{root} is on a file system that is mounted read-only. Remount it, or point gb10_weights_root elsewhere."
        )
    if not os.access(base, os.W_OK):
        return f"{base} cannot be written by this user."
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "repo": {"type": "str", "required": True},
            "manifest": {"type": "dict", "default": {}},
            "verify": {"type": "bool", "default": False},
            "reserve_gib": {"type": "float", "default": 2.0},
            "evictable": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "beside": {"type": "list", "elements": "dict", "default": [], "options": store.BESIDE},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    repo, manifest = module.params["repo"], module.params["manifest"]
    tree, incoming = root / repo, root / store.INCOMING / repo
    node = os.uname().nodename
    if not manifest:
        stamp = files.read_json(tree / weights.STAMP)
        usable = stamp if not weights.manifest_error(stamp) else {}
        # What was written since is read; so this costs nothing as a rule.
        intact = bool(usable) and not look(tree, usable, False)[2]
        module.exit_json(changed=False, stamp=usable, intact=intact)
    error = weights.manifest_error(manifest)
    if error:
        module.fail_json(msg=f"{node}: {error}")
    complete, stamped, missing = look(tree, manifest, module.params["verify"])
    sizes = {file["path"]: file["size"] for file in manifest["files"]}
    missing_bytes = sum(sizes[path] for path in missing)
    arrived = min(files.used_bytes(incoming), missing_bytes) if incoming.is_dir() else 0
    free = shutil.disk_usage(files.existing(root)).free
    state: dict[str, Any] = {
        "complete": complete,
        "open": (store.RUN_DIR / "job.json").exists(),
        "changes": bool(missing) or not stamped,
        "missing": missing,
        "missing_bytes": missing_bytes,
        "arrived_bytes": arrived,
        "remaining_bytes": missing_bytes - arrived,
        "free_bytes": free,
        "leftovers": leftovers(root, repo),
        "evict": [],
    }
    if not missing:
        if complete and not module.check_mode:
            # The time of the last use, for the day on which the disk is full.
            os.utime(tree / weights.STAMP, (time.time(), time.time()))
        module.exit_json(changed=False, **state)
    error = target_error(root)
    if error:
        module.fail_json(msg=f"{node}: {error}", **state)
    beside = module.params["beside"]
    later = store.beside_bytes(root, beside)
    needed = missing_bytes - arrived + later
    short = needed + int(module.params["reserve_gib"] * 2**30) - free
    if short > 0:
        keep = [*module.params["keep"], *(each["repo"] for each in beside)]
        evict, still, said = make_room(root, repo, short, module.params["evictable"], keep)
        state["evict"] = evict
        if still > 0:
            what = " and ".join([repo, *(each["repo"] for each in beside if later)])
            module.fail_json(
                msg=f"{node}: {root} has {free / 2**30:.1f} GiB free and {what} still {'need' if later else 'needs'} "
                f"{needed / 2**30:.1f} GiB with {module.params['reserve_gib']} GiB to remain: "
                f"{still / 2**30:.1f} GiB short. Name a model that may be removed in weights_evictable, or point "
                f"gb10_weights_root elsewhere.{said}",
                **state,
            )
    module.exit_json(changed=False, **state)


if __name__ == "__main__":
    main()
