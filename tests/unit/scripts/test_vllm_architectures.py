# SPDX-License-Identifier: Apache-2.0
"""The table of model classes, read from the registries of wheels."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from scripts import vllm_architectures as script

SOURCE = """
raise RuntimeError("nothing of a wheel is run")
_TEXT_GENERATION_MODELS = {
    # a comment
    "AForCausalLM": ("a", "A"),
    "BForCausalLM": ("b", "B"),
}
_EMBEDDING_MODELS: dict = {"BModel": ("b", "B"), **{k: v for k, v in _TEXT_GENERATION_MODELS.items()}}
_SPECULATIVE_DECODING_MODELS = {"AMTP": ("a", "M")}
_PREVIOUSLY_SUPPORTED_MODELS = {"Old": "0.1"}
"""


def wheel(folder: Path, release: str, source: str) -> Path:
    path = folder / f"vllm-{release}-cp38-abi3-linux_aarch64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(script.REGISTRY, source)
    return path


def test_classes_have_their_kind() -> None:
    assert script.classes_of(SOURCE) == {
        "AForCausalLM": "generate",
        "BForCausalLM": "generate",
        "BModel": "pooling",
        "AMTP": "draft",
    }


def test_a_registry_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="has no _TEXT_GENERATION_MODELS"):
        script.classes_of("MODELS = {}")


def test_releases_are_added_in_their_order(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    newer = SOURCE.replace('    "AForCausalLM": ("a", "A"),\n', "").replace("BModel", "CModel")
    gone = newer.replace('"BForCausalLM"', '"DForCausalLM"')
    for release, source in (("0.10.0", newer), ("0.9.1", SOURCE), ("0.11.0", gone), ("0.12.0", SOURCE)):
        assert script.main([str(wheel(tmp_path, release, source)), "--output", str(table)]) == 0
    read = json.loads(table.read_text(encoding="utf-8"))
    assert list(read["releases"]) == ["0.9.1", "0.10.0", "0.11.0", "0.12.0"]
    assert read["releases"]["0.9.1"].startswith("vllm-0.9.1-cp38-abi3-linux_aarch64.whl sha256:")
    assert {name: entry["in"] for name, entry in read["classes"].items()} == {
        "AForCausalLM": ["0.9.1", "0.12.0"],
        "AMTP": "0.9.1-0.12.0",
        "BForCausalLM": ["0.9.1", "0.10.0", "0.12.0"],
        "BModel": ["0.9.1", "0.12.0"],
        "CModel": "0.10.0-0.11.0",
        "DForCausalLM": "0.11.0-0.11.0",
    }
    before = table.read_text(encoding="utf-8")
    script.main([str(tmp_path / "vllm-0.10.0-cp38-abi3-linux_aarch64.whl"), "--output", str(table)])
    assert table.read_text(encoding="utf-8") == before


def test_the_committed_table_is_in_its_own_form() -> None:
    text = script.TABLE.read_text(encoding="utf-8")
    assert script.render(script.compact(script.expand(json.loads(text)))) == text
