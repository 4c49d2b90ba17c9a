# SPDX-License-Identifier: Apache-2.0
"""Options that got a new name and accept the old one for one more release."""

from __future__ import annotations

from typing import Any

COLLECTION = "gb10.cluster"


def renamed(old: str, removed_in: str = "0.3.0") -> dict[str, Any]:
    """Return what an option's argument spec needs so that its old name works, with a deprecation notice."""
    return {
        "aliases": [old],
        "deprecated_aliases": [{"name": old, "version": removed_in, "collection_name": COLLECTION}],
    }
