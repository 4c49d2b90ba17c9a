# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node.text_block import with_block

BLOCK = "# BEGIN ours\none\ntwo\n# END ours\n"


@pytest.mark.parametrize(
    ("before", "block", "after"),
    [
        ("", "one\ntwo", BLOCK),
        ("a\n", "one\ntwo\n", "a\n" + BLOCK),
        ("a", "one\ntwo", "a\n" + BLOCK),
        ("a\n" + BLOCK + "b\n", "three", "a\n# BEGIN ours\nthree\n# END ours\nb\n"),
        ("a\n" + BLOCK + "b\n", None, "a\nb\n"),
        (BLOCK, None, ""),
        ("a\nb\n", None, "a\nb\n"),
        ("a\n# BEGIN ours\nhalf\n", "one\ntwo", "a\nhalf\n" + BLOCK),
        ("# END ours\na\n", "one\ntwo", "a\n" + BLOCK),
    ],
)
def test_with_block(before: str, block: str | None, after: str) -> None:
    assert with_block(before, "ours", block) == after
    assert with_block(after, "ours", block) == after, "a second time changes nothing"


def test_another_marker_is_left_alone() -> None:
    assert with_block(BLOCK, "theirs", "x") == BLOCK + "# BEGIN theirs\nx\n# END theirs\n"
