# SPDX-License-Identifier: Apache-2.0
"""Filters about copying images and what they are built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import foreign_wheels
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import copying


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"copy_errors": copying.errors, "foreign_wheels": foreign_wheels}
