# SPDX-License-Identifier: Apache-2.0
"""Pages of different sizes in one block, as releases before 0.30 pack them."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import GeometryError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.packing import Bucket, pack_tuples

WHOLE = Bucket(((1024, 4), (4096, 2)))


@pytest.mark.parametrize("dense", [False, True])
def test_a_page_of_a_window_is_padded_to_one_of_a_whole_cache(dense: bool) -> None:
    packed = pack_tuples([WHOLE, Bucket(((2048, 2),), kept_tokens=128)], dense)
    assert [sorted(bucket.layers_by_page) for bucket, _number in packed.groups] == [[1024, 4096], [4096]]


@pytest.mark.parametrize("dense", [False, True])
def test_a_page_that_no_whole_cache_holds_is_refused_with_both_sizes(dense: bool) -> None:
    with pytest.raises(GeometryError) as raised:
        pack_tuples([WHOLE, Bucket(((8192, 2),), kept_tokens=128)], dense)
    assert str(raised.value) == (
        "vLLM before 0.30 pads the page of a window to a page of the whole caches: this one has 8192 bytes, the "
        "largest of theirs 4096. Use an image with vLLM 0.30 or later."
    )
