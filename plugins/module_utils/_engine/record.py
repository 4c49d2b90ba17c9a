# SPDX-License-Identifier: Apache-2.0
"""The record of the served model: two files of one format on every member, written after the engine was verified.

``active.json`` names what serves now; a stop removes it.  ``verified.json`` beside it names what was last verified; it
stays when the engine is stopped, and is what a run serves that names no model.

A record is a JSON object: ``model``, ``unit``, ``container``, ``image`` (tag), ``repo``, ``served_name``, ``engine``
(``native`` or ``ray``), ``api_port`` (where the engine listens), ``proxy_port`` (where the proxy in front of it does; 0
without one), ``head_address``, ``members`` (names of the nodes in the order of their ranks) and ``addresses`` (fabric
address by name).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

#: What is read of a record, which comes from a node; see `_node.shape.shaped`.
RECORD: dict[str, Any] = {"model": "", "unit": "", "served_name": "", "engine": "", "members": [""]}

ACTIVE = Path("/etc/gb10/engine/active.json")


def verified_path(active: Path) -> Path:
    """Return where the model that was last verified is recorded: beside the active record."""
    return active.with_name("verified.json")


def api_key(active: Path, model: str) -> str:
    """Return the key that an engine of this node asks for, from its environment file; empty when it has none.

    :param active: the active record, beside which the environment files are.
    """
    try:
        environment = active.with_name(f"{model}.env").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line.partition("=")[2] for line in environment.splitlines() if line.startswith("VLLM_API_KEY=")), "")


def write(active: Path, record: dict[str, Any]) -> None:
    """Record the model that was verified now; an empty record says that none serves, and keeps the last verified one.

    :raises OSError: as the operating system reports it.
    """
    if not record:
        files.remove(active)
        return
    files.make_directories(active.parent)
    files.write_json(active, record)
    files.write_json(verified_path(active), record)


def last_verified(active: Path) -> dict[str, Any]:
    """Return the record of what was last verified; empty when nothing ever was.

    A node that was last served by a release before there was such a record has the active one alone.
    """
    return files.read_json(verified_path(active)) or files.read_json(active)
