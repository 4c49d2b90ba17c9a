# SPDX-License-Identifier: Apache-2.0
"""Which rsync the control node may have, and what is said of a sudo that asks for a password."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.gb10.cluster.plugins.filter.image import FilterModule
from ansible_collections.gb10.cluster.plugins.plugin_utils._image.copying import errors, rsync_error

#: First lines as the programs print them.
UBUNTU = (
    "rsync  version 3.2.7  protocol version 31\nCopyright (C) 1996-2022 by Andrew Tridgell, Wayne Davison, and others."
)
APPLE = (
    "rsync  version 2.6.9  protocol version 29\nCopyright (C) 1996-2006 by Andrew Tridgell, Wayne Davison, and others."
)
OPEN = "openrsync: protocol version 29\nrsync version 2.6.9 compatible"
GOOD = {"rc": 0, "stdout": UBUNTU}


@pytest.mark.parametrize("text", [UBUNTU, UBUNTU.replace("3.2.7", "v3.2.3"), UBUNTU.replace("3.2.7", "3.4.1pre1")])
def test_an_rsync_that_creates_directories_passes(text: str) -> None:
    assert rsync_error({"rc": 0, "stdout": text}) == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"rc": 0, "stdout": APPLE}, "'rsync  version 2.6.9  protocol version 29'"),
        ({"rc": 0, "stdout": OPEN}, "'openrsync: protocol version 29'"),
        ({"rc": 0, "stdout": UBUNTU.replace("3.2.7", "3.2.2")}, "version 3.2.2"),
        ({"rc": 0, "stdout": ""}, "is 'nothing'"),
        ({"rc": 2, "msg": "[Errno 2] No such file or directory: b'rsync'"}, "The control node has no rsync"),
    ],
)
def test_another_one_is_refused_with_what_to_do(answer: dict[str, object], words: str) -> None:
    said = rsync_error(answer)
    assert words in said
    assert "rsync 3.2.3 or later is required there: `brew install rsync` on macOS" in said


def test_the_rsync_of_this_machine_is_read() -> None:
    done = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=False)
    assert rsync_error({"rc": done.returncode, "stdout": done.stdout}) == ""


def test_a_sudo_that_asks_is_named_with_the_node() -> None:
    asks = {"rc": 1, "stderr": "sudo: a password is required\n"}
    (said,) = errors("gx10-1", GOOD, asks)
    assert said.startswith("gx10-1: sudo asks for a password (sudo: a password is required)")
    assert "visudo" in said
    assert errors("gx10-1", GOOD, {"rc": 0}) == []
    assert len(errors("gx10-1", {"rc": 127}, asks)) == 2
    assert FilterModule().filters()["copy_errors"] is errors
