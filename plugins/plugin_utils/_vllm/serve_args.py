# SPDX-License-Identifier: Apache-2.0
"""From a model's ``serve`` dictionary to the exact argument list of ``vllm serve``, or to all
that is wrong with it, for one version of vLLM.

The tables of options (``flags/<version>.json``) are read from vLLM itself by
``scripts/vllm_flags.py``; the rules below are those that vLLM applies later, after the parser,
and each names the file that it was read in.  Everything here is pure.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.mods import ModOption

Table = Mapping[str, Any]

_HUMAN = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgGtT])$")
_FACTORS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_INTEGER = re.compile(r"^[+-]?\d+$")
_CLASS_PATH = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


class ServeError(ValueError):
    """Everything that is wrong with a model's options, one sentence each in ``errors``."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


@dataclass(frozen=True)
class ServeArgs:
    """What ``vllm serve <model>`` is started with.

    :ivar args: the arguments after the model, in the dictionary's order.
    :ivar env: the environment, values as text.
    :ivar notes: what is accepted but worth a word.
    :ivar table: version of the table that was used.
    """

    args: list[str]
    env: dict[str, str]
    notes: list[str]
    table: str


@dataclass(frozen=True)
class _Gone:
    """Something that vLLM once had: what to do instead, and since which release it is gone."""

    instead: str
    since: tuple[int, int, int] | None = None


# Gone from every table that ships; `since` only where it was read in the packages themselves.
_GONE_OPTIONS: dict[str, _Gone] = {
    "swap-space": _Gone("vLLM no longer swaps to the host; leave it out", (0, 18, 1)),
    "disable-log-requests": _Gone("write enable-log-requests: false"),
    "enable-reasoning": _Gone("reasoning-parser alone turns it on"),
    "guided-decoding-backend": _Gone("use structured-outputs-config: {backend: ...}"),
    "max-seq-len-to-capture": _Gone("use max-cudagraph-capture-size"),
    "num-lookahead-slots": _Gone("speculative-config decides it"),
    "num-speculative-tokens": _Gone("use speculative-config: {num_speculative_tokens: ...}"),
    "rope-scaling": _Gone("use hf-overrides: {rope_parameters: ...}"),
    "speculative-model": _Gone("use speculative-config: {model: ...}"),
    "task": _Gone("use runner and convert"),
    "use-v2-block-manager": _Gone("it is the only one; leave it out"),
    "worker-use-ray": _Gone("use distributed-executor-backend: ray"),
}
_MOE = "use the option moe-backend instead"
_LINEAR = "use the option linear-backend instead"
_GONE_ENV: dict[str, _Gone] = {
    "VLLM_ATTENTION_BACKEND": _Gone("use the option attention-backend instead"),
    "VLLM_FLASHINFER_MOE_BACKEND": _Gone(_MOE, (0, 24, 0)),
    "VLLM_NVFP4_GEMM_BACKEND": _Gone(_LINEAR, (0, 24, 0)),
    "VLLM_TEST_FORCE_FP8_MARLIN": _Gone(f"{_LINEAR} (marlin)"),
    "VLLM_USE_FLASHINFER_MOE_FP16": _Gone(_MOE),
    "VLLM_USE_FLASHINFER_MOE_FP4": _Gone(_MOE, (0, 24, 0)),
    "VLLM_USE_FLASHINFER_MOE_FP8": _Gone(_MOE),
    "VLLM_USE_V1": _Gone("the V1 engine is the only one; leave it out"),
}

# Parsers that come with a model's repository instead of with vLLM.
_PLUGIN_PARSERS = {
    "super_v3": "super_v3_reasoning_parser.py in the repository of Nemotron-3-Super",
}
_TRUTHY = ("1", "true", "yes", "on", "y", "t")
# Not a method, but a ModelOpt NVFP4 checkpoint overrides whatever word is given
# (vllm/model_executor/layers/quantization/modelopt.py; tried on 0.22.1 and 0.33.0).
_OVERRIDDEN = {("quantization", "fp4"): "modelopt_fp4"}
_SECRETS = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}


def render_serve(
    serve: Mapping[str, Any],
    version: str,
    tables: Mapping[str, Table],
    env: Mapping[str, Any] | None = None,
    extra_options: Sequence[ModOption] = (),
    extra_env: Sequence[str] = (),
    extra_parsers: Sequence[str] = (),
    providers: Mapping[str, Sequence[str]] | None = None,
) -> ServeArgs:
    """Return the argument list and environment of ``vllm serve``.

    :param serve: long option name without dashes → value. True sets a switch, False turns it
        off, dictionaries and lists become JSON where the option takes JSON, and a list becomes
        several arguments where it takes several.
    :param version: vLLM's version in the image, suffixes included.
    :param tables: the known tables by version.
    :param env: the model's environment; ``VLLM_*`` names and values are checked.
    :param extra_options: options that the model's mods add.
    :param extra_env: variables that the model's mods add.
    :param extra_parsers: reasoning and tool parsers that the model's mods add.
    :param providers: option or variable → names of the mods that would add it.
    :raises ServeError: with everything that is wrong, not only the first thing.
    """
    try:
        parsed = vllm_version.parse(version)
        name, notes = choose_table(tables, parsed)
    except (vllm_version.VersionError, ServeError) as problem:
        raise ServeError(getattr(problem, "errors", [str(problem)])) from None
    check = _Check(
        version=parsed,
        name=name,
        tables=tables,
        options={**tables[name]["options"], **{each.name: _of_mod(each) for each in extra_options}},
        extra={each.name: each for each in extra_options},
        parsers=set(extra_parsers),
        providers=providers or {},
        notes=notes,
    )
    args = check.arguments(serve)
    variables = check.environment(env or {}, set(extra_env))
    check.relations()
    if check.errors:
        raise ServeError(check.errors)
    return ServeArgs(args=args, env=variables, notes=check.notes, table=name)


def choose_table(tables: Mapping[str, Table], version: vllm_version.VllmVersion) -> tuple[str, list[str]]:
    """Return the table for a version, and a note when it is not exactly that version's.

    The same text comes first, then the same release, then the nearest release below.

    :raises ServeError: when every table is newer than the version.
    """
    if version.text in tables:
        return version.text, []
    parsed = {name: vllm_version.parse(name) for name in tables}
    remedy = "scripts/vllm_flags.py makes a table of exactly this build"
    same = sorted(
        (name for name, each in parsed.items() if each.release == version.release),
        key=lambda name: (parsed[name].local != version.local, parsed[name].local),
    )
    if same:
        kind = "a build on the way to it" if not version.is_release else "the same release"
        return same[0], [f"vLLM {version.text} is checked against the table of {same[0]} ({kind}); {remedy}."]
    below = [name for name, each in parsed.items() if each.release < version.release]
    if not below:
        raise ServeError(
            [
                f"No table of options is as old as vLLM {version.text}: there are "
                f"{', '.join(_in_order(tables))}. Take a newer image, or put a table of this "
                "version beside them with scripts/vllm_flags.py."
            ]
        )
    nearest = max(below, key=lambda name: parsed[name].release)
    return nearest, [
        f"vLLM {version.text} has no table; it is checked against {nearest}, the nearest below, "
        f"so newer options are refused; {remedy}."
    ]


def shell_command(model: str, args: Sequence[str]) -> str:
    """Return the effective command, quoted so that it can be pasted into a shell."""
    return shlex.join(["vllm", "serve", model, *args])


def human_int(text: str) -> int | None:
    """Return what vLLM reads ``256k`` or ``8G`` as, or None when it refuses it.

    Lower-case suffixes are powers of 1000, upper-case ones powers of 1024 and take no decimals
    (vllm/utils/argparse_utils.py, human_readable_int).
    """
    if _INTEGER.match(text):
        return int(text)
    match = _HUMAN.match(text)
    if match is None or ("." in match[1] and match[2].isupper()):
        return None
    factor = _FACTORS[match[2]]
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def _in_order(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: vllm_version.parse(name).release)


def _of_mod(option: ModOption) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": "flag" if option.kind == "bool" else option.kind}
    if option.choices:
        entry["choices"] = list(option.choices)
    bounds = {"ge": option.minimum, "gt": option.above}
    entry["bounds"] = {key: value for key, value in bounds.items() if value is not None}
    return entry


def _close(word: str, known: Sequence[str]) -> str | None:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if found:
        return found[0]
    # 'max-seqs' for 'max-num-seqs': the same words with others between.
    words = set(re.split(r"[-_]", word))
    wider = [each for each in known if len(words) > 1 and words <= set(re.split(r"[-_]", each))]
    return min(wider, key=len) if wider else None


def _show(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(values: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more


@dataclass
class _Check:
    """One pass over one model: what was understood so far, and what was wrong."""

    version: vllm_version.VllmVersion
    name: str
    tables: Mapping[str, Table]
    options: dict[str, Mapping[str, Any]]
    extra: Mapping[str, ModOption]
    parsers: set[str]
    providers: Mapping[str, Sequence[str]]
    notes: list[str]
    errors: list[str] = field(default_factory=list)
    # Canonical option → value as vLLM will see it; switches as booleans.
    seen: dict[str, Any] = field(default_factory=dict)
    # Canonical names of all options that were written, right or wrong.
    given: set[str] = field(default_factory=set)

    # --- names --------------------------------------------------------------------------------

    def spellings(self, options: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, bool]]:
        """Return spelling → (canonical name, what a switch stores)."""
        found: dict[str, tuple[str, bool]] = {}
        for name, entry in options.items():
            found[name] = (name, True)
            found.update(dict.fromkeys(entry.get("aliases", ()), (name, True)))
            found.update(dict.fromkeys(entry.get("off", ()), (name, False)))
        return found

    def versions_with(self, has: Callable[[Table], bool]) -> str:
        """Return the versions whose table satisfies ``has``, for the end of a sentence."""
        return ", ".join(_in_order([name for name, table in self.tables.items() if has(table)]))

    def unknown_option(self, key: str, known: Mapping[str, tuple[str, bool]]) -> str:
        """Return the sentence for an option that this vLLM does not have."""
        here = f"serve.{key}: vLLM {self.version.text} has no --{key}."
        bare = key.lstrip("-")
        dashed = bare.replace("_", "-")
        if key[:2] != "--":
            for name, entry in self.options.items():
                if f"-{bare}" in entry.get("short", ()):
                    return f"serve.{key} is short for --{name}; write '{name}', in full."
        if key != dashed and dashed in known:
            return f"serve.{key} must be written '{dashed}': the long name, without dashes before it."
        if "." in key and key.split(".", maxsplit=1)[0] in known:
            head, tail = key.split(".", 1)
            return f"serve.{key} must be a dictionary: '{head}: {{{tail.replace('.', ': {')}: ...'."
        if dashed in self.providers:
            mods = " or ".join(f"'{mod}'" for mod in self.providers[dashed])
            return (
                f"serve.{key}: --{dashed} is in no release of vLLM, the mod {mods} adds it; put "
                "that into model_spec.mods, so that the image is built with it."
            )
        gone = _GONE_OPTIONS.get(dashed)
        if gone is not None:
            since = f" since {'.'.join(map(str, gone.since))}" if gone.since else ""
            return f"serve.{key}: vLLM {self.version.text} has no --{dashed}, it is gone{since}: {gone.instead}."
        longer = sorted({known[each][0] for each in known if each.startswith(dashed)})
        elsewhere = self.versions_with(lambda table: dashed in self.spellings(table["options"]))
        if elsewhere:
            other = f" vLLM {elsewhere} {'has' if ',' not in elsewhere else 'have'} it."
            near = _close(dashed, list(known))
            return here + other + (f" The nearest here is '{near}'." if near else "")
        if dashed and len(longer) == 1:
            return (
                f"serve.{key} is an abbreviation that vLLM's parser would take for "
                f"--{longer[0]}; write '{longer[0]}', in full."
            )
        if dashed and len(longer) > 1:
            return f"serve.{key} is an abbreviation of {_listed(longer, 5)}; write one of them, in full."
        near = _close(dashed, list(known))
        if near:
            return f"{here} Did you mean '{near}'?"
        everywhere = sorted({name for table in self.tables.values() for name in table["options"]})
        near = _close(dashed, everywhere)
        if near:
            elsewhere = self.versions_with(lambda table: near in table["options"])
            return f"{here} The nearest is '{near}', which vLLM {elsewhere} has."
        return f"{here} No version that is known here has it ({_listed(_in_order(self.tables))})."

    # --- options ------------------------------------------------------------------------------

    def arguments(self, serve: Mapping[str, Any]) -> list[str]:
        """Return the arguments of every option that is right; note what is wrong with the others."""
        known = self.spellings(self.options)
        self.given = {known[str(key)][0] for key in serve if str(key) in known}
        args: list[str] = []
        written: dict[str, str] = {}
        for raw, value in serve.items():
            key = str(raw)
            if key == "model":
                self.errors.append("serve.model: the model is model_spec.repo; leave it out here.")
                continue
            if key not in known:
                self.errors.append(self.unknown_option(key, known))
                continue
            name, stores = known[key]
            if key in _SECRETS:
                self.errors.append(
                    f"serve.{key} would show a secret on the command line of every node; "
                    f"give {_SECRETS[key]} as a vaulted variable instead."
                )
                continue
            if name in written:
                self.errors.append(
                    f"serve.{key} and serve.{written[name]} set the same thing (--{name}); keep one of them."
                )
                continue
            written[name] = key
            args.extend(self.one(key, name, stores, value))
        return args

    def one(self, key: str, name: str, stores: bool, value: Any) -> list[str]:
        """Return the arguments of one option, or none after noting what is wrong with it."""
        entry = self.options[name]
        if value is None:
            self.errors.append(f"serve.{key} has no value; give one, or leave the option out altogether.")
            return []
        if entry["kind"] == "flag":
            return self.switch(key, name, stores, value)
        if isinstance(value, bool):
            self.errors.append(
                f"serve.{key} needs a value, found {_show(value)} (unquoted yes, no, on and off "
                "are booleans in YAML; quote them if the word is meant)."
            )
            return []
        if entry["kind"] in ("json", "str_or_json") and "nargs" not in entry:
            return self.structured(key, name, value)
        several = entry.get("nargs")
        if isinstance(value, (list, tuple)):
            if several not in ("+", "append"):
                self.errors.append(f"serve.{key} takes one value, found a list: {_show(value)}.")
                return []
            if not value:
                self.errors.append(f"serve.{key} is an empty list; give a value or leave it out.")
                return []
            items = list(value)
        else:
            items = [value]
        texts = [text for item in items if (text := self.scalar(key, name, item)) is not None]
        if len(texts) != len(items):
            return []
        self.seen[name] = texts if several == "+" else texts[0]
        if several == "append":
            return [part for text in texts for part in (f"--{key}", text)]
        return [f"--{key}", *texts]

    def switch(self, key: str, name: str, stores: bool, value: Any) -> list[str]:
        """Return the argument of a switch."""
        if not isinstance(value, bool):
            hint = ""
            if str(value).lower() in ("true", "false", "yes", "no", "1", "0", "on", "off"):
                hint = " without quotes"
            self.errors.append(f"serve.{key} is a switch: write true or false{hint}, found {_show(value)}.")
            return []
        if not stores and not value:
            self.errors.append(f"serve.{key}: false denies a denial; write '{name}: true'.")
            return []
        self.seen[name] = stores and value
        if value:
            return [f"--{key}"]
        off = self.options[name].get("off")
        # A switch without an opposite is off when it is absent.
        return [f"--{off[0]}"] if off else []

    def scalar(self, key: str, name: str, value: Any) -> str | None:
        """Return one value as text, or None after noting what is wrong with it."""
        entry = self.options[name]
        if isinstance(value, (dict, list, tuple)) or value is None:
            self.errors.append(f"serve.{key} takes plain values, found {_show(value)}.")
            return None
        text = str(value).strip()
        if not text:
            self.errors.append(f"serve.{key} is empty; give a value or leave the option out.")
            return None
        number = self.number(key, entry["kind"], value, text)
        if entry["kind"] in ("int", "float", "human_int", "human_int_or_auto"):
            if number is None or not self.bounded(key, name, number):
                return None
            return text
        if text.startswith("-"):
            self.errors.append(f"serve.{key} is {_show(text)}: vLLM's parser would take it for an option.")
            return None
        return text if self.chosen(key, name, text) else None

    def number(self, key: str, kind: str, value: Any, text: str) -> float | None:
        """Return the number that vLLM reads, or None (after noting it, where one is needed)."""
        if kind == "float":
            try:
                found = float(text)
            except ValueError:
                found = math.nan
            if math.isfinite(found):
                return found
            self.errors.append(f"serve.{key} takes a number, found {_show(value)}.")
        elif kind == "int":
            if _INTEGER.match(text):
                return int(text)
            read = human_int(text)
            hint = f"; write {read} (this option takes no suffix)" if read is not None else ""
            self.errors.append(f"serve.{key} takes a whole number, found {_show(value)}{hint}.")
        elif kind in ("human_int", "human_int_or_auto"):
            if kind == "human_int_or_auto" and text.lower() in ("auto", "-1"):
                return -1
            read = human_int(text)
            if read is not None:
                if text[-1] in "kmgt":
                    upper = human_int(text[:-1] + text[-1].upper())
                    binary = f"; {text[:-1]}{text[-1].upper()} would be {upper}" if upper else ""
                    self.notes.append(f"serve.{key}: vLLM reads {text} as {read}{binary}.")
                return read
            self.errors.append(
                f"serve.{key} takes a whole number or one with a single suffix (256k = 256000, "
                f"8G = {2**33}; capitals are powers of 1024 and take no decimals), "
                f"found {_show(value)}{self.suggestion(text)}."
            )
        return None

    @staticmethod
    def suggestion(text: str) -> str:
        """Return what was probably meant by ``8GiB``, ``8 GB`` or ``1.5G``."""
        match = re.match(r"^(\d+)\s*([kKmMgGtT])(i?)[bB]?$", text)
        if match is None:
            return ""
        units = [match[2].upper()] if match[3] else [match[2].upper(), match[2].lower()]
        right = [f"{match[1]}{unit} ({human_int(match[1] + unit)})" for unit in units]
        return f"; write {' or '.join(right)}"

    def bounded(self, key: str, name: str, number: float) -> bool:
        """Return whether a number is within the option's bounds; note it when it is not."""
        bounds = dict(self.options[name].get("bounds", {}))
        if name == "max-model-len" and number == -1:
            return True  # as long as the memory allows
        if name in ("port", "master-port"):
            bounds = {"ge": 1, "le": 65535}
        elif name == "kv-cache-memory-bytes":
            bounds = {"gt": 0}
        elif name == "max-model-len":
            bounds = {"ge": 1}
        elif re.fullmatch(r"(tensor|pipeline|data)-parallel-size|nnodes|max-num-seqs", name):
            bounds.setdefault("ge", 1)
        texts = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        holds = {
            "gt": lambda bound: number > bound,
            "ge": lambda bound: number >= bound,
            "lt": lambda bound: number < bound,
            "le": lambda bound: number <= bound,
        }
        if all(holds[kind](bound) for kind, bound in bounds.items()):
            return True
        wanted = " and ".join(f"{texts[kind]} {bound}" for kind, bound in bounds.items())
        hint = ""
        if name == "gpu-memory-utilization" and number > 1:
            hint = (
                "; it is a fraction of the memory. For GiB take the mod 'gpu-mem-util-gb' "
                "(gpu-memory-utilization-gb) or kv-cache-memory-bytes"
            )
        self.errors.append(f"serve.{key} must be {wanted}, found {number:g}{hint}.")
        return False

    def chosen(self, key: str, name: str, text: str) -> bool:
        """Return whether a word is among the option's values; note it when it is not."""
        entry = self.options[name]
        values = list(entry.get("choices") or entry.get("known") or ())
        if not values or text in values:
            return True
        if entry.get("fold") and text.lower() in [each.lower() for each in values]:
            return True
        if entry.get("open") and _CLASS_PATH.match(text):
            return True
        plugin = {
            "reasoning-parser": "reasoning-parser-plugin",
            "tool-call-parser": "tool-parser-plugin",
        }.get(name)
        # Whether a plugin's file registers it shows in the image's own check, not here.
        if plugin and (text in self.parsers or plugin in self.given):
            return True
        later = "" if "choices" in entry else " (its parser lets it through and the engine dies later)"
        if (name, text) in _OVERRIDDEN:
            right = _OVERRIDDEN[name, text]
            self.notes.append(
                f"serve.{key}: '{text}' is no {name} of vLLM {self.version.text}; an NVFP4 checkpoint "
                f"of ModelOpt overrides it with '{right}', any other is refused. Write '{right}'."
            )
            return True
        sentence = f"serve.{key}: vLLM {self.version.text} knows no {_show(text)}{later}."
        elsewhere = self.versions_with(
            lambda table: text in self.values_in(table, name) and table is not self.tables[self.name]
        )
        near = difflib.get_close_matches(text.lower(), [each.lower() for each in values], n=1)
        if plugin and text in _PLUGIN_PARSERS:
            sentence += f" It comes as a plugin: set {plugin} to the path of {_PLUGIN_PARSERS[text]}."
        elif near:
            right = next(each for each in values if each.lower() == near[0])
            sentence += f" Did you mean '{right}'?"
        elif plugin:
            sentence += f" Set {plugin} to the file that registers it, or take a known one."
        if elsewhere:
            sentence += f" vLLM {elsewhere} {'have' if ',' in elsewhere else 'has'} it."
        if not near and not (plugin and text in _PLUGIN_PARSERS):
            sentence += f" Known: {_listed(values, 20)}."
        self.errors.append(sentence)
        return False

    @staticmethod
    def values_in(table: Table, name: str) -> Sequence[str]:
        """Return the values that another version's table lists for an option."""
        entry = table["options"].get(name, {})
        found: Sequence[str] = entry.get("choices") or entry.get("known") or ()
        return found

    def structured(self, key: str, name: str, value: Any) -> list[str]:
        """Return the argument of an option that takes JSON."""
        entry = self.options[name]
        if isinstance(value, str):
            if entry["kind"] == "str_or_json" and not value.lstrip().startswith(("{", "[")):
                text = self.scalar(key, name, value)
                if text is not None:
                    self.seen[name] = text
                return [] if text is None else [f"--{key}", text]
            try:
                parsed = json.loads(value)
            except json.JSONDecodeError as problem:
                self.errors.append(
                    f"serve.{key} takes a dictionary or JSON, found {_show(value)} "
                    f"({problem.msg} at column {problem.colno})."
                )
                return []
        else:
            parsed = value
        wants_dict = "keys" in entry or entry["kind"] == "str_or_json"
        if not isinstance(parsed, (dict, list)) or (wants_dict and not isinstance(parsed, dict)):
            kind = "a dictionary" if wants_dict else "a dictionary, a list or JSON"
            self.errors.append(f"serve.{key} takes {kind}, found {_show(value)}.")
            return []
        try:
            text = json.dumps(parsed, separators=(",", ":"), allow_nan=False)
        except TypeError as problem:
            self.errors.append(f"serve.{key} cannot be written as JSON: {problem}.")
            return []
        except ValueError:
            self.errors.append(f"serve.{key} holds an infinite number or no number at all, which JSON lacks.")
            return []
        keyed = isinstance(parsed, dict) and "keys" in entry
        if keyed and not self.keys_known(f"serve.{key}", name, dict(parsed), entry["keys"]):
            return []
        self.seen[name] = parsed
        return [f"--{key}", text]

    def keys_known(self, where: str, name: str, value: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
        """Return whether every key and choice of a structured option is known; note the others."""
        before = len(self.errors)
        for raw, inner in value.items():
            # vLLM takes dashes for underscores in speculative-config, and nowhere else.
            key = str(raw).replace("-", "_") if name == "speculative-config" else str(raw)
            here = f"{where}.{raw}"
            if key not in keys:
                near = difflib.get_close_matches(key, list(keys), n=1)
                hint = f" Did you mean '{near[0]}'?" if near else f" Known: {_listed(sorted(keys), 40)}."
                self.errors.append(f"{here} is no key of --{name} in vLLM {self.version.text}.{hint}")
            elif isinstance(keys[key], Mapping) and isinstance(inner, Mapping):
                self.keys_known(here, name, inner, keys[key])
            elif isinstance(keys[key], list) and isinstance(inner, str) and inner not in keys[key]:
                near = difflib.get_close_matches(inner, keys[key], n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                self.errors.append(
                    f"{here} is {_show(inner)}, which vLLM {self.version.text} does not know."
                    f"{hint} Known: {_listed(keys[key], 40)}."
                )
        return len(self.errors) == before

    # --- environment --------------------------------------------------------------------------

    def environment(self, env: Mapping[str, Any], extra: set[str]) -> dict[str, str]:
        """Return the environment as text; note unknown ``VLLM_*`` names and wrong values."""
        known: Mapping[str, Mapping[str, Any]] = self.tables[self.name]["env"]
        found: dict[str, str] = {}
        for raw, value in env.items():
            name = str(raw)
            if isinstance(value, (bool, dict, list, tuple)) or value is None:
                self.errors.append(
                    f"env.{name} must be text, found {_show(value)}; quote what the variable is to hold, e.g. '1'."
                )
                continue
            found[name] = str(value)
            gone = _GONE_ENV.get(name)
            if name in extra:
                continue
            if gone and gone.since and self.version.release >= gone.since:
                since = ".".join(map(str, gone.since))
                self.errors.append(
                    f"env.{name}: vLLM {self.version.text} ignores it, it is gone since {since}: {gone.instead}."
                )
            elif name not in known:
                self.unknown_variable(name, known, gone)
            else:
                if gone:
                    until = f" and gone in {'.'.join(map(str, gone.since))}" if gone.since else ""
                    self.notes.append(f"env.{name} is deprecated{until}: {gone.instead}.")
                self.variable_value(name, found[name], known[name])
        return found

    def unknown_variable(self, name: str, known: Mapping[str, Mapping[str, Any]], gone: _Gone | None) -> None:
        """Note a variable of vLLM's that this version does not read."""
        near = difflib.get_close_matches(name.upper().replace("-", "_"), list(known), n=1, cutoff=0.8)
        if not name.startswith("VLLM_"):
            if near and (near[0] == name.upper() or name.upper().startswith(("VLLM", "VLM", "VLMM"))):
                self.errors.append(f"env.{name} is no variable of vLLM. Did you mean '{near[0]}'?")
            return
        sentence = f"env.{name}: vLLM {self.version.text} does not know it and would only warn."
        elsewhere = self.versions_with(lambda table: name in table["env"])
        if elsewhere:
            sentence += f" vLLM {elsewhere} {'have' if ',' in elsewhere else 'has'} it."
        if name in self.providers:
            mods = " or ".join(f"'{mod}'" for mod in self.providers[name])
            sentence += f" The mod {mods} adds it; put that into model_spec.mods."
        elif gone:
            sentence += f" It is gone: {gone.instead}."
        elif near:
            sentence += f" Did you mean '{near[0]}'?"
        self.errors.append(sentence)

    def variable_value(self, name: str, text: str, entry: Mapping[str, Any]) -> None:
        """Note a value that vLLM's own getter would refuse when the engine starts."""
        choices = entry.get("choices")
        if choices:
            fold: Callable[[str], str] = str.lower if entry.get("fold") else str
            parts = text.split(",") if entry.get("nargs") else [text]
            for part in (each.strip() for each in parts):
                if fold(part) not in [fold(each) for each in choices]:
                    self.errors.append(
                        f"env.{name} is {_show(part)}; vLLM {self.version.text} takes {_listed(choices)}."
                    )
        elif entry.get("kind") == "bool":
            if text in entry["true"] or text.lower() in ("0", "false", "no", "off", ""):
                return
            read = "reads it as off" if text.lower() in _TRUTHY else "knows only on and off"
            self.errors.append(
                f"env.{name} is {_show(text)}; vLLM {self.version.text} {read}. Write '{entry['true'][0]}' or '0'."
            )
        elif entry.get("kind") == "int" and not _INTEGER.match(text.strip()):
            self.errors.append(f"env.{name} takes a whole number (0 and 1 for off and on), found {_show(text)}.")
        elif entry.get("kind") == "float":
            try:
                float(text)
            except ValueError:
                self.errors.append(f"env.{name} takes a number, found {_show(text)}.")
        elif entry.get("kind") == "json":
            try:
                json.loads(text)
            except json.JSONDecodeError:
                self.errors.append(f"env.{name} takes JSON, found {_show(text)}.")

    # --- what goes together -------------------------------------------------------------------

    def refuse(self, sentence: str) -> None:
        """Note one contradiction."""
        self.errors.append(sentence)

    def has(self, name: str) -> bool:
        """Return whether an option was written with a usable value that is not plain off."""
        return self.seen.get(name, False) is not False

    def count(self, name: str, default: int) -> int:
        """Return a whole number that was written, or its default."""
        read = human_int(str(self.seen.get(name, default)))
        return default if read is None else read

    def relations(self) -> None:
        """Note the options that contradict or miss each other."""
        for name, wanted in _NEEDS:
            if self.has(name) and not self.has(wanted) and wanted not in self.given:
                self.refuse(f"serve.{name} does nothing without {wanted}; set that too.")
        for name, structured, key in _TWICE:
            inner = self.seen.get(structured)
            if self.has(name) and isinstance(inner, Mapping) and inner.get(key) is not None:
                self.refuse(f"serve.{name} and serve.{structured}.{key} set the same thing; keep one of them.")
        for name, option in self.extra.items():
            for other in option.excludes:
                if self.has(name) and self.has(other):
                    self.refuse(f"serve.{name} and serve.{other} are two answers to one question; keep one of them.")
        self.memory()
        self.scheduler()
        self.mamba()
        self.speculation()
        self.nodes()

    def memory(self) -> None:
        """Check the memory budget; what fits is gb10.cluster.memory_budget's to say."""
        if self.has("gpu-memory-utilization") and self.has("kv-cache-memory-bytes"):
            # vllm/v1/worker/gpu_worker.py: the pool is taken as it is, the start-up check stays.
            self.notes.append(
                "serve.kv-cache-memory-bytes decides the pool; gpu-memory-utilization is then "
                "only how much must be free when the engine starts."
            )
        if self.seen.get("load-format") == "fastsafetensors" and not self.has("kv-cache-memory-bytes"):
            share = float(self.seen.get("gpu-memory-utilization", 0))
            if share > 0.76:
                self.notes.append(
                    f"serve.load-format fastsafetensors at gpu-memory-utilization {share:g} froze "
                    "a GB10 host while loading; 0.76 was the highest that did not [S4]."
                )

    def scheduler(self) -> None:
        """vllm/config/scheduler.py, verify_max_model_len."""
        if not self.has("max-num-batched-tokens"):
            return
        batched = self.count("max-num-batched-tokens", 0)
        if self.has("max-num-seqs") and batched < self.count("max-num-seqs", 0):
            self.refuse(
                f"serve.max-num-batched-tokens is {batched}, below max-num-seqs "
                f"({self.seen['max-num-seqs']}): each sequence needs a token in every step."
            )
        length = self.count("max-model-len", -1)
        if self.seen.get("enable-chunked-prefill") is False and 0 < batched < length:
            self.refuse(
                f"serve.max-num-batched-tokens is {batched}, below max-model-len ({length}); "
                "without enable-chunked-prefill a prompt must fit into one step."
            )

    def mamba(self) -> None:
        """vllm/config/mamba.py and vllm/config/vllm.py, stochastic rounding of the SSM cache."""
        rounding = "enable-mamba-cache-stochastic-rounding"
        if self.has(rounding):
            if self.seen.get("mamba-ssm-cache-dtype") != "float16":
                found = self.seen.get("mamba-ssm-cache-dtype", "not set")
                self.refuse(
                    f"serve.{rounding} rounds a float16 cache, but mamba-ssm-cache-dtype is {found}; set it to float16."
                )
            # The Triton kernel wants compute capability 10.x; GB10 has 12.1.
            if str(self.seen.get("mamba-backend", "triton")).lower() != "flashinfer":
                self.refuse(f"serve.{rounding} needs mamba-backend: flashinfer on GB10.")
        elif self.has("mamba-cache-philox-rounds"):
            self.refuse(f"serve.mamba-cache-philox-rounds does nothing without {rounding}.")
        if (
            self.has("mamba-ssu-algorithm")
            and self.seen["mamba-ssu-algorithm"] != "auto"
            and str(self.seen.get("mamba-backend", "triton")).lower() != "flashinfer"
        ):
            self.refuse("serve.mamba-ssu-algorithm needs mamba-backend: flashinfer.")
        if self.has("mamba-block-size") and self.seen.get("enable-prefix-caching") is False:
            self.refuse("serve.mamba-block-size needs enable-prefix-caching.")

    def speculation(self) -> None:
        """vllm/config/speculative.py."""
        written = self.seen.get("speculative-config")
        if not isinstance(written, Mapping):
            return
        config = {str(key).replace("-", "_"): value for key, value in written.items()}
        method = config.get("method", self.seen.get("spec-method"))
        model = config.get("model", self.seen.get("spec-model"))
        tokens = config.get("num_speculative_tokens", self.seen.get("spec-tokens"))
        where = "serve.speculative-config"
        if method is None and model is None:
            self.refuse(f"{where} names neither a method nor a draft model.")
        if tokens is None and model is None and method not in (None, "suffix"):
            self.refuse(f"{where}: method {method} needs num_speculative_tokens.")
        elif tokens is not None and (not _INTEGER.match(str(tokens)) or int(tokens) < 1):
            self.refuse(f"{where}.num_speculative_tokens must be a whole number of 1 or more, found {_show(tokens)}.")
        if "tensor_parallel_size" in config:
            self.refuse(f"{where}.tensor_parallel_size is refused; the key is draft_tensor_parallel_size.")
        draft, world = config.get("draft_tensor_parallel_size"), self.count("tensor-parallel-size", 1)
        if draft is not None and draft not in (1, world):
            self.refuse(
                f"{where}.draft_tensor_parallel_size is {_show(draft)}; it can be 1 or tensor-parallel-size ({world})."
            )
        if method in _DRAFTED and model is None:
            self.refuse(f"{where}: method {method} needs a draft model under 'model'.")

    def nodes(self) -> None:
        """vllm/config/parallel.py, vllm/engine/arg_utils.py and vllm/entrypoints/cli/serve.py."""
        nodes, rank = self.count("nnodes", 1), self.count("node-rank", 0)
        backend = self.seen.get("distributed-executor-backend")
        spread = self.count("data-parallel-size", 1) > 1
        world = self.count("tensor-parallel-size", 1) * self.count("pipeline-parallel-size", 1)
        world *= self.count("prefill-context-parallel-size", 1)
        if rank >= nodes or rank < 0:
            self.refuse(f"serve.node-rank is {rank}, but nnodes is {nodes}: ranks go from 0 to {nodes - 1}.")
        if nodes > 1:
            if backend == "ray":
                self.refuse(
                    f"serve.nnodes is {nodes}, which is for the native launcher, but "
                    "distributed-executor-backend is ray; keep one of them."
                )
            if not spread and world % nodes:
                self.refuse(
                    f"serve.nnodes is {nodes}, but tensor-parallel-size x pipeline-parallel-size "
                    f"is {world}, which cannot be shared out evenly."
                )
            if "master-addr" not in self.given:
                self.refuse(
                    f"serve.nnodes is {nodes}, but master-addr is not set: every rank would look "
                    "for the head on itself (127.0.0.1)."
                )
            if rank and not self.has("headless") and not spread:
                self.refuse(f"serve.node-rank is {rank}, but headless is not set: only rank 0 has an API.")
        if self.has("headless"):
            if not spread and rank == 0:
                self.refuse("serve.headless is set on rank 0, so the model would have no API at all.")
            if self.count("api-server-count", 0) > 0:
                self.refuse("serve.headless and serve.api-server-count contradict each other.")
        modes = [
            name
            for name in (
                "data-parallel-multi-port-external-lb",
                "data-parallel-external-lb",
                "data-parallel-hybrid-lb",
            )
            if self.has(name)
        ]
        if len(modes) > 1:
            self.refuse(f"serve.{' and serve.'.join(modes)} exclude each other; keep one of them.")
        if self.has("enable-eplb") and not spread and world <= 1:
            self.refuse("serve.enable-eplb balances experts between ranks, but there is only one.")


_DRAFTED = ("custom_class", "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator")
# Option → the option without which vLLM refuses it or it does nothing.
_NEEDS = (
    ("enable-auto-tool-choice", "tool-call-parser"),
    ("tool-parser-plugin", "tool-call-parser"),
    ("reasoning-parser-plugin", "reasoning-parser"),
    ("enable-log-outputs", "enable-log-requests"),
    ("enable-eplb", "enable-expert-parallel"),
    ("numa-bind-nodes", "numa-bind"),
    ("numa-bind-cpus", "numa-bind"),
)
# Option, and the key of a structured option that sets the same.
_TWICE = (
    ("attention-backend", "attention-config", "backend"),
    ("cudagraph-capture-sizes", "compilation-config", "cudagraph_capture_sizes"),
    ("enable-flashinfer-autotune", "kernel-config", "enable_flashinfer_autotune"),
    ("max-cudagraph-capture-size", "compilation-config", "max_cudagraph_capture_size"),
    ("spec-method", "speculative-config", "method"),
    ("spec-model", "speculative-config", "model"),
    ("spec-tokens", "speculative-config", "num_speculative_tokens"),
)
