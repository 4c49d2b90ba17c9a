# SPDX-License-Identifier: Apache-2.0
"""Give back what was kept before the first change, and remove what this project has written.

Nothing that the owner changed later is overwritten: it stays, is reported, and its original stays in `files.BEFORE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import sysctl_path

#: One block of ours in a file that belongs to somebody else; see `text_block.with_block`.
BLOCK = re.compile(rb"^# BEGIN (gb10\.cluster[^\n]*)\n.*?^# END \1(?:\n|\Z)", re.MULTILINE | re.DOTALL)

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Owned:
    """What a role changes on a node.

    ``names``: patterns of the units, files, links, directories and packages; ``own``: below the first directory of
    `files.OWN`; ``used_by``: the roles that do not work without this one.
    """

    names: tuple[str, ...]
    own: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()


def _units(*stems: str) -> tuple[str, ...]:
    return (*stems, *(f"/etc/systemd/system/{stem}" for stem in stems))


#: The roles that can be taken away one by one.
OWNED = {
    "monitor": Owned(
        (
            *_units("prometheus*", "gb10-monitor-*", "nginx*"),
            *("/etc/default/prometheus*", "/etc/grafana*", "/usr/local/share/gb10*"),
        ),
        ("monitor",),
    ),
    "watch": Owned(_units("gb10-watch.*"), ("watch",)),
    "engine": Owned(_units("vllm-*", "gb10-swap*"), ("engine",), ("watch",)),
    "edge": Owned((*_units("gb10-edge*", "gb10-firewall*", "nginx*"), "nftables"), ("edge",), ("engine",)),
    "fabric": Owned(
        (
            *("/etc/netplan*", "/etc/systemd/network*", "/etc/NetworkManager*", "/etc/sysctl.d/91-gb10-fabric.conf"),
            *("/etc/ssh/gb10_known_hosts", "/etc/ssh/ssh_config.d*", "systemd-networkd*"),
            *_units("gb10-fabric*"),
            *("iperf3", "iputils-ping", "rdma-core", "ibverbs-utils", "perftest"),
        ),
        ("fabric.json",),
        ("engine",),
    ),
}


def users_left(roles: Collection[str]) -> dict[str, list[str]]:
    """Return, for each role that is taken away, the roles that do not work without it and are not taken away."""
    found = {role: [user for user in OWNED[role].used_by if user not in roles] for role in sorted(roles)}
    return {role: users for role, users in found.items() if users}


def belongs(name: str, roles: Collection[str]) -> bool:
    """Return whether something goes with these roles: everything with none, else what no other role has as well."""
    having = {role for role, owned in OWNED.items() if any(fnmatchcase(name, each) for each in owned.names)}
    return not roles or (bool(having) and having <= set(roles))


def restore_file(path: str, entry: Mapping[str, Any], check: bool) -> tuple[str, str]:
    """Give one file back; return (what was done, what was left), each a sentence or nothing."""
    found = files.read(path)
    now = "" if found is None else files.sha256(found[0])
    if now == (entry["sha256"] if entry["existed"] else ""):
        return "", ""
    if now == entry["written"] or found is None:
        if entry["existed"]:
            kept = files.read(files.BEFORE / entry["kept"])
            if kept is None:
                return "", f"{path}: its original {files.BEFORE / entry['kept']} is missing; left as it is."
            if not check:
                files.make_directories(Path(path).parent)
                files.replace(path, kept[0], entry["mode"], entry["uid"], entry["gid"])
            return f"{path}: restored.", ""
        if not check:
            files.delete(path)
        return f"{path}: removed.", ""
    content, status = found
    without = BLOCK.sub(b"", content)
    if without != content:
        if not check:
            files.replace(path, without, status.st_mode & 0o7777, status.st_uid, status.st_gid)
        return f"{path}: our block removed, later changes kept.", ""
    if not entry["existed"]:
        if not check:
            files.delete(path)
        return f"{path}: removed, although it was edited after it was written.", ""
    return "", f"{path}: changed by somebody else since; left as it is. Its original: {files.BEFORE / entry['kept']}"


def restore_link(path: str, target: str | None, check: bool) -> str:
    """Give one symbolic link back; return what was done."""
    place = Path(path)
    now = str(place.readlink()) if place.is_symlink() else None
    if now == target or (now is None and place.exists()):
        return ""
    if not check:
        place.unlink(missing_ok=True)
        if target is not None:
            place.symlink_to(target)
    return f"{path}: {'removed' if target is None else f'points to {target} again'}."


def restore_sysctl(name: str, value: str, proc: Path, check: bool) -> tuple[str, str]:
    """Give one kernel setting back; return (what was done, what was left)."""
    place = proc / sysctl_path(name)
    try:
        if " ".join(place.read_text(encoding="utf-8").split()) == value:
            return "", ""
        if not check:
            place.write_text(value, encoding="utf-8")
    except OSError as error:
        return "", f"{name} could not be set to {value}: {error.strerror}"
    return f"{name} = {value}", ""


def unit_verbs(before: Mapping[str, Any], enabled: str, active: str) -> list[str]:
    """Return the verbs of systemctl that bring a unit back to how it was; both states in systemd's words."""
    verbs = []
    if before["enabled"] == "disabled" and enabled == "enabled":
        verbs.append("disable")
    elif before["enabled"] == "enabled" and enabled == "disabled":
        verbs.append("enable")
    if before["active"] == "inactive" and active == "active":
        verbs.append("stop")
    elif before["active"] == "active" and active == "inactive":
        verbs.append("start")
    return verbs


def remove_empty(directories: list[str], check: bool) -> list[str]:
    """Remove directories that are empty, the deepest first; return those that went."""
    gone = []
    for path in sorted(directories, key=len, reverse=True):
        if Path(path).is_dir() and not Path(path).is_symlink() and not os.listdir(path):  # noqa: PTH208
            if not check:
                Path(path).rmdir()
            gone.append(path)
    return gone
