# SPDX-License-Identifier: Apache-2.0
"""What was kept before the first change is given back, and nothing that somebody changed later is overwritten."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import files, restore
from ansible_collections.gb10.cluster.plugins.module_utils._node.text_block import with_block


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory in which every change is kept."""
    (tmp_path / "etc").mkdir()
    monkeypatch.setattr(files, "KEPT_ROOTS", (f"{tmp_path}/etc/",))
    monkeypatch.setattr(files, "BEFORE", tmp_path / "before")
    return tmp_path / "etc"


def manifest() -> dict[str, Any]:
    return files.read_json(files.BEFORE / "manifest.json")


def give_back(path: Path, check: bool = False) -> tuple[str, str]:
    return restore.restore_file(str(path), manifest()["files"][str(path)], check)


def test_a_file_of_the_owner_returns_with_its_mode(etc: Path) -> None:
    path = etc / "conf"
    path.write_text("owner's\n", encoding="utf-8")
    path.chmod(0o640)
    files.write(path, "ours 1\n")
    files.write(path, "ours 2\n")
    assert stat.S_IMODE((files.BEFORE / "manifest.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(files.BEFORE.stat().st_mode) == 0o700
    assert give_back(path, check=True) == (f"{path}: restored.", "")
    assert path.read_text(encoding="utf-8") == "ours 2\n"
    assert give_back(path) == (f"{path}: restored.", "")
    assert (path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)) == ("owner's\n", 0o640)
    assert give_back(path) == ("", "")


def test_a_file_that_did_not_exist_is_removed_even_when_it_was_edited(etc: Path) -> None:
    for name in ("same", "edited"):
        files.write(etc / name, "ours\n")
    (etc / "edited").write_text("ours, edited\n", encoding="utf-8")
    assert give_back(etc / "same") == (f"{etc}/same: removed.", "")
    assert "although it was edited" in give_back(etc / "edited")[0]
    assert list(etc.iterdir()) == []


def test_a_file_that_was_removed_returns(etc: Path) -> None:
    path = etc / "conf"
    path.write_text("owner's\n", encoding="utf-8")
    files.remove(path)
    assert give_back(path) == (f"{path}: restored.", "")
    assert path.read_text(encoding="utf-8") == "owner's\n"


def test_what_somebody_changed_since_is_left_and_named(etc: Path) -> None:
    path = etc / "daemon.json"
    path.write_text("{}\n", encoding="utf-8")
    files.write(path, '{"ours": 1}\n')
    path.write_text('{"ours": 1, "theirs": 2}\n', encoding="utf-8")
    done, left = give_back(path)
    assert done == ""
    assert "changed by somebody else since; left as it is. Its original: " in left
    assert Path(left.rsplit(" ", 1)[1]).read_text(encoding="utf-8") == "{}\n"


def test_of_a_shared_file_that_was_changed_since_our_block_goes(etc: Path) -> None:
    path = etc / "hosts"
    path.write_text("127.0.0.1 localhost\n", encoding="utf-8")
    files.write(path, with_block(path.read_text(encoding="utf-8"), "gb10.cluster nodes", "10.0.0.1 a"))
    path.write_text(path.read_text(encoding="utf-8") + "10.9.9.9 printer\n", encoding="utf-8")
    assert give_back(path)[0] == f"{path}: our block removed, later changes kept."
    assert path.read_text(encoding="utf-8") == "127.0.0.1 localhost\n10.9.9.9 printer\n"


def test_a_file_of_ours_from_before_the_manifest_is_not_taken_for_the_owners(etc: Path) -> None:
    path = etc / "conf"
    path.write_text("# Managed by gb10.cluster; changes made here are overwritten.\nold\n", encoding="utf-8")
    files.write(path, "# Managed by gb10.cluster\nnew\n")
    assert give_back(path)[0] == f"{path}: removed."


def test_a_secret_in_a_directory_of_our_own_has_no_copy(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a former release wrote, without a first line that says so."""
    monkeypatch.setattr(files, "OWN", (f"{etc}/gb10",))
    path = etc / "gb10" / "engine" / "model.env"
    path.parent.mkdir(parents=True)
    path.write_text("VLLM_API_KEY=the-former-key\n", encoding="utf-8")
    files.write(path, "VLLM_API_KEY=the-new-key\n", 0o600)
    files.remove(path)
    files.make_directories(etc / "gb10" / "edge")
    assert not files.BEFORE.exists()
    files.write(etc / "gb10.conf", "beside it\n")
    assert list(manifest()["files"]) == [f"{etc}/gb10.conf"]


def test_a_shared_file_with_our_block_first_is_the_owners(etc: Path) -> None:
    path = etc / "hosts"
    path.write_text(with_block("", "gb10.cluster nodes", "10.0.0.1 a") + "127.0.0.1 localhost\n", encoding="utf-8")
    files.write(path, "x")
    assert manifest()["files"][str(path)]["existed"] is True


def test_state_of_our_own_and_other_places_is_not_kept(etc: Path, tmp_path: Path) -> None:
    # Such as the inventory of the control node, which an ordinary user owns.
    files.write(tmp_path / "image_lock.json", "x")
    files.make_directories(tmp_path / "a" / "b")
    for name in ("/run/gb10/x", "/home/ann/project/x", "/srv/home/ann/.ssh/x"):
        files.keep_file(name, b"x")
    assert not files.BEFORE.exists()
    assert etc.is_dir()


@pytest.mark.parametrize(("uid", "kept"), [(0, ["/home/no-such/.ssh/authorized_keys"]), (1000, [])])
@pytest.mark.usefixtures("etc")
def test_what_root_changes_in_a_home_is_kept(monkeypatch: pytest.MonkeyPatch, uid: int, kept: list[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    files.keep_file("/home/no-such/.ssh/authorized_keys", b"x")
    assert list(manifest().get("files", {})) == kept


def test_new_directories_are_noted_and_removed_when_empty(etc: Path) -> None:
    files.make_directories(etc / "a" / "b")
    files.write(etc / "a" / "x", "x")
    noted = list(manifest()["directories"])
    assert noted == [f"{etc}/a", f"{etc}/a/b"]
    assert restore.remove_empty(noted, check=False) == [f"{etc}/a/b"]
    (etc / "a" / "x").unlink()
    assert restore.remove_empty(noted, check=True) == [f"{etc}/a"]
    assert (etc / "a").is_dir()


def test_the_first_note_counts(etc: Path) -> None:
    files.keep("sysctls", "vm.swappiness", "60")
    files.keep("sysctls", "vm.swappiness", "1")
    assert manifest()["sysctls"] == {"vm.swappiness": "60"}
    assert etc.is_dir()


def test_a_kept_file_that_was_lost_is_reported(etc: Path) -> None:
    path = etc / "conf"
    path.write_text("owner's\n", encoding="utf-8")
    files.write(path, "ours\n")
    (files.BEFORE / manifest()["files"][str(path)]["kept"]).unlink()
    done, left = give_back(path)
    assert (done, path.read_text(encoding="utf-8")) == ("", "ours\n")
    assert "is missing; left as it is" in left


@pytest.mark.parametrize("target", ["/lib/systemd/system/graphical.target", None])
def test_links(tmp_path: Path, target: str | None) -> None:
    place = tmp_path / "default.target"
    place.symlink_to("/lib/systemd/system/multi-user.target")
    assert restore.restore_link(str(place), target, check=True) != ""
    assert os.readlink(place).endswith("multi-user.target")  # noqa: PTH115
    restore.restore_link(str(place), target, check=False)
    assert (str(place.readlink()) if place.is_symlink() else None) == target
    assert restore.restore_link(str(place), target, check=False) == ""


def test_kernel_settings(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "swappiness").write_text("1\n", encoding="utf-8")
    assert restore.restore_sysctl("vm.swappiness", "60", tmp_path, check=False) == ("vm.swappiness = 60", "")
    assert restore.restore_sysctl("vm.swappiness", "60", tmp_path, check=False) == ("", "")
    assert "vm.gone could not be set" in restore.restore_sysctl("vm.gone", "1", tmp_path, check=False)[1]


@pytest.mark.parametrize(
    ("before", "now", "verbs"),
    [
        (("enabled", "active"), ("enabled", "active"), []),
        (("disabled", "inactive"), ("enabled", "active"), ["disable", "stop"]),
        (("enabled", "active"), ("disabled", "inactive"), ["enable", "start"]),
        # A package that did not exist before, and is gone again.
        (("", "inactive"), ("", "inactive"), []),
    ],
)
def test_units(before: tuple[str, str], now: tuple[str, str], verbs: list[str]) -> None:
    assert restore.unit_verbs({"enabled": before[0], "active": before[1]}, *now) == verbs


def test_the_manifest_survives_as_json(etc: Path) -> None:
    files.write(etc / "x", "x")
    assert json.loads((files.BEFORE / "manifest.json").read_text(encoding="utf-8"))["files"]
