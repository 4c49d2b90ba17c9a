# SPDX-License-Identifier: Apache-2.0
"""The keys that the proxy in front of the API accepts, as nginx reads them; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What a bearer token may consist of (RFC 6750); no client can send anything else.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


def accepted(api_key: str, served_key: str) -> list[str]:
    """Return the keys that count: that of the run and that of the engine that serves, until the two are one.

    :param api_key: the run's; empty when it has none.
    :param served_key: the engine's; empty when it has none, or when none serves.
    """
    return [key for key in dict.fromkeys((api_key, served_key)) if _TOKEN.fullmatch(key)]


def key_map(keys: Sequence[str]) -> str:
    """Return the configuration that sets ``$gb10_key`` to 1 for a request with one of the keys.

    Regular expressions, because nginx compares plain strings of a map without regard to case.
    """
    lines = [f'    "~^[Bb]earer {re.escape(key)}$" 1;' for key in keys]
    return "\n".join(
        ["# Written by gb10.cluster.", "map $http_authorization $gb10_key {", "    default 0;", *lines, "}", ""]
    )
