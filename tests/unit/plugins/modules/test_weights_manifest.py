# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_manifest finds at a source."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import store
from ansible_collections.gb10.cluster.plugins.modules import weights_manifest
from tests.unit.helper import run_module

PIECE = 2**20
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_file_that_changed_is_hashed_again_and_one_that_did_not_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other, cache = tmp_path / "config.json", tmp_path / "tokenizer.json", tmp_path / "cache" / "hashes.json"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    files = {"config.json": file, "tokenizer.json": other}
    before, _pieces, _errors = weights_manifest.hashed(files, cache, PIECE)
    file.write_bytes(b"new")
    os.utime(file, ns=(1, 1))
    read: list[Path] = []
    real = store.hash_file

    def note(path: Path, size: int) -> tuple[str, bytes]:
        read.append(path)
        return real(path, size)

    monkeypatch.setattr(store, "hash_file", note)
    after, _pieces, _errors = weights_manifest.hashed(files, cache, PIECE)
    assert read == [file]
    assert after[0]["sha256"] == hashlib.sha256(b"new").hexdigest() != before[0]["sha256"]
    assert after[1] == before[1]


def test_a_cache_that_is_no_json_is_no_cache(tmp_path: Path) -> None:
    file, cache = tmp_path / "config.json", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    cache.write_text("[", encoding="utf-8")
    described, _pieces, _errors = weights_manifest.hashed({"config.json": file}, cache, PIECE)
    assert described[0]["sha256"] == hashlib.sha256(b"one").hexdigest()


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    real = store.hash_file

    def hash_and_write(path: Path, size: int) -> Any:
        found = real(path, size)
        path.write_bytes(b"longer")
        return found

    monkeypatch.setattr(store, "hash_file", hash_and_write)
    _files, _pieces, errors = weights_manifest.hashed({"model.safetensors": file}, tmp_path / "h.json", PIECE)
    assert errors == ["model.safetensors was modified while it was read; wait until the file is stable and run again."]


def complete_model(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")


def run(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    args = {"path": str(tmp_path / "model"), "repo": "org/model", "cache": str(tmp_path / "cache"), **changes}
    return run_module(weights_manifest, args)


def test_the_manifest_of_a_complete_model_vouches_for_its_pieces(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("read me", encoding="utf-8")
    result = run(tmp_path)
    assert [file["path"] for file in result["manifest"]["files"]] == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    pieces = Path(result["origin"]["pieces"]).read_bytes()
    assert hashlib.sha256(pieces).hexdigest() == result["manifest"]["pieces_sha256"]
    assert len(pieces) == 3 * 32
    assert result["left_out"] == {"README.md": "nothing that vLLM reads"}


def test_a_source_that_is_not_there_is_named_or_gives_nothing(tmp_path: Path) -> None:
    assert "the directory does not exist on the source" in run(tmp_path)["msg"]
    assert run(tmp_path, absent_ok=True)["manifest"] == {}


def test_another_revision_is_refused(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    notes = tmp_path / "model" / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{COMMIT}\netag\n1.0\n", encoding="utf-8")
    assert "errors" not in run(tmp_path, revision=COMMIT)
    wanted = COMMIT[::-1]
    (error,) = run(tmp_path, revision=wanted)["errors"]
    assert error == f"the download holds revision {COMMIT}, expected is {wanted}. Download that one."


def test_a_shard_whose_name_has_a_control_character_is_refused(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "mo\ndel.safetensors")
    (error,) = run(tmp_path)["errors"]
    assert "has a control character or a byte that is no UTF-8 in its name" in error


def test_names_with_odd_characters_are_taken(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    odd = "a b'\"$(touch x)ü%20.safetensors"
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / odd)
    assert odd in [file["path"] for file in run(tmp_path)["manifest"]["files"]]


def test_an_unreadable_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    monkeypatch.setattr(os, "access", lambda path, _mode: not str(path).endswith("tokenizer.json"))
    assert "tokenizer.json cannot be read by this user." in run(tmp_path)["errors"]


def test_a_link_to_a_private_key_is_refused_before_anything_is_hashed(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    key = tmp_path / "id_ed25519"
    key.write_text("PRIVATE KEY", encoding="utf-8")
    (tmp_path / "model" / "generation_config.json").symlink_to(key)
    (tmp_path / "model" / "model-2.safetensors").symlink_to(key)
    (tmp_path / "model" / "model.safetensors.index.json").unlink(missing_ok=True)
    (tmp_path / "model" / "model.safetensors.index.json").symlink_to(key)
    link, shard, index = sorted(run(tmp_path)["errors"])
    assert link.startswith(f"generation_config.json is a link to {key}, outside of the model's directory")
    # Nothing is said of what is in it.
    assert index.startswith(f"model.safetensors.index.json is a link to {key}, outside of the model's directory")
    assert shard.startswith("model-2.safetensors announces a header of")
    assert not (tmp_path / "cache").exists()


def test_the_options_of_the_engine_decide_which_weights_are_listed(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    model = tmp_path / "model"
    (model / "consolidated.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    for name in ("params.json", "tekken.json"):
        (model / name).write_text("{}", encoding="utf-8")
    names = [file["path"] for file in run(tmp_path, serve={"load-format": "mistral"})["manifest"]["files"]]
    assert "consolidated.safetensors" in names
    assert "consolidated.safetensors" not in [file["path"] for file in run(tmp_path)["manifest"]["files"]]


@pytest.mark.parametrize(("content", "sentence"), [("{", "is not JSON"), ("[]", "has no weight_map from tensors to")])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    complete_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    assert sentence in run(tmp_path)["errors"][0]


def test_a_cache_with_another_revision_is_reported_with_the_missing_source(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / COMMIT
    complete_model(snapshot)
    path = str(tmp_path / "org" / "model")
    assert run(tmp_path, path=path)["manifest"]["repo"] == "org/model"
    wanted = COMMIT[::-1]
    expected = f"the cache {snapshot.parents[1]} holds {COMMIT}, expected is {wanted}. Download that revision."
    assert run(tmp_path, path=path, revision=wanted)["errors"] == [expected]
    result = run(tmp_path, path=path, revision=wanted, absent_ok=True)
    assert (result["manifest"], result["note"]) == ({}, expected)


def test_without_hashes_the_source_is_checked_and_nothing_is_read(tmp_path: Path) -> None:
    complete_model(tmp_path / "model")
    result = run(tmp_path, hashes=False)
    assert (result["found"], result["manifest"]) == (True, {})
    assert not (tmp_path / "cache").exists()
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "no tokenizer file is there" in run(tmp_path, hashes=False)["msg"]
    assert run(tmp_path, path=str(tmp_path / "gone"), absent_ok=True)["found"] is False
