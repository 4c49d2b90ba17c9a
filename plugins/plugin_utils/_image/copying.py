# SPDX-License-Identifier: Apache-2.0
"""What a copy by rsync between the control node and a node needs of both; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: The first release with ``--mkpath``.
OLDEST_RSYNC = (3, 2, 3)


def rsync_error(answer: Mapping[str, Any]) -> str:
    """Return why the rsync of the control node cannot copy, with what to do; empty when it can.

    macOS brings openrsync or rsync 2.6.9, neither of which creates missing directories.

    :param answer: result of the command ``rsync --version``.
    """
    wanted = ".".join(map(str, OLDEST_RSYNC))
    remedy = f"rsync {wanted} or later is required there: `brew install rsync` on macOS, or the package rsync."
    text = str(answer.get("stdout", ""))
    if answer.get("rc") != 0:
        return f"The control node has no rsync, which copies images and what they are built from. {remedy}"
    first = text.strip().splitlines()[0] if text.strip() else "nothing"
    found = re.match(r"rsync\s+version v?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    if found and tuple(int(part or 0) for part in found.groups()) >= OLDEST_RSYNC:
        return ""
    return f"The rsync of the control node is '{first}'. {remedy}"


def sudo_error(node: str, answer: Mapping[str, Any]) -> str:
    """Return why rsync cannot write as root on a node; empty when it can.

    It starts itself on the node by ``sudo rsync``, with no terminal on which a password could be asked for.

    :param answer: result of a command that needs root without a password.
    """
    if answer.get("rc") == 0:
        return ""
    said = " ".join(str(answer.get("stderr") or answer.get("msg") or "").split())
    return (
        f"{node}: sudo asks for a password ({said}), and rsync, which copies images and what they are built from, "
        'cannot give one, whatever -K says. Add a line "<user> ALL=(ALL) NOPASSWD: /usr/bin/rsync" there with '
        "visudo -f /etc/sudoers.d/gb10-rsync, or let the user become root without a password."
    )


def errors(node: str, rsync: Mapping[str, Any], sudo: Mapping[str, Any]) -> list[str]:
    """Return what keeps the control node from copying to and from a node, a sentence each."""
    return [each for each in (rsync_error(rsync), sudo_error(node, sudo)) if each]
