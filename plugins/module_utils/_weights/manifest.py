# SPDX-License-Identifier: Apache-2.0
"""A model's manifest, its pieces, its way through the nodes, and what makes room.  Pure: no file is read here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Interface, IPv4Network
from pathlib import PurePosixPath
from typing import Any

#: Beside the weights; with the right digest it means that the tree was complete and verified when it was put there.
STAMP = ".gb10-manifest.json"
#: Beside the stamp: the sha256 of every piece, 32 bytes each, in the order of `layout`.
PIECES = ".gb10-pieces"
#: Beside the stamp: size, times and inode of each file when its hash was last seen to be right.
MARKS = ".gb10-marks.json"
#: Names what prepared data was made from, until it is moved to its place.
MADE = ".gb10-prepared.json"
OWN_FILES = (STAMP, PIECES, MARKS, MADE)
HASH_BYTES = 32
VERSION = 2
#: What no model reaches; a manifest with more is not one of ours.
MAX_FILES = 100_000
MAX_BYTES = 2**44

MIN_PIECE_BYTES = 2**20
MAX_PIECE_BYTES = 16 * 2**20
#: A chain of nodes runs behind by a piece a node, so a piece is to be a small part of the model.
PIECES_WANTED = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Piece:
    """A part of a file that is fetched, verified and passed on as one."""

    index: int
    file: int
    offset: int
    length: int


def piece_bytes_for(total_bytes: int) -> int:
    """Return the length of a piece for a model of this size: a power of two from 1 to 16 MiB."""
    size = MIN_PIECE_BYTES
    while size < MAX_PIECE_BYTES and size * PIECES_WANTED < total_bytes:
        size *= 2
    return size


def streams_for(wanted: int, pieces: int, cores: int) -> int:
    """Return how many pieces to fetch side by side.

    Few where there are few, as each one adds to a chain's lag, and no more than there are cores to hash them.
    """
    return max(2, min(wanted, pieces // 120, cores))


def layout(manifest: Mapping[str, Any]) -> list[Piece]:
    """Return the pieces of a model: file by file in the manifest's order, none across two files."""
    step = manifest["piece_bytes"]
    pieces: list[Piece] = []
    for number, file in enumerate(manifest["files"]):
        for offset in range(0, file["size"], step):
            pieces.append(Piece(len(pieces), number, offset, min(step, file["size"] - offset)))
    return pieces


def path_error(name: str) -> str | None:
    """Return why a file of this name cannot be taken to the nodes, or None."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in name):
        return f"{name!r} has a control character or a byte that is no UTF-8 in its name; rename it at the source."
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        return f"{name!r} leads out of the model's directory."
    return None


def manifest_error(manifest: Any) -> str | None:
    """Return why a manifest cannot be used, or None.

    It may come from another node, so everything in it is checked, and that its digest is that of its content.
    """
    if not isinstance(manifest, Mapping):
        return "The manifest is not a mapping; run weights_manifest again."
    if manifest.get("version") != VERSION:
        return f"The manifest has version {manifest.get('version')}, expected is {VERSION}; run weights_manifest again."
    files = manifest.get("files")
    bad = "The manifest is damaged ({}); remove it and run weights_manifest again."
    if not isinstance(files, list) or len(files) > MAX_FILES:
        return bad.format("it has no list of files, or an endless one")
    for file in files:
        if not (
            isinstance(file, Mapping)
            and isinstance(file.get("path"), str)
            and type(file.get("size")) is int
            and file["size"] >= 0
            and _is_sha256(file.get("sha256"))
        ):
            return bad.format("a file in it has no path, size and sha256")
    strings = [manifest.get("repo"), manifest.get("revision"), manifest.get("digest")]
    if not all(isinstance(each, str) for each in strings) or not _is_sha256(manifest.get("pieces_sha256")):
        return bad.format("repo, revision, digest or pieces_sha256 is missing")
    total = sum(file["size"] for file in files)
    if total > MAX_BYTES or manifest.get("bytes") != total or manifest.get("piece_bytes") != piece_bytes_for(total):
        return bad.format("its sizes do not add up")
    if manifest["digest"] != _digest(manifest):
        return bad.format("its digest is not that of its content")
    names = [manifest["repo"], *(file["path"] for file in files)]
    return next((error for error in map(path_error, names) if error), None)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _digest(manifest: Mapping[str, Any]) -> str:
    body = {key: manifest[key] for key in ("version", "repo", "revision", "piece_bytes", "pieces_sha256")}
    body["files"] = [{key: file[key] for key in ("path", "size", "sha256")} for file in manifest["files"]]
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_manifest(
    repo: str, revision: str, files: Sequence[Mapping[str, Any]], piece_bytes: int, pieces: bytes
) -> dict[str, Any]:
    """Return the manifest of a model.

    :param files: each with ``path``, ``size`` (bytes) and ``sha256`` (hex), ordered by path.
    :param piece_bytes: length of a piece.
    :param pieces: the sha256 of every piece, in the order of `layout`.
    """
    body = {
        "version": VERSION,
        "repo": repo,
        "revision": revision,
        "piece_bytes": piece_bytes,
        "pieces_sha256": hashlib.sha256(pieces).hexdigest(),
        "files": [{key: file[key] for key in ("path", "size", "sha256")} for file in files],
    }
    return {**body, "bytes": sum(file["size"] for file in files), "digest": _digest(body)}


def unstamped(
    manifest: Mapping[str, Any],
    found: Mapping[str, Sequence[int]],
    stamp: Mapping[str, Any],
    marks: Mapping[str, Sequence[int]],
) -> list[str]:
    """Return the files that stamp and marks do not vouch for.

    :param found: the mark of each file that is there now.
    :param stamp: the manifest that the tree carries; may be empty.
    :param marks: the mark of each file when its hash was last seen to be right; may be empty.
    """
    stamped = {file["path"]: file["sha256"] for file in stamp.get("files", [])}
    return [
        file["path"]
        for file in manifest["files"]
        if file["path"] not in found
        or stamped.get(file["path"]) != file["sha256"]
        or list(found[file["path"]]) != marks.get(file["path"])
    ]


@dataclass(frozen=True)
class Tree:
    """A model's directory on a node, as far as eviction is concerned."""

    repo: str
    size_bytes: int
    used_at_s: float
    ours: bool
    in_use_by: str = ""


def matches(repo: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the patterns (shell style) is the repository's."""
    return any(fnmatchcase(repo, pattern) for pattern in patterns)


def evict(
    trees: Sequence[Tree], short_bytes: int, evictable: Sequence[str], keep: Sequence[str]
) -> tuple[list[Tree], dict[str, str]]:
    """Return (trees to remove, why each other one stays); nothing is removed when it would not suffice.

    Oldest use first. Only trees that carry a manifest of ours, that are named as evictable and not as
    kept, and that nothing uses.
    """
    stays: dict[str, str] = {}
    free: list[Tree] = []
    for tree in trees:
        if not tree.ours:
            stays[tree.repo] = "it carries no manifest of ours"
        elif tree.in_use_by:
            stays[tree.repo] = f"it is in use by {tree.in_use_by}"
        elif matches(tree.repo, keep):
            stays[tree.repo] = "weights_keep names it"
        elif not matches(tree.repo, evictable):
            stays[tree.repo] = "weights_evictable does not name it"
        else:
            free.append(tree)
    chosen: list[Tree] = []
    for tree in sorted(free, key=lambda each: (each.used_at_s, each.repo)):
        if sum(each.size_bytes for each in chosen) >= short_bytes:
            stays[tree.repo] = "there is room without it"
        else:
            chosen.append(tree)
    if sum(each.size_bytes for each in chosen) < short_bytes:
        stays.update({tree.repo: "it would not suffice" for tree in chosen})
        return [], stays
    return chosen, stays


def order(sources: Sequence[Mapping[str, Any]], index: int, members: int, position: int) -> list[int]:
    """Return in which order the sources of a piece are tried, as places in ``sources``.

    With no ``members`` it is a chain: as listed, the nearest first. Else each of the members pulls
    every so-manieth piece from the origin (the source without a ``position``) and has the others from
    the member whose share they are; the origin stands in for one that fails.
    """
    if not members:
        return list(range(len(sources)))
    owner = index % members
    origin = [place for place, source in enumerate(sources) if source.get("position") is None]
    others = [place for place, source in enumerate(sources) if source.get("position") is not None]
    if owner == position:
        return origin + others
    first = [place for place in others if sources[place]["position"] == owner]
    return first + origin + [place for place in others if place not in first]


def rails(
    addresses: Mapping[str, str | Sequence[str]], machines: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return by member its addresses, one a rail, in the same order for all.

    The first rail is that of the given addresses; then come the subnets in which every machine has one address on a
    fabric's port with a carrier.  A list of addresses is the owner's own choice and stays as it is.

    :param addresses: by member, an address or one a rail.
    :param machines: by member that takes part, ``machine`` of gb10.cluster.fabric_facts.
    """
    if any(not isinstance(found, str) for found in addresses.values()):
        return {host: [found] if isinstance(found, str) else list(found) for host, found in addresses.items()}
    subnets: dict[str, dict[IPv4Network, list[str]]] = {}
    for host, machine in machines.items():
        subnets[host] = {}
        for netdev in (netdev for port in machine["ports"] for netdev in port["netdevs"] if netdev["carrier"]):
            for interface in (IPv4Interface(each) for each in netdev["addresses"] if ":" not in each):
                subnets[host].setdefault(interface.network, []).append(str(interface.ip))
    found: dict[str, list[str]] = {host: [str(address)] for host, address in addresses.items()}
    for subnet in sorted(set.intersection(*map(set, subnets.values())) if subnets else set()):
        here = {host: by_subnet[subnet] for host, by_subnet in subnets.items()}
        if all(len(each) == 1 and each[0] not in found[host] for host, each in here.items()):
            for host, each in here.items():
                found[host] += each
    return found


def plan_node(
    chain: Sequence[str],
    name: str,
    addresses: Mapping[str, str | Sequence[str]],
    port: int,
    tunnels: int = 0,
    scatter: bool = False,
) -> dict[str, Any]:
    """Return a node's part of a transfer: where it listens, who may ask it, whom it asks.

    :param chain: the members, the one with the most first.
    :param addresses: by member, an address or one a rail.
    :param tunnels: how many ports of the node's loopback, from the one after ``port``, lead to the control node.
    :param scatter: whether all share the control node instead of asking the one before.
    """
    rails = {host: [found] if isinstance(found, str) else list(found) for host, found in addresses.items()}
    place = chain.index(name)
    before = [other for other in chain if other != name] if scatter else list(reversed(chain[:place]))
    peers = [
        {"name": other, "rails": [[address, port] for address in rails[other]], "position": chain.index(other)}
        for other in before
    ]
    loopback = [["127.0.0.1", port + 1 + number] for number in range(tunnels)]
    origin = [{"name": "the control node", "rails": loopback, "position": None}] if tunnels else []
    return {
        # One node alone has nobody to serve, and the address that it is known by need not be its own.
        "listen": rails[name] if len(chain) > 1 else [],
        "allow": sorted({address for each in rails.values() for address in each} | {"127.0.0.1"}),
        "sources": origin + peers if scatter else peers + origin,
        "scatter": {"of": len(chain), "position": place} if scatter else {"of": 0, "position": 0},
    }


def duration(seconds: float) -> str:
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def amount(size_bytes: float) -> str:
    """Return a number of bytes for people, in the unit that suits it."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def progress_line(name: str, status: Mapping[str, Any]) -> str:
    """Return the line that reports a node's progress."""
    have, total = status["have_bytes"], status["total_bytes"]
    line = f"{name}: {amount(have)} of {amount(total)}"
    if status["state"] != "moving":
        return f"{line}, {status['state']}"
    rate = status.get("rate_bytes_per_s", 0)
    left = f"{duration((total - have) / rate)} left" if rate > 0 else "no estimate yet"
    origin = f", from {status['source']}" if status.get("source") else ""
    return f"{line}, {rate / 1e6:.0f} MB/s, {left}{origin}"


def stall_line(name: str, status: Mapping[str, Any], stalled_s: float) -> str | None:
    """Return the sentence that names a node which receives nothing, or None while it does."""
    if status["state"] != "moving" or status["idle_s"] < stalled_s:
        return None
    waits = f"; it waits for {status['source']}" if status.get("source") else ""
    return f"{name} has received nothing for {status['idle_s']:.0f} s{waits}. {status.get('message', '')}".strip()
