# SPDX-License-Identifier: Apache-2.0
"""Whatever another machine writes of a layer or an image: a value or a sentence, and nothing outside of its tree."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._image import layout, store

HEX = "a" * 64
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("diff_id", ["sha256:../../x", f"sha256:{HEX}/../x", f"sha256:{HEX}\n", HEX, "sha256:", "", 3])
def test_a_digest_that_is_none_makes_no_file_name(diff_id: Any, tmp_path: Path) -> None:
    with pytest.raises(layout.ImageError, match="description of a layer is damaged"):
        layout.Layer(diff_id, 1, 1, HEX)
    (tmp_path / "layers").mkdir()
    outside = tmp_path / "x.json"
    outside.write_text(json.dumps({"diff_id": diff_id, "bytes": 1, "file_bytes": 1, "sha256": HEX}), encoding="utf-8")
    assert store.known_layer(tmp_path / "layers", "sha256:../x") is None
    assert outside.exists()


@given(st.text() | st.just(f"sha256:{HEX}"), st.integers() | st.booleans(), st.integers(), st.text() | st.just(HEX))
@example(f"sha256:{HEX}", 1, 1, HEX)
def test_any_description_of_a_layer(diff_id: str, size: int, file_size: int, sha256: str) -> None:
    try:
        layer = layout.Layer(diff_id, size, file_size, sha256)
    except layout.ImageError:
        return
    root = Path("/store/layers")
    assert (root / layer.file).resolve().parent == root


@given(JSON | st.dictionaries(st.sampled_from(["tag", "config", "layers"]), JSON))
def test_any_manifest_of_an_image(document: Any) -> None:
    with suppress(layout.ImageError):
        layout.manifest_from_json(json.dumps(document))


@given(st.text())
@example("[" * 100_000)
def test_any_text_for_the_manifest_of_an_image(text: str) -> None:
    with pytest.raises(layout.ImageError):
        layout.manifest_from_json(text)
