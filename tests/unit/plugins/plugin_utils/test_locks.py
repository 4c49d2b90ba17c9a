# SPDX-License-Identifier: Apache-2.0
"""Locks as text, and what a layer adds to those below."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._image import locks


def wheel(name: str, version: str = "1", local: str = "") -> locks.Wheel:
    return locks.Wheel(name, version, "0" * 64, f"https://x.org/{name}-{version}{local}-py3-none-any.whl", 10)


def test_a_lock_survives_its_text() -> None:
    wheels = [wheel("a"), wheel("b-c", "2.0+cu130", "%2Bcu130")]
    text = locks.text_of("Image x, step y.", wheels)
    assert text.splitlines()[1] == "# 2 wheels, 0 MiB. Written by `make lock-images`."
    assert locks.parse(text) == wheels
    assert wheels[1].file == "b-c-2.0+cu130%2Bcu130-py3-none-any.whl".replace("%2B", "+")


def test_a_layer_adds_what_is_new_or_another_one() -> None:
    below, after = [wheel("a"), wheel("b"), wheel("c")], [wheel("d"), wheel("a"), wheel("b", "2")]
    assert locks.added(below, after) == [wheel("b", "2"), wheel("d")]


def test_each_lock_has_its_name() -> None:
    assert locks.lock_name({"image": "vllm-node", "name": "ray", "lock": True}) == "vllm-node.ray.txt"


@pytest.mark.parametrize("line", ["vllm", "vllm>=1 --hash=sha256:" + "0" * 64, "-r other.txt", "vllm==1"])
def test_a_line_that_is_not_pinned_is_named(line: str) -> None:
    with pytest.raises(locks.LockError, match=r"line 2: .* is not a pinned requirement"):
        locks.parse(f"# x\n{line}\n")
