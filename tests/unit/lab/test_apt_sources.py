# SPDX-License-Identifier: Apache-2.0
"""Where nodes' packages come from: the host's own archive, in either format of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import apt_sources
from lab.errors import LabError

DEBIAN = """\
Types: deb deb-src
# a note
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
UBUNTU = """\
# deb cdrom:[Ubuntu]/ noble main
deb http://mirror.example/ubuntu noble main restricted universe
deb [arch=arm64 lang=en] http://mirror.example/ubuntu noble-updates main # a note
deb-src http://mirror.example/ubuntu noble main
"""


def test_a_debian_host() -> None:
    sources = apt_sources.select(apt_sources.parse_files([("debian.sources", DEBIAN)]), "bookworm", "/etc/apt")
    keyring = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert [source.line() for source in sources] == [
        f"deb {keyring} http://mirror.example/debian bookworm main",
        f"deb {keyring} http://mirror.example/debian bookworm-updates main",
        f"deb {keyring} http://mirror.example/debian-security bookworm-security main contrib",
    ]


def test_an_ubuntu_host() -> None:
    sources = apt_sources.select(apt_sources.parse_files([("sources.list", UBUNTU)]), "noble", "/etc/apt")
    assert [source.line() for source in sources] == [
        "deb http://mirror.example/ubuntu noble main restricted universe",
        "deb [arch=arm64] http://mirror.example/ubuntu noble-updates main",
    ]


@pytest.mark.parametrize(
    "third_party",
    [
        ("x.list", "deb https://x.example/apt cloud-sdk-bookworm main"),
        ("x.list", "deb [signed-by=/etc/apt/keyrings/x.gpg] https://x.example/apt bookworm main"),
        ("x.list", "deb https://x.example/linux/debian bookworm stable"),
        ("x.sources", DEBIAN.replace("debian-archive-keyring", "x").replace("mirror", "x")),
        ("x.sources", DEBIAN.replace("URIs", "Enabled: no\nURIs").replace("mirror", "x")),
        (
            "x.sources",
            "Types: deb\nURIs: http://x.example\nSuites: bookworm\nComponents: main\nSigned-By:\n --BEGIN",
        ),
    ],
)
def test_third_parties_are_left_out(third_party: tuple[str, str]) -> None:
    sources = apt_sources.parse_files([third_party, ("debian.sources", DEBIAN)])
    chosen = apt_sources.select(sources, "bookworm", "/etc/apt")
    assert len(chosen) == 3
    assert not [source for source in chosen if "//x." in source.uri]


def test_the_same_archive_twice_counts_once() -> None:
    sources = apt_sources.parse_files([("a.sources", DEBIAN), ("b.sources", DEBIAN)])
    assert len(apt_sources.select(sources, "bookworm", "/etc/apt")) == 3


def test_a_host_without_its_own_archive_is_told_what_to_do() -> None:
    with pytest.raises(LabError, match=r"'trixie' was found in /etc/apt.*--apt-sources.*--base-image"):
        apt_sources.select(apt_sources.parse_files([("debian.sources", DEBIAN)]), "trixie", "/etc/apt")


def test_apt_keeps_to_a_directory_of_its_own() -> None:
    words = apt_sources.isolated(Path("/w"), APT__Architecture="arm64", Dir__State__status="/w/status")
    settings = dict(word.split("=", 1) for word in words[1::2])
    assert set(words[::2]) == {"-o"}
    assert settings["Dir::Etc::sourcelist"] == "/w/sources.list"
    assert settings["Dir::State::lists"] == "/w/state/lists"
    assert settings["APT::Architecture"] == "arm64"
    assert settings["Dir::State::status"] == "/w/status"
