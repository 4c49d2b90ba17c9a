# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.secret_file: created once, the same afterwards, for root alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.modules import secret_file


def call(capsys: pytest.CaptureFixture[str], path: Path, check: bool = False, **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"path": str(path), "_ansible_check_mode": check, **arguments}), pytest.raises(SystemExit):
        secret_file.main()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_it_is_created_once_and_returned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "etc" / "tether.key"
    checked = call(capsys, path, check=True)
    assert (checked["changed"], checked["secret"]) == (True, "")
    assert not path.exists()
    first = call(capsys, path)
    assert (first["changed"], len(first["secret"]), path.stat().st_mode & 0o777) == (True, 64, 0o600)
    assert path.read_text() == first["secret"] + "\n"
    second = call(capsys, path)
    assert (second["changed"], second["secret"]) == (False, first["secret"])
    path.chmod(0o644)
    assert call(capsys, path)["changed"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("cut sho")
    assert len(call(capsys, path)["secret"]) == 64


def test_the_value_of_another_node_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tether.key"
    result = call(capsys, path, value="7" * 64)
    assert (result["changed"], "7777" in json.dumps(result)) == (True, False)
    assert path.read_text() == "7" * 64 + "\n"
    assert not call(capsys, path, value="7" * 64)["changed"]


def test_what_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    result = call(capsys, tmp_path / "file" / "tether.key")
    assert result["failed"]
    assert "tether.key cannot be read or written" in result["msg"]
