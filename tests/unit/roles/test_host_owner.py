# SPDX-License-Identifier: Apache-2.0
"""What role host leaves of the owner's: another log driver of Docker, and the keys of the operator's account."""

from __future__ import annotations

import grp
import os
import pwd
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.modules import node_files
from tests.lint.collection import REPO
from tests.unit.helper import run_module

from .values import role_variable, templated

OURS = {"log-driver": "json-file", "log-opts": {"max-size": "50m", "max-file": "5"}}


@pytest.mark.parametrize(
    ("driver", "replace", "kept"),
    [
        ("", False, False),
        ("json-file", False, False),
        ("journald", False, True),
        ("journald", "false", True),
        ("journald", "true", False),
    ],
)
def test_another_log_driver_stays_unless_the_owner_says_otherwise(driver: str, replace: Any, kept: bool) -> None:
    found = role_variable(
        "host", "_host_docker_config",
        __host_owner={"owner": {"log_driver": driver}}, host_docker_replace_log_driver=replace,
        host_docker_insecure_registries=[], host_docker_config={},
    )  # fmt: skip
    assert found == ({} if kept else {**OURS, "log-opts": found["log-opts"]})
    assert kept or set(found["log-opts"]) == set(OURS["log-opts"])


@pytest.mark.parametrize(("keys", "ours"), [([], ""), (["ssh-ed25519 AAAA ours"], "ssh-ed25519 AAAA ours\n")])
def test_the_keys_of_an_account_stay_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], ours: str
) -> None:
    """An empty list of keys empties nothing."""
    monkeypatch.setattr(files, "BEFORE", tmp_path / "kept")
    text = (REPO / "roles/host/vars/main.yml").read_text(encoding="utf-8")
    item = re.search(r"\{'path': '~' ~ host_operator ~ '/\.ssh/authorized_keys'.*?\}", text, re.DOTALL)
    assert item
    wanted = dict(templated("{{ " + item[0] + " }}", host_operator="ada", host_operator_keys=keys))
    path = tmp_path / "authorized_keys"
    path.write_text("ssh-ed25519 BBBB owner\n", encoding="utf-8")
    me = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
    given = {**wanted, "path": str(path), **me}
    result = run_module(node_files, {"files": [given]})
    assert not result.get("failed"), result
    found = path.read_text(encoding="utf-8")
    assert found.startswith("ssh-ed25519 BBBB owner\n")
    assert ours in found
    assert bool(ours) == ("gb10.cluster" in found)
    # A list that has become empty takes ours away and nothing else.
    result = run_module(node_files, {"files": [{**given, "state": "absent", "content": ""}]})
    assert result["changed"] is bool(ours)
    assert path.read_text(encoding="utf-8") == "ssh-ed25519 BBBB owner\n"
