# SPDX-License-Identifier: Apache-2.0
"""Who may change a cluster: leases on its head, one file for each scope, below a directory that root alone reads.

A lease ends when its run ends, or when it was not renewed for `LASTS_SECONDS` by the head's running time: no clock is
asked, and the directory is on a file system that a boot empties.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped

FOLDER = Path("/run/gb10/lease")
#: What can be leased: what is served, and the host, fabric and images beneath it.
DEPLOYMENT, CLUSTER = "deployment", "cluster"
SCOPES = (DEPLOYMENT, CLUSTER)
#: A run renews its lease this often, and loses it when the head heard nothing for so long.
RENEW_SECONDS = 20.0
LASTS_SECONDS = 180.0


#: What is read of a lease, which another run wrote, and of a holder as `shown`, which the head answered.
_WORDS = {"scope": "", "run": "", "who": "", "where": "", "what": "", "since": ""}
STORED: dict[str, Any] = {**_WORDS, "process": {}, "taken_s": float, "renewed_s": float}
HOLDER: dict[str, Any] = {**_WORDS, "process": {}, "seconds": 0.0, "renewed_seconds": 0.0}


def is_live(lease: Mapping[str, Any], now_s: float) -> bool:
    """Return whether a lease holds at an instant of the head's running time; one that cannot be read does not."""
    try:
        return 0 <= now_s - float(lease["renewed_s"]) < LASTS_SECONDS and bool(lease["run"])
    except (KeyError, TypeError, ValueError):
        return False


def others(leases: Iterable[Mapping[str, Any]], run: str, ended: Collection[str], now_s: float) -> list[dict[str, Any]]:
    """Return the leases of other runs that hold.

    :param run: the run that asks.
    :param ended: runs that are known to have ended: theirs do not hold.
    """
    return [dict(each) for each in leases if is_live(each, now_s) and each["run"] not in {run, *ended}]


def shown(lease: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """Return a lease as data for people and programs: no instant of the running time, but how long ago it was."""
    return {
        **{key: str(lease.get(key, "")) for key in ("scope", "run", "who", "where", "what", "since")},
        "process": lease.get("process") or {},
        "seconds": round(max(0.0, now_s - float(lease.get("taken_s") or now_s)), 1),
        "renewed_seconds": round(now_s - float(lease["renewed_s"]), 1),
    }


def now_seconds() -> float:
    """Return the head's running time in seconds; a step of the clock does not change it."""
    return time.monotonic()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time read and write the leases; a process that dies gives the lock back.

    :raises OSError: the directory or the lock cannot be made.
    """
    if not folder.is_dir():
        with contextlib.suppress(FileExistsError):
            files.make_directories(folder)
    folder.chmod(0o700)
    with files.directory_of(folder / "lock") as (directory, name):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def read(folder: Path, scopes: Iterable[str] = SCOPES) -> list[dict[str, Any]]:
    """Return the leases of some scopes that are written down, whether they hold or not."""
    found = [files.read_json(folder / f"{scope}.json") for scope in scopes]
    return [shaped(each, STORED) for each in found if each]


def hold(
    folder: Path,
    scopes: Iterable[str],
    holder: Mapping[str, Any],
    *,
    ended: Collection[str] = (),
    take_over: bool = False,
) -> tuple[bool, list[dict[str, Any]]]:
    """Take all of some leases or none, and renew those that the run holds already.

    :param holder: ``run`` (unique to the run), ``who``, ``where``, ``what`` and ``process``.
    :param ended: runs whose leases do not count.
    :param take_over: take them from whoever holds them.
    :returns: (whether one was taken that the run did not hold, the leases of other runs that hold, as `shown`); with
        such leases and without `take_over`, nothing was taken.
    :raises OSError: the directory or a file cannot be written.
    """
    wanted = tuple(scopes)
    with locked(folder):
        now_s = now_seconds()
        leases = {each.get("scope"): each for each in read(folder, wanted)}
        held_by_others = others(leases.values(), str(holder["run"]), ended, now_s)
        if held_by_others and not take_over:
            return False, [shown(each, now_s) for each in held_by_others]
        taken = False
        for scope in wanted:
            before = leases.get(scope, {})
            if not (is_live(before, now_s) and before["run"] == holder["run"]):
                since = datetime.now(UTC).isoformat(timespec="seconds")
                before, taken = {**holder, "scope": scope, "since": since, "taken_s": now_s}, True
            files.write_json(folder / f"{scope}.json", {**before, "renewed_s": now_s}, 0o600)
        return taken, [shown(each, now_s) for each in held_by_others]


def release(folder: Path, run: str) -> bool:
    """End the leases of a run; return whether it had any."""
    if not folder.is_dir():
        return False
    with locked(folder):
        mine = [str(each["scope"]) for each in read(folder) if each.get("run") == run]
        for scope in mine:
            files.remove(folder / f"{scope}.json")
        return bool(mine)


def live(folder: Path, run: str = "", scopes: Iterable[str] = SCOPES) -> list[dict[str, Any]]:
    """Return the leases that hold, but not those of one run, as `shown`; nothing is changed."""
    now_s = now_seconds()
    return [shown(each, now_s) for each in others(read(folder, scopes), run, (), now_s)]


def sentence(lease: Mapping[str, Any]) -> str:
    """Return who holds a lease, from where, with what and since when."""
    seconds = float(lease["seconds"])
    for_long = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return (
        f"{lease['who']} on {lease['where']} runs {lease['what']} since {lease['since']} ({for_long}), "
        f"with the lease of the {lease['scope']}"
    )
