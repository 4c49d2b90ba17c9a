# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_tree counts as complete, and what gb10.cluster.weights_evict removes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights import store
from ansible_collections.gb10.cluster.plugins.modules import weights_evict, weights_tree
from tests.unit.helper import run_module

CONTENT = {"config.json": b"{}", "model.safetensors": b"0123456789" * 100}


def manifest() -> dict[str, Any]:
    files = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in CONTENT.items()
    ]
    return weights.make_manifest("org/model", "main", files, 2**20, b"hashes")


def put(folder: Path, stamped: bool = False, shard: bytes = CONTENT["model.safetensors"]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**CONTENT, "model.safetensors": shard}.items():
        (folder / name).write_bytes(data)
    if stamped:
        (folder / weights.PIECES).write_bytes(b"hashes")
        store.stamp(folder, manifest())


def read(root: Path, check: bool = False, **changes: Any) -> dict[str, Any]:
    args = {"root": str(root), "repo": "org/model", "manifest": manifest(), "reserve_gib": 0.0, **changes}
    return run_module(weights_tree, args, check=check)


def test_a_transfer_that_was_never_closed_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "RUN_DIR", tmp_path / "run")
    put(tmp_path / "org" / "model", stamped=True)
    assert not read(tmp_path)["open"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text("{}")
    assert read(tmp_path)["open"]


def test_a_stamped_tree_is_complete_without_being_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    monkeypatch.setattr(store, "sha256", lambda path: pytest.fail(f"{path} was read"))
    result = read(tmp_path)
    assert (result["complete"], result["changes"], result["missing"]) == (True, False, [])


def test_its_last_use_is_noted_but_not_in_check_mode(tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    stamp = tmp_path / "org/model" / weights.STAMP
    os.utime(stamp, (1, 1))
    read(tmp_path, check=True)
    assert stamp.stat().st_mtime == 1
    read(tmp_path)
    assert stamp.stat().st_mtime > 1


def test_a_flipped_byte_is_found_though_size_and_time_are_as_before(tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    file = tmp_path / "org/model/model.safetensors"
    stat = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"x")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = read(tmp_path)
    assert (result["complete"], result["missing"], result["missing_bytes"]) == (False, ["model.safetensors"], 1000)


def test_verify_reads_what_stamp_and_marks_vouch_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    monkeypatch.setattr(store, "sha256", lambda path: "rotten" if path.suffix == ".json" else "")
    result = read(tmp_path, verify=True)
    assert result["missing"] == list(CONTENT)


def test_without_a_stamp_only_what_has_the_wrong_hash_is_missing(tmp_path: Path) -> None:
    put(tmp_path / "org/model", shard=b"x" * 1000)
    result = read(tmp_path)
    assert (result["complete"], result["changes"], result["missing"]) == (False, True, ["model.safetensors"])


def test_a_touched_file_is_read_and_nothing_counts_as_changed(tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    os.utime(tmp_path / "org/model/config.json", (1, 1))
    result = read(tmp_path)
    assert (result["complete"], result["changes"], result["missing"]) == (False, False, [])


def test_without_a_manifest_the_stamp_is_reported(tmp_path: Path) -> None:
    args = {"root": str(tmp_path), "repo": "org/model"}
    result = run_module(weights_tree, args)
    assert (result["stamp"], result["intact"]) == ({}, False)
    put(tmp_path / "org/model", stamped=True)
    assert run_module(weights_tree, args)["stamp"] == manifest()
    (tmp_path / "org/model" / weights.STAMP).write_text(json.dumps({**manifest(), "version": 1}), encoding="utf-8")
    assert run_module(weights_tree, args)["stamp"] == {}


def test_what_has_arrived_is_not_needed_again(tmp_path: Path) -> None:
    put(tmp_path / ".incoming/org/model")
    (tmp_path / ".incoming/org/model/model.safetensors").write_bytes(b"x" * 1000)
    result = read(tmp_path)
    assert result["arrived_bytes"] == result["missing_bytes"] == 1002


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A disk with nothing free, and on it three other models and a leftover."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage())
    monkeypatch.setattr(weights_tree, "ENGINE", tmp_path / "engine")
    for name, stamped, used in (("lab/old", True, 100), ("lab/new", True, 200), ("lab/owners", False, 0)):
        folder = tmp_path / "weights" / name
        put(folder, stamped, shard=os.urandom(3 * 2**20))
        if stamped:
            os.utime(folder / weights.STAMP, (used, used))
    put(tmp_path / "weights/.incoming/lab/stopped", shard=os.urandom(2**20))
    return tmp_path / "weights"


class Usage:
    """What a disk says that is full."""

    free = 0


MIB = 2**20 / 2**30


def test_the_leftover_goes_before_a_model_does(full: Path) -> None:
    result = read(full, reserve_gib=0.5 * MIB, evictable=["lab/*"])
    assert result["evict"] == [".incoming/lab/stopped"]
    assert list(result["leftovers"]) == [".incoming/lab/stopped"]


def test_then_the_model_that_is_unused_for_longest(full: Path) -> None:
    result = read(full, reserve_gib=2 * MIB, evictable=["lab/*"])
    assert result["evict"] == [".incoming/lab/stopped", "lab/old"]


def test_a_full_node_says_by_how_much_and_what_stays_and_why(full: Path) -> None:
    result = read(full, reserve_gib=100 * MIB, evictable=["lab/old"], keep=["lab/new"])
    message = result["msg"]
    assert f"{os.uname().nodename}: {full} has 0.0 GiB free and org/model still needs" in message
    assert "GiB short. Name a model that may be removed in weights_evictable" in message
    assert "lab/new (3.0 MiB): weights_keep names it" in message
    assert "lab/old (3.0 MiB): it would not suffice" in message
    assert "lab/owners (3.0 MiB): it carries no manifest of ours" in message
    assert result["evict"] == []
    assert (full / "lab/old").is_dir()


def test_what_is_served_and_what_a_unit_starts_at_boot_stay(full: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "active.json").write_text(json.dumps({"model": "old", "repo": "lab/old"}), encoding="utf-8")
    message = read(full, reserve_gib=5 * MIB, evictable=["lab/*"])["msg"]
    assert "lab/old (3.0 MiB): it is in use by the model that is served, old" in message


def test_a_model_that_a_container_has_mounted_is_in_use(
    monkeypatch: pytest.MonkeyPatch, full: Path, tmp_path: Path
) -> None:
    process = tmp_path / "proc" / "4711"
    process.mkdir(parents=True)
    line = f"36 35 98:0 {full}/lab/old /model ro - ext4 /dev/sda rw"
    (process / "mountinfo").write_text(line + "\n", encoding="utf-8")
    monkeypatch.setattr(weights_tree, "PROC", tmp_path / "proc")
    assert weights_tree.users(full) == {str(full / "lab/old"): "process 4711, which has it mounted"}


def test_a_root_that_is_a_file_or_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    assert f"{file} is not a directory" in str(weights_tree.target_error(file))
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert "cannot be written by this user" in str(weights_tree.target_error(tmp_path / "new"))


def test_a_file_system_that_is_mounted_read_only_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    readonly = os.statvfs_result((*real[:8], real.f_flag | os.ST_RDONLY, real.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda _path: readonly)
    result = read(tmp_path)
    assert "is on a file system that is mounted read-only" in result["msg"]


def evict(root: Path, *names: str, check: bool = False) -> dict[str, Any]:
    return run_module(weights_evict, {"root": str(root), "names": list(names)}, check=check)


def test_eviction_removes_what_was_chosen_and_check_mode_only_reports(full: Path) -> None:
    names = (".incoming/lab/stopped", "lab/old")
    reported = evict(full, *names, check=True)
    assert reported["changed"]
    assert reported["diff"] == {"before": ".incoming/lab/stopped\nlab/old\n", "after": ""}
    assert (full / "lab/old/model.safetensors").is_file()

    assert evict(full, *names)["evicted"] == list(names)
    assert sorted(path.name for path in (full / "lab").iterdir()) == ["new", "owners"]
    assert not (full / ".incoming").exists()

    assert not evict(full, *names)["changed"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lab/owners", "carries no manifest of ours, so it is not removed"),
        ("../x", "leads out of the model's directory"),
    ],
)
def test_what_is_not_ours_is_never_removed(full: Path, name: str, sentence: str) -> None:
    (full.parent / "x").mkdir()
    result = evict(full, name, "lab/old")
    assert sentence in result["msg"]
    assert (full / "lab/old").is_dir()
    assert (full / "lab/owners").is_dir()


def test_a_stamped_tree_is_intact_until_a_file_is_wrong_or_gone(tmp_path: Path) -> None:
    args = {"root": str(tmp_path), "repo": "org/model"}
    put(tmp_path / "org/model", stamped=True)
    assert run_module(weights_tree, args)["intact"]
    os.utime(tmp_path / "org/model/config.json", (1, 1))
    assert run_module(weights_tree, args)["intact"], "touched, and as it was"
    (tmp_path / "org/model/config.json").write_bytes(b"[]")
    assert not run_module(weights_tree, args)["intact"]
    put(tmp_path / "org/model", stamped=True)
    (tmp_path / "org/model/model.safetensors").unlink()
    result = run_module(weights_tree, args)
    assert (result["stamp"], result["intact"]) == (manifest(), False)


def test_a_stamp_that_is_none_of_ours_is_no_stamp(tmp_path: Path) -> None:
    put(tmp_path / "org/model", stamped=True)
    (tmp_path / "org/model" / weights.STAMP).write_text('{"version": 2, "files": 7}', encoding="utf-8")
    (tmp_path / "org/model" / weights.MARKS).write_text('{"config.json": 7}', encoding="utf-8")
    assert run_module(weights_tree, {"root": str(tmp_path), "repo": "org/model"})["stamp"] == {}
    result = read(tmp_path)
    assert (result["complete"], result["missing"]) == (False, [])


def test_room_is_kept_for_what_will_lie_beside_it(full: Path) -> None:
    put(full / "org/draft", shard=os.urandom(2**20))
    put(full / ".incoming/org/draft", shard=os.urandom(2**20))
    beside = [{"repo": "org/draft", "size_gib": 3 / 1024}]
    assert 2**20 - 2**16 < store.beside_bytes(full, beside) <= 2**20
    assert store.beside_bytes(full, [{"repo": "org/draft", "size_gib": 1 / 1024}]) == 0
    asked = {"root": str(full), "repo": "org/model", "manifest": manifest(), "reserve_gib": 0.0}
    result = run_module(weights_tree, {**asked, "beside": [{"repo": "org/draft", "size_gib": 100.0}]})
    assert "org/model and org/draft still need 100.0 GiB" in result["msg"]


def test_what_lies_beside_it_is_not_removed_for_it(full: Path) -> None:
    asked = {"root": str(full), "repo": "org/model", "manifest": manifest(), "reserve_gib": 3 / 1024}
    taken = run_module(weights_tree, {**asked, "evictable": ["lab/*"]})["evict"]
    assert "lab/old" in taken
    kept = run_module(
        weights_tree, {**asked, "evictable": ["lab/*"], "beside": [{"repo": "lab/old", "size_gib": 0.001}]}
    )["evict"]
    assert "lab/old" not in kept
    assert "lab/new" in kept


def test_the_draft_model_of_a_served_model_is_in_use(full: Path, tmp_path: Path) -> None:
    record = {"repo": "lab/model", "model": "m", "mounted": [str(full / "lab/model"), str(full / "lab/old")]}
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/active.json").write_text(json.dumps(record), encoding="utf-8")
    assert weights_tree.users(full)[str(full / "lab/old")] == "the model that is served, m"
