# SPDX-License-Identifier: Apache-2.0
"""Makes `ansible_collections.gb10.cluster` importable from the clone.

The link .collections/ansible_collections/gb10/cluster leads to the repository's root. The
ansible package brings a namespace of the same name with the collections that this one depends
on, so both directories are searched, the clone's first.
"""

from __future__ import annotations

import socketserver
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
COLLECTIONS = REPO / ".collections"

for path in (str(COLLECTIONS), str(REPO)):
    if path not in sys.path:
        sys.path.insert(0, path)


def name_error(_server: socketserver.BaseServer, _request: object, client: object) -> None:
    """Name what a test's server met in one line instead of a traceback.

    Tests hang up on purpose. To print a traceback, Python 3.11 and later parse the source, and an ast.parse in another
    thread at the same moment fails in CPython 3.11: "AST constructor recursion depth mismatch".
    """
    print(f"server of a test, request of {client}: {sys.exc_info()[1]!r}", file=sys.stderr)


socketserver.BaseServer.handle_error = name_error  # type: ignore[method-assign,assignment]
