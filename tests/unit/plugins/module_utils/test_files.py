# SPDX-License-Identifier: Apache-2.0
"""Files are replaced completely or not at all, and nobody redirects what root writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

OTHER = 4321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can own files as somebody else")


def test_content_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "conf"
    files.write(target, "first\n", 0o640)
    assert target.read_text(encoding="utf-8") == "first\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    files.write(target, b"second", 0o600)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"second", 0o600)
    assert os.listdir(tmp_path) == ["conf"]  # noqa: PTH208


def test_file_and_directory_reach_the_disk_before_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(*args: object, **kwargs: object) -> None:
        order.append("rename")
        rename(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    files.write(tmp_path / "conf", "x")
    assert order == ["file", "rename", "directory"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "conf"
    target.write_text("old", encoding="utf-8")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["conf"]  # noqa: PTH208


def test_own_links_are_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "conf").write_text("old", encoding="utf-8")
    (tmp_path / "alias").symlink_to(tmp_path / "link" / "conf")
    files.write(tmp_path / "alias", "new")
    assert (tmp_path / "alias").is_symlink()
    assert (tmp_path / "real" / "conf").read_text(encoding="utf-8") == "new"
    (tmp_path / "up").symlink_to("../" + tmp_path.name + "/real")
    files.write(tmp_path / "up" / "other", "1")
    assert (tmp_path / "real" / "other").read_text(encoding="utf-8") == "1"


@as_root
@pytest.mark.parametrize("place", ["directory", "file"])
def test_links_of_another_user_are_refused(tmp_path: Path, place: str) -> None:
    home, prey = tmp_path / "home", tmp_path / "etc"
    home.mkdir()
    prey.mkdir()
    (prey / "shadow").write_text("secret", encoding="utf-8")
    link = home / ".ssh"
    if place == "directory":
        link.symlink_to(prey)
        target = link / "shadow"
    else:
        link.mkdir()
        target = link / "shadow"
        target.symlink_to(prey / "shadow")
        link = target
    os.lchown(link, OTHER, OTHER)
    with pytest.raises(files.UnsafeLinkError, match=f"symbolic link '{link.name}' of user id {OTHER}"):
        files.write(target, "owned")
    with pytest.raises(files.UnsafeLinkError):
        files.remove(target)
    assert (prey / "shadow").read_text(encoding="utf-8") == "secret"


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        files.write(tmp_path / "a" / "x", "")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none/conf"):
        files.write(tmp_path / "none" / "conf", "")
    with pytest.raises(IsADirectoryError):
        files.write("/", "")


def test_json_is_read_back_and_anything_else_is_empty(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    assert files.read_json(tmp_path / "a.json") == {"b": 1, "a": [2]}
    (tmp_path / "half.json").write_text('{"a": ', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    assert [files.read_json(tmp_path / name) for name in ("half.json", "list.json", "none.json")] == [{}, {}, {}]


def test_remove_says_whether_there_was_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert [files.remove(tmp_path / "x"), files.remove(tmp_path / "x")] == [True, False]


def test_a_file_that_goes_while_a_directory_is_summed_up_occupies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that writes there renames its temporary files."""
    for name in ("stays", "goes"):
        (tmp_path / name).write_bytes(bytes(8192))
    lstat = Path.lstat

    def late(path: Path) -> os.stat_result:
        if path.name == "goes":
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", late)
    assert 8192 <= files.used_bytes(tmp_path) < 16384
    assert files.used_bytes(tmp_path / "absent") == 0
