# SPDX-License-Identifier: Apache-2.0
"""Standard output holds the document alone, and all the rest is on standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.callback.json_only import is_document, wanted

REPO = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"status_json": "true"}, True),
        ({"status_json": True}, True),
        ({"json": "-"}, True),
        ({"doctor_json": "-"}, True),
        ({"doctor_json": "report.json"}, False),
        ({"status_json": "false", "lines": "true"}, False),
    ],
)
def test_only_a_document_on_the_terminal_diverts_the_rest(variables: dict[str, Any], asked: bool) -> None:
    assert wanted(variables) is asked


@pytest.mark.parametrize(
    ("text", "document"), [('{"a": 1}', True), ("{}", True), ("{a}", False), ("[1]", False), ("PLAY [x]", False)]
)
def test_what_is_a_document(text: str, document: bool) -> None:
    assert is_document(text) is document


def test_the_status_of_a_node_can_be_piped(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.json"
    node = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    groups = {"gx10": {"hosts": {"gx10-1": node}}, "head": {"hosts": {"gx10-1": {}}}}
    values = {"gb10_api_key": "", "gb10_state_dir": str(tmp_path)}
    inventory.write_text(json.dumps({"all": {"children": groups, "vars": values}}))
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "playbooks/status.yml",
         "-e", "status_json=true"],
        cwd=REPO, env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["nodes"][0]["node"] == "gx10-1"
    assert "PLAY [" in ran.stderr
