# SPDX-License-Identifier: Apache-2.0
"""What is reported while weights move, how the watch of a node ends, and what the control node serves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import source, store
from ansible_collections.gb10.cluster.plugins.plugin_utils._weights import watch

STATUS = {
    "state": "moving", "have_bytes": 2**30, "total_bytes": 2**31, "idle_s": 0.0, "source": "gx10-1", "message": "",
    "rate_bytes_per_s": 10**9,
}  # fmt: skip


def follow(
    *answers: dict[str, Any], tunnels: Sequence[Any] = (), every_s: float = 10
) -> tuple[dict[str, Any], list[str]]:
    """Return the last status and the lines that were shown; all answers must have been asked for."""
    left = [{**STATUS, **answer} for answer in answers]
    lines: list[str] = []
    status = watch.follow(
        "gx10-2", lambda: left.pop(0), lines.append, lambda line: lines.append(f"STALLED {line}"), tunnels, every_s
    )
    assert not left
    return status, lines


def test_lines_of_progress_up_to_the_end() -> None:
    status, lines = follow({}, {}, {"state": "complete", "have_bytes": 2**31})
    assert status["state"] == "complete"
    assert lines == [
        "gx10-2: 1.0 GiB of 2.0 GiB, 1000 MB/s, 1 s left, from gx10-1",
        "gx10-2: 2.0 GiB of 2.0 GiB, complete",
    ]
    assert len(follow({}, {}, {"state": "complete"}, every_s=0)[1]) == 3


def test_a_stall_is_reported_once_with_what_the_node_waits_for() -> None:
    _status, lines = follow(
        {"idle_s": 9.0}, {"idle_s": 13.0}, {}, {"idle_s": 8.0}, {"state": "failed", "message": "no"}
    )
    assert [line for line in lines if line.startswith("STALLED")] == [
        "STALLED gx10-2 has received nothing for 9 s; it waits for gx10-1.",
        "STALLED gx10-2 has received nothing for 8 s; it waits for gx10-1.",
    ]


def test_a_node_that_does_not_answer_is_named_while_the_connection_still_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0)
    lines: list[str] = []

    def hang() -> dict[str, Any]:
        while not lines:
            time.sleep(0.02)
        return {"status": STATUS}

    assert watch.ask_aloud("gx10-3", hang, lines.append, 0.1) == {"status": STATUS}
    assert lines == ["gx10-3 has not answered for 0.1 s, or longer."]


def test_an_answer_gives_a_status_or_the_modules_words() -> None:
    assert watch.status_of("gx10-3", {"status": STATUS}) == STATUS
    with pytest.raises(watch.WatchError, match="gx10-3: no such unit"):
        watch.status_of("gx10-3", {"failed": True, "msg": "no such unit"})
    with pytest.raises(watch.WatchError, match="gx10-3 gave no status: Traceback"):
        watch.status_of("gx10-3", {"module_stderr": "Traceback"})


def ended_tunnel() -> subprocess.Popen[bytes]:
    gone = subprocess.Popen(["sh", "-c", "echo forwarding failed >&2; exit 255"], stderr=subprocess.PIPE)
    gone.wait()
    return gone


def test_an_ssh_connection_that_ends_ends_the_transfer_with_its_words() -> None:
    status, _lines = follow({}, tunnels=[ended_tunnel()])
    assert status["state"] == "failed"
    assert "the SSH connection that carries the files ended: forwarding failed" in status["message"]
    assert "AllowTcpForwarding" in status["message"]


class EndsMeanwhile:
    """A connection that is alive at the first look and has ended at the next."""

    def __init__(self) -> None:
        self.looks = 0
        self.stderr = None

    def poll(self) -> int | None:
        self.looks += 1
        return None if self.looks == 1 else 255


def test_an_ssh_connection_that_ends_with_the_transfer_is_no_failure() -> None:
    """The end of both falls between the look at the connection and the node's answer, or between two answers."""
    assert follow({"state": "complete"}, tunnels=[ended_tunnel()])[0]["state"] == "complete"
    assert follow({}, {"state": "complete"}, tunnels=[EndsMeanwhile()])[0]["state"] == "complete"


def test_a_run_whose_parent_was_killed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([1000, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(watch.WatchError, match="The play that this belongs to has ended"):
        follow({})


def test_a_tunnel_leads_from_the_nodes_loopback_and_ends_with_its_input() -> None:
    options = watch.forward_options(5082, 40000)
    assert options[options.index("-R") + 1] == "127.0.0.1:5082:127.0.0.1:40000"
    tunnel = watch.open_tunnel(["cat"])
    assert tunnel.poll() is None
    assert tunnel.stdin is not None
    tunnel.stdin.close()
    assert tunnel.wait(timeout=60) == 0
    assert tunnel.stderr is not None
    tunnel.stderr.close()


@pytest.mark.parametrize(
    ("transport", "password", "sentence"),
    [
        ("local", None, "weights go to a node over ssh, and its connection is local"),
        ("ssh", "secret", "need a key. Give it one"),
        ("ssh", None, None),
    ],
)
def test_connections_that_cannot_carry_weights_are_named(
    transport: str, password: str | None, sentence: str | None
) -> None:
    wrong = watch.connection_error("gx10-2", transport, password)
    assert wrong is None if sentence is None else sentence in str(wrong)
    assert "secret" not in str(wrong)


def test_the_control_nodes_files_are_served_with_their_marks(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"{}")
    pieces = hashlib.sha256(b"{}").digest()
    described = {"path": "config.json", "size": 2, "sha256": pieces.hex()}
    manifest = weights.make_manifest("o/m", "main", [described], 2**20, pieces)
    (tmp_path / "pieces").write_bytes(pieces)
    origin = {
        "folder": str(tmp_path), "pieces": str(tmp_path / "pieces"), "marks": {"config.json": store.mark(file)},
    }  # fmt: skip
    server, port = watch.serve_origin(manifest, origin, "t")
    connection = source.Connection("127.0.0.1", port, "t", manifest["digest"], silence_s=60)
    assert connection.get("0", 2) == b"{}"
    assert connection.get("pieces", 32) == pieces
    os.utime(file, ns=(1, 1))
    with pytest.raises(store.RefusedError, match=r"config\.json was modified at the source"):
        connection.get("0", 2)
    connection.close()
    server.close()
    assert server.store.served_bytes == 2
