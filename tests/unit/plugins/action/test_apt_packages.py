# SPDX-License-Identifier: Apache-2.0
"""A node lists its packages once in a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import apt_packages


@pytest.mark.parametrize(
    ("names", "installed", "there"),
    [
        (["rsync"], ["rsync", "zstd"], True),
        (["rsync", "nftables"], ["rsync"], False),
        (["chrony | systemd-timesyncd"], ["systemd-timesyncd"], True),
        (["chrony|systemd-timesyncd"], ["rsync"], False),
        ([], ["rsync"], True),
    ],
)
def test_of_alternatives_one_suffices(names: list[str], installed: list[str], there: bool) -> None:
    assert apt_packages.all_there(names, installed) is there


class Node:
    """A node that answers as the module does, and counts how often it is asked."""

    def __init__(self) -> None:
        self.installed = {"rsync"}
        self.asked: list[Any] = []
        self.fails = False

    def answer(self, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert task_vars is not None
        self.asked.append(module_args["names"])
        if self.fails:
            return {"failed": True, "msg": "no dpkg-query"}
        missing = sorted(set(module_args["names"]) - self.installed)
        self.installed |= set(missing)
        return {"changed": bool(missing), "missing": missing, "installed": sorted(self.installed)}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp, _vars: {})
    made = Node()
    monkeypatch.setattr(
        apt_packages.ActionModule,
        "_execute_module",
        lambda _self, module_args, task_vars: made.answer(module_args, task_vars),
    )
    return made


def install(*names: str, host: str = "gx10-1", delegate_to: str | None = None, **more: Any) -> dict[str, Any]:
    plugin = apt_packages.ActionModule.__new__(apt_packages.ActionModule)
    plugin._task = SimpleNamespace(args={"names": list(names), **more}, delegate_to=delegate_to)
    return plugin.run(None, {"inventory_hostname": host})


def test_what_this_run_has_seen_is_not_asked_again(node: Node) -> None:
    assert install("rsync", "zstd") == {"changed": True, "missing": ["zstd"]}, "the list is no result of the task"
    assert install("zstd") == {"changed": False, "missing": [], "marked": [], "cache_updated": False}
    assert install("zstd", "nftables")["missing"] == ["nftables"]
    assert node.asked == [["rsync", "zstd"], ["zstd", "nftables"]]


def test_every_node_is_asked(node: Node) -> None:
    for host, delegate_to in (("gx10-1", None), ("gx10-2", None), ("gx10-1", "gx10-3")):
        install("rsync", host=host, delegate_to=delegate_to)
    assert len(node.asked) == 3


def test_marks_are_asked_for_every_time(node: Node) -> None:
    install("rsync")
    install("rsync", manual=["nvidia-.*"])
    assert len(node.asked) == 2


def test_a_node_that_cannot_answer_is_asked_again(node: Node) -> None:
    node.fails = True
    assert install("rsync") == {"failed": True, "msg": "no dpkg-query"}
    node.fails = False
    assert install("rsync")["changed"] is False
    assert len(node.asked) == 2
