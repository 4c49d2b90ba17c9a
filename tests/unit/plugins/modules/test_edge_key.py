# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.edge_key: the keys that the proxy accepts, for root alone, shown to nobody."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._edge.proxy import accepted, key_map
from ansible_collections.gb10.cluster.plugins.module_utils._engine import record
from ansible_collections.gb10.cluster.plugins.modules import edge_key

KEY = "s3cret.key+/="


def call(capsys: pytest.CaptureFixture[str], folder: Path, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run the module on a directory with the engine's files."""
    given = {"path": str(folder / "edge/key.conf"), "record_path": str(folder / "active.json"), **arguments}
    with patch_module_args({**given, "_ansible_check_mode": check, "_ansible_diff": True}), pytest.raises(SystemExit):
        edge_key.main()
    printed = capsys.readouterr().out
    assert "s3cret" not in printed.replace('"api_key": "VALUE', "")
    found: dict[str, Any] = json.loads(printed)
    return found


def test_the_key_is_written_once_and_removed_with_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edge/key.conf"
    checked = call(capsys, tmp_path, check=True, api_key=KEY)
    assert (checked["changed"], checked["keyed"], path.exists()) == (True, True, False)
    assert call(capsys, tmp_path, api_key=KEY)["changed"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert not call(capsys, tmp_path, api_key=KEY)["changed"]
    path.chmod(0o644)
    assert call(capsys, tmp_path, api_key=KEY)["changed"]
    assert path.stat().st_mode & 0o777 == 0o600
    gone = call(capsys, tmp_path)
    assert (gone["changed"], gone["keyed"], path.exists()) == (True, False, False)
    assert not call(capsys, tmp_path)["changed"]


def test_the_key_of_the_engine_that_serves_counts_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "active.json").write_text('{"model": "a"}')
    (tmp_path / "a.env").write_text(f"A=b\nVLLM_API_KEY={KEY}\n")
    (tmp_path / "b.env").write_text("VLLM_API_KEY=of-another-model\n")
    path = tmp_path / "edge/key.conf"
    # A run from a shell without the key does not open the API.
    assert call(capsys, tmp_path)["keyed"]
    assert path.read_text() == key_map([KEY])
    # With a new one the old one counts until the engine is started with it.
    assert call(capsys, tmp_path, api_key="new")["accepted"] == 2
    assert path.read_text() == key_map(["new", KEY])
    (tmp_path / "a.env").write_text("VLLM_API_KEY=new\n")
    assert call(capsys, tmp_path, api_key="new")["accepted"] == 1
    assert "s3cret" not in path.read_text()


def test_what_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edge").write_text("a file")
    assert str(tmp_path / "edge/key.conf") in call(capsys, tmp_path, api_key=KEY)["msg"]


@pytest.mark.parametrize(
    ("text", "key"), [("A=b\nVLLM_API_KEY=se=cret\n", "se=cret"), ("MY_VLLM_API_KEY=x\n", ""), ("", ""), (None, "")]
)
def test_the_key_of_an_engine_is_in_its_environment(tmp_path: Path, text: str | None, key: str) -> None:
    if text is not None:
        (tmp_path / "m.env").write_text(text)
    assert record.api_key(tmp_path / "active.json", "m") == key


@pytest.mark.parametrize(
    ("run", "served", "expected"),
    [("a", "b", ["a", "b"]), ("a", "a", ["a"]), ("", "b", ["b"]), ("a", "", ["a"]), ("", "", []), ("a b", 'c"', [])],
)
def test_which_keys_are_accepted(run: str, served: str, expected: list[str]) -> None:
    assert accepted(run, served) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer s3cret.key+/=", True),
        ("bearer s3cret.key+/=", True),
        ("Bearer S3CRET.KEY+/=", False),
        ("Bearer s3cretXkey+/=", False),
        ("Bearer s3cret.key+/=2", False),
        ("Basic Bearer s3cret.key+/=", False),
        ("", False),
    ],
)
def test_what_the_pattern_matches(header: str, expected: bool) -> None:
    [pattern] = re.findall(r'^    "~(.*)" 1;$', key_map([KEY]), re.MULTILINE)
    assert bool(re.search(pattern, header)) is expected
