# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in the storage of a registry: an image or none, and nothing outside of its tree."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._image import registry
from tests.unit.plugins.module_utils.hostile import bounded

from .conftest import LAYERS, TAG, push, put, sha

HEX = "a" * 64
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("digest", ["sha256:../../x", f"sha256:{HEX}/../x", f"sha256:{HEX}\n", HEX, "sha256:", ""])
def test_a_digest_that_is_none_makes_no_file_name(digest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no digest"):
        registry.blob_path(tmp_path, digest)


@bounded
@given(JSON | st.dictionaries(st.sampled_from(["config", "layers", "manifests"]), JSON))
@example({"manifests": [{"digest": "sha256:../x", "platform": {"os": "linux"}}]})
@example({"config": {"digest": f"sha256:{HEX}"}, "layers": [{}]})
def test_any_manifest_of_an_image(document: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        push(storage, TAG, LAYERS[:1])
        link = next(storage.rglob("current/link"))
        link.write_text(put(storage, json.dumps(document).encode()), encoding="utf-8")
        assert registry.read(storage, TAG) is None
        registry.prune(storage, {TAG}, False)
        assert link.exists()


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"", b'{"config": ' + b"9" * 10_000 + b"}"])
def test_bytes_that_are_no_manifest(data: bytes, tmp_path: Path) -> None:
    push(tmp_path, TAG, LAYERS[:1])
    link = next(tmp_path.rglob("current/link"))
    link.write_text(put(tmp_path, data), encoding="utf-8")
    assert registry.read(tmp_path, TAG) is None
    registry.prune(tmp_path, {TAG}, False)
    assert link.exists()


@bounded
@given(st.text())
@example(sha(b"nothing"))
def test_any_text_for_the_link_of_a_tag(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        push(Path(folder), TAG, LAYERS[:1])
        next(Path(folder).rglob("current/link")).write_bytes(text.encode(errors="replace"))
        assert registry.read(Path(folder), TAG) is None
