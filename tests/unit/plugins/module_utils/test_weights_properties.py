# SPDX-License-Identifier: Apache-2.0
"""Whatever another machine or a repository wrote: a sentence or a value, bounded, and nothing outside its tree."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder, hub, needs
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.source import read_head
from tests.unit.weights_cluster import Cluster, make_cluster

__all__ = ["make_cluster"]

# Nothing here may fail because a machine is slow; what an example costs is bounded by its size.
bounded = settings(
    deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=300)
OFFSETS = st.lists(st.integers(-1, 9), max_size=3)
NAMES = st.sampled_from(
    [
        "config.json", "params.json", "tokenizer.json", "model.safetensors", "consolidated.safetensors", "a.bin",
        "x.pt", "model-00001-of-00003.safetensors", "model-99999-of-00001.bin", "model-00000-of-00000.safetensors",
        "README.md", "modules.json", "1_Pooling/model.safetensors", "original/a.pth", "../up.json", "/etc/passwd",
        ".gb10-pieces", "-00001-of-99999.gguf", "model.safetensors.index.json",
    ]
) | st.text(max_size=30)  # fmt: skip
SERVE = st.fixed_dictionaries({}, optional={"load-format": JSON, "tokenizer-mode": JSON, "tokenizer": JSON})
FILE = st.fixed_dictionaries({"path": NAMES, "size": st.integers(), "sha256": st.just("0" * 64)}) | JSON
LISTED = st.fixed_dictionaries({"rfilename": NAMES}, optional={"size": JSON, "lfs": JSON, "blobId": JSON})
GOOD = weights.make_manifest(
    "org/model", "main", [{"path": "config.json", "size": 2, "sha256": "0" * 64}], 2**20, b"hashes"
)


def with_length(value: bytes) -> bytes:
    return len(value).to_bytes(8, "little") + value


@bounded
@given(BYTES | BYTES.map(with_length), st.integers(0, 2**50))
def test_any_header_of_a_shard(data: bytes, size: int) -> None:
    found = needs.safetensors_error("s", size, data)
    assert found is None or (found.startswith("s ") and len(found) < 1000)


@bounded
@given(
    st.dictionaries(st.text(max_size=20), st.fixed_dictionaries({"data_offsets": JSON | OFFSETS}) | JSON, min_size=1),
    st.integers(0, 99),
)
@example({"a": {"data_offsets": 5}}, 0)
@example({"a": {"data_offsets": [0, True]}}, 1)
@example({"a": {"data_offsets": [0, 1.5]}}, 1)
@example({"a": {"data_offsets": ["0", "1"]}}, 1)
@example({"a": {"data_offsets": [2, 1]}}, 1)
def test_any_tensors_in_the_header_of_a_shard(described: dict[str, Any], behind: int) -> None:
    """The file is as long as its header and so many bytes behind it."""
    header = with_length(json.dumps(described).encode())
    found = needs.safetensors_error("s", len(header) + behind, header)
    assert found is None or len(found) < 1000
    if found is None:
        ends = [entry["data_offsets"] for key, entry in described.items() if key != "__metadata__"]
        assert all(0 <= begin <= end <= behind for begin, end in ends)


@bounded
@given(
    st.dictionaries(NAMES, st.integers(0, 2**40), max_size=12),
    st.dictionaries(st.sampled_from(needs.INDEXES), JSON | st.fixed_dictionaries({"weight_map": JSON})),
    SERVE,
)
def test_any_names_and_any_index(
    files: Mapping[str, int], indexes: Mapping[str, Any], serve: Mapping[str, Any]
) -> None:
    needed, left, errors = needs.choose(files, indexes, serve)
    assert sorted([*needed, *left]) == sorted(name for name in files if name not in weights.OWN_FILES)
    assert all(isinstance(each, str) and len(each) < 5000 for each in errors)


@bounded
@given(st.text(max_size=60) | NAMES)
def test_a_name_that_is_taken_stays_below_its_root(name: str) -> None:
    if weights.path_error(name) is None:
        path = Path("/root/of/all") / name
        assert path.is_relative_to("/root/of/all")
        assert ".." not in path.parts


@bounded
@given(JSON | st.fixed_dictionaries({key: st.just(value) | JSON for key, value in GOOD.items()}))
@example({**GOOD, "digest": "0" * 64})
@example({**GOOD, "files": [{**GOOD["files"][0], "sha256": "1" * 64}]})
@example({**GOOD, "bytes": 3})
def test_any_manifest(manifest: Any) -> None:
    found = weights.manifest_error(manifest)
    assert found is None or isinstance(found, str)
    if found is None:
        assert manifest == GOOD


@bounded
@given(st.lists(FILE, max_size=4))
@example([{"path": "../up.json", "size": 2, "sha256": "0" * 64}])
@example([{"path": "/etc/passwd", "size": 2, "sha256": "0" * 64}])
@example([{"path": "a.json", "size": -2, "sha256": "0" * 64}])
@example([{"path": "a.json", "size": weights.MAX_BYTES + 1, "sha256": "0" * 64}])
@example([{"path": "a.json", "size": 2**70, "sha256": "0" * 64}])
@example([{"path": "a.json", "size": 2, "sha256": "../x"}])
def test_any_files_of_a_manifest_that_vouches_for_itself(files: list[Any]) -> None:
    """A hostile member can make the digest and the sizes right."""
    try:
        piece_bytes = weights.piece_bytes_for(sum(file["size"] for file in files))
        made = weights.make_manifest("org/model", "main", files, piece_bytes, b"")
    except (KeyError, TypeError):
        made = {**GOOD, "files": files}
    if weights.manifest_error(made) is None:
        assert sum(file["size"] for file in files) <= weights.MAX_BYTES
        for file in files:
            assert weights.path_error(file["path"]) is None
            assert file["size"] >= 0
            int(file["sha256"], 16)


@bounded
@given(BYTES)
def test_any_bytes_for_json(data: bytes) -> None:
    value, wrong = folder.parse_json("x.json", data)
    assert wrong is None or (value is None and len(wrong) < 300)


@bounded
@given(JSON | st.fixed_dictionaries({"sha": st.just("a" * 40), "siblings": st.lists(JSON | LISTED, max_size=3)}))
@example({"sha": "a" * 40, "siblings": [{"rfilename": "a", "size": -1, "blobId": "b"}]})
@example({"sha": "a" * 40, "siblings": [{"rfilename": "a", "size": True, "blobId": "b"}]})
@example({"sha": "a" * 40, "siblings": [{"rfilename": "a", "size": 2**70, "blobId": "b"}]})
@example({"sha": "../../x", "siblings": []})
def test_any_list_of_files_of_a_hub(listed: Any) -> None:
    found = hub.read_list(listed)
    if found is not None:
        assert set(found[0]) <= set("0123456789abcdef")
        assert all(0 <= file.size <= weights.MAX_BYTES and file.size is not True for file in found[1].values())


@bounded
@given(BYTES)
def test_any_head_is_a_status_and_a_length_or_a_sentence(head: bytes) -> None:
    with suppress(ValueError):
        status, length = read_head(head)
        assert 0 <= status <= 999
        assert 0 <= length < 10**15


@settings(bounded, max_examples=40)
@given(st.binary(max_size=600))
def test_any_request_gets_an_answer_or_is_hung_up_on(cluster: Cluster, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", cluster.origin), timeout=60) as client, suppress(ConnectionError):
        client.sendall(request_bytes + b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while block := client.recv(65536):
            answer += block
        assert b" 200 " not in answer
        assert len(answer) < 100_000
