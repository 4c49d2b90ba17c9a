# SPDX-License-Identifier: Apache-2.0
"""A config.json that notes what was asked of it and was not there, and the parts that most families share.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import geometry as shapes
from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import is_whole, most

#: What some files (HunYuan, Gemma 3n) list layer by layer; the largest counts.
_BY_LAYER = ("intermediate_size", "moe_intermediate_size", "moe_topk")
_TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_k",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
)
EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


def _largest(value: Any) -> Any:
    """Return the largest figure of a list of figures, and anything else as it is."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    ):
        return max(value)
    return value


class Config:
    """A config.json that notes what was asked of it and was not there."""

    def __init__(self, values: Mapping[str, Any], architecture: str = "", dtype: str = "bfloat16") -> None:
        self.architecture, self.dtype = architecture, dtype
        self.values = {key: _largest(value) if key in _BY_LAYER else value for key, value in values.items()}
        self.missing: list[str] = []

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, *keys: str) -> int:
        """Return the first of the keys that is there as a whole number; note their absence otherwise."""
        for key in keys:
            value = self.values.get(key)
            if is_whole(value, key):
                return value
            if isinstance(value, int) and value > most(key):
                self.missing.append(f"config.json has a {key} that is larger than any model's: {most(key)} at most.")
                return 1
        self.missing.append(f"config.json has no {' or '.join(keys)} that is {shapes.WHOLE}.")
        return 1

    def optional(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if is_whole(value, key) else None

    def without_rule(self, kinds: Iterable[str], *known: str) -> None:
        """Note kinds of layers that are not among the known ones."""
        if odd := sorted(set(kinds) - set(known)):
            self.missing.append(
                f"config.json has layers of type {', '.join(odd)}, whose cache the memory model cannot size."
            )

    def of_length(self, kinds: Sequence[str], layers: int) -> None:
        """Note a list of layers that is longer or shorter than their number."""
        if len(kinds) != layers:
            self.missing.append(f"config.json lists {len(kinds)} layer_types for {layers} layers.")

    def full(self, layers: int) -> int:
        """Return the number of layers of full attention, at least one; note that the memory model needs one."""
        if layers < 1:
            self.missing.append("config.json has no layer of full attention: the memory model needs one.")
        return max(1, layers)

    def state_dtype(self, key: str, default: str) -> Any:
        """Return the dtype of recurrent states; note one whose size is not known."""
        value = self.values.get(key) or default
        if not is_dtype(value):
            self.missing.append(f"config.json has {key} {value!r}, which is not {shapes.ONE_DTYPE}.")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return list(value)
        return None


def is_dtype(value: object) -> bool:
    """Tell whether a value is a dtype whose size is known; config.json may hold anything."""
    return isinstance(value, str) and value in shapes.DTYPE_BYTES


def attention_from_config(config: Config, layers: int) -> shapes.Attention:
    heads = config.integer("num_attention_heads")
    head_dim = config.optional("head_dim") or config.optional("attention_head_dim")
    if head_dim is None:
        head_dim = max(1, config.integer("hidden_size") // heads)
    return shapes.Attention(
        layers=layers,
        heads=heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=head_dim,
    )


def moe_of(config: Config, layers: int) -> shapes.Moe | None:
    """Return the experts; dense layers are those at the start, or those that a step or a list leaves out."""
    if not any(config.has(key) and config.values[key] not in (0, 1) for key in EXPERTS):
        return None
    step = config.optional("decoder_sparse_step") or config.optional("interleave_moe_layer_step") or 1
    dense = config.values.get("mlp_only_layers")
    dense = dense if isinstance(dense, list) else []
    first = config.optional("first_k_dense_replace") or config.optional("num_dense_layers") or 0
    sparse = sum(1 for index in range(first, layers) if index not in dense and (index + 1) % step == 0)
    each = config.values.get("moe_layer_freq")
    if isinstance(each, list) and len(each) == layers and all(item in (0, 1) for item in each):
        sparse = sum(each)  # MiMo-V2: which layers have experts, one by one
    return shapes.Moe(
        layers=max(1, sparse),
        experts=config.integer(*EXPERTS),
        experts_per_token=config.integer(*_TOP_K),
        expert_intermediate_size=config.integer("moe_intermediate_size", "expert_hidden_dim", "intermediate_size"),
    )


def mtp_of(config: Config, *keys: str) -> shapes.Mtp | None:
    for key in keys:
        layers = config.optional(key)
        if layers:
            return shapes.Mtp(layers=layers, attention_layers=layers)
    return None


def gated_delta_net(config: Config, layers: int, state_dtype: str) -> shapes.GatedDeltaNet:
    return shapes.GatedDeltaNet(
        layers=max(1, layers),
        k_heads=config.integer("linear_num_key_heads"),
        v_heads=config.integer("linear_num_value_heads"),
        k_head_dim=config.integer("linear_key_head_dim"),
        v_head_dim=config.integer("linear_value_head_dim"),
        conv_kernel=config.integer("linear_conv_kernel_dim"),
        state_dtype=state_dtype,
    )


def plain_geometry(
    config: Config,
    attention: shapes.Attention,
    windows: tuple[shapes.Window, ...] = (),
    mtp: shapes.Mtp | None = None,
) -> shapes.Geometry:
    layers = config.integer("num_hidden_layers")
    return shapes.Geometry(
        architecture=config.architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings", "model_max_length"),
        attention=attention,
        windows=windows,
        moe=moe_of(config, layers),
        mtp=mtp,
        vocab_size=config.optional("vocab_size"),
        intermediate_size=config.optional("intermediate_size"),
        dtype=config.dtype,
    )
