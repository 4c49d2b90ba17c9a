# SPDX-License-Identifier: Apache-2.0
"""The code that a model's repository brings, and what the inventory's lock holds of it.

With ``trust-remote-code`` the engine runs that code as its own.  A lock is by repository: the ``revision`` that was
there when it was locked, and the sha256 of each file of ``code``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: object) -> bool:
    """Return whether a revision is a commit, which names the same files for good."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def code_in(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each Python file of a manifest, by path."""
    return {
        str(file["path"]): str(file["sha256"]) for file in manifest.get("files", []) if file["path"].endswith(".py")
    }


def _differences(locked: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
    """Return a phrase for each file of code that is another one, new, or gone."""
    words = {name: "another" if name in locked else "new" for name in code if locked.get(name) != code[name]}
    return [f"{name} is {word}" for name, word in words.items()] + [
        f"{name} is gone" for name in locked if name not in code
    ]


def judge(
    repo: str,
    manifest: Mapping[str, Any],
    locked: Mapping[str, Any],
    *,
    revision: str,
    held: str = "",
    relock: bool = False,
    lock_file: str = "the lock of the inventory",
) -> dict[str, Any]:
    """Return ``error`` (a sentence or nothing) and ``entry``, what the lock is to hold of a repository.

    :param manifest: of the model that this run would serve; empty while it is not known.
    :param locked: what the lock holds; empty at the first run.
    :param revision: what the model's file asks for.
    :param held: the commit that the source is known to be; empty when nobody noted it.
    :param relock: whether other code than the locked one is accepted.
    """
    here = revision if is_commit(revision) else held
    entry: dict[str, Any] = {"revision": here or revision, "code": code_in(manifest)} if manifest else dict(locked)
    if not locked or relock:
        return {"error": "", "entry": entry}
    wrong = []
    if is_commit(locked.get("revision")) and is_commit(here) and here != locked["revision"]:
        wrong.append(f"this run has revision {here}, {lock_file} holds {locked['revision']}")
    if manifest and (different := _differences(locked.get("code", {}), entry["code"])):
        wrong.append(f"{', '.join(different[:5])} since it was locked at revision {locked.get('revision')}")
    if wrong:
        error = (
            f"{repo} brings code that runs in the engine's container (trust-remote-code), and it is not the locked "
            f"one: {'; '.join(wrong)}. Read what changed, then accept it with -e weights_relock=true; or set the "
            f"model's revision to {locked.get('revision')}. {lock_file} is what this inventory trusts."
        )
        return {"error": error, "entry": dict(locked)}
    return {"error": "", "entry": entry if is_commit(here) else dict(locked)}


def fetched_revision(revision: str, locked: Mapping[str, Any], relock: bool = False) -> str:
    """Return the revision to download: the locked commit where the model's file names a branch or a tag."""
    found = locked.get("revision")
    return str(found) if is_commit(found) and not is_commit(revision) and not relock else revision
