# SPDX-License-Identifier: Apache-2.0
"""The first process of an engine's containers as real processes: ranks that start, end and refuse together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import entry, tether
from ansible_collections.gb10.cluster.plugins.module_utils._engine.group import Group
from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import Life
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build
from lab.ports import free_port

DEADLINE_S = 300.0
# An engine that says that it runs, tells what ended it, and ends when it is asked to.
ENGINE = [sys.executable, "-c", "import signal; print('engine', flush=True); signal.pause()"]


class Ranks:
    """The ranks of one engine on this machine, each with its output in a file."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.port = folder, free_port()
        self.archive = folder / build("engine").name
        self.archive.write_bytes(build("engine").data)
        self.key = folder / "tether.key"
        self.key.write_text("5" * 64 + "\n")
        self.members = ",".join(f"node-{rank}=127.0.0.1" for rank in range(count))
        self.started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, rank: int, *options: str, command: list[str] | None = None, **environment: str) -> int:
        """Start a rank; returns its place among all that were started."""
        log = self.folder / f"{len(self.started)}.log"
        words = ["serve", "--model", "m", "--rank", str(rank), "--members", self.members]
        words += [
            "--tether-port",
            str(self.port),
            "--tether-key",
            str(self.key),
            "--silence-seconds",
            "60",
            "--same-env",
            "SHARED",
            *options,
        ]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, str(self.archive), "entry", *words, "--", *(command or ENGINE)],
                env={"PATH": os.environ["PATH"], "SHARED": "1", **environment},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append((process, log))
        return len(self.started) - 1

    def text(self, place: int) -> str:
        """Return what a rank has printed."""
        return self.started[place][1].read_text(encoding="utf-8")

    def await_text(self, place: int, part: str) -> None:
        """Wait until a rank has printed something."""
        end = time.monotonic() + DEADLINE_S
        while part not in self.text(place):
            assert time.monotonic() < end, f"no {part!r} in: {self.text(place)}"
            time.sleep(0.05)

    def await_end(self, place: int) -> tuple[int, str]:
        """Wait until a rank ends; returns its status and what it printed."""
        return self.started[place][0].wait(DEADLINE_S), self.text(place)

    def signal(self, place: int, number: int) -> None:
        """Send a signal to a rank's first process."""
        self.started[place][0].send_signal(number)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Ranks]:
    """Give three ranks that end with the test."""
    ranks = Ranks(tmp_path, 3)
    yield ranks
    for process, _log in ranks.started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the engine of a rank that was killed itself
        process.wait()


def serve(ranks: Ranks, *options: str) -> None:
    for rank in (2, 0, 1):
        ranks.start(rank, *options)
    for place in range(3):
        ranks.await_text(place, "engine\n")


def test_no_rank_starts_its_engine_before_all_are_there(three: Ranks) -> None:
    worker, head = three.start(2), three.start(0)
    three.await_text(head, "ranks gathered 2 of 3; waiting for rank 1, node-1 (127.0.0.1)")
    time.sleep(0.5)
    assert "gb10: exec" not in three.text(head) + three.text(worker)
    three.start(1)
    for place in range(3):
        three.await_text(place, "all 3 ranks are here")
        three.await_text(place, "engine\n")


def test_when_a_ranks_engine_dies_all_end_and_name_it(three: Ranks) -> None:
    serve(three)
    worker = three.started[2][0].pid
    child = int(Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="ascii").split()[0])
    os.kill(child, signal.SIGKILL)
    status, text = three.await_end(2)
    assert (status, "gb10: the engine exited unexpectedly: killed by signal 9\n" in text) == (137, True)
    lost = "gb10: restarting with the others: rank 1, node-1 (127.0.0.1) is gone: "
    lost += "its engine exited unexpectedly: killed by signal 9"
    for place in (0, 1):
        status, text = three.await_end(place)
        assert (status, lost in text) == (1, True), text


def test_when_a_ranks_first_process_is_killed_all_end(three: Ranks) -> None:
    serve(three)
    three.signal(0, signal.SIGKILL)
    for place in (1, 2):
        status, text = three.await_end(place)
        assert (status, "rank 2, node-2 (127.0.0.1) is gone" in text) == (1, True), text


def test_when_the_head_is_killed_all_end(three: Ranks) -> None:
    serve(three)
    three.signal(1, signal.SIGKILL)
    for place in (0, 2):
        status, text = three.await_end(place)
        assert (status, "rank 0, node-0 (127.0.0.1) is gone" in text) == (1, True), text


def test_a_rank_that_is_silent_is_gone(three: Ranks) -> None:
    serve(three, "--silence-seconds", "4")
    three.signal(0, signal.SIGSTOP)
    status, text = three.await_end(1)
    assert (status, "no heartbeat for 4 s" in text) == (1, True), text


def test_a_rank_that_restarts_while_its_old_connection_is_dead_restarts_the_others(three: Ranks) -> None:
    serve(three)
    three.signal(0, signal.SIGSTOP)  # as a node that lost its power: it closes no connection
    three.start(2)
    status, text = three.await_end(1)
    assert (status, "rank 2, node-2 (127.0.0.1) is gone: it has restarted" in text) == (1, True), text


def test_a_rank_that_leaves_before_all_are_there_may_come_back(three: Ranks) -> None:
    head, worker = three.start(0), three.start(1)
    three.await_text(head, "ranks gathered 2 of 3")
    three.signal(worker, signal.SIGKILL)
    three.await_text(head, "ranks gathered 1 of 3")
    three.start(1)
    three.start(2)
    three.await_text(head, "engine\n")


def test_a_rank_that_ends_just_as_the_last_one_comes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end was read before the group was full, and the group was full before it was taken off the list."""
    (tmp_path / "key").write_text("5" * 64, encoding="ascii")
    args, _command = entry.parse(
        ["serve", "--model", "m", "--members", "a=127.0.0.1,b=127.0.0.2,c=127.0.0.3", "--tether-key",
         str(tmp_path / "key")]
    )  # fmt: skip
    ended: list[str] = []
    life = Life()
    monkeypatch.setattr(life, "end", lambda _status, sentence, **_more: ended.append(sentence))

    class Late(Group):
        def follow(self, rank: int, messages: Iterable[dict[str, Any]]) -> None:
            super().follow(rank, messages)
            self.full.set()

    channel = SimpleNamespace(messages=lambda: iter(()), close=lambda: None, send=lambda _message: None)
    monkeypatch.setattr(tether, "accept", lambda *_words: ({"rank": 1, "model": "m", "env": {}}, channel))
    Late(args, life)._attend(socket.socket(), "127.0.0.2")
    assert ended == ["restarting with the others: rank 1, b (127.0.0.2) is gone: it closed the connection"]


def test_workers_wait_for_a_head_that_comes_late_or_again(three: Ranks) -> None:
    workers = [three.start(1), three.start(2)]
    three.await_text(workers[0], f"waiting for rank 0 at 127.0.0.1:{three.port} since ")
    first = three.start(0, "--same-env", "SHARED")
    three.await_text(first, "engine\n")
    for worker in workers:
        three.await_text(worker, "engine\n")


def test_a_stop_is_passed_on_and_ends_all_without_a_failure(three: Ranks) -> None:
    serve(three)
    three.signal(0, signal.SIGTERM)
    ends = [three.await_end(place) for place in range(3)]
    assert [status for status, _text in ends] == [0, 0, 0], ends
    assert "gb10: stopped on request" in ends[0][1]
    assert "gb10: stopping with the others: rank 2, node-2 (127.0.0.1): it was stopped" in ends[1][1]


def test_an_engine_that_exits_unexpectedly_with_status_0_has_failed(three: Ranks) -> None:
    three.start(0, command=[sys.executable, "-c", "import time; time.sleep(1)"])
    three.start(1)
    three.start(2)
    status, text = three.await_end(0)
    assert (status, "gb10: the engine exited unexpectedly: status 0" in text) == (1, True), text


def test_another_environment_is_refused_on_every_rank_and_named(three: Ranks) -> None:
    three.start(0)
    three.start(1)
    three.start(2, SHARED="2")
    for place in range(3):
        status, text = three.await_end(place)
        wanted = "gb10: start refused: the environment of rank 2, node-2 (127.0.0.1) is not that of the head: SHARED"
        assert (status, wanted in text) == (78, True), text
        assert "gb10: exec" not in text


def test_another_models_rank_waits_and_is_told_why(three: Ranks) -> None:
    head = three.start(0)
    other = three.start(1, "--model", "n")
    three.await_text(other, "rank 0, node-0 (127.0.0.1) runs m")
    assert "ranks gathered 2" not in three.text(head)


def test_a_held_port_is_named(three: Ranks) -> None:
    with socket.create_server(("127.0.0.1", three.port)):
        status, text = three.await_end(three.start(0))
    assert (status, f"gb10: start refused: 127.0.0.1 port {three.port}, where the ranks meet" in text) == (78, True)


def test_a_start_that_takes_the_memory_under_the_floor_ends_on_all_ranks(three: Ranks) -> None:
    three.start(0)
    three.start(1)
    three.start(2, "--floor-gib", "1000000")
    status, text = three.await_end(2)
    assert (status, "GiB is below the start floor of 1000000.00 GiB" in text) == (1, True), text
    assert "rank 2, node-2 (127.0.0.1) is gone: stopped: MemAvailable " in three.await_end(0)[1]


# --- who is no rank ----------------------------------------------------------------------------


def knock(port: int, *lines: bytes, source: str = "127.0.0.1") -> bytes:
    """Connect as somebody else, send lines, and return what came back until the connection was closed."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S, source_address=(source, 0)) as peer:
        try:
            for line in lines:
                peer.sendall(line + b"\n")
            while part := peer.recv(4096):
                got += part
        except ConnectionError:
            pass
    return got


HELLO = {"rank": 1, "model": "m", "env": {}}
#: What a host that has no key can say: the old hello, garbage, a proof with another key, JSON of other shapes.
WITHOUT_KEY = [
    json.dumps(HELLO).encode(),
    b"GET / HTTP/1.1",
    json.dumps({"nonce": "1", "hello": json.dumps(HELLO), "mac": "0" * 64}).encode(),
    json.dumps({"nonce": 1, "hello": None, "mac": []}).encode(),
    b"[" * 5000,
    b"\xff\xfe",
    b"x" * (tether.MAX_HELLO_BYTES + 10),
]


def test_nobody_without_the_key_ends_an_engine(three: Ranks) -> None:
    serve(three)
    for line in WITHOUT_KEY:
        answer = knock(three.port, line)
        assert set(json.loads(answer.splitlines()[0])) == {"nonce"}, answer
        assert len(answer.splitlines()) == 1, answer
    three.await_text(1, "connection from 127.0.0.1 refused: ")
    time.sleep(1)
    assert [process.poll() for process, _log in three.started] == [None] * 3, three.text(1)
    assert three.text(1).count("connection from 127.0.0.1 refused: ") == 1


def test_an_address_of_no_member_is_not_even_heard(three: Ranks) -> None:
    head = three.start(0)
    three.await_text(head, "ranks gathered 1 of 3")
    assert knock(three.port, source="127.0.0.2") == b""
    three.await_text(head, "connection from 127.0.0.2 refused: it is not the address of a member")


def test_a_proven_hello_for_a_rank_that_answers_changes_nothing(three: Ranks) -> None:
    serve(three)
    with socket.create_connection(("127.0.0.1", three.port), timeout=DEADLINE_S) as peer:
        channel = tether.connect(peer, b"5" * 64, HELLO, DEADLINE_S)
        assert next(channel.messages()) == {"wait": "rank 1, node-1 (127.0.0.1) is connected already, and answers"}
    time.sleep(1)
    assert [process.poll() for process, _log in three.started] == [None] * 3, three.text(1)


def test_another_key_is_named_on_both_sides(three: Ranks) -> None:
    head = three.start(0)
    three.await_text(head, "ranks gathered 1 of 3")
    three.key.write_text("6" * 64)
    other = three.start(1)
    three.await_text(head, "connection from 127.0.0.1 refused: its proof does not match the key of this node")
    three.await_text(other, "do both nodes have the same tether key? Run playbooks/serve.yml")


def test_a_start_without_a_key_is_refused(three: Ranks) -> None:
    three.key.unlink()
    status, text = three.await_end(three.start(0))
    assert (status, "gb10: start refused: the tether key" in text) == (78, True), text
