# SPDX-License-Identifier: Apache-2.0
"""Wrong manifests, patches and lists of mods, each with the whole sentence that it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods

PATCH = "--- a/vllm/x.py\n+++ b/vllm/x.py\n@@ -1 +1 @@\n-a\n+b\n"
WHERE = "mods/thing/manifest.yml"


def good() -> dict[str, Any]:
    return {
        "name": "thing",
        "summary": "s",
        "why": "w",
        "versions": [{"vllm": "==0.22.1", "patch": "p.patch"}],
        "adds": {"options": [{"name": "thing", "type": "int"}]},
        "probe": {"python": "pass"},
    }


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: {each: value for each, value in manifest.items() if each != key}


def with_(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: {**manifest, **changes}


def versions(*entries: Any) -> Callable[[dict[str, Any]], Any]:
    return with_(versions=list(entries))


def option(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return with_(adds={"options": [{"name": "thing", "type": "int", **changes}]})


MANIFESTS = [
    (lambda _unused: None, [f"{WHERE} must hold a dictionary, found nothing."]),
    (lambda _unused: ["a"], [f"{WHERE} must hold a dictionary, found list."]),
    (
        with_(name="Thing"),
        [f"{WHERE}: name 'Thing' must be lower-case letters, digits and dashes; it becomes part of an image label."],
    ),
    (with_(name="other"), [f"{WHERE}: name is 'other', but the directory is 'thing'."]),
    (without("why"), [f"{WHERE}: 'why' is missing."]),
    (with_(summary=" "), [f"{WHERE}: 'summary' must be text, found ' '."]),
    (with_(version=[]), [f"{WHERE}: 'version' is not a known key. Did you mean 'versions'?"]),
    (with_(zzz=1), [f"{WHERE}: 'zzz' is not a known key. Known: name, summary, why, versions, adds, probe."]),
    (
        without("versions"),
        [
            f"{WHERE}: 'versions' must be a list of {{vllm: <specifier>, patch: <file>}} with at least one entry, "
            "found None."
        ],
    ),
    (
        versions("0.22.1"),
        [f"{WHERE}: versions[0] must name a vLLM version as text under 'vllm', found '0.22.1'."],
    ),
    (
        versions({"vllm": 0.22, "patch": "p.patch"}),
        [
            f"{WHERE}: versions[0] must name a vLLM version as text under 'vllm', "
            "found {'vllm': 0.22, 'patch': 'p.patch'}."
        ],
    ),
    (
        versions({"vllm": "newest", "patch": "p.patch"}),
        [
            f"{WHERE}: versions[0].vllm: 'newest' is no vLLM version; expected something like 0.22.1, 0.32.0+cpu or "
            "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132."
        ],
    ),
    (
        versions({"vllm": ">=0.22.*", "patch": "p.patch"}),
        [f"{WHERE}: versions[0].vllm: '>=0.22.*' is no version specifier: '.*' goes with == and !=."],
    ),
    (
        versions({"vllm": "==0.22.1"}),
        [f"{WHERE}: versions[0] says nothing about a patch; write 'patch: null' if none is needed."],
    ),
    (
        versions({"vllm": "==0.22.1", "patch": "q.patch"}),
        [f"{WHERE}: versions[0].patch 'q.patch' does not exist in the mod's directory."],
    ),
    (
        versions({"vllm": "==0.22.1", "patch": "../p.patch"}),
        [f"{WHERE}: versions[0].patch must be a path below the mod's directory, found '../p.patch'."],
    ),
    (
        versions({"vllm": "==0.22.1", "patch": "p.patch"}, {"vllm": "==0.22.1", "patch": None}),
        [f"{WHERE}: versions[1].vllm '==0.22.1' is listed twice."],
    ),
    (
        versions({"vllm": "==0.22.1", "pach": "p.patch", "patch": None}),
        [f"{WHERE}: versions[0]: 'pach' is not a known key. Did you mean 'patch'?"],
    ),
    (with_(adds=[]), [f"{WHERE}: 'adds' must be a dictionary, found []."]),
    (with_(adds={"option": []}), [f"{WHERE}: adds: 'option' is not a known key. Did you mean 'options'?"]),
    (with_(adds={"options": {}}), [f"{WHERE}: adds.options must be a list, found {{}}."]),
    (
        with_(adds={"options": ["thing"]}),
        [f"{WHERE}: adds.options[0] must be a dictionary with name and type, found 'thing'."],
    ),
    (
        option(name="--thing"),
        [f"{WHERE}: adds.options[0].name must be a long option without dashes before it, found '--thing'."],
    ),
    (
        option(type="integer"),
        [f"{WHERE}: adds.options[0].type must be one of bool, float, int, json, str, found 'integer'."],
    ),
    (option(choices="a"), [f"{WHERE}: adds.options[0].choices must be a list, found 'a'."]),
    (option(minimum="1"), [f"{WHERE}: adds.options[0].minimum must be a number, found '1'."]),
    (
        with_(adds={"options": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}),
        [f"{WHERE}: adds.options[1].name 'a' is listed twice."],
    ),
    (with_(adds={"env": ["vllm-x"]}), [f"{WHERE}: adds.env has 'vllm-x', which is no variable name."]),
    (with_(adds={"parsers": "mine"}), [f"{WHERE}: adds.parsers must be a list of names, found 'mine'."]),
    (
        without("probe"),
        [
            f"{WHERE}: 'probe' must be {{python: <code that exits with 0 when the mod is in>}}, found None; "
            "without one nobody can tell whether the patch took effect."
        ],
    ),
    (with_(probe={"python": "1 +"}), [f"{WHERE}: the probe is not Python: invalid syntax (line 1)."]),
    (
        with_(probe={"python": "pass", "shell": "true"}),
        [f"{WHERE}: probe: 'shell' is not a known key. Known: python."],
    ),
]


@pytest.mark.parametrize(("change", "sentences"), MANIFESTS)
def test_manifest(change: Callable[[dict[str, Any]], Any], sentences: list[str]) -> None:
    mod, errors = mods.parse_manifest(change(good()), "thing", {"p.patch": PATCH})
    assert mod is None
    assert errors == sentences


def test_a_manifest_gets_all_its_sentences_at_once() -> None:
    wrong = {"name": "thing", "summary": "", "versions": [{"vllm": "x", "patch": "q.patch"}], "probe": 1}
    mod, errors = mods.parse_manifest(wrong, "thing", {})
    assert mod is None
    assert len(errors) == 5
    assert mods.parse_manifest(good(), "thing", {"p.patch": PATCH})[1] == []


PATCHES = [
    ("", ["is empty"]),
    (
        PATCH.replace("\n", "\r\n"),
        ["has Windows line ends, which reject every hunk; convert it to \\n"],
    ),
    (PATCH.rstrip("\n"), ["does not end with a line feed, so its last hunk is cut off"]),
    (
        "@@ -1 +1 @@\n-a\n+b\n",
        ["names no file ('--- a/...' and '+++ b/...' lines are missing)"],
    ),
    ("--- a/vllm/x.py\n+++ b/vllm/x.py\n", ["has no hunk ('@@ -a,b +c,d @@')"]),
    (PATCH.replace("b/vllm/x.py", "b/../etc/x"), ["would write outside site-packages: '../etc/x'"]),
    (PATCH.replace("b/vllm/x.py", "/etc/x"), ["would write outside site-packages: '/etc/x'"]),
    (
        PATCH.replace("b/vllm/x.py", "b/torch/x.py"),
        [
            "touches 'torch/x.py'; paths are relative to site-packages with a/ and b/ before them, "
            "so the first directory must be vllm"
        ],
    ),
    (
        PATCH.replace("-1 +1", "-1,3 +1,3"),
        ["has a broken hunk at line 3: it announces @@ -1,3 +1,3 @@ and ends early"],
    ),
    (
        PATCH.replace("-1 +1", "-1,2 +1"),
        ["has a broken hunk at line 3: it announces @@ -1,2 +1 @@ and ends early"],
    ),
]


@pytest.mark.parametrize(("text", "sentences"), PATCHES)
def test_patch(text: str, sentences: list[str]) -> None:
    assert mods.patch_errors(text) == sentences
    expected = [f"{WHERE}: versions[0].patch 'p.patch' {sentence}." for sentence in sentences]
    assert mods.parse_manifest(good(), "thing", {"p.patch": text}) == (None, expected)


def known(*names: str, **changes: Any) -> dict[str, mods.Mod]:
    found: dict[str, mods.Mod] = {}
    for name in names:
        mod, errors = mods.parse_manifest({**good(), "name": name, **changes}, name, {"p.patch": PATCH})
        assert mod is not None, errors
        found[name] = mod
    return found


LISTS = [
    (
        ["thnig"],
        "0.22.1",
        known("thing", "other"),
        ["Mod 'thnig' is not known. Did you mean 'thing'? Known: other, thing. A mod is mods/<name>/manifest.yml."],
    ),
    (["x"], "0.22.1", {}, ["Mod 'x' is not known. Known: none. A mod is mods/<name>/manifest.yml."]),
    (["thing", "thing"], "0.22.1", known("thing"), ["Mod 'thing' is listed twice; each patch goes in once."]),
    (
        ["one", "two"],
        "0.22.1",
        known("one", "two"),
        ["Mods 'one' and 'two' both add --thing; keep one of them."],
    ),
    (
        ["thing"],
        "0.23.0",
        known("thing"),
        [
            "Mod 'thing' has no patch for vLLM 0.23.0: it covers ==0.22.1. Rebase the nearest one on that version, "
            "save it as mods/thing/patches/0.23.0.patch and list it in its manifest."
        ],
    ),
    (
        ["thing"],
        "0.22.1",
        known("thing", versions=[{"vllm": ">=0.22", "patch": None}, {"vllm": "<0.30", "patch": None}]),
        ["Mod 'thing' has 2 entries for vLLM 0.22.1 (>=0.22; <0.30); narrow them so that one is left."],
    ),
    (
        ["thing"],
        "latest",
        known("thing"),
        [
            "'latest' is no vLLM version; expected something like 0.22.1, 0.32.0+cpu or "
            "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132."
        ],
    ),
    (
        ["nope", "thing", "thing"],
        "0.23.0",
        known("thing"),
        [
            "Mod 'nope' is not known. Known: thing. A mod is mods/<name>/manifest.yml.",
            "Mod 'thing' has no patch for vLLM 0.23.0: it covers ==0.22.1. Rebase the nearest one on that version, "
            "save it as mods/thing/patches/0.23.0.patch and list it in its manifest.",
            "Mod 'thing' is listed twice; each patch goes in once.",
        ],
    ),
]


@pytest.mark.parametrize(("names", "version", "mods_known", "sentences"), LISTS)
def test_list(names: list[str], version: str, mods_known: dict[str, mods.Mod], sentences: list[str]) -> None:
    with pytest.raises(mods.ModsError) as caught:
        mods.mods_plan(mods_known, names, version)
    assert caught.value.errors == sentences


def test_there_are_enough_of_them() -> None:
    assert len(MANIFESTS) + len(PATCHES) + len(LISTS) >= 45
