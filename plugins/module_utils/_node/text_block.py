# SPDX-License-Identifier: Apache-2.0
"""One block of ours inside a text file that belongs to someone else."""

from __future__ import annotations


def with_block(text: str, marker: str, block: str | None) -> str:
    """Return ``text`` with our block set to ``block``, or taken out when ``block`` is None.

    The block stays where it is found; a new one goes to the end. Where one of the two marker
    lines was lost, nothing but the other one is dropped, and a whole block is appended.
    """
    begin, end = f"# BEGIN {marker}", f"# END {marker}"
    fresh = [] if block is None else [begin, *block.rstrip("\n").split("\n"), end]
    lines = text.split("\n")
    trailing = lines.pop() if lines[-1] == "" else None
    if begin in lines and end in lines[lines.index(begin) :]:
        start = lines.index(begin)
        stop = lines.index(end, start)
        lines[start : stop + 1] = fresh
    else:
        lines = [line for line in lines if line not in (begin, end)]
        lines.extend(fresh)
    if not lines:
        return ""
    return "\n".join(lines) + ("\n" if trailing is not None or fresh else "")
