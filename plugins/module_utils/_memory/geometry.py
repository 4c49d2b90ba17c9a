# SPDX-License-Identifier: Apache-2.0
"""The shape of a model, as far as its memory depends on it.

A geometry comes either from a catalogue file (``geometry_from_dict``) or from the
``config.json`` of a Hugging Face repository (``geometry_from_hf_config``).  Everything here
is pure: dictionaries in, records or sentences out.  ``docs/memory.md`` lists the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import nearest

#: Bytes of one element, for the dtypes in which vLLM keeps activations and recurrent states.
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

MAMBA2 = "mamba2"
GATED_DELTA_NET = "gated_delta_net"


class GeometryError(ValueError):
    """A geometry cannot be read; ``problems`` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = list(problems)


class UnknownGeometryError(Exception):
    """A ``config.json`` does not say enough; ``missing`` holds one sentence for each gap.

    Not an error of the user's: the honest answer is that nothing is known of this model.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(" ".join(missing))
        self.missing = list(missing)


@dataclass(frozen=True)
class Attention:
    """The layers that keep keys and values of every token."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Mamba2:
    """State-space layers: one convolution state and one temporal state a sequence."""

    layers: int
    heads: int
    head_dim: int
    state_size: int
    groups: int
    conv_kernel: int
    state_dtype: str
    chunk_size: int | None = None

    kind = MAMBA2


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear-attention layers of Qwen3-Next and Qwen3.5."""

    layers: int
    k_heads: int
    v_heads: int
    k_head_dim: int
    v_head_dim: int
    conv_kernel: int
    state_dtype: str

    kind = GATED_DELTA_NET


Recurrent: TypeAlias = "Mamba2 | GatedDeltaNet"


@dataclass(frozen=True)
class Moe:
    """Routed experts; ``latent_size`` is the width at which they work, when not the model's."""

    layers: int
    experts: int
    experts_per_token: int
    expert_intermediate_size: int
    latent_size: int | None = None


@dataclass(frozen=True)
class Mtp:
    """The multi-token prediction head that ships with the checkpoint."""

    layers: int
    attention_layers: int
    weights_gib: float | None = None


@dataclass(frozen=True)
class Geometry:
    """One model's shape; see docs/memory.md for the meaning and unit of every field."""

    architecture: str
    layers: int
    hidden_size: int
    max_position_embeddings: int
    attention: Attention
    recurrent: Recurrent | None = None
    moe: Moe | None = None
    mtp: Mtp | None = None
    vocab_size: int | None = None
    dtype: str = "bfloat16"


# --------------------------------------------------------------------------------------
# From a catalogue file
# --------------------------------------------------------------------------------------

_INT = "a whole number above zero"
_FLOAT = "a number above zero"
_TEXT = "a text"
_DTYPE = "one of " + ", ".join(DTYPE_BYTES)

#: key -> (kind of value, required)
_Keys = Mapping[str, tuple[str, bool]]

_ATTENTION_KEYS: _Keys = {
    "layers": (_INT, True),
    "heads": (_INT, True),
    "kv_heads": (_INT, True),
    "head_dim": (_INT, True),
}
_RECURRENT_KEYS: dict[str, _Keys] = {
    MAMBA2: {
        "kind": (_TEXT, True),
        "layers": (_INT, True),
        "heads": (_INT, True),
        "head_dim": (_INT, True),
        "state_size": (_INT, True),
        "groups": (_INT, True),
        "conv_kernel": (_INT, True),
        "state_dtype": (_DTYPE, True),
        "chunk_size": (_INT, False),
    },
    GATED_DELTA_NET: {
        "kind": (_TEXT, True),
        "layers": (_INT, True),
        "k_heads": (_INT, True),
        "v_heads": (_INT, True),
        "k_head_dim": (_INT, True),
        "v_head_dim": (_INT, True),
        "conv_kernel": (_INT, True),
        "state_dtype": (_DTYPE, True),
    },
}
_MOE_KEYS: _Keys = {
    "layers": (_INT, True),
    "experts": (_INT, True),
    "experts_per_token": (_INT, True),
    "expert_intermediate_size": (_INT, True),
    "latent_size": (_INT, False),
}
_MTP_KEYS: _Keys = {
    "layers": (_INT, True),
    "attention_layers": (_INT, False),
    "weights_gib": (_FLOAT, False),
}
_TOP_KEYS: _Keys = {
    "architecture": (_TEXT, True),
    "layers": (_INT, True),
    "hidden_size": (_INT, True),
    "vocab_size": (_INT, False),
    "dtype": (_DTYPE, False),
    "max_position_embeddings": (_INT, True),
}
_SECTIONS = {"attention": True, "recurrent": False, "moe": False, "mtp": False}


def _is_kind(value: object, kind: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and value != ""
    if kind == _DTYPE:
        return isinstance(value, str) and value in DTYPE_BYTES
    if isinstance(value, bool):
        return False
    if kind == _INT:
        return isinstance(value, int) and value > 0
    return isinstance(value, int | float) and value > 0


def _check_keys(path: str, values: Mapping[str, Any], keys: _Keys, also_known: Iterable[str] = ()) -> list[str]:
    """Return a sentence for each unknown, missing or wrong key of one section."""
    problems = []
    known = [*keys, *also_known]
    for key in values:
        if key not in known:
            guess = nearest(str(key), known)
            hint = f"did you mean {guess}?" if guess else "known are " + ", ".join(sorted(known)) + "."
            problems.append(f"{path}.{key} is not a key that the memory model knows: {hint}")
    for key, (kind, required) in keys.items():
        if key not in values:
            if required:
                problems.append(f"{path}.{key} is missing: it must be {kind}.")
        elif not _is_kind(values[key], kind):
            problems.append(f"{path}.{key} is {values[key]!r}, but it must be {kind}.")
    return problems


def _check_section(name: str, values: Mapping[str, Any]) -> list[str]:
    path = f"geometry.{name}"
    if name == "recurrent":
        kind = values.get("kind")
        if kind not in _RECURRENT_KEYS:
            return [f"{path}.kind is {kind!r}, but it must be one of {', '.join(_RECURRENT_KEYS)}."]
        return _check_keys(path, values, _RECURRENT_KEYS[kind])
    return _check_keys(path, values, {"attention": _ATTENTION_KEYS, "moe": _MOE_KEYS, "mtp": _MTP_KEYS}[name])


def _check_consistency(geometry: Geometry) -> list[str]:
    """Return a sentence for each pair of fields that contradict one another."""
    problems = []
    attention, recurrent, moe = geometry.attention, geometry.recurrent, geometry.moe
    stateful = attention.layers + (recurrent.layers if recurrent else 0)
    if stateful > geometry.layers:
        problems.append(
            f"geometry.layers is {geometry.layers}, but attention and recurrent layers alone are {stateful}."
        )
    if attention.heads % attention.kv_heads:
        problems.append(
            f"geometry.attention.heads is {attention.heads}, which is not a multiple of its "
            f"{attention.kv_heads} kv_heads."
        )
    if moe and moe.layers > geometry.layers:
        problems.append(f"geometry.moe.layers is {moe.layers}, but the model has {geometry.layers} layers.")
    if moe and moe.experts_per_token > moe.experts:
        problems.append(
            f"geometry.moe.experts_per_token is {moe.experts_per_token}, but there are only {moe.experts} experts."
        )
    return problems


def geometry_from_dict(values: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a catalogue file describes.

    :param values: the dictionary documented in docs/memory.md
    :raises GeometryError: with every problem at once, one sentence each
    """
    problems = _check_keys("geometry", values, _TOP_KEYS, _SECTIONS)
    for name, required in _SECTIONS.items():
        section = values.get(name)
        if section is None:
            if required:
                problems.append(f"geometry.{name} is missing: it must be a dictionary.")
        elif not isinstance(section, Mapping):
            problems.append(f"geometry.{name} is {section!r}, but it must be a dictionary.")
        else:
            problems.extend(_check_section(name, section))
    if problems:
        raise GeometryError(problems)

    recurrent: Recurrent | None = None
    if values.get("recurrent"):
        fields = {key: value for key, value in values["recurrent"].items() if key != "kind"}
        recurrent = (Mamba2 if values["recurrent"]["kind"] == MAMBA2 else GatedDeltaNet)(**fields)
    mtp = None
    if values.get("mtp"):
        mtp = Mtp(**{"attention_layers": values["mtp"]["layers"], **values["mtp"]})
    geometry = Geometry(
        architecture=values["architecture"],
        layers=values["layers"],
        hidden_size=values["hidden_size"],
        max_position_embeddings=values["max_position_embeddings"],
        attention=Attention(**values["attention"]),
        recurrent=recurrent,
        moe=Moe(**values["moe"]) if values.get("moe") else None,
        mtp=mtp,
        vocab_size=values.get("vocab_size"),
        dtype=values.get("dtype", "bfloat16"),
    )
    problems = _check_consistency(geometry)
    if problems:
        raise GeometryError(problems)
    return geometry


# --------------------------------------------------------------------------------------
# From the config.json of a Hugging Face repository
# --------------------------------------------------------------------------------------

_LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_QWEN3_MOE = ("Qwen3MoeForCausalLM",)
_QWEN_GDN = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
_NEMOTRON_H = ("NemotronHForCausalLM",)

KNOWN_ARCHITECTURES: tuple[str, ...] = (*_LLAMA_LIKE, *_QWEN3_MOE, *_QWEN_GDN, *_NEMOTRON_H)

#: How the block letters and names of Nemotron-H read; both the remote-code spelling
#: (``hybrid_override_pattern``) and that of transformers 5 (``layers_block_type``).
_BLOCK_KINDS = {
    "M": "mamba",
    "*": "attention",
    "E": "moe",
    "-": "mlp",
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "moe": "moe",
    "mlp": "mlp",
}


class _Config:
    """A config.json that notes what was asked of it and was not there."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.missing: list[str] = []

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, *keys: str) -> int:
        """Return the first of the keys that is there as a whole number; note their absence otherwise."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        self.missing.append(f"config.json has no {' or '.join(keys)} that is {_INT}.")
        return 1

    def optional(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def texts(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return list(value)
        return None


def _attention_from_config(config: _Config, layers: int) -> Attention:
    heads = config.integer("num_attention_heads")
    head_dim = config.optional("head_dim") or config.optional("attention_head_dim")
    if head_dim is None:
        head_dim = max(1, config.integer("hidden_size") // heads)
    return Attention(
        layers=layers,
        heads=heads,
        kv_heads=config.optional("num_key_value_heads") or heads,
        head_dim=head_dim,
    )


def _refuse_windows(config: _Config) -> None:
    """Note layers whose cache does not grow with the sequence: this model has no rule for them."""
    kinds = config.texts("layer_types") or []
    odd = sorted({kind for kind in kinds if kind not in ("full_attention", "linear_attention")})
    if odd:
        config.missing.append(
            f"config.json has layers of type {', '.join(odd)}, whose cache the memory model cannot size: "
            "it knows full and linear attention."
        )
    elif config.has("sliding_window") and config.values.get("use_sliding_window", True) is not False:
        config.missing.append(
            f"config.json has sliding_window {config.values['sliding_window']}, whose cache the memory model "
            "cannot size: it knows full and linear attention."
        )


def _sparse_moe(config: _Config, layers: int) -> Moe:
    """Return the experts of a Qwen model, whose dense layers are those that a step or a list leaves out."""
    step = config.optional("decoder_sparse_step") or 1
    dense = config.values.get("mlp_only_layers") or []
    sparse = sum(1 for index in range(layers) if index not in dense and (index + 1) % step == 0)
    return Moe(
        layers=max(1, sparse),
        experts=config.integer("num_experts", "n_routed_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_intermediate_size=config.integer("moe_intermediate_size"),
    )


def _mtp(config: _Config, *keys: str) -> Mtp | None:
    for key in keys:
        layers = config.optional(key)
        if layers:
            return Mtp(layers=layers, attention_layers=layers)
    return None


def _from_llama(config: _Config, architecture: str, dtype: str) -> Geometry:
    _refuse_windows(config)
    layers = config.integer("num_hidden_layers")
    return Geometry(
        architecture=architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=_attention_from_config(config, layers),
        moe=_sparse_moe(config, layers) if architecture in _QWEN3_MOE else None,
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
    )


def _from_qwen_gdn(config: _Config, architecture: str, dtype: str) -> Geometry:
    _refuse_windows(config)
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("layer_types")
    if kinds is None:
        every = config.optional("full_attention_interval") or 4  # the default of both config classes
        kinds = ["linear_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    # Without mamba_ssm_dtype vLLM keeps the state in the model's own dtype.
    state_dtype = config.values.get("mamba_ssm_dtype") or dtype
    if state_dtype not in DTYPE_BYTES:
        config.missing.append(f"config.json has mamba_ssm_dtype {state_dtype!r}, which is not {_DTYPE}.")
    return Geometry(
        architecture=architecture,
        layers=layers,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=_attention_from_config(config, max(1, kinds.count("full_attention"))),
        recurrent=GatedDeltaNet(
            layers=max(1, kinds.count("linear_attention")),
            k_heads=config.integer("linear_num_key_heads"),
            v_heads=config.integer("linear_num_value_heads"),
            k_head_dim=config.integer("linear_key_head_dim"),
            v_head_dim=config.integer("linear_value_head_dim"),
            conv_kernel=config.integer("linear_conv_kernel_dim"),
            state_dtype=state_dtype,
        ),
        moe=_sparse_moe(config, layers) if config.has("num_experts") else None,
        mtp=_mtp(config, "mtp_num_hidden_layers", "num_nextn_predict_layers"),
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
    )


def _blocks(config: _Config, list_key: str, pattern_key: str) -> list[str]:
    """Return the kinds of Nemotron-H's blocks, from a list of names or a string of letters."""
    named = config.texts(list_key)
    letters = config.values.get(pattern_key)
    spelled = named or (list(letters) if isinstance(letters, str) else [])
    odd = sorted({item for item in spelled if item not in _BLOCK_KINDS})
    if odd:
        config.missing.append(f"config.json has blocks {', '.join(odd)}, which the memory model does not know.")
    return [_BLOCK_KINDS.get(item, "mlp") for item in spelled]


def _from_nemotron_h(config: _Config, architecture: str, dtype: str) -> Geometry:
    blocks = _blocks(config, "layers_block_type", "hybrid_override_pattern")
    if not blocks:
        config.missing.append("config.json has neither layers_block_type nor hybrid_override_pattern.")
    counts = {kind: blocks.count(kind) for kind in ("mamba", "attention", "moe")}
    if blocks and not counts["attention"]:
        config.missing.append("config.json has no attention block: the memory model needs one to size its pages.")
    state_dtype = config.values.get("mamba_ssm_cache_dtype") or "float32"  # vLLM's own default for this class
    if state_dtype not in DTYPE_BYTES:
        config.missing.append(f"config.json has mamba_ssm_cache_dtype {state_dtype!r}, which is not {_DTYPE}.")
    mtp = None
    heads = config.optional("num_nextn_predict_layers")
    if heads:
        pattern = _blocks(config, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or ["attention", "moe"]
        mtp = Mtp(layers=heads, attention_layers=heads * pattern.count("attention"))
    return Geometry(
        architecture=architecture,
        layers=len(blocks) or 1,
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        attention=_attention_from_config(config, max(1, counts["attention"])),
        recurrent=Mamba2(
            layers=counts["mamba"],
            heads=config.integer("mamba_num_heads"),
            head_dim=config.integer("mamba_head_dim"),
            state_size=config.integer("ssm_state_size"),
            groups=config.integer("n_groups", "mamba_n_groups"),
            conv_kernel=config.integer("conv_kernel", "mamba_d_conv"),
            state_dtype=state_dtype,
            # vLLM falls back to 2048 when a config names no chunk.
            chunk_size=config.optional("mamba_chunk_size") or config.optional("chunk_size") or 2048,
        )
        if counts["mamba"]
        else None,
        moe=Moe(
            layers=counts["moe"],
            experts=config.integer("n_routed_experts", "num_experts"),
            experts_per_token=config.integer("num_experts_per_tok"),
            expert_intermediate_size=config.integer("moe_intermediate_size"),
            latent_size=config.optional("moe_latent_size"),
        )
        if counts["moe"]
        else None,
        mtp=mtp,
        vocab_size=config.optional("vocab_size"),
        dtype=dtype,
    )


def geometry_from_hf_config(values: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a Hugging Face ``config.json`` describes.

    Multimodal configurations are read through their ``text_config``.

    :param values: the parsed file
    :raises UnknownGeometryError: for an architecture without rules here, or with what the file lacks
    """
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise UnknownGeometryError(["config.json names no architecture."])
    architecture = architectures[0]
    text = values.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else values
    if architecture not in KNOWN_ARCHITECTURES:
        known = ", ".join(KNOWN_ARCHITECTURES)
        sentence = f"The memory model has no rules for the architecture {architecture}: it knows {known}."
        raise UnknownGeometryError([f"{sentence} Describe the model in `geometry` instead."])
    config = _Config(inner)
    dtype = inner.get("dtype") or inner.get("torch_dtype") or values.get("dtype") or values.get("torch_dtype")
    dtype = dtype or "bfloat16"
    if dtype not in DTYPE_BYTES:
        config.missing.append(f"config.json has dtype {dtype!r}, which is not {_DTYPE}.")
    reader = _from_llama
    if architecture in _QWEN_GDN:
        reader = _from_qwen_gdn
    elif architecture in _NEMOTRON_H:
        reader = _from_nemotron_h
    geometry = reader(config, architecture, str(dtype))
    missing = list(dict.fromkeys(config.missing)) or _check_consistency(geometry)
    if missing:
        raise UnknownGeometryError(missing)
    return geometry
