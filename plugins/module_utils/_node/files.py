# SPDX-License-Identifier: Apache-2.0
"""Write a file completely or not at all.  Standard library only: modules and the node's program share it.

Every file that this project writes on a machine goes through `write`: a temporary file beside the target, its data and
its directory synchronised to disk, one rename.  A reader, a crash or a power cut sees the old content or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Bytes of a JSON file; the largest that this project writes is the manifest of a repository's weights, of some MB.
MAX_JSON_BYTES = 64 << 20
#: As many symbolic links in one path as the kernel itself follows.
MAX_LINKS = 40


#: What stood below these before its first change by this project is kept, for the teardown to give back.
KEPT_ROOTS = ("/etc/", "/usr/local/")
#: This project alone uses these: nothing in them is an owner's, and the teardown removes them. The secrets of engine,
#: proxy and monitoring are in them, and have no copy.
OWN = ("/etc/gb10", "/usr/local/lib/gb10", "/var/cache/gb10", "/var/log/gb10")
#: So is what root changes in these directories of a home.
KEPT_IN_HOMES = re.compile(r"^/(?:root|home/[^/]+)/\.(?:ssh|docker)/")
BEFORE = Path("/var/lib/gb10/before")
#: The beginning of a file of this project.
OUR_FILE = rb".*(Managed|Rendered|Written) by gb10\.cluster"


class UnsafeLinkError(OSError):
    """A symbolic link of another user stands in the path; the message names the link and its owner."""


def _trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


@contextlib.contextmanager
def directory_of(path: Path | str) -> Iterator[tuple[int, str]]:
    """Open the directory of a file without following links that somebody else could have placed.

    A link is followed only when root or the calling user owns it: whoever owns a home directory cannot redirect what
    root writes below it.  The walk holds each directory open, so that a link swapped in meanwhile changes nothing.

    :param path: the file; a relative one counts from the working directory.
    :returns: (descriptor of the directory, name of the file in it); the descriptor is closed on exit.
    :raises UnsafeLinkError: a link in the path, or the file itself, is owned by another user.
    :raises OSError: a directory is missing or not readable; more than 40 links (ELOOP).
    """
    parts = list(reversed(Path(os.path.abspath(path)).parts[1:]))  # noqa: PTH100  (resolve() would follow links)
    if not parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    here = os.open("/", os.O_DIRECTORY | os.O_RDONLY)
    links = 0
    try:
        while True:
            name = parts.pop()
            try:
                found = os.lstat(name, dir_fd=here)
            except FileNotFoundError:
                if parts:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
                yield here, name
                return
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                if not _trusted(found.st_uid):
                    raise UnsafeLinkError(
                        errno.EPERM,
                        f"refusing to follow the symbolic link {name!r} of user id {found.st_uid} "
                        "(only links of root are followed here); replace it by a directory or a file",
                        str(path),
                    )
                target = os.readlink(name, dir_fd=here)
                parts.extend(part for part in reversed(Path(target).parts) if part != "/")
                if target.startswith("/"):
                    root = os.open("/", os.O_DIRECTORY | os.O_RDONLY)
                    os.close(here)
                    here = root
                if not parts:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                continue
            if not parts:
                yield here, name
                return
            below = os.open(name, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


def write(
    path: Path | str,
    content: bytes | str,
    mode: int = 0o644,
    uid: int = -1,
    gid: int = -1,
) -> None:
    """Replace a file's content completely or leave it as it was.

    :param path: the file; its directory must exist.
    :param content: bytes, or text that is written as UTF-8.
    :param mode: permission bits of the file, whatever the umask is.
    :param uid: owner; -1 keeps the calling user.
    :param gid: group; -1 keeps the calling user's.
    :raises UnsafeLinkError: another user's symbolic link stands in the path.
    :raises OSError: as the operating system reports it; no temporary file is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    keep_file(path, data)
    replace(path, data, mode, uid, gid)


def replace(path: Path | str, data: bytes, mode: int, uid: int, gid: int) -> None:
    """Replace a file's content as `write` does, without keeping what was there before."""
    with directory_of(path) as (directory, name):
        temporary = f".{name[:200]}.{secrets.token_hex(6)}.tmp"
        handle = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                if (uid, gid) != (-1, -1):
                    os.fchown(handle, uid, gid)
                os.fchmod(handle, mode)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)


def sha256(data: bytes) -> str:
    """Return the digest of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def keep(kind: str, name: str, value: Any) -> None:
    """Note in the manifest of `BEFORE` what there was before the first change; a later call changes nothing.

    :param kind: ``sysctls``, ``units``, ``packages``, ``links``, ``accounts``, ``directories`` or ``names``.
    :param value: anything that JSON can hold; None where there was nothing.
    """
    manifest = read_json(BEFORE / "manifest.json")
    noted = manifest.setdefault(kind, {})
    if name not in noted:
        noted[name] = value
        _write_manifest(manifest)


def _is_kept(name: str) -> bool:
    if f"{name}/".startswith(tuple(f"{own}/" for own in OWN)):
        return False
    return name.startswith(KEPT_ROOTS) or (os.geteuid() == 0 and KEPT_IN_HOMES.search(f"{name}/") is not None)


def keep_file(path: Path | str, data: bytes | None) -> None:
    """Keep a file as it was before its first change, and note the digest of what replaces it.

    :param data: the new content; None where the file is removed.
    """
    name = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links)
    if not _is_kept(name):
        return
    manifest = read_json(BEFORE / "manifest.json")
    entries = manifest.setdefault("files", {})
    entry = entries.get(name)
    fresh = "" if data is None else sha256(data)
    if entry is None:
        found = read(name)
        # A file of ours from before there was a manifest is no file of the owner's.
        if found is None or re.match(OUR_FILE, found[0][:200], re.DOTALL):
            entry = {"existed": False}
            if data is None and found is None:
                return
        else:
            content, status = found
            copy = f"{sha256(name.encode())[:16]}-{Path(name).name}"
            entry = {
                "existed": True,
                "kept": copy,
                "sha256": sha256(content),
                "mode": stat.S_IMODE(status.st_mode),
                "uid": status.st_uid,
                "gid": status.st_gid,
            }
            _make_before()
            replace(BEFORE / copy, content, 0o600, -1, -1)
    elif entry.get("written") == fresh:
        return
    entries[name] = {**entry, "written": fresh}
    _write_manifest(manifest)


def _make_before() -> None:
    make_directories(BEFORE)
    BEFORE.chmod(0o700)


def _write_manifest(manifest: dict[str, Any]) -> None:
    _make_before()
    replace(BEFORE / "manifest.json", (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(), 0o600, -1, -1)


def read(path: Path | str) -> tuple[bytes, os.stat_result] | None:
    """Return a file's content and status; None when the file or its directory does not exist.

    :raises UnsafeLinkError: another user's symbolic link stands in the path: root would read what that user may not.
    :raises OSError: as the operating system reports it.
    """
    try:
        with directory_of(path) as (directory, name):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return stream.read(), status


def make_directories(path: Path | str) -> None:
    """Create a directory and those above it that are missing, each owned as the one above it.

    A new directory has the mode 0755; below one that belongs to another user than root, 0700.

    :raises UnsafeLinkError: another user's symbolic link stands in the path.
    :raises OSError: as the operating system reports it.
    """
    missing = []
    place = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    for directory in reversed(missing):
        with directory_of(directory) as (above, name):
            owner = os.fstat(above)
            mode = 0o755 if owner.st_uid == 0 else 0o700
            os.mkdir(name, mode, dir_fd=above)
            made = os.open(name, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW, dir_fd=above)
            try:
                if os.geteuid() == 0:
                    os.fchown(made, owner.st_uid, owner.st_gid)
                os.fchmod(made, mode)
            finally:
                os.close(made)
            os.fsync(above)
        if _is_kept(str(directory)):
            keep("directories", str(directory), None)


def write_json(path: Path | str, value: Any, mode: int = 0o644) -> None:
    """Write a value as indented JSON with sorted keys and a final newline; see `write`."""
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)


def remove(path: Path | str) -> bool:
    """Remove a file and synchronise its directory; return whether there was one.

    :raises UnsafeLinkError: another user's symbolic link stands in the path.
    :raises OSError: as the operating system reports it, but not for a file that does not exist.
    """
    keep_file(path, None)
    return delete(path)


def delete(path: Path | str) -> bool:
    """Remove a file as `remove` does, without keeping what was there before."""
    try:
        with directory_of(path) as (directory, name):
            os.unlink(name, dir_fd=directory)
            os.fsync(directory)
    except FileNotFoundError:
        return False
    return True


def existing(path: Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def used_bytes(folder: Path) -> int:
    """Return what the files below a directory occupy, or occupied until a moment ago; 0 for one that does not exist.

    The length of a partial file can be its full one.
    """
    total = 0
    for path, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(path) / name).lstat().st_blocks * 512
    return total


def diff(header: str, before: str, after: str) -> dict[str, str]:
    """Return what a module shows of one change."""
    return {"before": before, "after": after, "before_header": header, "after_header": header}


def read_json(path: Path | str) -> dict[str, Any]:
    """Return the JSON object that a file holds, or an empty one when it is missing or holds something else.

    More than `MAX_JSON_BYTES`, and what is no regular file, a pipe that nobody writes to for one, hold nothing.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            text = stream.read(MAX_JSON_BYTES + 1) if regular else b""
        found = json.loads(text.decode("utf-8")) if len(text) <= MAX_JSON_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
