#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_manifest
short_description: List the files of a model that vLLM needs, with size and hash
version_added: 0.1.0
description:
  - Reads a model's directory at its source, decides which files belong on the nodes, proves that the
    shards are whole by their own headers, and hashes everything in parallel.
  - Hashes are cached by size, modification time and inode.
options:
  path:
    description: The model's directory.
    type: path
    required: true
  repo:
    description: C(organisation/repository).
    type: str
    required: true
  revision:
    description: The revision that the directory holds.
    type: str
    default: main
  cache:
    description: File that keeps hashes between runs.
    type: path
attributes:
  check_mode:
    description: Can run in check mode; it only reads, apart from its own cache.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
author:
  - The gb10.cluster developers (@gb10-cluster)
"""

EXAMPLES = r"""
- name: Read the manifest at the source
  gb10.cluster.weights_manifest:
    path: ~/models/Qwen/Qwen3.5-397B-A17B-FP8
    repo: Qwen/Qwen3.5-397B-A17B-FP8
  delegate_to: localhost
"""

RETURN = r"""
manifest:
  description: C(repo), C(revision), C(files) with C(path), C(size) and C(sha256), C(bytes), C(digest).
  returned: success
  type: dict
left_out:
  description: Files that stay where they are, and why.
  returned: always
  type: dict
errors:
  description: Each thing that is wrong with the source, a sentence each.
  returned: failure
  type: list
  elements: str
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils import weights

INDEX = "model.safetensors.index.json"


def walk(folder: Path) -> tuple[Any, ...]:
    """Return (relative path → resolved path, sentences about dangling links and unreadable files)."""
    found: dict[str, Any] = {}
    errors: list[str] = []
    for root, dirs, files in os.walk(folder, followlinks=True):
        dirs[:] = sorted(name for name in dirs if name not in (".git", ".cache"))
        for name in sorted(files):
            path = Path(root) / name
            relative = str(path.relative_to(folder))
            if not path.exists():
                errors.append(f"{relative} is a link to {path.readlink()}, which is not there.")
            elif not os.access(path, os.R_OK):
                errors.append(f"{relative} cannot be read by this user.")
            else:
                found[relative] = path
    return found, errors


def header(path: Path) -> bytes:
    """Return the first 8 bytes of a safetensors file and the header that they announce."""
    with path.open("rb") as handle:
        start = handle.read(8)
        return start + handle.read(min(int.from_bytes(start, "little"), 100 * 2**20)) if len(start) == 8 else start


def digest(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hashed(files: dict[str, Any], cache_path: str) -> list[dict[str, Any]]:
    """Return path, size and sha256 of each file; hashes of unchanged files come from the cache."""
    cache: dict[str, Any] = {}
    if cache_path and Path(cache_path).is_file():
        try:
            cache = json.loads(Path(cache_path).read_text(encoding="utf-8"))
        except ValueError:
            cache = {}
    marks = {}
    for name, path in files.items():
        stat = path.stat()
        marks[name] = (f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}", stat.st_size)
    todo = {name: path for name, path in files.items() if marks[name][0] not in cache}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for name, value in zip(todo, pool.map(digest, todo.values()), strict=True):
            cache[marks[name][0]] = value
    if cache_path and todo:
        target = Path(cache_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(cache), encoding="utf-8")
        temporary.replace(target)
    return [{"path": name, "size": marks[name][1], "sha256": cache[marks[name][0]]} for name in sorted(files)]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "cache": {"type": "path"},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    where = f"{module.params['repo']} in {folder}"
    if not folder.is_dir():
        module.fail_json(
            msg=f"{where}: there is no such directory on the source.", errors=["no directory"], left_out={}
        )
    files, errors = walk(folder)
    index = None
    if INDEX in files:
        try:
            index = json.loads(files[INDEX].read_text(encoding="utf-8"))
        except ValueError as problem:
            errors.append(f"{INDEX} is no JSON: {problem}.")
    needed, left, missing = weights.choose(files, index)
    errors += missing
    for name in needed:
        if name.endswith(".safetensors"):
            wrong = weights.safetensors_error(name, files[name].stat().st_size, header(files[name]))
            errors += [wrong] if wrong else []
    if errors:
        module.fail_json(msg="\n".join(f"{where}: {error}" for error in errors), errors=errors, left_out=left)
    described = hashed({name: files[name] for name in needed}, module.params["cache"] or "")
    manifest = weights.make_manifest(module.params["repo"], module.params["revision"], described)
    module.exit_json(changed=False, manifest=manifest, left_out=left)


if __name__ == "__main__":
    main()
