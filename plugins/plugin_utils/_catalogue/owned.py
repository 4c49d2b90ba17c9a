# SPDX-License-Identifier: Apache-2.0
"""Model files that this project wrote into an inventory, and whether their owner changed them since.  Pure.

A file carries the digest of its own lines: one that still has it holds nothing of the owner's.
"""

from __future__ import annotations

import hashlib

_MARK = "# Written by gb10.cluster; digest of the lines below: "


def seal(text: str) -> str:
    """Return a model file with its digest, on the line behind the start of the document."""
    start, rest = text.split("\n", 1)
    return f"{start}\n{_MARK}{_digest(rest)}\n{rest}"


def is_untouched(text: str) -> bool:
    """Tell whether a file is as `seal` left it."""
    lines = text.split("\n", 2)
    return len(lines) == 3 and lines[1] == f"{_MARK}{_digest(lines[2])}"


def decide(before: str | None, after: str, replace: bool) -> tuple[bool, bool, str]:
    """Return (whether to write, whether to keep the old file beside the new one, a sentence when it is refused).

    :param before: the file's text; None when there is no file.
    :param replace: whether the owner allowed it to be replaced whatever it holds.
    """
    if before == after:
        return False, False, ""
    if before is None or is_untouched(before):
        return True, False, ""
    if replace:
        return True, True, ""
    return False, False, "it was changed by hand, or not written by this project, and replacing it would lose that"


def backup_name(name: str, before: str) -> str:
    """Return the name of the old file beside the new one; Ansible reads no variables from such a file."""
    return f"{name}.{_digest(before)[:8]}.old"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
