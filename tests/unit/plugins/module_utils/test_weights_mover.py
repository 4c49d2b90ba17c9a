# SPDX-License-Identifier: Apache-2.0
"""Pieces between processes on the addresses of the loopback: chains, scatter, deaths, damage and bad surroundings."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import mover as weights_mover
from tests.unit.conftest import COLLECTIONS

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
    store: weights_mover.Store
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

    def start(self, node: int, sources: Sequence[int | dict[str, Any]], **changes: Any) -> None:
        """Start a node's mover; source 0 is the origin, and a dictionary one that is as it says."""
        self.runs += 1
        run_dir = self.folder / f"node{node}" / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "lease").touch()
        (run_dir / "status.json").unlink(missing_ok=True)
        job = {
            "manifest": self.manifest, "lacking": list(SIZES), "complete": False, "root": str(self.root(node)),
            "listen": [address(node)], "port": self.port, "allow": ["127.0.0.1"], "token": TOKEN,
            "sources": [each if isinstance(each, dict) else self.source(each) for each in sources],
            "streams": 3, "patience_s": 20, "lease_s": 60,
            "scatter": {"of": 0, "position": 0}, "grace_s": 1.5, "silence_s": 6,
            "run": str(self.runs), "run_dir": str(run_dir), **changes,
        }  # fmt: skip
        (run_dir / "job.json").write_text(json.dumps(job), encoding="utf-8")
        module = "ansible_collections.gb10.cluster.plugins.module_utils._weights.mover"
        self.running[node] = subprocess.Popen(
            [sys.executable, "-m", module, str(run_dir / "job.json")],
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        )

    def source(self, place: int) -> dict[str, Any]:
        if place == 0:
            return {"name": "origin", "rails": [["127.0.0.1", self.origin]], "position": None}
        return {"name": f"node{place}", "rails": [[address(place), self.port]], "position": place - 1}

    def status(self, node: int) -> dict[str, Any]:
        path = self.folder / f"node{node}" / "run" / "status.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"state": "none"}
        return found

    def until(self, node: int, *states: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for a state and return the node's status."""
        deadline = time.monotonic() + seconds
        while (found := self.status(node))["state"] not in states:
            assert time.monotonic() < deadline, f"node{node} did not get {states}: {found}"
            time.sleep(0.05)
        return found

    def until_has(self, node: int, count: int) -> None:
        """Wait until a node has so many bytes."""
        deadline = time.monotonic() + 30
        while self.status(node).get("have_bytes", 0) < count:
            assert time.monotonic() < deadline, self.status(node)
            time.sleep(0.05)

    def kill(self, node: int, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(node)
        process.send_signal(number)
        process.wait(timeout=20)

    def assert_whole(self, node: int) -> None:
        for name in SIZES:
            assert digest(self.tree(node) / name) == digest(self.folder / "source" / name), name
        assert json.loads((self.tree(node) / weights.STAMP).read_text(encoding="utf-8")) == self.manifest
        assert not (self.root(node) / ".incoming").exists()


def address(node: int) -> str:
    return f"127.0.0.{10 + node}"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def free_port() -> int:
    with socket.create_server(("127.0.0.11", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    source = tmp_path / "source"
    source.mkdir()
    noise = random.Random(7)  # the same bytes each time
    files, pieces = [], b""
    for name, size in sorted(SIZES.items()):
        (source / name).write_bytes(noise.randbytes(size))
        whole, parts = weights_mover.hash_file(source / name, PIECE)
        files.append({"path": name, "size": size, "sha256": whole})
        pieces += parts
    manifest = weights.make_manifest("org/model", "main", files, PIECE, pieces)
    paths = [source / file["path"] for file in manifest["files"]]
    store = weights_mover.Store(manifest, paths, [True] * len(paths))
    store.load_hashes(pieces, "the test")
    store.marks = {number: weights_mover.mark(path) for number, path in enumerate(paths)}
    made = Cluster(tmp_path, manifest, store)
    server = weights_mover.Server(store, TOKEN, ["127.0.0.1"])
    made.origin = server.listen("127.0.0.1", 0)
    made.port = free_port()
    yield made
    server.close()
    for node in list(made.running):
        made.kill(node)


def test_one_reading_gives_the_hash_of_the_file_and_of_its_pieces(cluster: Cluster) -> None:
    path = cluster.folder / "source" / "model.safetensors"
    data = path.read_bytes()
    whole, pieces = weights_mover.hash_file(path, PIECE)
    assert whole == hashlib.sha256(data).hexdigest()
    expected = [hashlib.sha256(data[at : at + PIECE]).digest() for at in range(0, len(data), PIECE)]
    assert pieces == b"".join(expected)


def test_a_chain_of_three_brings_one_copy_over_each_link(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        cluster.start(node, list(range(node - 1, -1, -1)))
    for node in (1, 2, 3):
        status = cluster.until(node, "whole")
        assert status["by_source"] == {"origin" if node == 1 else f"node{node - 1}": TOTAL}
        cluster.assert_whole(node)
    assert cluster.store.served_bytes == TOTAL


def test_scatter_takes_a_share_each_from_the_origin_and_the_rest_from_one_another(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        others = [0, *(other for other in (1, 2, 3) if other != node)]
        cluster.start(node, others, scatter={"of": 3, "position": node - 1})
    shares = []
    for node in (1, 2, 3):
        status = cluster.until(node, "whole")
        cluster.assert_whole(node)
        shares.append(status["by_source"]["origin"])
        assert sum(status["by_source"].values()) == TOTAL
    assert sum(shares) == TOTAL
    assert max(shares) < TOTAL / 2


def test_a_dead_middle_node_is_left_out(cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "whole")
    # Node 2 accepts and stays silent, as a machine that hangs does.
    with socket.create_server((address(2), cluster.port)):
        cluster.start(3, [2, 1, 0])
        status = cluster.until(3, "whole", seconds=90)
    assert status["by_source"] == {"node1": TOTAL}
    assert "node2 does not answer" in status["message"]
    cluster.assert_whole(3)


def test_both_rails_carry_and_one_that_is_dead_costs_nothing_but_its_share(cluster: Cluster) -> None:
    other = weights_mover.Store(cluster.manifest, cluster.store.paths, [True] * len(cluster.store.paths))
    other.load_hashes(cluster.store.hashes or b"", "the test")
    other.marks = cluster.store.marks
    server = weights_mover.Server(other, TOKEN, ["127.0.0.1"])
    rails = [["127.0.0.1", cluster.origin], ["127.0.0.1", server.listen("127.0.0.1", 0)]]
    origin = {"name": "origin", "rails": rails, "position": None}
    cluster.start(1, [origin], streams=8)
    cluster.until(1, "whole")
    server.close()
    assert cluster.store.served_bytes + other.served_bytes == TOTAL
    assert min(cluster.store.served_bytes, other.served_bytes) > 0

    before = cluster.store.served_bytes
    cluster.start(2, [origin])
    status = cluster.until(2, "whole")
    assert status["by_source"] == {"origin": TOTAL}
    assert status["message"] == ""
    assert cluster.store.served_bytes - before == TOTAL
    cluster.assert_whole(2)


def test_a_node_that_was_killed_at_any_instant_goes_on_where_it_was(cluster: Cluster) -> None:
    moments = random.Random(time.time_ns())
    received = 0
    for _kill in range(3):
        cluster.start(1, [0])
        time.sleep(0.15 + moments.random() * 0.4)
        before = cluster.store.served_bytes
        cluster.kill(1)
        time.sleep(0.1)
        received = max(received, before)
        tree = cluster.tree(1)
        assert not (tree / weights.STAMP).exists() or all((tree / name).is_file() for name in SIZES)
    cluster.start(1, [0])
    cluster.until(1, "whole")
    cluster.assert_whole(1)
    # What was on its way in each of the streams when the kill came is lost, and nothing else.
    assert cluster.store.served_bytes <= TOTAL + 3 * 3 * PIECE + 2 * 2**20


def test_a_flipped_byte_in_what_has_arrived_costs_one_piece(cluster: Cluster) -> None:
    part = cluster.incoming(1)
    part.mkdir(parents=True)
    for name in SIZES:
        data = bytearray((cluster.folder / "source" / name).read_bytes())
        if name == "model.safetensors":
            data[5 * PIECE + 7] ^= 1
        (part / name).write_bytes(data)
    cluster.start(1, [0])
    status = cluster.until(1, "whole")
    assert status["fetched_bytes"] == PIECE
    assert status["local_bytes"] == TOTAL - PIECE
    cluster.assert_whole(1)


def test_what_the_old_file_has_right_is_not_sent_and_the_old_file_is_not_written(cluster: Cluster) -> None:
    cluster.tree(1).mkdir(parents=True)
    old = cluster.tree(1) / "model.safetensors"
    data = bytearray((cluster.folder / "source" / "model.safetensors").read_bytes())
    data[3 * PIECE] ^= 1
    old.write_bytes(data)
    with old.open("rb") as reader:
        cluster.start(1, [0])
        status = cluster.until(1, "whole")
        assert reader.read() == bytes(data)
    assert status["fetched_bytes"] == TOTAL - SIZES["model.safetensors"] + PIECE
    cluster.assert_whole(1)


def test_a_piece_that_rots_on_the_way_is_fetched_again_by_the_node_that_passes_it_on(cluster: Cluster) -> None:
    """The origin lacks its last piece, so that node 1 cannot be done while node 2 asks for what rotted there."""
    last = cluster.store.pieces[-1]
    cluster.store.drop(last)
    cluster.start(1, [0])
    cluster.until_has(1, TOTAL - last.length)
    with (cluster.incoming(1) / "model.safetensors").open("r+b") as handle:
        handle.seek(2 * PIECE)
        byte = handle.read(1)
        handle.seek(2 * PIECE)
        handle.write(bytes([byte[0] ^ 1]))
    cluster.start(2, [1, 0])
    cluster.until_has(2, TOTAL - last.length)
    cluster.store.add(last)
    assert cluster.until(2, "whole")["wrong_pieces"] == 1
    assert cluster.until(1, "whole")["fetched_bytes"] == TOTAL + PIECE
    cluster.assert_whole(1)
    cluster.assert_whole(2)


def test_a_damaged_source_is_named_and_what_was_there_stays(cluster: Cluster) -> None:
    old = cluster.tree(1) / "config.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    cluster.store.marks = {}
    source = cluster.folder / "source" / "model.safetensors"
    with source.open("r+b") as handle:
        handle.write(b"\0\0\0\0")
    cluster.start(1, [0])
    message = cluster.until(1, "failed")["message"]
    assert "model.safetensors is damaged on" in message
    assert f"in the {PIECE} bytes from 0" in message
    assert old.read_bytes() == b"old"
    assert cluster.running[1].wait(timeout=10) == 0


def test_a_file_that_changes_while_it_is_sent_is_named(cluster: Cluster) -> None:
    source = cluster.folder / "source" / "model.safetensors"
    os.utime(source, ns=(1, 1))
    cluster.start(1, [0])
    assert "model.safetensors changed at the source while it was sent" in cluster.until(1, "failed")["message"]
    assert not cluster.tree(1).exists()


def test_a_file_that_goes_away_while_it_is_sent_is_named(cluster: Cluster) -> None:
    (cluster.folder / "source" / "config.json").unlink()
    cluster.start(1, [0])
    assert "config.json went away from the source" in cluster.until(1, "failed")["message"]


def test_nobody_to_ask_ends_with_the_name_of_who_does_not_answer(cluster: Cluster) -> None:
    cluster.start(1, [2], patience_s=3)
    message = cluster.until(1, "failed", seconds=40)["message"]
    assert "Nobody sent the hashes of the pieces. node2 does not answer (127.0.0.12:" in message


def test_what_an_earlier_transfer_left_running_is_waited_for_until_it_is_replaced(cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "whole")
    cluster.kill(1)
    # What a control node that died left on the node before: it serves, and knows the old token.
    cluster.start(2, [], token="of an earlier transfer", patience_s=60)
    # This node went through an earlier run and knows the hashes: its first question is for a piece.
    part = cluster.incoming(3)
    part.mkdir(parents=True)
    (part / weights.PIECES).write_bytes((cluster.tree(1) / weights.PIECES).read_bytes())
    cluster.until(2, "moving")
    cluster.start(3, [2])
    time.sleep(0.8)
    assert cluster.status(3)["state"] == "moving"
    cluster.kill(2)
    cluster.start(2, [0])
    cluster.until(3, "whole", "failed")
    cluster.assert_whole(3)


def test_a_node_that_keeps_to_another_transfer_is_named(cluster: Cluster) -> None:
    cluster.start(2, [], token="of another transfer", patience_s=60)
    cluster.until(2, "moving")
    cluster.start(1, [2], patience_s=3)
    message = cluster.until(1, "failed", seconds=40)["message"]
    assert "node2 does not answer (127.0.0.12:" in message
    assert "it takes part in another transfer" in message


class FlippingServer(weights_mover.Server):
    """Hands out the first pieces with a flipped byte, as a link that damages what it carries."""

    flips = 1

    def _piece(self, client: socket.socket, piece: weights.Piece, recheck: bool) -> None:
        if not self.flips or piece.length < PIECE:
            super()._piece(client, piece, recheck)
            return
        self.flips -= 1
        data = bytearray(self.store.paths[piece.file].read_bytes()[piece.offset : piece.offset + piece.length])
        data[PIECE // 2] ^= 1
        self._head(client, 200, piece.length)
        client.sendall(data)


@pytest.fixture
def flipping(cluster: Cluster) -> Iterator[FlippingServer]:
    server = FlippingServer(cluster.store, TOKEN, ["127.0.0.1"])
    cluster.origin = server.listen("127.0.0.1", 0)
    yield server
    server.close()


def test_a_byte_that_flips_on_the_link_costs_one_piece(cluster: Cluster, flipping: FlippingServer) -> None:
    flipping.flips = 1
    cluster.start(1, [0])
    status = cluster.until(1, "whole", "failed")
    assert status["wrong_pieces"] == 1
    assert status["fetched_bytes"] == TOTAL + PIECE
    cluster.assert_whole(1)


def test_a_link_that_flips_bytes_again_and_again_is_named_and_nothing_wrong_counts(
    cluster: Cluster, flipping: FlippingServer
) -> None:
    flipping.flips = 1000
    cluster.start(1, [0])
    message = cluster.until(1, "failed")["message"]
    assert "came with wrong bytes twice from origin, in the 1048576 bytes from " in message
    assert not cluster.tree(1).exists()
    cluster.kill(1)
    # The wrong bytes lie where the right ones belong; the next run does not take them for right.
    flipping.flips = 0
    cluster.start(1, [0])
    cluster.until(1, "whole", "failed")
    cluster.assert_whole(1)


def answer_half(listener: socket.socket, stay: bool) -> None:
    """Promise a piece, send half of it, and fall silent or hang up."""
    client, _peer = listener.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 -\r\nContent-Length: 1048576\r\n\r\n" + bytes(PIECE // 2))
    if stay:
        client.recv(1)
    client.close()


@pytest.mark.parametrize(
    ("stay", "sentence"), [(True, "silent for 1 s"), (False, "closed the connection in the middle of a piece")]
)
def test_a_source_that_ends_in_the_middle_of_a_piece_counts_as_dead(
    cluster: Cluster, tmp_path: Path, stay: bool, sentence: str
) -> None:
    piece = next(piece for piece in cluster.store.pieces if piece.length == PIECE)
    with (tmp_path / "part").open("w+b") as part, socket.create_server(("127.0.0.1", 0)) as listener:
        part.truncate(piece.offset + PIECE)
        threading.Thread(target=answer_half, args=(listener, stay), daemon=True).start()
        port = int(listener.getsockname()[1])
        connection = weights_mover.Connection("127.0.0.1", port, TOKEN, "digest", silence_s=1)
        stream = weights_mover.Stream(0)
        began = time.monotonic()
        with pytest.raises(weights_mover.SourceDeadError, match=sentence):
            connection.bring(piece, part.fileno(), stream.pipe)
        # One silence until what is less than a part is taken, and one after it.
        assert time.monotonic() - began < 2.6
        # What is not empty afterwards would be written before the next piece.
        assert select.select([stream.pipe[0]], [], [], 0) == ([], [], [])
        stream.close()
        connection.close()


def test_a_disk_that_fills_up_is_not_taken_for_a_dead_source(cluster: Cluster, tmp_path: Path) -> None:
    """A limit to the length of files stands in for the disk's end; it comes in the middle of the piece."""
    connection = weights_mover.Connection("127.0.0.1", cluster.origin, TOKEN, cluster.manifest["digest"])
    piece = next(piece for piece in cluster.store.pieces if piece.length == PIECE)
    stream = weights_mover.Stream(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "part").open("w+b") as part:
        part.truncate(piece.offset + PIECE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (piece.offset + PIECE // 2, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                connection.bring(piece, part.fileno(), stream.pipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    stream.close()
    connection.close()


def test_a_file_that_somebody_shortens_while_it_arrives_is_named(cluster: Cluster) -> None:
    last = cluster.store.pieces[-1]
    cluster.store.drop(last)
    cluster.start(1, [0])
    cluster.until_has(1, TOTAL - last.length)
    os.truncate(cluster.incoming(1) / "model.safetensors", PIECE)
    cluster.store.add(last)
    message = cluster.until(1, "failed")["message"]
    assert message == f"{cluster.root(1)}: somebody else has shortened a file of this transfer."


def test_a_target_that_cannot_be_written_is_named(cluster: Cluster) -> None:
    cluster.root(1).parent.mkdir(parents=True)
    cluster.root(1).write_bytes(b"a file where the directory should be")
    cluster.start(1, [0])
    assert "Not a directory" in cluster.until(1, "failed")["message"]


def test_a_full_disk_and_a_read_only_one_get_their_sentences(tmp_path: Path, cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "whole")
    job = json.loads((tmp_path / "node1" / "run" / "job.json").read_text(encoding="utf-8"))
    mover = weights_mover.Mover(job)
    assert "is full; something else filled it" in mover.explain(OSError(28, "No space left on device"))
    assert "mounted read-only" in mover.explain(OSError(30, "Read-only file system"))
    assert mover.explain(OSError(13, "Permission denied", "/a")) == "/a: Permission denied."


def test_a_port_that_is_taken_is_named(cluster: Cluster) -> None:
    with socket.create_server((address(1), cluster.port)):
        cluster.start(1, [0])
        assert f"cannot listen on 127.0.0.11:{cluster.port}" in cluster.until(1, "failed")["message"]


def ask(port: int, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while block := client.recv(65536):
            answer += block
    return answer


def test_the_server_gives_pieces_to_those_who_know_the_token_and_nothing_else(cluster: Cluster) -> None:
    key = f"Authorization: Bearer {TOKEN}\r\n\r\n"
    digest_ = cluster.manifest["digest"]
    assert b" 403 " in ask(cluster.origin, f"GET /{digest_}/0 HTTP/1.1\r\n\r\n")
    assert b" 405 " in ask(cluster.origin, f"PUT /{digest_}/0 HTTP/1.1\r\n{key}")
    for path in ("/", "/etc/passwd", f"/{digest_}/", f"/{digest_}/../x", f"/{digest_}/9999", "/0"):
        assert b" 404 " in ask(cluster.origin, f"GET {path} HTTP/1.1\r\n{key}"), path
    answer = ask(cluster.origin, f"GET /{digest_}/0 HTTP/1.1\r\n{key}")
    assert answer.endswith((cluster.folder / "source" / "config.json").read_bytes())


def test_the_server_hangs_up_on_addresses_that_are_not_of_the_cluster(cluster: Cluster) -> None:
    server = weights_mover.Server(cluster.store, TOKEN, ["127.0.0.99"])
    port = server.listen("127.0.0.1", 0)
    request = f"GET /{cluster.manifest['digest']}/0 HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    answer = b""
    with suppress(OSError):  # it may hang up before or after the request was written
        answer = ask(port, request)
    server.close()
    assert answer == b""
    assert b" 200 " in ask(cluster.origin, request)


def test_hashes_of_another_manifest_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="from a stranger are not those of the manifest"):
        cluster.store.load_hashes(b"x" * 32, "a stranger")


def test_a_mover_that_nobody_asks_for_ends(cluster: Cluster) -> None:
    cluster.start(1, [0], lease_s=1)
    assert cluster.running[1].wait(timeout=30) == 0


def test_a_clock_that_jumps_does_not_end_the_lease(cluster: Cluster) -> None:
    cluster.start(1, [2], lease_s=2, patience_s=60)
    cluster.until(1, "moving")
    # To the lease, a clock that is put forward by a day and a lease that is a day old are the same.
    lease = cluster.folder / "node1" / "run" / "lease"
    for number in range(8):
        os.utime(lease, (time.time() - 86400 + number, time.time() - 86400 + number))
        time.sleep(0.5)
        assert cluster.running[1].poll() is None
    assert cluster.running[1].wait(timeout=30) == 0


def test_leftovers_of_another_manifest_are_cleared_and_links_are_not_followed(cluster: Cluster, tmp_path: Path) -> None:
    part = cluster.incoming(1)
    (part / "old").mkdir(parents=True)
    (part / "old" / "gone.safetensors").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (part / "config.json").symlink_to(outside)
    cluster.start(1, [0])
    cluster.until(1, "whole")
    cluster.assert_whole(1)
    assert outside.read_bytes() == b"precious"


def test_files_of_the_old_manifest_that_the_new_one_does_not_name_go(cluster: Cluster) -> None:
    tree = cluster.tree(1)
    tree.mkdir(parents=True)
    for name in ("old.safetensors", "the owner's own.txt"):
        (tree / name).write_bytes(b"x")
    old = {"files": [{"path": "old.safetensors", "size": 1, "sha256": "0"}]}
    (tree / weights.STAMP).write_text(json.dumps(old), encoding="utf-8")
    cluster.start(1, [0])
    cluster.until(1, "whole")
    assert not (tree / "old.safetensors").exists()
    assert (tree / "the owner's own.txt").is_file()
