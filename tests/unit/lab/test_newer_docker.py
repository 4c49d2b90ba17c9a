# SPDX-License-Identifier: Apache-2.0
"""Which Docker Engine the distribution has, and where a newer one is."""

from __future__ import annotations

import pytest

from lab.errors import LabError
from lab.newer_docker import candidate_major, newer_source

# Captured on Debian 12, and on Ubuntu 24.04 the same with its own number.
POLICY = """docker.io:
  Installed: (none)
  Candidate: 20.10.24+dfsg1-1+deb12u1+b6
  Version table:
     20.10.24+dfsg1-1+deb12u1+b6 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
"""
SOURCES = """Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.mark.parametrize(
    ("policy", "major"),
    [
        (POLICY, 20),
        (POLICY.replace("20.10.24+dfsg1-1+deb12u1+b6", "27.5.1-0ubuntu3~24.04.2"), 27),
        (POLICY.replace("20.10.24+dfsg1-1+deb12u1+b6", "5:28.1.0-1"), 28),
        (POLICY.replace("20.10.24+dfsg1-1+deb12u1+b6", "(none)"), 0),
        ("", 0),
    ],
)
def test_the_version_that_would_be_installed(policy: str, major: int) -> None:
    assert candidate_major(policy) == major


def test_the_newer_release_is_asked_for_on_the_same_mirror() -> None:
    others = ("other.list", "deb [signed-by=/usr/share/keyrings/else.gpg] http://else.example bookworm main")
    assert newer_source([others, ("debian.sources", SOURCES)]) == (
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian trixie main"
    )


def test_a_host_without_debians_archive_is_named() -> None:
    with pytest.raises(LabError, match="No archive of Debian 12 is named in /etc/apt"):
        newer_source([("ubuntu.sources", SOURCES.replace("bookworm", "noble"))])
