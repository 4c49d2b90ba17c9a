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

import pytest

REPO = Path(__file__).resolve().parents[2]
COLLECTIONS = REPO / ".collections"

for path in (str(COLLECTIONS), str(REPO)):
    if path not in sys.path:
        sys.path.insert(0, path)

#: Files whose tests start playbooks and other processes for minutes; `make test` runs them, `make test-fast` does not.
SLOW = {
    "catalogue/test_inventories.py",
    "catalogue/test_published_commands.py",
    "catalogue/test_recipe_runs.py",
    "catalogue/test_runs.py",
    "lab/test_engine_wheels.py",
    "lab/test_runs.py",
    "plugins/action/test_add_model.py",
    "plugins/action/test_bench.py",
    "plugins/callback/test_screen_callback.py",
    "plugins/test_darwin.py",
    "roles/test_image_copy.py",
    "roles/test_image_lock.py",
    "roles/test_weights_code.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW, so that a part can run them or leave them out."""
    slow = {Path(__file__).parent / name for name in SLOW}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)


def name_error(_server: socketserver.BaseServer, _request: object, client: object) -> None:
    """Name what a test's server met in one line instead of a traceback.

    Tests hang up on purpose. To print a traceback, Python 3.11 and later parse the source, and an ast.parse in another
    thread at the same moment fails in CPython 3.11: "AST constructor recursion depth mismatch".
    """
    print(f"server of a test, request of {client}: {sys.exc_info()[1]!r}", file=sys.stderr)


socketserver.BaseServer.handle_error = name_error  # type: ignore[method-assign,assignment]
