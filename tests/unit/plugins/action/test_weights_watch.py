# SPDX-License-Identifier: Apache-2.0
"""How gb10.cluster.weights_watch uses the connection of Ansible."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import weights_watch


class Connection:
    """An SSH connection as Ansible has it; `cat` stands in for ssh."""

    def __init__(self, transport: str = "ssh", password: str = "") -> None:
        self.transport = transport
        self.options = {"password": password, "host": "node", "ssh_executable": "ssh"}
        self.built: list[tuple[str, ...]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def get_option(self, name: str) -> str:
        return self.options[name]

    def _build_command(self, *words: str) -> list[str]:
        self.built.append(words)
        return ["cat"]


def action(connection: Connection, **task: Any) -> Any:
    return weights_watch.ActionModule(
        task=SimpleNamespace(async_val=0, check_mode=False, diff=False, environment=None, **task),
        connection=connection, play_context=SimpleNamespace(remote_addr="node", check_mode=False),
        loader=None, templar=None, shared_loader_obj=None,
    )  # fmt: skip


def test_each_tunnel_is_an_ssh_connection_with_the_inventorys_options() -> None:
    connection = Connection()
    tunnels = action(connection).open_tunnels("gx10-2", 40000, 5082, 2)
    assert [words[words.index("-R") + 1] for words in connection.built] == [
        "127.0.0.1:5082:127.0.0.1:40000",
        "127.0.0.1:5083:127.0.0.1:40000",
    ]
    assert {words[:2] + words[-2:] for words in connection.built} == {("ssh", "ssh", "node", "cat > /dev/null")}
    for tunnel in tunnels:
        tunnel.communicate(timeout=60)
        assert tunnel.returncode == 0


@pytest.mark.parametrize("connection", [Connection(transport="local"), Connection(password="secret")])
def test_connections_that_cannot_carry_weights_are_refused(connection: Connection) -> None:
    with pytest.raises(AnsibleActionFail, match="gx10-2: weights go to a node over") as failed:
        action(connection).open_tunnels("gx10-2", 40000, 5082, 2)
    assert "secret" not in str(failed.value)
    assert connection.built == []


def run(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Run the action without a source, against the answers of gb10.cluster.weights_move."""
    args = {"name": "gx10-2", "manifest": {"repo": "o/m"}, "complete": False, "port": 5082, "token": "t", **changes}
    made = action(Connection(), args=args, no_log=False)
    left = [*answers]
    monkeypatch.setattr(made, "read_status", lambda _task_vars: left.pop(0))
    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    result: dict[str, Any] = made.run(task_vars={})
    assert not left
    return result


def test_a_connection_that_broke_once_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """SSH gives up on a node that is silent for a minute; the transfer itself goes on there."""
    connection = Connection()
    answers: list[Any] = [
        AnsibleConnectionFailure("silent"),
        {"status": STATUS},
        *[AnsibleConnectionFailure("gone")] * 2,
    ]

    def execute(**_call: Any) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    made = action(connection)
    monkeypatch.setattr(made, "_execute_module", execute)
    assert made.read_status({}) == {"status": STATUS}
    assert connection.resets == 1
    with pytest.raises(AnsibleConnectionFailure, match="gone"):
        made.read_status({})


STATUS = {"state": "complete", "have_bytes": 2, "total_bytes": 2, "message": ""}


def test_a_transfer_that_completed_is_a_change_and_one_that_failed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, {"status": STATUS})
    assert (done["changed"], done["status"]["state"]) == (True, "complete")
    assert not run(monkeypatch, {"status": STATUS}, changes=False)["changed"]
    failed = run(monkeypatch, {"status": {**STATUS, "state": "failed", "message": "disk full"}})
    assert (failed["changed"], failed["failed"], failed["msg"]) == (False, True, "gx10-2: o/m: disk full")
    assert run(monkeypatch, complete=True) == {
        "_ansible_verbose_override": True, "changed": False, "seconds": 0.0, "status": {},
    }  # fmt: skip


def test_a_module_that_fails_fails_the_task_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnsibleActionFail, match="gx10-2: no such unit"):
        run(monkeypatch, {"failed": True, "msg": "no such unit"})
