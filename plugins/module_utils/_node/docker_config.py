# SPDX-License-Identifier: Apache-2.0
"""What a change of Docker's daemon.json costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Keys that a running dockerd takes over on SIGHUP (Docker Engine documentation, "dockerd",
#: section on configuration reloading; the list has only grown since 20.10). "features" is on that list and not here:
#: which image store is used is decided when dockerd starts.
RELOADABLE = frozenset(
    {
        "debug",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "default-runtime",
        "runtimes",
        "authorization-plugins",
        "allow-nondistributable-artifacts",
        "insecure-registries",
        "registry-mirrors",
        "shutdown-timeout",
    }
)


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the top-level keys whose values differ, sorted."""
    missing = object()
    return sorted(key for key in {*before, *after} if before.get(key, missing) != after.get(key, missing))


def needs_restart(keys: Iterable[str]) -> list[str]:
    """Return those keys that a running dockerd takes over only when it is restarted."""
    return sorted(set(keys) - RELOADABLE)
