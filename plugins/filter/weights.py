# SPDX-License-Identifier: Apache-2.0
"""Filters about moving weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.plugin_utils._weights import code_lock


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "weights_code": code_lock.judge,
            "weights_fetched": code_lock.fetched_revision,
            "weights_rails": weights.rails,
        }
