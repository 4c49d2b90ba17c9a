# SPDX-License-Identifier: Apache-2.0
"""Read a model's directory at its source.  Does I/O.

What is in it was written by others: links may lead anywhere, files may be no files, JSON may be anything.  Nothing is
opened here that is not a regular file, and no link to a directory is followed, so that the walk has an end.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs
from ansible_collections.gb10.cluster.plugins.module_utils._weights.manifest import MAX_FILES

COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_JSON_BYTES = 100_000_000


@dataclass
class Folder:
    """The files of a model's directory, by relative path, and sentences about what cannot be used."""

    files: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    #: Links that lead out of the model's directory and its hub cache, with their targets.
    outside: dict[str, Path] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def cache_name(repo: str) -> str:
    """Return the name of a repository's directory in a cache of huggingface_hub."""
    return f"models--{repo.replace('/', '--')}"


def locate(path: Path, repo: str, revision: str) -> tuple[Path, str]:
    """Return (the directory to read, a sentence about the hub cache that was looked into or nothing).

    :param path: the model's own directory; where it does not exist, the hub cache beside it is looked into.
    """
    if path.is_dir():
        return path, ""
    above = path.parents[len(Path(repo).parts) - 1]
    for base in (above, above / "hub"):
        cached = base / cache_name(repo)
        snapshots = sorted(each.name for each in (cached / "snapshots").glob("*") if each.is_dir())
        if not snapshots:
            continue
        try:
            wanted = (cached / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            wanted = ""
        for each in (wanted, revision):
            if each in snapshots:
                return cached / "snapshots" / each, ""
        held = f"the cache {cached} holds {', '.join(snapshots)}"
        if COMMIT.fullmatch(revision):
            return path, f"{held}, expected is {revision}. Download that revision."
        if wanted or len(snapshots) > 1:
            return path, f"{held}, and its refs/{revision} is {wanted or 'missing'}. Set the revision to one of these."
        return cached / "snapshots" / snapshots[0], f"{held} and no refs/{revision}; this only snapshot is used."
    return path, ""


def revision_held(folder: Path) -> str:
    """Return the commit that a download noted, or nothing when there is no note."""
    if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name):
        return folder.name
    for note in sorted((folder / ".cache" / "huggingface" / "download").glob("*.metadata")):
        with note.open("rb") as handle:
            first = handle.read(100).split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        if COMMIT.fullmatch(first):
            return first
    return ""


def walk(folder: Path, repo: str) -> Folder:
    """Return what a model's directory holds; .git and .cache are skipped."""
    found = Folder()
    own = Path(os.path.realpath(folder))
    for root, dirs, names in os.walk(folder):
        below = Path(root).relative_to(folder)
        for name in sorted(dirs):
            if (Path(root) / name).is_symlink():
                found.left[f"{below / name}/"] = "a link to a directory, which is not followed"
        dirs[:] = sorted(name for name in dirs if name not in (".git", ".cache"))
        for name in sorted(names):
            _note(found, Path(root) / name, str(below / name), own, repo)
        if len(found.files) > MAX_FILES:
            found.errors.append(f"there are more than {MAX_FILES} files; this is not a model's directory.")
            break
    return found


def _note(found: Folder, path: Path, name: str, own: Path, repo: str) -> None:
    """Take a file into the folder, or a sentence that says why it cannot be used."""
    try:
        target = Path(os.path.realpath(path, strict=True))
        entry = target.stat()
    except OSError as problem:
        if path.is_symlink():
            gone = f"is a link to {os.readlink(path)}, which is not there"  # noqa: PTH115
            found.errors.append(f"{name} {gone}.")
        else:
            found.errors.append(f"{name} cannot be read by this user: {problem.strerror}.")
        return
    if not stat.S_ISREG(entry.st_mode):
        found.errors.append(f"{name} is not a regular file; remove it.")
    elif not os.access(path, os.R_OK):
        found.errors.append(f"{name} cannot be read by this user.")
    else:
        found.files[name], found.sizes[name] = path, entry.st_size
        if path.is_symlink() and not target.is_relative_to(own) and cache_name(repo) not in target.parts:
            found.outside[name] = target


def outside_errors(found: Folder, needed: list[str]) -> list[str]:
    """Return a sentence for each needed link that leads out of the model's directory.

    Shards may lie elsewhere: what is no safetensors file is refused by its header.  Anything else could be a file of
    the owner's, which would be copied to every node.
    """
    return [
        f"{name} is a link to {found.outside[name]}, outside of the model's directory, and is not transferred. Copy "
        "the file into the directory if it belongs to the model."
        for name in needed
        if name in found.outside and not name.endswith(".safetensors")
    ]


def header(path: Path) -> bytes:
    """Return the first 8 bytes of a safetensors file and the header that they announce, as far as it is there."""
    with path.open("rb") as handle:
        start = handle.read(8)
        length = int.from_bytes(start, "little")
        return start + handle.read(length if length <= needs.MAX_HEADER_BYTES else 0)


def read_index(path: Path) -> tuple[Any, str | None]:
    """Return (the JSON value of a model's file or None, what is wrong with it or None)."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_JSON_BYTES + 1)
    except OSError as problem:
        return None, f"{path.name} cannot be read: {problem.strerror}."
    return parse_json(path.name, data)


def parse_json(name: str, data: bytes) -> tuple[Any, str | None]:
    """Return (the JSON value of some bytes or None, what is wrong with them or None)."""
    if len(data) > MAX_JSON_BYTES:
        return None, f"{name} is longer than {MAX_JSON_BYTES} bytes."
    try:
        return json.loads(data), None
    except (ValueError, RecursionError) as problem:
        return None, f"{name} is not JSON: {str(problem)[:200]}."
