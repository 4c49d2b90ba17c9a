# SPDX-License-Identifier: Apache-2.0
"""With which files an engine's unit was last started, so that a run sees what an interrupted run has changed.

A start notes one digest over its unit, launch description and environment; it need not outlive a boot, because a boot
starts the unit with the files on the disk.  Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def digest_of(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over the contents of some files, in this order; one that is missing counts as such.

    :raises OSError: a file is there and cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes() if path.exists() else None
        total.update(b"missing" if content is None else hashlib.sha256(content).digest())
    return total.hexdigest()


def sources(unit_file: Path, config_dir: Path) -> list[Path]:
    """Return what a start of a unit reads: ``/etc/systemd/system/vllm-m.service`` and ``/etc/gb10/engine/m.*``."""
    model = unit_file.name.removeprefix("vllm-").removesuffix(".service")
    return [unit_file, config_dir / f"{model}.json", config_dir / f"{model}.env"]


def note(path: Path, unit_file: Path, config_dir: Path) -> None:
    """Write the digest of this start; for root alone, because the environment can hold a key.

    :raises OSError: as the operating system reports it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, digest_of(sources(unit_file, config_dir)) + "\n", 0o600)


def stale(path: Path, unit_file: Path, config_dir: Path) -> bool:
    """Return whether a unit was started with other files than those on the disk; unknown counts as no."""
    try:
        noted = path.read_text(encoding="ascii").strip()
    except OSError:
        return False
    return noted != digest_of(sources(unit_file, config_dir))
