# SPDX-License-Identifier: Apache-2.0
"""The table of what classes are served with: each row has its source, and is an option of vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import families
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

CLASSES = [(name, rows) for classes, rows in families.FAMILIES for name in classes]


@pytest.mark.parametrize("name", [name for name, _rows in CLASSES])
def test_each_class_is_one_of_vllms_and_its_options_pass_the_checks_of_its_releases(name: str) -> None:
    found = families.architecture(name)
    assert found is not None
    assert found.kind == "generate"
    with_tables = [release for release in found.releases if release in serve_files.load_tables()]
    assert with_tables
    for release in with_tables:
        rows = families.rows_for(name, "nvfp4", True, release)
        assert rows is not None
        serve = {row.key: row.value for row in rows if row.place == families.SERVE}
        env = {row.key: row.value for row in rows if row.place == families.ENV}
        serve_files.render(serve, release, env, [])


def test_every_row_has_a_source_and_no_class_stands_twice() -> None:
    names = [name for name, _rows in CLASSES]
    assert len(set(names)) == len(names)
    rows = [row for _name, each in CLASSES for row in each] + [
        row for each in families.QUANTISED.values() for row in each
    ]
    assert all(row.source for row in rows)


def test_a_class_without_a_row_has_none() -> None:
    assert families.rows_for("GraniteForCausalLM", "", False, "0.30.0") is None
    assert [row.key for row in families.rows_for("GraniteForCausalLM", "nvfp4", True, "0.30.0") or []] == [
        "moe-backend"
    ]


def test_variables_go_with_the_release_that_dropped_them() -> None:
    for release, expected in (("0.23.0", True), ("0.24.0", False), ("0.24.1rc1.dev3+gabc", False)):
        rows = families.rows_for("NemotronHForCausalLM", "nvfp4", True, release) or []
        assert ("VLLM_NVFP4_GEMM_BACKEND" in {row.key for row in rows}) is expected


@pytest.mark.parametrize(
    ("config", "modelopt", "expected"),
    [
        ({}, {}, ""),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "fp8"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, {}, "nvfp4"),
        ({}, {"quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
        ({}, {"quantization": {"quant_algo": "FP8"}}, "fp8"),
        (
            {"quantization_config": {"format": "nvfp4-pack-quantized", "quant_method": "compressed-tensors"}},
            {},
            "nvfp4",
        ),
        ({"quantization_config": ["what"]}, {"quantization": 3}, ""),
    ],
)
def test_the_quantisation_is_read_from_either_file(config: Any, modelopt: Any, expected: str) -> None:
    assert families.quantisation_of(config, modelopt) == expected


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("NemotronHForCausalLM", "0.20.1", True),
        ("Qwen4ExpForConditionalGeneration", "0.28.0", False),
        ("Qwen4ExpForConditionalGeneration", "0.29.0", True),
        ("DeepseekV41ForCausalLM", "0.29.0", False),
        ("DeepseekV41ForCausalLM", "0.32.0+cpu", True),
        ("Qwen3ForCausalLM", "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132", True),
        ("Qwen3ForCausalLM", "0.40.0", True),
        ("Qwen3ForCausalLM", "0.9.0", False),
    ],
)
def test_which_version_has_a_class(name: str, version: str, expected: bool) -> None:
    found = families.architecture(name)
    assert found is not None
    assert families.has_class(found, version) is expected


def test_a_class_that_no_release_has() -> None:
    assert families.architecture("NoSuchForCausalLM") is None
