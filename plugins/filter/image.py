# SPDX-License-Identifier: Apache-2.0
"""Filter about copying images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._image import copying


class FilterModule:
    """Filter about copying images."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"copy_errors": copying.errors}
