# SPDX-License-Identifier: Apache-2.0
"""A source and nodes that transfer weights over the loopback, for the unit tests of its parts."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import Store, hash_file, mark
from ansible_collections.gb10.cluster.plugins.plugin_utils import _program
from lab.ports import free_port

PIECE = weights.MIN_PIECE_BYTES
#: Mixed: empty, tiny, exactly a piece, several pieces and a rest.
SIZES = {"config.json": 2, "empty.py": 0, "exact.safetensors": PIECE, "model.safetensors": 9 * PIECE + 12345}
TOTAL = sum(SIZES.values())
TOKEN = "a token"


@dataclass
class Cluster:
    """A source and nodes, each a directory and an address of the loopback."""

    folder: Path
    manifest: dict[str, Any]
    store: Store
    #: The archive that the next mover runs from.
    program: Path
    origin: int = 0
    port: int = 0
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    runs: int = 0

    def root(self, node: int) -> Path:
        return self.folder / f"node{node}" / "weights"

    def tree(self, node: int) -> Path:
        return self.root(node) / "org" / "model"

    def incoming(self, node: int) -> Path:
        return self.root(node) / ".incoming" / "org" / "model"

    def job(self, node: int, sources: Sequence[int | dict[str, Any]], **changes: Any) -> Path:
        """Write a node's job; source 0 is the origin, and a dictionary one that is as it says."""
        self.runs += 1
        run_dir = self.folder / f"node{node}" / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "lease").touch()
        (run_dir / "status.json").unlink(missing_ok=True)
        job = {
            "manifest": self.manifest, "missing": list(SIZES), "complete": False, "root": str(self.root(node)),
            "listen": [address(node)], "port": self.port, "allow": ["127.0.0.1"], "token": TOKEN,
            "sources": [each if isinstance(each, dict) else self.source(each) for each in sources],
            "streams": 3, "stall_s": 300, "lease_s": 600,
            "scatter": {"of": 0, "position": 0}, "grace_s": 300, "silence_s": 60,
            "run": str(self.runs), "run_dir": str(run_dir), **changes,
        }  # fmt: skip
        (run_dir / "job.json").write_text(json.dumps(job), encoding="utf-8")
        return run_dir / "job.json"

    def start(self, node: int, sources: Sequence[int | dict[str, Any]], **changes: Any) -> None:
        """Start a node's mover with a job."""
        job = self.job(node, sources, **changes)
        self.running[node] = subprocess.Popen(
            [sys.executable, "-I", "-B", str(self.program), "move", str(job)],
            env={"PATH": os.environ["PATH"]},
        )

    def source(self, place: int) -> dict[str, Any]:
        if place == 0:
            return {"name": "origin", "rails": [["127.0.0.1", self.origin]], "position": None}
        return {"name": f"node{place}", "rails": [[address(place), self.port]], "position": place - 1}

    def status(self, node: int) -> dict[str, Any]:
        path = self.folder / f"node{node}" / "run" / "status.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"state": "none"}
        return found

    def until(self, node: int, *states: str, seconds: float = 600) -> dict[str, Any]:
        """Wait for a state and return the node's status."""
        deadline = time.monotonic() + seconds
        while (found := self.status(node))["state"] not in states:
            assert time.monotonic() < deadline, f"node{node} did not get {states}: {found}"
            time.sleep(0.05)
        return found

    def until_has(self, node: int, count: int) -> None:
        """Wait until a node has so many bytes."""
        deadline = time.monotonic() + 600
        while self.status(node).get("have_bytes", 0) < count:
            assert time.monotonic() < deadline, self.status(node)
            time.sleep(0.05)

    def kill(self, node: int, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(node)
        process.send_signal(number)
        process.wait()

    def assert_complete(self, node: int) -> None:
        for name in SIZES:
            assert digest(self.tree(node) / name) == digest(self.folder / "source" / name), name
        assert json.loads((self.tree(node) / weights.STAMP).read_text(encoding="utf-8")) == self.manifest
        assert not (self.root(node) / ".incoming").exists()


def address(node: int) -> str:
    return f"127.0.0.{10 + node}"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(name="cluster")
def make_cluster(tmp_path: Path) -> Iterator[Cluster]:
    source = tmp_path / "source"
    source.mkdir()
    noise = random.Random(7)  # the same bytes each time
    files, pieces = [], b""
    for name, size in sorted(SIZES.items()):
        (source / name).write_bytes(noise.randbytes(size))
        complete, parts = hash_file(source / name, PIECE)
        files.append({"path": name, "size": size, "sha256": complete})
        pieces += parts
    manifest = weights.make_manifest("org/model", "main", files, PIECE, pieces)
    paths = [source / file["path"] for file in manifest["files"]]
    store = Store(manifest, paths, [True] * len(paths))
    store.load_hashes(pieces, "the test")
    store.marks = {number: mark(path) for number, path in enumerate(paths)}
    archive = _program.build("weights")
    program = tmp_path / "lib" / archive.name
    program.parent.mkdir()
    program.write_bytes(archive.data)
    made = Cluster(tmp_path, manifest, store, program)
    server = Server(store, TOKEN, ["127.0.0.1"])
    made.origin = server.listen("127.0.0.1", 0)
    made.port = free_port()
    yield made
    server.close()
    for node in list(made.running):
        made.kill(node)
