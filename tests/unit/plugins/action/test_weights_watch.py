# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_watch says while weights move, and how it ends."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.gb10.cluster.plugins.action import weights_watch
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import source, store

STATUS = {
    "state": "moving", "have_bytes": 2**30, "total_bytes": 2**31, "idle_s": 0.0, "source": "gx10-1", "message": "",
    "rate_bytes_per_s": 10**9,
}  # fmt: skip
ARGS = {"name": "gx10-2", "every_s": 10, "stalled_s": 8, "tunnels": 2, "port": 5082, "token": "t", "manifest": {}}


class Connection:
    """An SSH connection as Ansible has it; `command` stands in for ssh."""

    def __init__(self, transport: str = "ssh", password: str = "", command: tuple[str, ...] = ("cat",)) -> None:
        self.transport = transport
        self.options = {"password": password, "host": "node", "ssh_executable": "ssh"}
        self.command = command
        self.built: list[tuple[str, ...]] = []

    def get_option(self, name: str) -> str:
        return self.options[name]

    def _build_command(self, *words: str) -> list[str]:
        self.built.append(words)
        return list(self.command)


def action(connection: Connection | None = None) -> Any:
    made = weights_watch.ActionModule.__new__(weights_watch.ActionModule)
    made._connection = connection or Connection()
    return made


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(weights_watch._display, "display", lambda line, color=None: lines.append(line))
    return lines


def watch(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any], tunnels: Any = ()) -> dict[str, Any]:
    made = action()
    left = [{**STATUS, **answer} for answer in answers]
    monkeypatch.setattr(made, "_ask", lambda *_args: left.pop(0))
    status: dict[str, Any] = made._watch(ARGS, {}, tunnels)
    assert not left
    return status


def test_lines_of_progress_up_to_the_end(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    status = watch(monkeypatch, {}, {}, {"state": "complete", "have_bytes": 2**31})
    assert status["state"] == "complete"
    assert said == [
        "gx10-2: 1.0 GiB of 2.0 GiB, 1000 MB/s, 1 s left, from gx10-1",
        "gx10-2: 2.0 GiB of 2.0 GiB, complete",
    ]


def test_a_stall_is_said_once_with_what_the_node_waits_for(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    watch(monkeypatch, {"idle_s": 9.0}, {"idle_s": 13.0}, {}, {"idle_s": 8.0}, {"state": "failed", "message": "no"})
    stalls = [line for line in said if line.startswith("STALLED")]
    assert stalls == [
        "STALLED gx10-2 has received nothing for 9 s; it waits for gx10-1.",
        "STALLED gx10-2 has received nothing for 8 s; it waits for gx10-1.",
    ]


def test_a_node_that_does_not_answer_is_named_while_the_connection_still_waits(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(weights_watch, "_POLL_S", 0)
    made = action()

    def hang(**_call: Any) -> dict[str, Any]:
        time.sleep(1.6)
        return {"status": STATUS}

    monkeypatch.setattr(made, "_execute_module", hang)
    assert made._ask("gx10-3", 1, {}) == STATUS
    assert said == ["STALLED gx10-3 has not answered for 1 s, or longer."]


def test_a_module_that_fails_fails_the_task_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made = action()
    monkeypatch.setattr(made, "_execute_module", lambda **_call: {"failed": True, "msg": "no such unit"})
    with pytest.raises(AnsibleActionFail, match="gx10-3: no such unit"):
        made._ask("gx10-3", 1, {})
    monkeypatch.setattr(made, "_execute_module", lambda **_call: {"module_stderr": "Traceback"})
    with pytest.raises(AnsibleActionFail, match="gx10-3 gave no status: Traceback"):
        made._ask("gx10-3", 1, {})


@pytest.mark.usefixtures("said")
def test_an_ssh_connection_that_ends_ends_the_transfer_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["sh", "-c", "echo forwarding failed >&2; exit 255"], stderr=subprocess.PIPE)
    gone.wait()
    status = watch(monkeypatch, {}, tunnels=[gone])
    assert status["state"] == "failed"
    assert "the SSH connection that carries the files ended: forwarding failed" in status["message"]
    assert "AllowTcpForwarding" in status["message"]


def test_a_run_whose_parent_was_killed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([1000, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(AnsibleActionFail, match="The play that this belongs to has ended"):
        watch(monkeypatch, {})


def test_tunnels_lead_from_the_nodes_loopback_and_end_with_this_process() -> None:
    connection = Connection()
    tunnels = action(connection)._tunnels(40000, ARGS)
    assert [words[words.index("-R") + 1] for words in connection.built] == [
        "127.0.0.1:5082:127.0.0.1:40000",
        "127.0.0.1:5083:127.0.0.1:40000",
    ]
    assert "t" not in connection.built[0][2:]
    for tunnel in tunnels:
        assert tunnel.poll() is None
        tunnel.stdin.close()
        assert tunnel.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        (Connection(transport="local"), "weights go to a node over ssh, and its connection is local"),
        (Connection(password="secret"), "need a key. Give it one"),
    ],
)
def test_connections_that_cannot_carry_weights_are_named(connection: Connection, sentence: str) -> None:
    with pytest.raises(AnsibleActionFail, match=sentence) as failed:
        action(connection)._tunnels(40000, ARGS)
    assert "secret" not in str(failed.value)


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
    server, port = weights_watch.ActionModule._serve({"manifest": manifest, "origin": origin, "token": "t"})
    connection = source.Connection("127.0.0.1", port, "t", manifest["digest"])
    assert connection.get("0", 2) == b"{}"
    assert connection.get("pieces", 32) == pieces
    os.utime(file, ns=(1, 1))
    with pytest.raises(store.RefusedError, match=r"config\.json was modified at the source"):
        connection.get("0", 2)
    connection.close()
    server.close()
    assert server.store.served_bytes == 2
