# SPDX-License-Identifier: Apache-2.0
"""Makes `ansible_collections.gb10.cluster` importable from the clone.

The link .collections/ansible_collections/gb10/cluster leads to the repository's root. The
ansible package brings a namespace of the same name with the collections that this one depends
on, so both directories are searched, the clone's first.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
COLLECTIONS = REPO / ".collections"

for path in (str(COLLECTIONS), str(REPO)):
    if path not in sys.path:
        sys.path.insert(0, path)
