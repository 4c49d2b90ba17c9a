# SPDX-License-Identifier: Apache-2.0
"""vLLM version strings and specifiers."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vv

PINNED = "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132"


@pytest.mark.parametrize(
    ("text", "release", "is_release", "local"),
    [
        ("0.22.1", (0, 22, 1), True, ""),
        ("v0.33.0", (0, 33, 0), True, ""),
        ("0.32.0+cpu", (0, 32, 0), True, "cpu"),
        ("0.8.5.post1", (0, 8, 5), True, ""),
        ("0.18.1rc1", (0, 18, 1), False, ""),
        ("1.0", (1, 0, 0), True, ""),
        (PINNED, (0, 22, 1), False, "gace95c9cf.d20260603.cu132"),
    ],
)
def test_parse(text: str, release: tuple[int, ...], is_release: bool, local: str) -> None:
    found = vv.parse(text)
    assert (found.release, found.is_release, found.local) == (release, is_release, local)
    assert found.text == text


@pytest.mark.parametrize("text", ["latest", "", "vllm-0.22.1", "0.22.1-py3", "22", "0.22.x"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(vv.VersionError, match="is no vLLM version; expected something like"):
        vv.parse(text)


@pytest.mark.parametrize(
    ("specifier", "version", "holds"),
    [
        ("==0.22.1", "0.22.1", True),
        ("==0.22.1", PINNED, True),
        ("0.22.1", PINNED, True),
        ("==0.22.1", "0.22.2", False),
        ("==0.32.0", "0.32.0+cpu", True),
        ("==0.32.0+cpu", "0.32.0", False),
        ("==0.32.0+cpu", "0.32.0+cpu", True),
        (f"=={PINNED}", PINNED, True),
        (f"=={PINNED}", "0.22.1", False),
        ("==0.22.*", "0.22.7", True),
        ("==0.2.*", "0.22.1", False),
        ("!=0.22.*", "0.22.1", False),
        ("!=0.22.1", "0.22.1", False),
        (">=0.32,<0.34", "0.33.0", True),
        (">=0.32,<0.34", "0.34.0", False),
        (">=0.32, <0.34", "0.31.9", False),
        (">0.22.1", "0.22.1", False),
        ("<=0.22.1", "0.22.1", True),
        ("<0.9", "0.22.1", False),  # numbers, not text
    ],
)
def test_matches(specifier: str, version: str, holds: bool) -> None:
    assert vv.matches(specifier, vv.parse(version)) is holds


@pytest.mark.parametrize(
    ("specifier", "sentence"),
    [
        ("", "'' is no version specifier"),
        ("==", "'==' is no vLLM version"),
        (">=0.22.*", "'>=0.22.*' is no version specifier: '.*' goes with == and !=."),
        ("==0.x.*", "'==0.x.*' is no version specifier"),
        ("~=0.22", "'~=0.22' is no vLLM version"),
        (">=0.22,,<1", "is no version specifier; expected for example"),
    ],
)
def test_check_specifier_refuses(specifier: str, sentence: str) -> None:
    with pytest.raises(vv.VersionError) as caught:
        vv.check_specifier(specifier)
    assert sentence in str(caught.value)


def test_exact_text() -> None:
    assert vv.is_exact(f"== {PINNED}", vv.parse(PINNED))
    assert not vv.is_exact("==0.22.1", vv.parse(PINNED))
