# SPDX-License-Identifier: Apache-2.0
"""What is read of a model's directory: links, files that are none, hub caches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]


def test_a_dangling_link_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    found = folder.walk(tmp_path, "org/model")
    assert list(found.files) == ["config.json"]
    assert found.errors == ["model.safetensors is a link to ../blobs/gone, which is not there."]


def test_links_within_the_directory_and_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(b"abc")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(blobs / "abc")
    (model / "tokenizer.json").write_bytes(b"{}")
    (model / "vocab.json").symlink_to("tokenizer.json")
    found = folder.walk(model, "org/model")
    assert (found.errors, found.outside) == ([], {})
    assert found.sizes == {"config.json": 3, "tokenizer.json": 2, "vocab.json": 2}
    # The same cache, under another model's name, is outside.
    assert list(folder.walk(model, "org/other").outside) == ["config.json"]


def test_a_link_to_a_file_of_the_owners_is_not_transferred_and_a_shard_elsewhere_is(tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    key.write_text("PRIVATE KEY", encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "chat_template.jinja").symlink_to(key)
    (model / "model.safetensors").symlink_to(key)
    found = folder.walk(model, "org/model")
    assert folder.outside_errors(found, sorted(found.files)) == [
        f"chat_template.jinja is a link to {key}, outside of the model's directory, and is not transferred. Copy the "
        "file into the directory if it belongs to the model."
    ]
    assert folder.outside_errors(found, ["model.safetensors"]) == []


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "c.json").symlink_to("d.json")
    (tmp_path / "d.json").symlink_to("c.json")
    found = folder.walk(tmp_path, "org/model")
    assert list(found.files) == ["config.json"]
    assert sorted(found.left) == ["a/", "b/"]
    assert len(found.errors) == 2


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    found = folder.walk(tmp_path, "org/model")
    assert (found.files, found.errors) == ({}, ["config.json is not a regular file; remove it."])


def test_a_directory_without_an_end_is_none_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_FILES", 3)
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.json").write_bytes(b"")
    found = folder.walk(tmp_path, "org/model")
    assert found.errors == ["there are more than 3 files; this is not a model's directory."]
    assert len(found.files) == 4


def snapshot(base: Path, commit: str, ref: str = "") -> Path:
    cached = base / "models--org--model"
    (cached / "snapshots" / commit).mkdir(parents=True)
    if ref:
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / ref).write_text(commit, encoding="ascii")
    return cached / "snapshots" / commit


@pytest.mark.parametrize("below", [".", "hub"])
def test_a_hub_cache_is_read_where_the_directory_does_not_exist(tmp_path: Path, below: str) -> None:
    held = snapshot(tmp_path / below, COMMIT, "main")
    path = tmp_path / "org" / "model"
    assert folder.locate(path, "org/model", "main") == (held, "")
    assert folder.locate(path, "org/model", COMMIT) == (held, "")
    assert folder.revision_held(held) == COMMIT
    path.mkdir(parents=True)
    assert folder.locate(path, "org/model", "main") == (path, "")
    assert folder.revision_held(path) == ""


def test_the_only_snapshot_of_a_cache_without_refs_is_used_with_a_note(tmp_path: Path) -> None:
    held = snapshot(tmp_path / "hub", COMMIT)
    found, note = folder.locate(tmp_path / "org" / "model", "org/model", "main")
    assert found == held
    assert note == f"the cache {held.parents[1]} holds {COMMIT} and no refs/main; this only snapshot is used."


def test_of_several_snapshots_without_refs_none_is_guessed(tmp_path: Path) -> None:
    held = snapshot(tmp_path, COMMIT)
    snapshot(tmp_path, OTHER)
    path = tmp_path / "org" / "model"
    assert folder.locate(path, "org/model", "main") == (
        path,
        f"the cache {held.parents[1]} holds {COMMIT}, {OTHER}, and its refs/main is missing. Set the revision to one "
        "of these.",
    )


def test_a_cache_with_another_commit_than_the_pinned_one_is_named(tmp_path: Path) -> None:
    snapshot(tmp_path, OTHER, "main")
    path = tmp_path / "org" / "model"
    found, note = folder.locate(path, "org/model", COMMIT)
    assert found == path
    assert f"holds {OTHER}, expected is {COMMIT}. Download that revision." in note


def test_a_ref_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    held = snapshot(tmp_path, COMMIT, "main")
    (held.parents[1] / "refs" / "main").write_text("../../../..", encoding="ascii")
    assert folder.locate(tmp_path / "org" / "model", "org/model", "main")[0] == tmp_path / "org" / "model"


def test_a_header_longer_than_the_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((50).to_bytes(8, "little") + b"{}")
    assert folder.header(file) == file.read_bytes()
    # One that no safetensors file can have is not read at all.
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert folder.header(file) == file.read_bytes()[:8]


def test_an_index_that_is_no_json_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {}}', encoding="utf-8")
    assert folder.read_index(path) == ({"weight_map": {}}, None)
    for data in (b"{", b"\xff\xfe", b"[" * 200_000):
        path.write_bytes(data)
        value, wrong = folder.read_index(path)
        assert value is None
        assert "model.safetensors.index.json is not JSON" in str(wrong)
    path.unlink()
    assert "cannot be read: No such file" in str(folder.read_index(path)[1])
