# SPDX-License-Identifier: Apache-2.0
"""Pieces between processes on the addresses of the loopback: chains, scatter, deaths and resumption."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._program import archive
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import mover as weights_mover
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import Store, hash_file
from ansible_collections.gb10.cluster.plugins.modules import program
from tests.unit.helper import run_module, until
from tests.unit.weights_cluster import PIECE, SIZES, TOKEN, TOTAL, Cluster, address, digest, make_cluster

__all__ = ["make_cluster"]


def test_one_reading_gives_the_hash_of_the_file_and_of_its_pieces(cluster: Cluster) -> None:
    path = cluster.folder / "source" / "model.safetensors"
    data = path.read_bytes()
    whole, pieces = hash_file(path, PIECE)
    assert whole == hashlib.sha256(data).hexdigest()
    expected = [hashlib.sha256(data[at : at + PIECE]).digest() for at in range(0, len(data), PIECE)]
    assert pieces == b"".join(expected)


def test_a_chain_of_three_brings_one_copy_over_each_link(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        cluster.start(node, list(range(node - 1, -1, -1)))
    for node in (1, 2, 3):
        status = cluster.until(node, "complete")
        assert status["by_source"] == {"origin" if node == 1 else f"node{node - 1}": TOTAL}
        cluster.assert_complete(node)
    assert cluster.store.served_bytes == TOTAL


def test_scatter_takes_a_share_each_from_the_origin_and_the_rest_from_one_another(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        others = [0, *(other for other in (1, 2, 3) if other != node)]
        cluster.start(node, others, scatter={"of": 3, "position": node - 1})
    shares = []
    for node in (1, 2, 3):
        status = cluster.until(node, "complete")
        cluster.assert_complete(node)
        shares.append(status["by_source"]["origin"])
        assert sum(status["by_source"].values()) == TOTAL
    assert sum(shares) == TOTAL
    assert max(shares) < TOTAL / 2


def test_a_dead_middle_node_is_left_out(cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "complete")
    # Node 2 accepts and stays silent, as a machine that hangs does.
    with socket.create_server((address(2), cluster.port)):
        cluster.start(3, [2, 1, 0], grace_s=1.5, silence_s=6)
        status = cluster.until(3, "complete")
    assert status["by_source"] == {"node1": TOTAL}
    assert "node2 does not answer" in status["message"]
    cluster.assert_complete(3)


def test_both_rails_carry_and_one_that_is_dead_costs_nothing_but_its_share(cluster: Cluster) -> None:
    other = Store(cluster.manifest, cluster.store.paths, [True] * len(cluster.store.paths))
    other.load_hashes(cluster.store.hashes or b"", "the test")
    other.marks = cluster.store.marks
    server = Server(other, TOKEN, ["127.0.0.1"])
    rails = [["127.0.0.1", cluster.origin], ["127.0.0.1", server.listen("127.0.0.1", 0)]]
    origin = {"name": "origin", "rails": rails, "position": None}
    cluster.start(1, [origin], streams=8)
    cluster.until(1, "complete")
    server.close()
    assert cluster.store.served_bytes + other.served_bytes == TOTAL
    assert min(cluster.store.served_bytes, other.served_bytes) > 0

    before = cluster.store.served_bytes
    cluster.start(2, [origin])
    status = cluster.until(2, "complete")
    assert status["by_source"] == {"origin": TOTAL}
    assert status["message"] == ""
    assert cluster.store.served_bytes - before == TOTAL
    cluster.assert_complete(2)


def test_a_node_that_was_killed_at_any_instant_goes_on_where_it_was(cluster: Cluster) -> None:
    moments = random.Random(time.time_ns())
    for _kill in range(3):
        cluster.start(1, [0])
        time.sleep(0.15 + moments.random() * 0.4)
        cluster.kill(1)
        tree = cluster.tree(1)
        assert not (tree / weights.STAMP).exists() or all((tree / name).is_file() for name in SIZES)
    cluster.start(1, [0])
    cluster.until(1, "complete")
    cluster.assert_complete(1)
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
    status = cluster.until(1, "complete")
    assert status["fetched_bytes"] == PIECE
    assert status["local_bytes"] == TOTAL - PIECE
    cluster.assert_complete(1)


def test_what_the_old_file_has_right_is_not_sent_and_the_old_file_is_not_written(cluster: Cluster) -> None:
    cluster.tree(1).mkdir(parents=True)
    old = cluster.tree(1) / "model.safetensors"
    data = bytearray((cluster.folder / "source" / "model.safetensors").read_bytes())
    data[3 * PIECE] ^= 1
    old.write_bytes(data)
    with old.open("rb") as reader:
        cluster.start(1, [0])
        status = cluster.until(1, "complete")
        assert reader.read() == bytes(data)
    assert status["fetched_bytes"] == TOTAL - SIZES["model.safetensors"] + PIECE
    cluster.assert_complete(1)


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
    assert cluster.until(2, "complete")["wrong_pieces"] == 1
    assert cluster.until(1, "complete")["fetched_bytes"] == TOTAL + PIECE
    cluster.assert_complete(1)
    cluster.assert_complete(2)


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
    assert cluster.running[1].wait(timeout=600) == 0


def test_a_file_that_changes_while_it_is_sent_is_named(cluster: Cluster) -> None:
    source = cluster.folder / "source" / "model.safetensors"
    os.utime(source, ns=(1, 1))
    cluster.start(1, [0])
    assert "model.safetensors was modified at the source during the transfer" in cluster.until(1, "failed")["message"]
    assert not cluster.tree(1).exists()


def test_a_file_that_goes_away_while_it_is_sent_is_named(cluster: Cluster) -> None:
    (cluster.folder / "source" / "config.json").unlink()
    cluster.start(1, [0])
    assert "config.json disappeared from the source" in cluster.until(1, "failed")["message"]


def test_nobody_to_ask_ends_with_the_name_of_who_does_not_answer(cluster: Cluster) -> None:
    cluster.start(1, [2], stall_s=3, grace_s=0)
    message = cluster.until(1, "failed")["message"]
    assert "Nobody sent the hashes of the pieces. node2 does not answer (127.0.0.12:" in message


def test_what_an_earlier_transfer_left_running_is_waited_for_until_it_is_replaced(cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "complete")
    cluster.kill(1)
    # What a control node that died left on the node before: it serves, and knows the old token.
    cluster.start(2, [], token="of an earlier transfer")
    # This node went through an earlier run and knows the hashes: its first question is for a piece.
    part = cluster.incoming(3)
    part.mkdir(parents=True)
    (part / weights.PIECES).write_bytes((cluster.tree(1) / weights.PIECES).read_bytes())
    cluster.until(2, "moving")
    cluster.start(3, [2])
    cluster.until(3, "moving")
    time.sleep(0.8)
    assert cluster.status(3)["state"] == "moving"
    cluster.kill(2)
    cluster.start(2, [0])
    cluster.until(3, "complete", "failed")
    cluster.assert_complete(3)


def test_a_node_that_keeps_to_another_transfer_is_named(cluster: Cluster) -> None:
    cluster.start(2, [], token="of another transfer")
    cluster.until(2, "moving")
    cluster.start(1, [2], stall_s=3, grace_s=0)
    message = cluster.until(1, "failed")["message"]
    assert "node2 does not answer (127.0.0.12:" in message
    assert "it takes part in another transfer" in message


def test_hashes_of_another_manifest_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="from a stranger do not match the manifest"):
        cluster.store.load_hashes(b"x" * 32, "a stranger")


def test_a_mover_that_nobody_asks_for_ends(cluster: Cluster) -> None:
    cluster.start(1, [0], lease_s=1)
    assert cluster.running[1].wait(timeout=600) == 0


def test_a_clock_that_jumps_does_not_end_the_lease(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the lease, a clock that is put forward by a day and a lease that is a day old are the same."""
    job = cluster.job(1, [2], lease_s=20)
    running_s, looks = store.now(), 0

    def look(*_status: object) -> None:
        """Let 15 s pass before each look at the lease, which is renewed before the first four."""
        nonlocal running_s, looks
        running_s, looks = running_s + 15, looks + 1
        if looks <= 4:
            os.utime(job.with_name("lease"), (time.time() - 86400 + looks, time.time() - 86400 + looks))

    monkeypatch.setattr(weights_mover, "now", lambda: running_s)
    monkeypatch.setattr(weights_mover, "STATUS_EVERY_S", 0.01)
    monkeypatch.setattr(files, "write_json", look)
    monkeypatch.setattr(signal, "signal", lambda *_given: None)
    before = set(threading.enumerate())
    assert weights_mover.main([str(job)]) == 0
    assert looks == 6
    running_s += 1000  # a stall ends what would end with the process
    until(lambda: set(threading.enumerate()) <= before)


def test_leftovers_of_another_manifest_are_cleared_and_links_are_not_followed(cluster: Cluster, tmp_path: Path) -> None:
    part = cluster.incoming(1)
    (part / "old").mkdir(parents=True)
    (part / "old" / "gone.safetensors").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (part / "config.json").symlink_to(outside)
    cluster.start(1, [0])
    cluster.until(1, "complete")
    cluster.assert_complete(1)
    assert outside.read_bytes() == b"precious"


def test_files_of_the_old_manifest_that_the_new_one_does_not_name_go(cluster: Cluster) -> None:
    tree = cluster.tree(1)
    tree.mkdir(parents=True)
    for name in ("old.safetensors", "the owner's own.txt"):
        (tree / name).write_bytes(b"x")
    described = {"path": "old.safetensors", "size": 1, "sha256": digest(tree / "old.safetensors")}
    old = weights.make_manifest("org/model", "main", [described], PIECE, b"hashes")
    (tree / weights.STAMP).write_text(json.dumps(old), encoding="utf-8")
    cluster.start(1, [0])
    cluster.until(1, "complete")
    assert not (tree / "old.safetensors").exists()
    assert (tree / "the owner's own.txt").is_file()


def test_an_archive_installed_in_the_middle_of_a_transfer_disturbs_nothing(cluster: Cluster) -> None:
    """The origin keeps its last piece back until a newer program is installed beside the one that runs."""
    last = cluster.store.pieces[-1]
    cluster.store.drop(last)
    cluster.start(1, [0])
    cluster.until_has(1, TOTAL - last.length)
    older = cluster.program
    data = older.read_bytes() + b"\0"  # a zip archive ends with a comment of any length; this one is another program
    cluster.program = older.with_name(f"gb10-weights-{archive.digest_of(data)}.pyz")
    args = {
        "program": "weights", "directory": str(older.parent), "file": cluster.program.name,
        "data": base64.b64encode(data).decode(),
    }  # fmt: skip
    os.utime(older, (1, 1))  # old enough for retention
    result = run_module(program, args)
    assert result["changed"]
    assert result["removed"] == [], "the archive from which a transfer runs was removed"
    cluster.store.add(last)
    cluster.until(1, "complete", "failed")
    cluster.start(2, [1])
    for node in (1, 2):
        cluster.until(node, "complete", "failed")
        cluster.assert_complete(node)
    cluster.kill(1)
    assert run_module(program, args)["removed"] == [str(older)]


class Trickle:
    """A source that has one piece, which comes in parts with 100 s by the test's clock between them, and no other."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.clock = 0.0
        self.mover: weights_mover.Mover | None = None
        self.done = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _peer = self.listener.accept()
                threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    def answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while request := client.recv(4096):
                if b"/0 HTTP" in request:
                    self.send_slowly(client)
                elif self.done:
                    client.sendall(b"HTTP/1.1 200 -\r\nContent-Length: 1\r\n\r\nx")
                else:
                    client.sendall(b"HTTP/1.1 503 -\r\nContent-Length: 0\r\n\r\n")

    def send_slowly(self, client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 -\r\nContent-Length: %d\r\n\r\n" % len(self.body))
        sent = 0
        # Each part is more than what is received at once, with what may have come together with the head.
        for upto in (300_000, 570_000, 840_000, len(self.body)):
            client.sendall(self.body[sent:upto])
            sent = upto
            deadline = time.monotonic() + 60
            while self.mover and self.mover.progress_at < self.clock and time.monotonic() < deadline:
                time.sleep(0.005)
            self.clock += 100
            # Long enough for the other stream to look at the clock.
            time.sleep(0.3)
        self.done = True


def test_a_slow_link_is_no_stall_as_long_as_bytes_come(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece takes longer than weights_stall_seconds, and another one does not come yet; each of its parts does."""
    sizes = {"exact.safetensors": PIECE, "tail.json": 1}
    data = {"exact.safetensors": (cluster.folder / "source" / "exact.safetensors").read_bytes(), "tail.json": b"x"}
    files = [{"path": name, "size": sizes[name], "sha256": hashlib.sha256(data[name]).hexdigest()} for name in sizes]
    pieces = b"".join(hashlib.sha256(each).digest() for each in data.values())
    manifest = weights.make_manifest("org/model", "main", files, PIECE, pieces)
    slow = Trickle(data["exact.safetensors"])
    monkeypatch.setattr(weights_mover, "now", lambda: slow.clock)
    part = cluster.incoming(1)
    part.mkdir(parents=True)
    (part / weights.PIECES).write_bytes(pieces)
    source = {"name": "origin", "rails": [["127.0.0.1", slow.listener.getsockname()[1]]], "position": None}
    job = {
        "manifest": manifest, "missing": list(sizes), "complete": False, "root": str(cluster.root(1)), "token": TOKEN,
        "allow": [], "sources": [source], "scatter": {"of": 0, "position": 0}, "streams": 2, "stall_s": 150,
        "silence_s": 600, "run": "1",
    }  # fmt: skip
    slow.mover = weights_mover.Mover(job)
    slow.mover.move()
    slow.listener.close()
    assert slow.clock > 2 * 150
    assert slow.mover.state == "complete"
    assert (cluster.tree(1) / "exact.safetensors").read_bytes() == data["exact.safetensors"]
