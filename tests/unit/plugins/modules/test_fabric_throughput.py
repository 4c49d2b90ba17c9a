# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_throughput: what it starts, and what it makes of the tools' output."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import fabric_throughput

MEASURED = json.dumps({"end": {"sum_received": {"bits_per_second": 9.5e9}}})
BUSY = json.dumps({"error": "the server is busy"})
PERFTEST = " #bytes #iterations BW peak[Gb/sec] BW average[Gb/sec] MsgRate[Mpps]\n 65536 634112 0.00 110.81 0.211358\n"


class Node:
    """A node whose tools print one output after the other; the last one again and again."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.prints = [MEASURED]
        self.fails = ""

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        self.asked.append(" ".join(command))
        if self.fails and self.asked[-1].startswith(self.fails):
            return 1, "", "Failed to start transient service unit\n"
        if "--client" in command or "ib_write_bw" in command[:1]:
            text = self.prints[0]
            self.prints = self.prints[1:] or self.prints
            return 0, text, ""
        return 0, "", ""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    """Replace this machine; nothing is waited for."""
    made = Node()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return made


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_throughput.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_receiver_listens_on_one_address_and_ends(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert "failed" not in call(capsys, state="serving", address="10.0.0.1", serve_seconds=7)
    [started] = [said for said in node.asked if said.startswith("systemd-run")]
    # A unit that systemd starts again would listen for ever after a run that was killed.
    assert "Restart=" not in started
    assert " timeout 7 sh -c " in started
    assert started.endswith("iperf3 --server --bind 10.0.0.1 --port 5201")
    # An earlier one is stopped first.
    assert node.asked[0] == "systemctl stop gb10-throughput.service"
    node.fails = "systemd-run"
    assert (
        "The receiver iperf3 could not be started: Failed to start"
        in call(capsys, state="serving", address="10.0.0.1")["msg"]
    )


def test_measuring(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    told = call(capsys, state="measured", address="10.0.0.1", peer="10.0.0.2", seconds=2, streams=4)
    assert (told["gbps"], told["error"]) == (9.5, "")
    assert node.asked == [
        "timeout 62 iperf3 --client 10.0.0.2 --bind 10.0.0.1 --port 5201 --time 2 --omit 1 --parallel 4 --json"
    ]


def test_a_receiver_that_is_busy_is_asked_again(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.prints = [BUSY, BUSY, MEASURED]
    assert call(capsys, state="measured", address="10.0.0.1", peer="10.0.0.2")["gbps"] == 9.5
    node.asked.clear()
    node.prints = [BUSY]
    told = call(capsys, state="measured", address="10.0.0.1", peer="10.0.0.2")
    assert (told["gbps"], told["error"]) == (0.0, "the server is busy")
    assert len(node.asked) == fabric_throughput.ATTEMPTS


def test_rdma(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.prints = [PERFTEST]
    told = call(capsys, state="measured", tool="ib_write_bw", hca="rocep1s0f0", address="10.0.0.1", peer="10.0.0.2")
    assert told["gbps"] == 110.81
    assert node.asked[0].startswith("ib_write_bw -d rocep1s0f0 -p 5201 -F --report_gbits -q 8 -D 3 10.0.0.2")
    assert "hca" in call(capsys, state="serving", tool="ib_write_bw", address="10.0.0.1")["msg"]


def test_stopping_and_check_mode(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, state="stopped")
    assert node.asked[0] == "systemctl stop gb10-throughput.service"
    node.asked.clear()
    told = call(capsys, state="measured", address="10.0.0.1", peer="10.0.0.2", _ansible_check_mode=True)
    assert told["error"] == "nothing is sent in check mode"
    assert node.asked == []
