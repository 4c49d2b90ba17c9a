# SPDX-License-Identifier: Apache-2.0
"""Jinja filter that reads model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError


def model_specs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return the model_spec of each model file; see model_specs.yml."""
    specs = []
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise AnsibleFilterError(f"gb10.cluster.model_specs: {path} cannot be read: {error}") from error
        if isinstance(content, dict) and isinstance(content.get("model_spec"), dict):
            specs.append(content["model_spec"])
    return specs


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"model_specs": model_specs}
