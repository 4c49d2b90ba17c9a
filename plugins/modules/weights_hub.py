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
  - Needs nothing but the node's Python; the same on the control node and on a node that reaches the hub.
options:
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
  - gb10.cluster.attributes.no_diff
attributes:
  check_mode:
    details: Reads the hub's list of files only.
author:
  - The gb10.cluster developers (@gb10-cluster)
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
fetched_bytes:
  description: Bytes that were downloaded.
  returned: success
  type: int
"""

import hashlib
import shutil
import urllib.error
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder as source
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs

BLOCK = 4 * 2**20
NOTES = ".cache/huggingface/download"
MAX_LIST_BYTES = 64 * 2**20


class HubError(Exception):
    """What went wrong, as a sentence."""


@dataclass(frozen=True)
class HubFile:
    """What the hub publishes of a file; a large one has a sha256, a small one git's hash of a blob."""

    size: int
    digest: str
    large: bool


class Hub:
    """A model's revision on a hub."""

    def __init__(self, endpoint: str, repo: str, revision: str, token: str) -> None:
        self.base = endpoint.rstrip("/")
        self.repo, self.revision = repo, revision
        self._token = token

    def open(self, path: str, start: int = 0) -> Any:
        """Open a path of the hub, from a byte on."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            # Not to another host than the hub's: large files are redirected to one that signs its addresses.
            return open_url(f"{self.base}/{path}", headers=headers, timeout=60, unredirected_headers=["Authorization"])
        except urllib.error.HTTPError as problem:
            raise HubError(self._explain(problem.code)) from problem
        except (OSError, HTTPException) as problem:
            raise HubError(f"{self.base} does not answer: {getattr(problem, 'reason', problem)}.") from problem

    def _explain(self, code: int) -> str:
        what = f"{self.repo} at revision {self.revision}"
        if code in (401, 403):
            had = "The token that was given has no right to it" if self._token else "No token was given (gb10_hf_token)"
            return f"The hub refuses {what}: {had}, or the model's licence has to be accepted on its page first."
        if code == 404:
            return f"The hub has no {what}; look at the name and the commit."
        return f"The hub answers {code} for {what}; run again, what has arrived is kept."

    def files(self) -> tuple[str, dict[str, HubFile]]:
        """Return (commit, what the hub reports of each file by its path)."""
        revision = urllib.parse.quote(self.revision, safe="")
        with self.open(f"api/models/{urllib.parse.quote(self.repo)}/revision/{revision}?blobs=true") as reply:
            data = reply.read(MAX_LIST_BYTES + 1)
        listed, wrong = source.parse_json("the list of files", data) if len(data) <= MAX_LIST_BYTES else (None, "long")
        found = read_list(listed)
        if wrong or found is None:
            raise HubError(f"{self.base} answered something that is not a list of files.")
        return found

    def get_json(self, commit: str, name: str) -> Any:
        """Return the JSON value of a file of the revision."""
        with self.open(f"{urllib.parse.quote(self.repo)}/resolve/{commit}/{name}") as reply:
            value, wrong = source.parse_json(name, reply.read(source.MAX_JSON_BYTES + 1))
        if wrong:
            raise HubError(f"{self.repo} on the hub: {wrong}")
        return value

    def fetch(self, commit: str, name: str, part: Path, size: int) -> int:
        """Bring a partial file to its length; return the bytes received."""
        part.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.is_file() else 0
        if have > size:
            part.unlink()
            have = 0
        if have == size and part.is_file():
            return 0
        received = 0
        path = f"{urllib.parse.quote(self.repo)}/resolve/{commit}/{urllib.parse.quote(name)}"
        with self.open(path, have) as reply, part.open("ab" if have and reply.status == 206 else "wb") as handle:
            while block := reply.read(BLOCK):
                handle.write(block)
                received += len(block)
                if handle.tell() > size:
                    raise HubError(f"{name} is longer than the {size} bytes that the hub publishes for it.")
        return received


def read_list(listed: Any) -> tuple[str, dict[str, HubFile]] | None:
    """Return (commit, files by path) of the hub's answer, or None when it is something else."""
    commit = listed.get("sha") if isinstance(listed, dict) else None
    siblings = listed.get("siblings") if isinstance(listed, dict) else None
    if not (isinstance(commit, str) and source.COMMIT.fullmatch(commit) and isinstance(siblings, list)):
        return None
    files = {}
    for each in siblings:
        if not isinstance(each, dict) or not isinstance(each.get("rfilename"), str):
            return None
        lfs = each["lfs"] if isinstance(each.get("lfs"), dict) else {}
        size, digest = (lfs if lfs else each).get("size"), lfs.get("sha256") if lfs else each.get("blobId")
        if type(size) is not int or not 0 <= size <= weights.MAX_BYTES or not isinstance(digest, str):
            return None
        files[each["rfilename"]] = HubFile(size, digest, bool(lfs))
    return commit, files


def is_right(path: Path, file: HubFile) -> bool:
    """Return whether a file has the length and the hash that the hub publishes."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    # Git's own hash of a small file counts its length as well.
    hashed = hashlib.sha256() if file.large else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest() == file.digest


def bring(hub: Hub, commit: str, name: str, file: HubFile, folder: Path) -> int:
    """Complete one file; return the bytes received."""
    part = folder / ".cache" / "gb10" / f"{name}.part"
    received = 0
    for _attempt in range(2):
        received += hub.fetch(commit, name, part, file.size)
        if is_right(part, file):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            note = folder / NOTES / f"{name}.metadata"
            note.parent.mkdir(parents=True, exist_ok=True)
            node_files.write(note, f"{commit}\n")
            return received
        if part.stat().st_size >= file.size:
            part.unlink()
    raise HubError(f"{name} did not come with the hash that the hub publishes for it, twice; run again.")


def needed_files(
    hub: Hub, commit: str, files: Mapping[str, HubFile], folder: Path, serve: Mapping[str, Any]
) -> list[str]:
    """Return the files that vLLM needs; the indexes are fetched to know them."""
    indexes = {}
    for name in needs.INDEXES:
        if name in files and is_right(folder / name, files[name]):
            indexes[name], _wrong = source.read_index(folder / name)
        elif name in files:
            indexes[name] = hub.get_json(commit, name)
    needed, _left, errors = needs.choose({name: file.size for name, file in files.items()}, indexes, serve)
    errors += [error for error in map(weights.path_error, needed) if error]
    if errors:
        raise HubError("\n".join(f"{hub.repo} on the hub: {error}" for error in errors))
    return needed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "path": {"type": "path", "required": True},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "serve": {"type": "dict", "default": {}},
            "token": {"type": "str", "default": "", "no_log": True},
            "streams": {"type": "int", "default": 4},
            "reserve_gib": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    want = module.params
    folder = Path(want["path"])
    hub = Hub(want["endpoint"], want["repo"], want["revision"], want["token"])
    try:
        commit, files = hub.files()
        needed = needed_files(hub, commit, files, folder, want["serve"])
        with ThreadPoolExecutor(max_workers=want["streams"]) as pool:
            right = dict(zip(needed, pool.map(lambda name: is_right(folder / name, files[name]), needed), strict=True))
        missing = [name for name in needed if not right[name]]
        if module.check_mode or not missing:
            module.exit_json(changed=bool(missing), commit=commit, missing=missing, fetched_bytes=0)
        folder.mkdir(parents=True, exist_ok=True)
        missing_bytes = sum(files[name].size for name in missing)
        arrived = sum(path.stat().st_size for path in (folder / ".cache" / "gb10").rglob("*.part"))
        short = missing_bytes - arrived + int(want["reserve_gib"] * 2**30) - shutil.disk_usage(folder).free
        if short > 0:
            raise HubError(
                f"{folder} is {weights.amount(short)} short of room for {want['repo']}, with {want['reserve_gib']} GiB "
                "to remain. Make room there."
            )
        with ThreadPoolExecutor(max_workers=want["streams"]) as pool:
            received = sum(pool.map(lambda name: bring(hub, commit, name, files[name], folder), missing))
    except HubError as problem:
        module.fail_json(msg=str(problem))
    except HTTPException as problem:
        module.fail_json(msg=f"{want['repo']}: {hub.base} broke off ({type(problem).__name__}); run again.")
    except OSError as problem:
        module.fail_json(msg=f"{want['repo']} into {folder}: {problem.filename or ''} {problem.strerror or problem}.")
    module.exit_json(changed=True, commit=commit, missing=missing, fetched_bytes=received)


if __name__ == "__main__":
    main()
