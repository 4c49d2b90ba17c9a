# SPDX-License-Identifier: Apache-2.0
"""docs/model_spec.md is current, and its examples make a valid model."""

from __future__ import annotations

from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import model_keys, validate
from scripts import model_spec_page


def test_the_page_is_current() -> None:
    written = model_spec_page.PAGE.read_text(encoding="utf-8")
    assert written == model_spec_page.page(), "run .venv/bin/python scripts/model_spec_page.py"


def test_the_examples_together_are_a_valid_model() -> None:
    written: dict[str, Any] = {key: rule["example"] for key, rule in model_keys().items()}
    written["serve"] = {**written["serve"], "tensor-parallel-size": written["nodes"]}
    spec, errors = validate(written)
    assert errors == []
    assert spec["ports"]["api"] == written["ports"]["api"]
