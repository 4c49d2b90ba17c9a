# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.node_files on a directory that stands for the root."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.modules import node_files

from .conftest import Run

ME = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can own files as somebody else")


def one(path: Path, **more: Any) -> list[dict[str, Any]]:
    return [{"path": str(path), **ME, **more}]


def test_a_file_is_written_once_with_its_mode_and_directories(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "a" / "b" / "conf"
    result = run_module(node_files, files=one(path, content="x", mode="0640"))
    assert (result["changed"], result["changed_paths"]) == (True, [str(path)])
    assert (path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)) == ("x\n", 0o640)
    assert run_module(node_files, files=one(path, content="x", mode="0640"))["changed"] is False


def test_check_mode_shows_the_difference_and_writes_nothing(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "conf"
    path.write_text("old\n", encoding="utf-8")
    path.chmod(0o644)
    result = run_module(node_files, check=True, files=one(path, content="new\n"))
    assert (result["changed"], path.read_text(encoding="utf-8")) == (True, "old\n")
    assert [(each["before"], each["after"]) for each in result["diff"]] == [("old\n", "new\n")]


def test_another_mode_is_a_change_of_its_own(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "conf"
    path.write_text("x\n", encoding="utf-8")
    path.chmod(0o600)
    result = run_module(node_files, files=one(path, content="x\n"))
    assert result["changed"] is True
    assert result["diff"][0]["after"].startswith("mode 0644")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_secret_is_in_no_diff(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "key"
    path.write_text("old-secret", encoding="utf-8")
    result = run_module(node_files, files=one(path, content="new-secret", secret=True, mode="0600"))
    assert result["changed"] is True
    shown = [(each["before"], each["after"]) for each in result["diff"]]
    assert shown == [("<hidden>\n", "<hidden, changed>\n")]


def test_one_refused_file_leaves_all_as_they_were(tmp_path: Path, run_module: Run) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    result = run_module(
        node_files,
        files=one(good, content="x") + one(bad, content="x", validate="/bin/sh -c 'echo line 3; exit 4' %s"),
    )
    assert result["failed"] is True
    assert "bad was not written: /bin/sh refuses the new content (exit code 4): line 3" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_validator_that_is_not_installed_is_skipped(tmp_path: Path, run_module: Run) -> None:
    result = run_module(node_files, files=one(tmp_path / "x", content="x", validate="/no/such/program %s"))
    assert result["changed"] is True


def test_a_block_leaves_the_rest_and_the_mode_alone(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n", encoding="utf-8")
    path.chmod(0o664)
    run_module(node_files, files=one(path, content="10.0.0.1 a", marker="ours"))
    assert path.read_text(encoding="utf-8") == "127.0.0.1 localhost\n# BEGIN ours\n10.0.0.1 a\n# END ours\n"
    run_module(node_files, files=one(path, marker="ours", state="absent"))
    assert path.read_text(encoding="utf-8") == "127.0.0.1 localhost\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_json_is_merged_into_the_owners(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"auths": {"x": {}}}', encoding="utf-8")
    run_module(node_files, files=one(path, content='{"pruneFilters": ["a"]}', merge="json"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"auths": {"x": {}}, "pruneFilters": ["a"]}
    assert run_module(node_files, files=one(path, content='{"pruneFilters": ["a"]}', merge="json"))["changed"] is False


def test_json_that_cannot_be_read_is_named_and_kept(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1,\n b}', encoding="utf-8")
    result = run_module(node_files, files=one(path, content="{}", merge="json"))
    assert f"{path} is not valid JSON (line 2" in result["msg"]
    assert path.read_text(encoding="utf-8") == '{"a": 1,\n b}'


def test_absent_removes_a_file_once(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "x"
    path.touch()
    assert run_module(node_files, files=one(path, state="absent"))["changed"] is True
    assert not path.exists()
    assert run_module(node_files, files=one(path, state="absent"))["changed"] is False


def test_bytes_that_are_no_utf8_survive_a_block(tmp_path: Path, run_module: Run) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\n")
    run_module(node_files, files=one(path, content="a", marker="ours"))
    assert path.read_bytes() == b"\xff\n# BEGIN ours\na\n# END ours\n"


def test_an_unknown_owner_is_named_before_anything_is_written(tmp_path: Path, run_module: Run) -> None:
    result = run_module(node_files, files=[{"path": str(tmp_path / "x"), "owner": "nobody-knows"}])
    assert "nobody-knows" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_root_stands_for_the_node(tmp_path: Path, run_module: Run) -> None:
    run_module(node_files, root=str(tmp_path), files=[{"path": "/etc/x", "content": "x", "owner": "nobody-knows"}])
    assert (tmp_path / "etc" / "x").read_text(encoding="utf-8") == "x\n"


@as_root
def test_a_users_link_is_neither_read_nor_written(tmp_path: Path, run_module: Run) -> None:
    home, secret = tmp_path / "home", tmp_path / "shadow"
    home.mkdir()
    os.chown(home, 4321, 4321)
    secret.write_text("root's", encoding="utf-8")
    (home / "conf").symlink_to(secret)
    os.lchown(home / "conf", 4321, 4321)
    result = run_module(node_files, files=one(home / "conf", content="x"))
    assert "refusing to follow the symbolic link 'conf' of user id 4321" in result["msg"]
    assert "root's" not in json.dumps(result)
    (home / "dir").symlink_to(tmp_path)
    os.lchown(home / "dir", 4321, 4321)
    result = run_module(node_files, files=one(home / "dir" / "new" / "x", content="x"))
    assert "refusing to follow the symbolic link 'dir'" in result["msg"]
    assert not (tmp_path / "new").exists()


@as_root
def test_a_new_directory_below_a_home_belongs_to_its_user(tmp_path: Path, run_module: Run) -> None:
    os.chown(tmp_path, 4321, 4321)
    run_module(node_files, files=one(tmp_path / ".ssh" / "authorized_keys", content="x"))
    made = (tmp_path / ".ssh").stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (4321, 0o700)
