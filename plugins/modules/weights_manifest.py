#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: weights_manifest
short_description: List the files of a model that vLLM needs, with size and hash
version_added: 0.1.0
description:
  - Reads a model's directory at its source, decides which files belong on the nodes, checks by the shards' own headers
    that they are complete, and hashes everything in parallel, each file at once and piece by piece.
  - Hashes are cached by size, modification time and inode.
  - Links are resolved. Where the directory is not there and the cache of huggingface_hub is
    (C(models--organisation--repository) beside it), its snapshot of the revision is taken.
  - A link to a file outside of the directory and of that cache is refused, unless it is a shard.
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
    description:
      - The revision that the directory is to hold. When it is a commit and the download left a note of another one,
        the source is refused.
    type: str
    default: main
  cache:
    description: Directory that keeps hashes between runs.
    type: path
    required: true
  serve:
    description:
      - vLLM's options of the model, by name without leading dashes. C(load-format), C(tokenizer-mode),
        C(config-format) and C(tokenizer) decide which files it reads.
    type: dict
    default: {}
  hashes:
    description: Whether to hash the files. Without hashes the source is checked in seconds, and there is no manifest.
    type: bool
    default: true
  absent_ok:
    description: Whether a source that does not exist gives no manifest instead of a failure.
    type: bool
    default: false
  all_files:
    description: Whether every file counts, whatever O(serve) says; for data that is no model.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
attributes:
  check_mode:
    details: Writes its own cache only.
"""

EXAMPLES = r"""
- name: Read the manifest at the source
  gb10.cluster.weights_manifest:
    path: ~/models/organisation/model
    repo: organisation/model
    cache: ~/.cache/gb10
  delegate_to: localhost
"""

RETURN = r"""
manifest:
  description:
    - C(repo), C(revision), C(files) with C(path), C(size) and C(sha256), C(bytes), C(piece_bytes), C(pieces_sha256)
      and C(digest). Empty without O(hashes), or when the source does not exist and O(absent_ok) is set.
  returned: success
  type: dict
origin:
  description: What serves the files, C(folder), C(pieces) (the file with the pieces' hashes) and C(marks) by file.
  returned: success
  type: dict
found:
  description: Whether the source exists and is complete.
  returned: success
  type: bool
held:
  description: The commit that a download noted; empty when nobody did.
  returned: when the source exists
  type: str
note:
  description: What a cache of huggingface_hub holds instead of the revision, as a sentence.
  returned: when the source does not exist and O(absent_ok) is set
  type: str
left_out:
  description: Files that stay where they are, and why.
  returned: always
  type: dict
errors:
  description: What is wrong with the source, one sentence for each fault.
  returned: failure
  type: list
  elements: str
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder as source
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs, store


def hashed(files: dict[str, Path], cache_path: Path, piece_bytes: int) -> tuple[list[dict[str, Any]], bytes, list[str]]:
    """Return (path, size and sha256 of each file, the pieces' hashes, sentences); unchanged ones from the cache.

    :param files: path by relative path.
    :param cache_path: the file that keeps hashes between runs.
    """
    cache = node_files.read_json(cache_path)
    marks = {name: store.mark(path) for name, path in files.items()}
    keys = {
        name: f"{path.resolve()}|{marks[name][0]}|{marks[name][1]}|{marks[name][3]}|{piece_bytes}"
        for name, path in files.items()
    }
    todo = [name for name in files if keys[name] not in cache]
    errors = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(lambda name: store.hash_file(files[name], piece_bytes), todo)
        for name, (value, pieces) in zip(todo, results, strict=True):
            if store.mark(files[name]) != marks[name]:
                errors.append(f"{name} was modified while it was read; wait until the file is stable and run again.")
            else:
                cache[keys[name]] = [value, pieces.hex()]
    if todo:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        node_files.write(cache_path, json.dumps(cache))
    if errors:
        return [], b"", errors
    ordered = sorted(files)
    described = [{"path": name, "size": marks[name][0], "sha256": cache[keys[name]][0]} for name in ordered]
    return described, b"".join(bytes.fromhex(cache[keys[name]][1]) for name in ordered), []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "cache": {"type": "path", "required": True},
            "serve": {"type": "dict", "default": {}},
            "hashes": {"type": "bool", "default": True},
            "all_files": {"type": "bool", "default": False},
            "absent_ok": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    repo, revision = module.params["repo"], module.params["revision"]
    folder, note = source.locate(Path(module.params["path"]), repo, revision)
    where = f"{repo} in {folder}"
    if not folder.is_dir():
        if module.params["absent_ok"]:
            module.exit_json(changed=False, found=False, manifest={}, origin={}, left_out={}, note=note)
        said = note or "the directory does not exist on the source."
        module.fail_json(msg=f"{where}: {said}", errors=[said], left_out={})
    if note:
        module.warn(f"{repo}: {note}")
    found = source.walk(folder, repo)
    files, errors = found.files, found.errors
    held = source.revision_held(folder)
    if held and source.COMMIT.fullmatch(revision) and held != revision:
        errors.append(f"the download holds revision {held}, expected is {revision}. Download that one.")
    indexes = {}
    for name in needs.INDEXES:
        if name in files and name not in found.outside:
            indexes[name], wrong = source.read_index(files[name])
            errors += [wrong] if wrong else []
    needed, left, missing = needs.choose(found.sizes, indexes, module.params["serve"])
    if module.params["all_files"]:
        needed, left, missing = [name for name in sorted(files) if name not in weights.OWN_FILES], {}, []
    left.update(found.left)
    errors += missing
    errors += [error for error in map(weights.path_error, needed) if error]
    errors += source.outside_errors(found, needed)
    for name in needed:
        if name.endswith(".safetensors"):
            wrong = needs.safetensors_error(name, found.sizes[name], source.header(files[name]))
            errors += [wrong] if wrong else []
    cache = Path(module.params["cache"])
    described: list[dict[str, Any]] = []
    pieces = b""
    piece_bytes = weights.piece_bytes_for(sum(found.sizes[name] for name in needed))
    if not errors and module.params["hashes"]:
        described, pieces, errors = hashed({name: files[name] for name in needed}, cache / "hashes.json", piece_bytes)
    if errors:
        module.fail_json(msg="\n".join(f"{where}: {error}" for error in errors), errors=errors, left_out=left)
    if not module.params["hashes"]:
        module.exit_json(changed=False, found=True, manifest={}, origin={}, left_out=left, held=held)
    manifest = weights.make_manifest(repo, revision, described, piece_bytes, pieces)
    pieces_path = cache / f"{manifest['digest']}.pieces"
    node_files.write(pieces_path, pieces)
    origin = {
        "folder": str(folder),
        "pieces": str(pieces_path),
        "marks": {name: store.mark(files[name]) for name in needed},
    }
    module.exit_json(changed=False, found=True, manifest=manifest, origin=origin, left_out=left, held=held)


if __name__ == "__main__":
    main()
