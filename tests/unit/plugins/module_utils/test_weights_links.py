# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between two machines of a transfer, or on the disk of one; who gets an answer at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import mover as weights_mover
from ansible_collections.gb10.cluster.plugins.module_utils._weights import server as server_module
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.source import Connection, SourceDeadError, Stream
from tests.unit.plugins.module_utils.hostile import serving
from tests.unit.weights_cluster import PIECE, TOKEN, TOTAL, Cluster, address, make_cluster

__all__ = ["make_cluster"]


class FlippingServer(Server):
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
    status = cluster.until(1, "complete", "failed")
    assert status["wrong_pieces"] == 1
    assert status["fetched_bytes"] == TOTAL + PIECE
    cluster.assert_complete(1)


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
    cluster.until(1, "complete", "failed")
    cluster.assert_complete(1)


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
        connection = Connection("127.0.0.1", port, TOKEN, "digest", silence_s=1 if stay else 60)
        stream = Stream(0)
        with pytest.raises(SourceDeadError, match=sentence):
            connection.fetch(piece, part.fileno(), stream.pipe)
        # What is not empty afterwards would be written before the next piece.
        assert select.select([stream.pipe[0]], [], [], 0) == ([], [], [])
        stream.close()
        connection.close()


def test_a_disk_that_fills_up_is_not_taken_for_a_dead_source(cluster: Cluster, tmp_path: Path) -> None:
    """A limit to the length of files stands in for the disk's end; it comes in the middle of the piece."""
    connection = Connection("127.0.0.1", cluster.origin, TOKEN, cluster.manifest["digest"])
    piece = next(piece for piece in cluster.store.pieces if piece.length == PIECE)
    stream = Stream(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "part").open("w+b") as part:
        part.truncate(piece.offset + PIECE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (piece.offset + PIECE // 2, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                connection.fetch(piece, part.fileno(), stream.pipe)
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
    assert message == f"{cluster.root(1)}: another process has shortened a file of this transfer."


def test_a_target_that_cannot_be_written_is_named(cluster: Cluster) -> None:
    cluster.root(1).parent.mkdir(parents=True)
    cluster.root(1).write_bytes(b"a file where the directory should be")
    cluster.start(1, [0])
    assert "Not a directory" in cluster.until(1, "failed")["message"]


def test_a_full_disk_and_a_read_only_one_get_their_sentences(tmp_path: Path, cluster: Cluster) -> None:
    cluster.start(1, [0])
    cluster.until(1, "complete")
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
    with socket.create_connection(("127.0.0.1", port), timeout=600) as client:
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
    server = Server(cluster.store, TOKEN, ["127.0.0.99"])
    port = server.listen("127.0.0.1", 0)
    request = f"GET /{cluster.manifest['digest']}/0 HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    answer = b""
    with suppress(OSError):  # it may hang up before or after the request was written
        answer = ask(port, request)
    server.close()
    assert answer == b""
    assert b" 200 " in ask(cluster.origin, request)


def test_idle_connections_of_strangers_make_room_and_the_cluster_is_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a process may have descriptors; the server itself keeps few of them, long before their time is up."""
    monkeypatch.setattr(server_module, "UNKNOWN_S", 3600)
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", cluster.origin))) for _each in range(300)]
        connection = Connection("127.0.0.1", cluster.origin, TOKEN, cluster.manifest["digest"])
        assert connection.get("0", 2) == (cluster.folder / "source" / "config.json").read_bytes()
        ended = 0
        for client in idle:
            client.settimeout(0.0 if ended >= 300 - server_module.MAX_UNKNOWN - 1 else 60)
            with suppress(BlockingIOError):
                ended += client.recv(1) == b""
        assert ended >= 300 - server_module.MAX_UNKNOWN - 1
        # Who knows the token is not among those that make room.
        assert connection.get("0", 2) == (cluster.folder / "source" / "config.json").read_bytes()
        connection.close()


class ShortOfDescriptors:
    """A listener whose first calls of accept() fail as they do when a process has no descriptor left."""

    def __init__(self, listener: socket.socket, number: int) -> None:
        self.listener = listener
        self.left = [number] * 20

    def accept(self) -> object:
        if self.left:
            raise OSError(self.left.pop(), "")
        return self.listener.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.listener, name)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED])
def test_a_server_that_was_short_of_descriptors_answers_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = socket.create_server
    monkeypatch.setattr(
        socket, "create_server", lambda *args, **options: ShortOfDescriptors(real(*args, **options), number)
    )
    made = Server(cluster.store, TOKEN, ["127.0.0.1"])
    port = made.listen("127.0.0.1", 0)
    connection = Connection("127.0.0.1", port, TOKEN, cluster.manifest["digest"], silence_s=60)
    assert connection.get("0", 2) == (cluster.folder / "source" / "config.json").read_bytes()
    connection.close()
    made.close()


def test_a_head_without_an_end_is_not_read_to_its_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNKNOWN_S", 3600)
    # Hung up on, behind what the buffers of both sockets hold: a server that reads on would wait for the rest.
    with socket.create_connection(("127.0.0.1", cluster.origin), timeout=60) as client, suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\nX-Header: " + b"x" * (8 * server_module.MAX_HEAD_BYTES))
        assert client.recv(1) == b""


def test_who_does_not_show_the_token_in_time_is_hung_up_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNKNOWN_S", 0.3)
    with socket.create_connection(("127.0.0.1", cluster.origin), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert client.recv(1) == b""
    clock = [0.0]
    monkeypatch.setattr(server_module, "now", lambda: clock[0])
    monkeypatch.setattr(server_module, "UNKNOWN_S", 60)
    connection = Connection("127.0.0.1", cluster.origin, TOKEN, cluster.manifest["digest"], silence_s=60)
    for _each in range(3):
        # The server waits for the next request already when the clock moves on, and looks at it before the one after.
        assert connection.get("0", 2) == (cluster.folder / "source" / "config.json").read_bytes()
        clock[0] += 100
    connection.close()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 200 -\r\nContent-Length: 400000000\r\n\r\n", "announced 400000000 bytes, expected were 32"),
        (b"HTTP/1.1 410 -\r\nContent-Length: 400000000\r\n\r\n", "answered 410 with 400000000 bytes"),
        (b"HTTP/1.1 200 -\r\nContent-Length: 32\r\n\r\n" + bytes(33), "expected were 32"),
        (b"HTTP/1.1 200 -\r\nContent-Length: -1\r\n\r\n", "announces no length"),
        (b"HTTP/1.1 200 -\r\n\r\n", "announces no length"),
        (b"\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 -\r\n" + b"x: y\r\n" * 100_000, "has an endless head"),
        (b"", "closed the connection"),
    ],
)
def test_an_answer_that_is_none_of_ours_is_refused_before_it_is_read(answer: bytes, sentence: str) -> None:
    with serving(answer) as port:
        connection = Connection("127.0.0.1", port, TOKEN, "digest", silence_s=60)
        with pytest.raises(SourceDeadError, match=sentence):
            connection.get("pieces", 32)
        connection.close()
