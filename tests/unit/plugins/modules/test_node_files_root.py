# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.node_files with a root: a node's files on another machine, owned by whoever runs the module."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import node_files


def run(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    files = [{"path": "/etc/gb10/a.env", "content": "A=1", "mode": "0600", "owner": "nobody-here", "group": "no-group"}]
    with patch_module_args({"files": files, "root": str(root)}), pytest.raises(SystemExit):
        node_files.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_written_below_the_root_for_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "node"
    path = root / "etc" / "gb10" / "a.env"
    assert run(root, capsys)["changed_paths"] == [str(path)]
    status = path.stat()
    assert path.read_text(encoding="utf-8") == "A=1\n"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, os.geteuid(), os.getegid())
    assert run(root, capsys)["changed"] is False
