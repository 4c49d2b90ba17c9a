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
    #: Width of a value, where it is not that of a key.
    value_head_dim: int | None = None
    #: Latent attention (MLA) keeps one vector of this many elements of a token, on every rank; kv_heads is 1 then.
    latent_dim: int | None = None


@dataclass(frozen=True)
class Window:
    """Attention layers that keep the last tokens alone: ``tokens`` of them, or a chunk of as many."""

    layers: int
    tokens: int
    kv_heads: int
    head_dim: int
    value_head_dim: int | None = None
    #: The cache of a chunk is dropped as a whole when the next one begins (Llama 4).
    chunked: bool = False


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
    windows: tuple[Window, ...] = ()
    recurrent: Recurrent | None = None
    moe: Moe | None = None
    mtp: Mtp | None = None
    vocab_size: int | None = None
    dtype: str = "bfloat16"


# --------------------------------------------------------------------------------------
# From a catalogue file
# --------------------------------------------------------------------------------------

WHOLE = "a whole number above zero"
_FLOAT = "a number above zero"
_TEXT = "a text"
_SWITCH = "true or false"
ONE_DTYPE = "one of " + ", ".join(DTYPE_BYTES)

#: key -> (kind of value, required)
_Keys = Mapping[str, tuple[str, bool]]

_ATTENTION_KEYS: _Keys = {
    "layers": (WHOLE, True),
    "heads": (WHOLE, True),
    "kv_heads": (WHOLE, True),
    "head_dim": (WHOLE, True),
    "value_head_dim": (WHOLE, False),
    "latent_dim": (WHOLE, False),
}
_WINDOW_KEYS: _Keys = {
    "layers": (WHOLE, True),
    "tokens": (WHOLE, True),
    "kv_heads": (WHOLE, True),
    "head_dim": (WHOLE, True),
    "value_head_dim": (WHOLE, False),
    "chunked": (_SWITCH, False),
}
_RECURRENT_KEYS: dict[str, _Keys] = {
    MAMBA2: {
        "kind": (_TEXT, True),
        "layers": (WHOLE, True),
        "heads": (WHOLE, True),
        "head_dim": (WHOLE, True),
        "state_size": (WHOLE, True),
        "groups": (WHOLE, True),
        "conv_kernel": (WHOLE, True),
        "state_dtype": (ONE_DTYPE, True),
        "chunk_size": (WHOLE, False),
    },
    GATED_DELTA_NET: {
        "kind": (_TEXT, True),
        "layers": (WHOLE, True),
        "k_heads": (WHOLE, True),
        "v_heads": (WHOLE, True),
        "k_head_dim": (WHOLE, True),
        "v_head_dim": (WHOLE, True),
        "conv_kernel": (WHOLE, True),
        "state_dtype": (ONE_DTYPE, True),
    },
}
_MOE_KEYS: _Keys = {
    "layers": (WHOLE, True),
    "experts": (WHOLE, True),
    "experts_per_token": (WHOLE, True),
    "expert_intermediate_size": (WHOLE, True),
    "latent_size": (WHOLE, False),
}
_MTP_KEYS: _Keys = {
    "layers": (WHOLE, True),
    "attention_layers": (WHOLE, False),
    "weights_gib": (_FLOAT, False),
}
_TOP_KEYS: _Keys = {
    "architecture": (_TEXT, True),
    "layers": (WHOLE, True),
    "hidden_size": (WHOLE, True),
    "vocab_size": (WHOLE, False),
    "dtype": (ONE_DTYPE, False),
    "max_position_embeddings": (WHOLE, True),
}
_SECTIONS = {"attention": True, "recurrent": False, "moe": False, "mtp": False}


def _is_kind(value: object, kind: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and value != ""
    if kind == ONE_DTYPE:
        return isinstance(value, str) and value in DTYPE_BYTES
    if kind == _SWITCH:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == WHOLE:
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


def check_consistency(geometry: Geometry) -> list[str]:
    """Return a sentence for each pair of fields that contradict one another."""
    problems = []
    attention, recurrent, moe = geometry.attention, geometry.recurrent, geometry.moe
    stateful = attention.layers + sum(each.layers for each in geometry.windows)
    stateful += recurrent.layers if recurrent else 0
    if stateful > geometry.layers:
        problems.append(
            f"geometry.layers is {geometry.layers}, but attention and recurrent layers alone are {stateful}."
        )
    if attention.latent_dim and attention.kv_heads != 1:
        problems.append(
            f"geometry.attention.latent_dim is given with {attention.kv_heads} kv_heads: a latent cache has one vector "
            "of a token, so kv_heads must be 1."
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
    problems = _check_keys("geometry", values, _TOP_KEYS, [*_SECTIONS, "windows"])
    windows = values.get("windows") or []
    if not isinstance(windows, Sequence) or isinstance(windows, str):
        problems.append(f"geometry.windows is {windows!r}, but it must be a list of dictionaries.")
        windows = []
    for number, each in enumerate(windows):
        if isinstance(each, Mapping):
            problems.extend(_check_keys(f"geometry.windows[{number}]", each, _WINDOW_KEYS))
        else:
            problems.append(f"geometry.windows[{number}] is {each!r}, but it must be a dictionary.")
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
        windows=tuple(Window(**each) for each in windows),
        recurrent=recurrent,
        moe=Moe(**values["moe"]) if values.get("moe") else None,
        mtp=mtp,
        vocab_size=values.get("vocab_size"),
        dtype=values.get("dtype", "bfloat16"),
    )
    problems = check_consistency(geometry)
    if problems:
        raise GeometryError(problems)
    return geometry
