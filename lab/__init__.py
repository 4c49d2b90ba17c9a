# SPDX-License-Identifier: Apache-2.0
"""Simulated GB10 nodes on one Linux host; ``python -m lab --help`` lists the verbs, docs/lab.md explains them."""

from __future__ import annotations

import sys
from pathlib import Path

#: The collection as Python finds it; the lab shows runs with its code (plugin_utils/_screen).
COLLECTIONS = Path(__file__).resolve().parents[1] / ".collections"
if str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))
