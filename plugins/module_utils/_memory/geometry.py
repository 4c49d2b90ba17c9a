# SPDX-License-Identifier: Apache-2.0
"""The shape of a model, as far as its memory depends on it.

A geometry comes from a catalogue file (``geometry_from_dict``) or from the ``config.json`` of a repository
(``geometry_from_hf_config``).  Pure: dictionaries in, records or sentences out.  ``docs/memory.md`` lists the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeAlias

from ansible_collections.gb10.cluster.plugins.module_utils._memory.parts import missing_parts
from ansible_collections.gb10.cluster.plugins.module_utils._memory.whole import MOST, is_whole, most
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import nearest

#: Bytes of one element, for the dtypes in which vLLM keeps activations and recurrent states.
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

MAMBA1 = "mamba1"
MAMBA2 = "mamba2"
GATED_DELTA_NET = "gated_delta_net"
KDA = "kda"
SHORT_CONV = "short_conv"

#: Kinds of indexer: DeepSeek-V3.2's, GLM-5.3's pooled one, MiniMax-M3's, Qwen3.8-Flash-Next's compressed one.
DSA, KPOOL, MSA, QSA = "dsa", "kpool", "msa", "qsa"
INDEXERS = (DSA, KPOOL, MSA, QSA)
#: Those whose keys lie in the group of the layers, whatever the size of their pages.
GROUPED_INDEXERS = (DSA, MSA)


class ProblemsError(ValueError):
    """What is asked is wrong; ``problems`` holds one sentence for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = list(problems)


class GeometryError(ProblemsError):
    """A geometry cannot be read."""


class UnknownGeometryError(Exception):
    """A ``config.json``, or a description, does not say enough; ``missing`` holds one sentence for each gap.

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
    #: Tokens of a block where it is not the attention kernel's: the state of a convolution, in the model's own dtype.
    block_tokens: int | None = None


@dataclass(frozen=True)
class Mamba1:
    """State-space layers of the first generation (Jamba): states of ``width`` channels, and no heads."""

    layers: int
    width: int
    state_size: int
    conv_kernel: int
    state_dtype: str

    kind = MAMBA1


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


@dataclass(frozen=True)
class Kda:
    """Kimi Delta Attention: as many heads of keys as of values, of one width."""

    layers: int
    heads: int
    head_dim: int
    conv_kernel: int
    state_dtype: str
    #: The gate has a lower bound, as FlashKDA wants it.
    bounded_gate: bool = False

    kind = KDA


@dataclass(frozen=True)
class GatedConv:
    """Layers whose only state is that of a short convolution, split over the ranks (LFM2)."""

    layers: int
    width: int
    conv_kernel: int

    kind = SHORT_CONV


Recurrent: TypeAlias = "Mamba1 | Mamba2 | GatedDeltaNet | Kda | GatedConv"


@dataclass(frozen=True)
class Compressed:
    """DeepSeek-V4: every layer has a window, most also keep one state for 4 or for 128 tokens.

    The layers of ratio 4 have an indexer besides. In DeepSeek-V4.1 a few layers keep the states, with their indexer's
    keys, for all others: one state for two tokens, or for one.
    """

    layers: int
    window_tokens: int
    head_dim: int
    index_head_dim: int
    indexed_layers: int = 0
    pooled_layers: int = 0
    pair_sources: int = 0
    token_sources: int = 0
    #: States of a page, where an image's kernels want so many (DeepSeek-V4.1's form alone).
    page_states: int | None = None

    @property
    def has_sources(self) -> bool:
        """Whether it is DeepSeek-V4.1's form."""
        return bool(self.pair_sources or self.token_sources)


@dataclass(frozen=True)
class Indexer:
    """Keys by which sparse attention chooses what to read, beside the cache of each layer of full attention."""

    kind: str
    head_dim: int
    #: One key for so many tokens.
    tokens_per_state: int = 1
    #: Qwen's ring also keeps the positions of an image model.
    rope_positions: bool = False
    #: Layers that have one; those of full attention unless given.
    layers: int | None = None


@dataclass(frozen=True)
class ShortConv:
    """Short convolutions beside the layers (n-gram embeddings); every rank keeps their whole state."""

    layers: int
    width: int
    columns: int


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
    compressed: Compressed | None = None
    indexer: Indexer | None = None
    short_conv: ShortConv | None = None
    #: Inner width of the dense layers' MLP.
    intermediate_size: int | None = None
    #: What vLLM makes of ``--kv-cache-dtype auto``, where the checkpoint says so.
    kv_cache_dtype: str = "auto"
    vocab_size: int | None = None
    dtype: str = "bfloat16"


WHOLE = "a whole number above zero"
_FLOAT = "a number above zero"
_TEXT = "a text"
_SWITCH = "true or false"
ONE_DTYPE = "one of " + ", ".join(DTYPE_BYTES)
ONE_INDEXER = "one of " + ", ".join(INDEXERS)

#: key -> (kind of value, required)
_Keys = Mapping[str, tuple[str, bool]]
_BY_NAME = {"state_dtype": ONE_DTYPE, "dtype": ONE_DTYPE}
_BY_TYPE = {"int": WHOLE, "float": _FLOAT, "str": _TEXT, "bool": _SWITCH}


def _keys_of(record: type, **instead: tuple[str, bool]) -> _Keys:
    """Return the keys of a section: the fields of its record that are single values.

    :param instead: what a key is where the record does not say it
    """
    keys: dict[str, tuple[str, bool]] = {}
    for each in fields(record):
        kind = _BY_NAME.get(each.name) or _BY_TYPE.get(str(each.type).split(" ", 1)[0])
        if kind is not None:
            keys[each.name] = kind, each.default is MISSING
    return keys | instead


_RECURRENT: Mapping[str, type[Recurrent]] = {
    each.kind: each for each in (Mamba1, Mamba2, GatedDeltaNet, Kda, GatedConv)
}
_RECURRENT_KEYS = {kind: {"kind": (_TEXT, True), **_keys_of(each)} for kind, each in _RECURRENT.items()}
#: Sections that are one record each; the first one is required.
_RECORDS: Mapping[str, type[Any]] = {
    "attention": Attention,
    "moe": Moe,
    "mtp": Mtp,
    "compressed": Compressed,
    "indexer": Indexer,
    "short_conv": ShortConv,
}
_SECTION_KEYS: Mapping[str, _Keys] = {
    **{name: _keys_of(record) for name, record in _RECORDS.items()},
    "mtp": _keys_of(Mtp, attention_layers=(WHOLE, False)),
    "indexer": _keys_of(Indexer, kind=(ONE_INDEXER, True)),
}
_SECTIONS = ("attention", "recurrent", "moe", "mtp", "compressed", "indexer", "short_conv")
_PLAIN_KEYS = _keys_of(Geometry)
_WINDOW_KEYS = _keys_of(Window)


def _is_kind(value: object, kind: str, key: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and value != ""
    if kind == ONE_DTYPE:
        return isinstance(value, str) and value in DTYPE_BYTES
    if kind == ONE_INDEXER:
        return isinstance(value, str) and value in INDEXERS
    if kind == _SWITCH:
        return isinstance(value, bool)
    if kind == WHOLE:
        return is_whole(value, key)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST


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
        elif isinstance(values[key], int) and values[key] > most(key):
            problems.append(f"{path}.{key} is larger than any model's: {most(key)} at most.")
        elif not _is_kind(values[key], kind, key):
            problems.append(f"{path}.{key} is {values[key]!r}, but it must be {kind}.")
    return problems


def _check_section(name: str, values: Mapping[str, Any]) -> list[str]:
    path = f"geometry.{name}"
    if name == "recurrent":
        kind = values.get("kind")
        if kind not in _RECURRENT_KEYS:
            return [f"{path}.kind is {kind!r}, but it must be one of {', '.join(_RECURRENT_KEYS)}."]
        return _check_keys(path, values, _RECURRENT_KEYS[kind])
    return _check_keys(path, values, _SECTION_KEYS[name])


def _check_compressed(compressed: Compressed) -> list[str]:
    keeping = compressed.indexed_layers + compressed.pooled_layers
    if compressed.has_sources and keeping:
        return [
            "geometry.compressed has indexed_layers or pooled_layers beside pair_sources or token_sources: two forms."
        ]
    if not compressed.has_sources and not (compressed.indexed_layers and compressed.pooled_layers):
        return [
            "geometry.compressed needs indexed_layers and pooled_layers (DeepSeek-V4), or pair_sources and "
            "token_sources (DeepSeek-V4.1)."
        ]
    if compressed.page_states and not compressed.has_sources:
        return ["geometry.compressed.page_states is for DeepSeek-V4.1 alone, with pair_sources and token_sources."]
    keeping += compressed.pair_sources + compressed.token_sources
    if keeping > compressed.layers:
        return [f"geometry.compressed.layers is {compressed.layers}, but {keeping} layers keep states."]
    return []


def check_consistency(geometry: Geometry) -> list[str]:
    """Return a sentence for each pair of fields that contradict one another."""
    problems = []
    attention, recurrent, moe = geometry.attention, geometry.recurrent, geometry.moe
    # Convolutions stand beside the attention of their layers.
    stateful = attention.layers + sum(each.layers for each in geometry.windows if not each.block_tokens)
    stateful += recurrent.layers if recurrent else 0
    if stateful > geometry.layers:
        problems.append(
            f"geometry.layers is {geometry.layers}, but attention and recurrent layers alone are {stateful}."
        )
    compressed, indexer = geometry.compressed, geometry.indexer
    if compressed:
        problems += _check_compressed(compressed)
    if indexer and (indexer.layers or 0) > attention.layers:
        problems.append(
            f"geometry.indexer.layers is {indexer.layers}, but only {attention.layers} layers have full attention."
        )
    if indexer and indexer.kind in (DSA, KPOOL) and not attention.latent_dim:
        problems.append(
            f"geometry.indexer.kind {indexer.kind} is for latent attention, but attention.latent_dim is missing."
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
    :raises UnknownGeometryError: a part that the model's class always has is not described
    """
    problems = _check_keys("geometry", values, _PLAIN_KEYS, [*_SECTIONS, "windows"])
    windows = values.get("windows") or []
    if not isinstance(windows, Sequence) or isinstance(windows, str):
        problems.append(f"geometry.windows is {windows!r}, but it must be a list of dictionaries.")
        windows = []
    for number, each in enumerate(windows):
        if isinstance(each, Mapping):
            problems.extend(_check_keys(f"geometry.windows[{number}]", each, _WINDOW_KEYS))
        else:
            problems.append(f"geometry.windows[{number}] is {each!r}, but it must be a dictionary.")
    for name in _SECTIONS:
        section = values.get(name)
        if section is None:
            if name == "attention":
                problems.append(f"geometry.{name} is missing: it must be a dictionary.")
        elif not isinstance(section, Mapping):
            problems.append(f"geometry.{name} is {section!r}, but it must be a dictionary.")
        else:
            problems.extend(_check_section(name, section))
    if problems:
        raise GeometryError(problems)

    found = {name: record(**values[name]) for name, record in _RECORDS.items() if values.get(name) and name != "mtp"}
    if values.get("recurrent"):
        given = {key: value for key, value in values["recurrent"].items() if key != "kind"}
        found["recurrent"] = _RECURRENT[values["recurrent"]["kind"]](**given)
    if values.get("mtp"):
        found["mtp"] = Mtp(**{"attention_layers": values["mtp"]["layers"], **values["mtp"]})
    plain = {key: values[key] for key in _PLAIN_KEYS if key in values}
    geometry = Geometry(**plain, **found, windows=tuple(Window(**each) for each in windows))
    if problems := check_consistency(geometry):
        raise GeometryError(problems)
    if missing := missing_parts(values):
        raise UnknownGeometryError(missing)
    return geometry
