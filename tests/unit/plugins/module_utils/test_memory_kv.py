# SPDX-License-Identifier: Apache-2.0
"""vLLM's cache layout, by release: held against figures that vLLM itself logged or that its formulas give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import (
    Attention,
    GatedConv,
    GatedDeltaNet,
    Geometry,
    Mamba1,
    Mamba2,
    Mtp,
    geometry_from_dict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import (
    ALIGN,
    ALL,
    GIB,
    NONE,
    attention_bytes,
    ceil_div,
    parse_version,
    resolve_cache_mode,
    resolve_prefix_caching,
    rules_for,
    state_bytes,
    version_text,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.layout import (
    Asked,
    Layout,
    fill_pool,
    plan_layout,
)

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]
NANO, ULTRA, QWEN397 = (geometry_from_dict(MODELS[name]["geometry"]) for name in ("nano", "ultra", "qwen397"))
DENSE = Geometry("Qwen3ForCausalLM", 2, 64, 4096, Attention(layers=2, heads=4, kv_heads=4, head_dim=16))


def layout(
    geometry: Geometry,
    version: tuple[int, int, int] = (0, 22, 1),
    *,
    ranks: int = 4,
    kv: str = "fp8",
    ssm: str = "auto",
    speculative: int = 0,
    granularity: int = 16,
    caching: bool | None = None,
    mode: str | None = None,
) -> Layout:
    asked = Asked(ranks, kv, ssm, speculative, granularity, caching, mode, rules_for(version))
    return plan_layout(geometry, asked)


def mamba(geometry: Geometry) -> Mamba2:
    assert isinstance(geometry.recurrent, Mamba2)
    return geometry.recurrent


def delta_net(geometry: Geometry) -> GatedDeltaNet:
    assert isinstance(geometry.recurrent, GatedDeltaNet)
    return geometry.recurrent


@pytest.mark.parametrize(("numerator", "expected"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_ceil_div(numerator: int, expected: int) -> None:
    assert ceil_div(numerator, 16) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.22.1", (0, 22, 1)),
        ("v0.33.0", (0, 33, 0)),
        ("0.22.1rc1.dev124+gace95c9cf.d20260603.cu132", (0, 22, 1)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("0.18", (0, 18, 0)),
        (" 1.2.3 ", (1, 2, 3)),
        ("26.05.post1-py3", None),
        ("latest", None),
        ("", None),
    ],
)
def test_versions_are_read(text: str, expected: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == expected


def test_versions_are_written() -> None:
    assert version_text((0, 22, 1)) == "0.22.1"


@pytest.mark.parametrize(
    ("rule", "last_without", "first_with"),
    [
        ("hybrid_prefix_caching", (0, 25, 1), (0, 26, 0)),
        ("tokens_from_concurrency", (0, 20, 0), (0, 20, 1)),
        ("align_when_speculative", (0, 19, 1), (0, 20, 0)),
        ("all_counts_speculative", (0, 21, 0), (0, 22, 0)),
        ("mamba2_checkpoint_block", (0, 31, 0), (0, 32, 0)),
        ("gdn_checkpoint_block", (0, 32, 0), (0, 33, 0)),
        ("graphs_want_block_per_sequence", (0, 19, 1), (0, 20, 0)),
    ],
)
def test_what_releases_began(rule: str, last_without: tuple[int, int, int], first_with: tuple[int, int, int]) -> None:
    assert getattr(rules_for(last_without), rule) is False
    assert getattr(rules_for(first_with), rule) is True


@pytest.mark.parametrize(
    ("rule", "last_with", "first_without"),
    [
        ("align_when_speculative", (0, 21, 0), (0, 22, 0)),
        ("mamba2_default_all", (0, 27, 1), (0, 28, 0)),
        ("has_mode_all", (0, 31, 0), (0, 32, 0)),
        ("align_block_within_batch", (0, 26, 0), (0, 27, 0)),
    ],
)
def test_what_releases_ended(rule: str, last_with: tuple[int, int, int], first_without: tuple[int, int, int]) -> None:
    assert getattr(rules_for(last_with), rule) is True
    assert getattr(rules_for(first_without), rule) is False


def test_the_default_utilization_grew() -> None:
    assert rules_for((0, 19, 1)).default_utilization == 0.9
    assert rules_for((0, 20, 0)).default_utilization == 0.92


@pytest.mark.parametrize(
    ("geometry", "asked", "version", "expected"),
    [
        (NANO, None, (0, 25, 1), False),
        (NANO, None, (0, 26, 0), True),
        (NANO, True, (0, 22, 1), True),
        (NANO, False, (0, 32, 0), False),
        (DENSE, None, (0, 18, 1), True),
    ],
)
def test_prefix_caching_by_release(
    geometry: Geometry, asked: bool | None, version: tuple[int, int, int], expected: bool
) -> None:
    assert resolve_prefix_caching(geometry, asked, rules_for(version)) is expected


@pytest.mark.parametrize(
    ("geometry", "caching", "speculative", "version", "asked", "expected"),
    [
        (NANO, False, 0, (0, 22, 1), None, NONE),
        (NANO, False, 0, (0, 22, 1), ALL, NONE),
        (NANO, True, 0, (0, 18, 1), None, ALL),
        (NANO, True, 3, (0, 21, 0), None, ALIGN),
        (NANO, True, 0, (0, 21, 0), None, ALL),
        (NANO, True, 3, (0, 22, 1), None, ALL),
        (NANO, True, 3, (0, 22, 1), ALIGN, ALIGN),
        (NANO, True, 0, (0, 28, 0), None, ALIGN),
        (NANO, True, 0, (0, 31, 0), ALL, ALL),
        (NANO, True, 0, (0, 32, 0), ALL, ALIGN),
        (QWEN397, True, 0, (0, 22, 1), None, ALIGN),
        (QWEN397, True, 0, (0, 22, 1), ALL, ALIGN),
    ],
)
def test_the_cache_mode_by_release(
    geometry: Geometry, caching: bool, speculative: int, version: tuple[int, int, int], asked: str | None, expected: str
) -> None:
    assert geometry.recurrent is not None
    assert resolve_cache_mode(geometry.recurrent, caching, speculative, rules_for(version), asked) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", 512),
        ("bfloat16", 512),
        ("fp8", 256),
        ("fp8_e5m2", 256),
        ("int8_per_token_head", 264),
        ("nvfp4", 2 * (64 + 8)),
    ],
)
def test_bytes_of_a_token_in_one_layer(dtype: str, expected: int) -> None:
    assert attention_bytes(NANO.attention, NANO.dtype, 2, dtype) == expected


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    at_two = attention_bytes(NANO.attention, NANO.dtype, 2, "fp8")
    assert attention_bytes(NANO.attention, NANO.dtype, 4, "fp8") == at_two
    assert attention_bytes(NANO.attention, NANO.dtype, 1, "fp8") == 2 * at_two


def test_a_float32_model_keeps_wide_keys() -> None:
    assert attention_bytes(NANO.attention, "float32", 1, "auto") == 2048


def test_mamba_state_by_hand() -> None:
    # 64 of 256 heads on a rank; (16384 + 2*8*128) / 4 columns of 3 past tokens in bf16.
    assert state_bytes(mamba(ULTRA), "bfloat16", 4, 0, "auto") == 64 * 64 * 128 * 4 + 4608 * 3 * 2
    assert state_bytes(mamba(ULTRA), "bfloat16", 4, 3, "float16") == 64 * 64 * 128 * 2 + 4608 * 6 * 2


def test_a_single_mamba_group_is_replicated() -> None:
    single = replace(mamba(ULTRA), groups=1)
    grouped = replace(mamba(ULTRA), groups=4)
    assert state_bytes(single, "bfloat16", 4, 0, "auto") == state_bytes(grouped, "bfloat16", 4, 0, "auto")


@pytest.mark.parametrize("speculative", [0, 3])
def test_states_of_classes_that_do_not_speculate_by_hand(speculative: int) -> None:
    # 512 of 1024 channels on a rank, 3 past columns in bfloat16, 16 elements of state each.
    jamba = Mamba1(layers=7, width=1024, state_size=16, conv_kernel=4, state_dtype="bfloat16")
    assert state_bytes(jamba, "bfloat16", 2, speculative, "float32") == 512 * 3 * 2 + 512 * 16 * 4
    assert state_bytes(GatedConv(5, 1024, 3), "bfloat16", 2, speculative, "float32") == 512 * 2 * 2


def test_mamba_1_keeps_a_state_at_every_block_of_2048_tokens() -> None:
    jamba = replace(ULTRA, recurrent=Mamba1(7, 16384, 16, 4, "bfloat16"))
    plan = layout(jamba, caching=True)
    assert (plan.cache_mode, plan.block_tokens) == (ALL, 2048)
    conv = layout(replace(ULTRA, recurrent=GatedConv(7, 16384, 3)), caching=True)
    assert (conv.cache_mode, conv.state.fixed_blocks) == (ALIGN, 2)


def test_delta_net_state_by_hand() -> None:
    # (2*16*128 + 64*128) / 4 columns of 3 past tokens; 16 of 64 value heads on a rank.
    expected = 3072 * 3 * 2 + 16 * 128 * 128 * 4
    assert state_bytes(delta_net(QWEN397), "bfloat16", 4, 0, "auto") == expected


@pytest.mark.parametrize(
    ("geometry", "speculative", "per_token", "block_tokens", "sequence_gib"),
    [
        (ULTRA, 0, 3072, 8304, 0.855),
        (ULTRA, 3, 3328, 8416, 1.252),
        (QWEN397, 0, 7680, 2096, 1.934),
        (QWEN397, 3, 8192, 2128, 2.208),
        (NANO, 0, 1536, 2096, 0.390),
    ],
)
def test_four_ranks_fp8_cache_float32_state(
    geometry: Geometry, speculative: int, per_token: int, block_tokens: int, sequence_gib: float
) -> None:
    plan = layout(geometry, speculative=speculative)
    assert plan.cache_mode == NONE
    assert plan.kv_bytes_per_token == per_token
    assert plan.block_tokens == block_tokens
    assert plan.sequence_bytes(262144) / GIB == pytest.approx(sequence_gib, abs=0.001)


@pytest.mark.parametrize(("caching", "concurrency"), [(False, 40.125), (True, 20.0625)])
def test_the_live_run_of_0_32_on_the_cpu_build(caching: bool, concurrency: float) -> None:
    plan = layout(NANO, (0, 32, 0), ranks=1, kv="auto", granularity=128, caching=caching)
    pool = fill_pool(plan, 4 * GIB, 8192, rules_for((0, 32, 0)))
    assert plan.block_tokens == 2176
    assert plan.padding_percent == pytest.approx(4.41, abs=0.005)
    assert plan.groups == 5
    assert plan.blocks_per_sequence(8192) == (16 if caching else 8)
    assert pool.blocks == 321
    assert pool.max_concurrency == pytest.approx(concurrency)
    assert pool.cache_tokens == int(concurrency * 8192)


def test_the_table_of_the_32_gb_guide_counts_blocks_of_one_group() -> None:
    plan = layout(NANO, (0, 18, 1), ranks=1)
    assert plan.block_tokens == 4176
    rules = rules_for((0, 18, 1))
    assert fill_pool(plan, int(4.2 * GIB), 8192, rules).cache_tokens == 292320  # "292K"
    assert fill_pool(plan, int(89.4 * GIB), 8192, rules).cache_tokens == 6247296  # "6.2M"
    assert fill_pool(plan, int(89.4 * GIB), 8192, rules).max_concurrency == 1247.0  # "1247 concurrent"


def test_old_releases_report_the_smaller_of_both_kinds_of_block() -> None:
    # Without prefix caching a Mamba block spans max_model_len, here less than an attention block.
    rules = rules_for((0, 18, 1))
    plan = layout(NANO, (0, 18, 1), ranks=1)
    blocks = fill_pool(plan, GIB, 1024, rules).blocks
    assert fill_pool(plan, GIB, 1024, rules).cache_tokens == blocks // 5 * 1024
    kept = layout(NANO, (0, 18, 1), ranks=1, caching=True)
    assert fill_pool(kept, GIB, 1024, rules).cache_tokens == fill_pool(kept, GIB, 1024, rules).blocks // 5 * 4224


def test_mode_all_keeps_a_state_at_every_block() -> None:
    plan = layout(ULTRA, ssm="float16", speculative=3, caching=True)
    assert plan.cache_mode == ALL
    assert plan.block_tokens == 4352  # the next multiple of the chunk of 128
    assert plan.recurrent_blocks(262144) == 61 + 3
    assert plan.blocks_per_sequence(262144) == 61 + 4 * 64
    assert plan.sequence_bytes(262144) / GIB == pytest.approx(4.276, abs=0.001)
    assert plan.recurrent_bytes(262144) == 4 * 64 * plan.block_bytes


def test_mode_all_without_a_chunk_takes_the_kernels_block() -> None:
    bare = replace(NANO, recurrent=replace(mamba(NANO), chunk_size=None))
    assert layout(bare, caching=True).block_tokens == layout(NANO, caching=False).block_tokens


def test_mode_all_of_0_21_forgot_the_speculative_blocks() -> None:
    plan = layout(ULTRA, (0, 21, 0), speculative=3, caching=True, mode=ALL)
    assert plan.state.fixed_blocks == 0


@pytest.mark.parametrize(
    ("geometry", "version", "speculative", "blocks"),
    [
        (NANO, (0, 28, 0), 0, 2),
        (NANO, (0, 32, 0), 0, 3),
        (ULTRA, (0, 32, 0), 3, 6),
        (QWEN397, (0, 32, 0), 2, 4),
        (QWEN397, (0, 33, 0), 2, 5),
    ],
)
def test_blocks_of_mode_align(geometry: Geometry, version: tuple[int, int, int], speculative: int, blocks: int) -> None:
    plan = layout(geometry, version, speculative=speculative, caching=True)
    assert plan.cache_mode == ALIGN
    assert plan.state.fixed_blocks == blocks
    assert plan.recurrent_blocks(100) == plan.recurrent_blocks(262144) == blocks


def test_a_delta_net_of_other_heads_has_no_checkpoint_kernel() -> None:
    odd = replace(QWEN397, recurrent=replace(delta_net(QWEN397), k_head_dim=64))
    assert layout(odd, (0, 33, 0), caching=True).state.fixed_blocks == 2


def test_groups_follow_the_rarer_kind() -> None:
    plan = layout(NANO, ranks=1)
    assert (plan.group_layers, plan.attention_groups, plan.recurrent_groups) == (6, 1, 4)


def test_groups_follow_the_commoner_kind_when_the_two_are_close() -> None:
    near = replace(NANO, recurrent=replace(mamba(NANO), layers=8))
    plan = layout(near, ranks=1)
    assert (plan.group_layers, plan.attention_groups, plan.recurrent_groups) == (8, 1, 1)
    far = replace(NANO, recurrent=replace(mamba(NANO), layers=9))
    plan = layout(far, ranks=1)
    assert (plan.group_layers, plan.attention_groups, plan.recurrent_groups) == (6, 1, 2)


def test_more_attention_than_recurrent_layers() -> None:
    odd = replace(NANO, recurrent=replace(mamba(NANO), layers=2))
    plan = layout(odd, ranks=1)
    assert (plan.group_layers, plan.attention_groups, plan.recurrent_groups) == (2, 3, 1)


def test_an_attention_only_model_has_one_group_and_no_padding() -> None:
    plan = layout(DENSE, ranks=1, kv="auto")
    assert (plan.groups, plan.block_tokens, plan.padding_percent) == (1, 16, 0.0)
    assert plan.kv_bytes_per_token == 2 * 256
    assert plan.block_bytes == 16 * 512
    assert plan.blocks_per_sequence(4096) == 256
    assert plan.recurrent_bytes(4096) == 0
    pool = fill_pool(plan, GIB, 4096, rules_for((0, 32, 0)))
    assert pool.blocks == 131072
    assert pool.max_concurrency == 512.0
    old = fill_pool(plan, GIB, 4096, rules_for((0, 18, 1)))
    assert old.cache_tokens == pool.cache_tokens == 131072 * 16


def test_the_draft_head_adds_its_attention_layers_when_it_is_used() -> None:
    drafted = replace(DENSE, mtp=Mtp(layers=1, attention_layers=1))
    assert layout(drafted, ranks=1).attention_layers == 2
    assert layout(drafted, ranks=1, speculative=1).attention_layers == 3


def test_the_longest_sequence_of_a_pool() -> None:
    plan = layout(NANO, ranks=1)
    exact = plan.sequence_bytes(50000)
    longest = plan.longest_sequence(exact, 262144)
    assert plan.sequence_bytes(longest) <= exact < plan.sequence_bytes(longest + 1)
    assert plan.longest_sequence(exact, 8192) == 8192
    assert plan.longest_sequence(plan.block_bytes, 8192) == 0


def test_a_negative_pool_holds_nothing() -> None:
    pool = fill_pool(layout(NANO), -5 * GIB, 8192, rules_for((0, 22, 1)))
    assert (pool.blocks, pool.max_concurrency, pool.cache_tokens) == (0, 0.0, 0)
