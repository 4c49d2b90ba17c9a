# SPDX-License-Identifier: Apache-2.0
"""Download a revision of a model from a hub.  Does I/O; of other packages it needs ansible.module_utils alone.

What the hub answers is checked before it is used: lengths, names, the hash of every file.
"""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder as source
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs

BLOCK = 4 * 2**20
NOTES = ".cache/huggingface/download"
MAX_LIST_BYTES = 64 * 2**20
#: A connection that broke off so often without bringing anything is not opened again.
EMPTY_TIMES = 3


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
        with self.open(f"{urllib.parse.quote(self.repo)}/resolve/{commit}/{name}") as reply:
            value, wrong = source.parse_json(name, reply.read(source.MAX_JSON_BYTES + 1))
        if wrong:
            raise HubError(f"{self.repo} on the hub: {wrong}")
        return value

    def fetch(self, commit: str, name: str, part: Path, size: int, until: float | None = None) -> int:
        """Bring a partial file to its length, or as far as the hub sends it; return the bytes received.

        :param until: the machine's running time (seconds) at which to stop.
        :raises HubError: the hub refuses, or sends more than it published.
        :raises OSError: the file cannot be written.
        """
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
            while until is None or time.monotonic() < until:
                try:
                    block = reply.read(BLOCK)
                except (OSError, HTTPException):
                    # The connection broke off; what has come is kept.
                    break
                if not block:
                    break
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


def has_size(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def is_right(path: Path, file: HubFile) -> bool:
    """Return whether a file has the length and the hash that the hub publishes."""
    if not has_size(path, file):
        return False
    # Git's own hash of a small file counts its length as well.
    hashed = hashlib.sha256() if file.large else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest() == file.digest


def part_of(folder: Path, name: str) -> Path:
    return folder / ".cache" / "gb10" / f"{name}.part"


def arrived_bytes(folder: Path, names: Sequence[str]) -> int:
    """Return how many bytes of some files an interrupted download has left."""
    return sum(part.stat().st_size for part in (part_of(folder, name) for name in names) if part.is_file())


def download(hub: Hub, commit: str, name: str, file: HubFile, folder: Path) -> int:
    """Complete one file and put it in its place; return the bytes received.

    A connection that breaks off is opened again as long as it brings something.

    :raises HubError: the file came with a wrong hash twice, or nothing came three times in a row.
    """
    part = part_of(folder, name)
    received = wrong = empty = 0
    while wrong < 2 and empty < EMPTY_TIMES:
        came = hub.fetch(commit, name, part, file.size)
        received += came
        empty = 0 if came else empty + 1
        if part.stat().st_size < file.size:
            continue
        if is_right(part, file):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            note = folder / NOTES / f"{name}.metadata"
            note.parent.mkdir(parents=True, exist_ok=True)
            node_files.write(note, f"{commit}\n")
            return received
        part.unlink()
        wrong += 1
        empty = 0
    if wrong:
        raise HubError(f"{name} did not come with the hash that the hub publishes for it, twice; run again.")
    raise HubError(f"{name}: {hub.base} sends nothing; run again, what has arrived is kept.")


def measure(
    hub: Hub, commit: str, files: Mapping[str, HubFile], names: Sequence[str], folder: Path, seconds: float
) -> float:
    """Return the rate of the hub in bytes/s, from some seconds of the download; what comes is kept.

    :param names: the files that are fetched side by side.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        came = pool.map(
            lambda name: hub.fetch(commit, name, part_of(folder, name), files[name].size, began + seconds), names
        )
        received = sum(came)
    return received / max(time.monotonic() - began, 1e-3)


def report(repo: str, endpoint: str, count: int, missing_bytes: int, arrived_bytes: int, rate: float) -> str:
    """Return the sentence that says what will be downloaded, how large it is and how long it takes.

    :param rate: bytes/s; 0 when it was not measured.
    """
    left = max(0, missing_bytes - arrived_bytes)
    came = f", of which {weights.amount(arrived_bytes)} are here already" if arrived_bytes else ""
    text = f"{repo} from {endpoint}: {count} file{'s' if count != 1 else ''}, {weights.amount(missing_bytes)}{came}"
    return f"{text}; about {weights.duration(left / rate)} at {rate / 1e6:.1f} MB/s." if rate > 0 else f"{text}."


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
