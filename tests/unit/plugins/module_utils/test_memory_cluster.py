# SPDX-License-Identifier: Apache-2.0
"""One node's answer as plain data, and the tightest of several."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    AUTO_LENGTH,
    REFUSED,
    TIGHT,
    UNKNOWN,
    Budget,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import evaluate, tightest_of, unknown
from tests.unit.plugins.module_utils.memory_models import (
    nano,
    ultra,
)


def test_plain_data() -> None:
    plain = evaluate(ultra()).as_dict()
    assert plain["verdict"] == TIGHT
    assert plain["weights_gib_per_rank"] == 82.25
    assert plain["kv_bytes_per_token"] == 3328
    assert plain["attn_block_tokens"] == 4352
    assert plain["cache_mode"] == "all"
    assert plain["breakdown"]["distributed_gib"] == 3.2
    assert plain["suggestions"][0]["order"] == 1
    assert plain["suggestions"][0]["frees_gib"] == round(plain["suggestions"][0]["frees_gib"], 3)


def tightest(per_node: dict[str, Budget]) -> dict[str, Any]:
    """Ask as the filter does: with the results as plain data."""
    return tightest_of({name: budget.as_dict() for name, budget in per_node.items()})


def test_the_cluster_is_as_good_as_its_worst_node() -> None:
    verdict = tightest(
        {
            "gx10-1": evaluate(ultra()),
            "gx10-2": evaluate(ultra(mem_available_gib=110.0)),
            "gx10-3": evaluate(ultra(mem_available_gib=115.0)),
        }
    )
    assert verdict["verdict"] == REFUSED
    assert verdict["node"] == "gx10-2"
    assert verdict["reason"].startswith("gx10-2 is the tightest of 3 nodes (refused): It would start and die")
    assert verdict["per_node"] == {"gx10-1": TIGHT, "gx10-2": REFUSED, "gx10-3": TIGHT}


def test_among_equals_the_least_headroom_counts() -> None:
    verdict = tightest({"a": evaluate(ultra()), "b": evaluate(ultra(mem_available_gib=111.2))})
    assert verdict["node"] == "b"
    again = tightest({"b": evaluate(ultra()), "a": evaluate(ultra())})
    assert again["node"] == "a"


def test_unknown_is_worse_than_tight_and_names_what_is_missing() -> None:
    verdict = tightest({"a": evaluate(ultra()), "b": unknown(["The tokenizer of time."])})
    assert verdict["verdict"] == UNKNOWN
    assert verdict["reason"] == (
        "b is the tightest of 2 nodes (unknown): The memory of this model cannot be computed. The tokenizer of time."
    )


def test_a_cluster_of_one() -> None:
    assert tightest({"a": evaluate(nano())})["reason"].startswith("a (fits): 24.34 GiB hold")


def test_no_node_and_no_verdict() -> None:
    with pytest.raises(ValueError, match="No node was given: there is no tightest one"):
        tightest_of({})
    with pytest.raises(ValueError, match=r"The result of a is not one of gb10\.cluster\.memory_budget"):
        tightest_of({"a": {"msg": "failed"}})


@pytest.mark.parametrize("pool_gib", [0.6, 2.0])
def test_a_length_that_vllm_chooses_is_the_longest_that_fits(pool_gib: float) -> None:
    found = evaluate(nano(max_model_len=AUTO_LENGTH, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
    limit = nano().geometry.max_position_embeddings
    assert found.figures is not None
    length = found.figures.max_model_len
    assert f"max-model-len auto comes to {length} tokens" in found.reasons[0]
    one = evaluate(nano(max_model_len=length, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
    assert one.figures is not None
    assert one.figures.max_concurrency >= 1
    if length < limit:
        more = evaluate(nano(max_model_len=length + 1, gpu_memory_utilization=None, kv_cache_memory_gib=pool_gib))
        assert more.figures is not None
        assert more.figures.max_concurrency < 1
    else:
        assert "the model's own limit" in found.reasons[0]
    assert (length < limit) is (pool_gib < 1)


def test_a_length_that_vllm_chooses_is_refused_where_no_token_fits() -> None:
    found = evaluate(nano(max_model_len=AUTO_LENGTH, gpu_memory_utilization=0.05))
    assert found.verdict == REFUSED
    assert not any("auto comes to" in reason for reason in found.reasons)
