# SPDX-License-Identifier: Apache-2.0
"""A repository is read from a hub over real HTTP or from a directory, and each thing that is wrong has one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import source
from tests.hub import Files, LocalHub, commit_of, serve
from tests.unit.repositories import GIB, MOE, repository

TOKEN = "hf_secret"
GOOD = repository(MOE, 2, hf_quant_config__json={"quantization": {"quant_algo": "NVFP4"}})
JINJA = {**repository(MOE, 2, tokenizer_config__json={}), "chat_template.jinja": b"from a file"}
BAD: dict[str, tuple[Files, str]] = {
    "org/no-config": (
        {name: data for name, data in GOOD.items() if name != "config.json"},
        "has no config.json: it is no model that vLLM's own classes can load",
    ),
    "org/not-json": (repository(MOE, 2, config__json=b"{"), "config.json is not JSON: "),
    "org/no-object": (repository(MOE, 2, config__json=[]), "config.json holds no JSON object"),
    "org/bad-index": (
        repository(MOE, 2, model__safetensors__index__json={"weight_map": {"a": "../../x.safetensors"}}),
        "model.safetensors.index.json: ",
    ),
    "org/lost-shard": (
        {name: data for name, data in GOOD.items() if "00002-of" not in name},
        "model-00002-of-00002.safetensors is listed in model.safetensors.index.json and is missing",
    ),
    "org/pickled": (
        {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": GIB},
        "has no safetensors: its weights are .bin files",
    ),
    "org/gguf": (
        {"config.json": b"{}", "tokenizer.json": b"{}", "x.Q4.gguf": GIB},
        "has no safetensors: its weights are .gguf files",
    ),
    "org/empty": ({"config.json": b"{}"}, "has no safetensors: it has no file with weights"),
    "org/no-tokenizer": (repository(MOE, 2, tokenizer__json=None), "no tokenizer file is there"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    named = {name: files for name, (files, _message) in BAD.items()}
    gated = {"org/gated": 401, "org/forbidden": 403}
    every = {"org/good": GOOD, "org/jinja": JINJA, **dict.fromkeys(gated, GOOD), **named}
    with serve(every, gated, TOKEN) as server:
        yield server


def read(hub: LocalHub, repo: str, revision: str = "", token: str = "") -> source.Repository:
    return source.read(repo, revision, hub.url, token, "/nonexistent")


def test_a_repository_of_a_hub_is_read_without_its_weights(hub: LocalHub) -> None:
    hub.seen.clear()
    found = read(hub, "org/good")
    assert (found.repo, found.revision, found.where) == ("org/good", commit_of(GOOD), f"{hub.url}/org/good")
    assert (found.config, found.weights_bytes, found.index_bytes) == (MOE, 2 * GIB, 2 * GIB)
    assert found.documents["hf_quant_config.json"] == {"quantization": {"quant_algo": "NVFP4"}}
    assert "<think>" in source.chat_template(found)
    assert not [path for path in hub.seen if path.endswith(".safetensors")]
    assert read(hub, "org/good", commit_of(GOOD)) == found


def test_a_chat_template_in_a_file_of_its_own_or_in_a_list(hub: LocalHub) -> None:
    found = read(hub, "org/jinja")
    assert source.chat_template(found) == "from a file"
    listed = {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "listed"}]}}
    assert source.chat_template(source.Repository(**{**vars(found), "documents": listed, "template": ""})) == "listed"


@pytest.mark.parametrize("repo", sorted(BAD))
def test_a_bad_repository_has_one_sentence(hub: LocalHub, repo: str) -> None:
    with pytest.raises(source.RepositoryError) as problem:
        read(hub, repo)
    assert BAD[repo][1] in str(problem.value)
    assert repo in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_gated_repository_names_the_token(hub: LocalHub) -> None:
    for repo in ("org/gated", "org/forbidden"):
        with pytest.raises(source.RepositoryError, match=r"The hub refuses .* No token was given \(gb10_hf_token\)"):
            read(hub, repo)
        with pytest.raises(source.RepositoryError, match=r"The token that was given has no right to it"):
            read(hub, repo, token="hf_other")
        assert read(hub, repo, token=TOKEN).config == MOE


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("org/absent", "", "The hub has no org/absent at revision main"),
        ("org/good", "v9", "The hub has no org/good at revision v9"),
        ("org/good", "../../other", "The hub has no org/good at revision ../../other"),
        ("org", "", "repo is 'org', which is no <organisation>/<name>"),
        ("org/../good", "", "which is no <organisation>/<name>"),
        ("org/good/../../x", "", "which is no <organisation>/<name>"),
        ("", "", "repo is '', which is no <organisation>/<name>"),
    ],
)
def test_a_name_that_is_none(hub: LocalHub, repo: str, revision: str, message: str) -> None:
    with pytest.raises(source.RepositoryError) as problem:
        read(hub, repo, revision)
    assert message in str(problem.value)


def test_a_hub_that_does_not_answer() -> None:
    with pytest.raises(source.RepositoryError, match=r"http://127\.0\.0\.1:9 does not answer"):
        source.read("org/good", "", "http://127.0.0.1:9", "", "/nonexistent")


# --- directories ----------------------------------------------------------------------------------------


def safetensors(size: int) -> bytes:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def directory(path: Path, config: Any = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(MOE if config is None else config), encoding="utf-8")
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (path / "model.safetensors").write_bytes(safetensors(1000))
    return path


def test_a_directory_below_the_root_of_all_models(tmp_path: Path) -> None:
    path = directory(tmp_path / "org" / "model")
    found = source.read(str(path), "", "http://127.0.0.1:9", "", str(tmp_path))
    assert (found.repo, found.revision, found.where) == ("org/model", "main", str(path))
    assert found.weights == ("model.safetensors",)
    assert found.weights_bytes == (path / "model.safetensors").stat().st_size


def test_a_snapshot_of_a_hub_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = directory(tmp_path / "hub" / "models--org--model" / "snapshots" / commit)
    found = source.read(str(path), commit, "http://127.0.0.1:9", "", str(tmp_path))
    assert (found.repo, found.revision) == ("org/model", commit)
    with pytest.raises(source.RepositoryError, match=f"holds revision {commit}, not v2"):
        source.read(str(path), "v2", "http://127.0.0.1:9", "", str(tmp_path))


def test_a_directory_elsewhere_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    directory(tmp_path / "elsewhere" / "model")
    directory(root / "deep" / "er" / "model")
    for path in (f"{root}/../elsewhere/model", f"{root}/deep/er/model", str(root)):
        with pytest.raises(source.RepositoryError, match=r"is not <organisation>/<name> below gb10_source_root"):
            source.read(path, "", "http://127.0.0.1:9", "", str(root))
    with pytest.raises(source.RepositoryError, match=r"is no directory of the control node"):
        source.read("./nowhere", "", "http://127.0.0.1:9", "", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "has no config.json: it is an adapter of another model"),
        (["model_index.json", "unet/model.safetensors"], "has no config.json: it is a pipeline of diffusers"),
        (["params.json", "consolidated.safetensors"], "has no config.json: it has Mistral's own form alone"),
        (["model-q4.gguf"], "has no config.json: its weights are .gguf files"),
        (["model.safetensors"], "has no config.json: it is no model that vLLM's own classes can load"),
        (["config.json", "model-q4.gguf"], "has no safetensors: its weights are .gguf files"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "has the weights of an adapter alone"),
        (["config.json", "adapter_config.json", "model.safetensors"], ""),
    ],
)
def test_a_directory_of_another_form_says_which(tmp_path: Path, files: list[str], said: str) -> None:
    path = directory(tmp_path / "org" / "model")
    for name in ("config.json", "model.safetensors"):
        (path / name).unlink()
    for name in files:
        (path / name).parent.mkdir(exist_ok=True)
        config = json.dumps(MOE if name == "config.json" else {})
        (path / name).write_bytes(safetensors(100) if name.endswith(".safetensors") else config.encode())
    if not said:
        assert source.read(str(path), "", "", "", str(tmp_path)).weights == ("model.safetensors",)
        return
    with pytest.raises(source.RepositoryError) as problem:
        source.read(str(path), "", "", "", str(tmp_path))
    assert said in str(problem.value)


def test_weights_quantised_for_mlx_are_refused(tmp_path: Path) -> None:
    path = directory(tmp_path / "org" / "model", MOE | {"quantization": {"bits": 4, "group_size": 64}})
    with pytest.raises(source.RepositoryError, match=r"is quantised for MLX \(quantization in config\.json\)"):
        source.read(str(path), "", "", "", str(tmp_path))


def test_a_shard_that_was_cut_off_is_found_by_its_header(tmp_path: Path) -> None:
    path = directory(tmp_path / "org" / "model")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(source.RepositoryError, match=r"model\.safetensors must be .* 10 bytes are missing"):
        source.read(str(path), "", "http://127.0.0.1:9", "", str(tmp_path))


def test_a_link_into_nothing_is_reported(tmp_path: Path) -> None:
    path = directory(tmp_path / "org" / "model")
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("gone")
    with pytest.raises(source.RepositoryError, match=r"config\.json is a link to gone, which is not there"):
        source.read(str(path), "", "http://127.0.0.1:9", "", str(tmp_path))
