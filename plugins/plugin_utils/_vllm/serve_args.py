# SPDX-License-Identifier: Apache-2.0
"""From a model's ``serve`` dictionary to the exact argument list of ``vllm serve``, or to all
that is wrong with it, for one version of vLLM.

The tables of options (``flags/<version>.json``) are read from vLLM itself by
``scripts/vllm_flags.py``; the rules below are those that vLLM applies later, after the parser,
and each names the file that it was read in.  Everything here is pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.mods import ModOption
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import (
    Check,
    ServeError,
    Table,
    in_order,
    in_ranges,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_environment import environment
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_relations import relations
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_values import arguments


@dataclass(frozen=True)
class ServeArgs:
    """What ``vllm serve <model>`` is started with.

    :ivar args: the arguments after the model, in the dictionary's order.
    :ivar table: version of the table that was used.
    """

    args: list[str]
    env: dict[str, str]
    notes: list[str]
    table: str


def render_serve(
    serve: Mapping[str, Any],
    version: str,
    tables: Mapping[str, Table],
    env: Mapping[str, Any] | None = None,
    extra_options: Sequence[ModOption] = (),
    extra_env: Sequence[str] = (),
    extra_parsers: Sequence[str] = (),
    providers: Mapping[str, Sequence[str]] | None = None,
    upstream: str = "",
    own_table: Table | None = None,
) -> ServeArgs:
    """Return the argument list and environment of ``vllm serve``.

    :param serve: long option name without dashes → value. True sets a switch, False turns it
        off, dictionaries and lists become JSON where the option takes JSON, and a list becomes
        several arguments where it takes several.
    :param version: vLLM's version in the image, suffixes included; empty when it is not known: then options are
        compared with the newest table, and what that does not have is noted and left to the image's own vLLM.
    :param env: the model's environment; ``VLLM_*`` names and values are checked.
    :param extra_options: options that the model's mods add.
    :param extra_parsers: reasoning and tool parsers that the model's mods add.
    :param providers: option or variable → names of the mods that would add it.
    :param upstream: the release that a fork is based on: options are compared with that one's table, and what it does
        not have is noted and left to the image's own vLLM.
    :param own_table: the table that the image itself gave; it leaves nothing open.
    :raises ServeError: with everything that is wrong, not only the first thing.
    """
    try:
        basis = basis_of(version, tables, upstream, own_table)
    except (vllm_version.VersionError, ServeError) as problem:
        raise ServeError(getattr(problem, "errors", [str(problem)])) from None
    parsed, name, notes, tables = basis.version, basis.table, basis.notes, basis.tables
    check = Check(
        version=parsed,
        name=name,
        tables=tables,
        options={**tables[name]["options"], **{each.name: _of_mod(each) for each in extra_options}},
        extra={each.name: each for each in extra_options},
        parsers=set(extra_parsers),
        providers=providers or {},
        notes=notes,
        lenient=basis.lenient,
    )
    args = arguments(check, serve)
    variables = environment(check, env or {}, set(extra_env))
    relations(check)
    if check.errors:
        raise ServeError(check.errors)
    return ServeArgs(args=args, env=variables, notes=check.notes, table=name)


@dataclass(frozen=True)
class Basis:
    """What a model's options are compared with.

    :ivar version: of the image; its release is that of the upstream where one is stated, for the rules by release.
    :ivar table: name of the table among ``tables``.
    :ivar tables: the known ones, and that of the image if it gave one.
    :ivar lenient: whether what the table does not have may be there all the same.
    """

    version: vllm_version.VllmVersion
    table: str
    tables: Mapping[str, Table]
    lenient: bool
    notes: list[str]


def basis_of(version: str, tables: Mapping[str, Table], upstream: str, own_table: Table | None) -> Basis:
    """Return what the options of an image are compared with: its own table, its release's, or the nearest known one.

    :raises VersionError: a version cannot be read.
    :raises ServeError: every table is newer than a release.
    """
    text = str(own_table["vllm"]) if own_table else version
    parsed = vllm_version.parse(text) if text else None
    release = vllm_version.parse(upstream) if upstream else parsed
    newest = vllm_version.parse(in_order(tables)[-1])
    open_ = "what it does not have is left to the image's own check before the start."
    # setuptools-scm writes 0.1.dev<n>+g<commit> where a checkout has no tags: that says nothing about the release.
    untagged = release is not None and not release.is_release and release.release <= (0, 1, 0)
    if own_table and parsed:
        known = newest if release is None or untagged else release
        return Basis(replace(known, text=text, local=parsed.local), text, {**tables, text: own_table}, False, [])
    if release is None or untagged:
        which = f"The version of vLLM in the image, {text}, names no release" if untagged else ""
        said = which or "The version of vLLM in the image is not known"
        note = f"{said}: options are compared with those of {newest.text}, and {open_}"
        return Basis(replace(newest, text=text or newest.text), newest.text, tables, True, [note])
    name, notes = choose_table(tables, release)
    if upstream:
        note = f"vLLM {text or 'of the image'} is a fork of {upstream}: options are compared with those of {name}, and "
        return Basis(replace(release, text=text or upstream), name, tables, True, [note + open_])
    return Basis(release, name, tables, False, notes)


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
                f"{in_ranges(tables, tables)}. Take a newer image, or put a table of this "
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


def _of_mod(option: ModOption) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": "flag" if option.kind == "bool" else option.kind}
    if option.choices:
        entry["choices"] = list(option.choices)
    bounds = {"ge": option.minimum, "gt": option.above}
    entry["bounds"] = {key: value for key, value in bounds.items() if value is not None}
    return entry
