# SPDX-License-Identifier: Apache-2.0
"""Which table of options serve_args takes for a version of vLLM, a fork or an image, and what the tables hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import (
    mod_files,
    mods,
    serve_environment,
    serve_files,
    serve_names,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError, in_order

PINNED = "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132"
TABLES = serve_files.load_tables()
VERSIONS = in_order(TABLES)


@pytest.mark.parametrize(
    ("version", "table", "note"),
    [
        ("0.22.1", "0.22.1", None),
        ("0.32.0+cpu", "0.32.0+cpu", None),
        (PINNED, "0.22.1", f"vLLM {PINNED} is checked against the table of 0.22.1 (a build on the way to it)"),
        ("0.32.0+cu130", "0.32.0", "vLLM 0.32.0+cu130 is checked against the table of 0.32.0 (the same release)"),
        ("0.33.0+cu130", "0.33.0", "(the same release)"),
        ("0.25.2", "0.25.1", "vLLM 0.25.2 has no table; it is checked against 0.25.1, the nearest below"),
        ("0.40.0", "0.33.0", "vLLM 0.40.0 has no table; it is checked against 0.33.0, the nearest below"),
    ],
)
def test_table_for_a_version(version: str, table: str, note: str | None) -> None:
    found = serve_files.render({"port": 8000}, version, {}, [])
    assert found.table == table
    assert (not found.notes) if note is None else (len(found.notes) == 1 and note in found.notes[0])


def test_tables_of_ones_own_come_first(tmp_path: Any) -> None:
    table = {"vllm": "0.22.1", "source": "", "options": {"only": {"kind": "int"}}, "env": {}}
    (tmp_path / "0.22.1.json").write_text(json.dumps(table), encoding="utf-8")
    found = serve_files.render({"only": 1}, "0.22.1", {}, [], tables_dirs=[str(tmp_path)])
    assert found.args == ["--only", "1"]


def test_a_file_that_is_no_table_is_named(tmp_path: Any) -> None:
    (tmp_path / "x.json").write_text('{"vllm": "1.0"}', encoding="utf-8")
    with pytest.raises(ServeError) as caught:
        serve_files.render({}, "0.22.1", {}, [], tables_dirs=[str(tmp_path), str(tmp_path / "none")])
    assert len(caught.value.errors) == 2
    assert "x.json is no table of options ('options'); make it with scripts/vllm_flags.py." in caught.value.errors[0]
    assert "none holds no table of options (<version>.json)." in caught.value.errors[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_tables_say_what_is_known_of_their_versions(version: str) -> None:
    options, env = TABLES[version]["options"], TABLES[version]["env"]
    assert TABLES[version]["vllm"] == version
    assert "sha256:" in TABLES[version]["source"]
    assert "kv-cache-memory-bytes" in options
    assert "gpu-memory-utilization-gb" not in options
    assert "swap-space" not in options
    assert "super_v3" not in options["reasoning-parser"]["known"]
    assert {"nemotron_v3", "qwen3"} <= set(options["reasoning-parser"]["known"])
    assert "qwen3_coder" in options["tool-call-parser"]["known"]
    assert {"mtp", "qwen3_next_mtp"} <= set(options["speculative-config"]["keys"]["method"])
    old = {"VLLM_NVFP4_GEMM_BACKEND", "VLLM_USE_FLASHINFER_MOE_FP4", "VLLM_FLASHINFER_MOE_BACKEND"}
    assert (old & set(env)) == (old if vllm_version.parse(version).release < (0, 24, 0) else set())
    assert options["gpu-memory-utilization"]["bounds"] == {"gt": 0, "le": 1}
    kinds = {entry["kind"] for entry in options.values()}
    assert kinds == {"flag", "str", "int", "float", "json", "str_or_json", "human_int", "human_int_or_auto"}


def test_what_is_called_gone_is_gone_and_its_replacement_exists() -> None:
    newest = TABLES["0.22.1"]["options"]
    for name, gone in serve_names.GONE_OPTIONS.items():
        assert name not in newest, name
        words = gone.instead.replace(":", " ").split()
        named = [word for word in words if "-" in word]
        assert all(word in newest for word in named), (name, named)
    for name, gone in serve_environment.GONE_ENV.items():
        present = [version for version in VERSIONS if name in TABLES[version]["env"]]
        assert "0.33.0" not in present, name
        for word in (word for word in gone.instead.split() if word.endswith("-backend")):
            assert word in TABLES["0.33.0"]["options"], (name, word)


def test_what_others_call_an_option_is_none_of_vllms_and_means_one() -> None:
    for version in VERSIONS:
        known = serve_names.spellings(TABLES[version]["options"])
        for name, meant in serve_names.MEANT.items():
            assert name not in known, (name, version)
            assert meant in known or vllm_version.parse(version).release < (0, 22, 1), (meant, version)


def test_options_of_shipped_mods_are_in_no_table() -> None:
    """Otherwise a mod has become superfluous, and its option would shadow vLLM's own."""
    for name in mods.providers_of(mod_files.load_mods()):
        for version in VERSIONS:
            assert name not in TABLES[version]["options"], (name, version)


def test_an_image_whose_version_is_not_known_blocks_nothing_that_it_may_have() -> None:
    found = serve_files.render(
        {
            "a-forks-switch": True,
            "a-forks-other": False,
            "a-forks-list": [1, "x"],
            "a-forks-json": {"a": {"b": 1}},
            "load-format": "of-a-fork",
            "speculative-config": {"method": "of-a-fork", "num_speculative_tokens": 3, "a_forks_key": 1},
        },
        "",
        {"VLLM_OF_A_FORK": "1", "VLLM_USE_FLASHINFER_MOE_FP4": "0"},
        [],
    )
    assert found.args == [
        *("--a-forks-switch", "--no-a-forks-other", "--a-forks-list", "1", "x"),
        *("--a-forks-json", '{"a":{"b":1}}', "--load-format", "of-a-fork"),
        *("--speculative-config", '{"method":"of-a-fork","num_speculative_tokens":3,"a_forks_key":1}'),
    ]
    assert found.env == {"VLLM_OF_A_FORK": "1", "VLLM_USE_FLASHINFER_MOE_FP4": "0"}
    assert "The version of vLLM in the image is not known" in found.notes[0]
    for word in ("a-forks-switch", "a-forks-list", "of-a-fork", "a_forks_key", "VLLM_OF_A_FORK", "MOE_FP4"):
        assert any(word in note for note in found.notes[1:]), word


def test_an_image_whose_version_is_not_known_is_still_checked_for_what_every_release_refuses() -> None:
    with pytest.raises(ServeError) as caught:
        serve_files.render(
            {"max-num-seqs": "many", "api-key": "sesame", "a-forks-option": None, "b": ["-x"], "headless": True},
            "",
            {},
            [],
        )
    assert len(caught.value.errors) == 5
    with pytest.raises(ServeError, match="Mods gpu-mem-util-gb are chosen by the version of vLLM"):
        serve_files.render({}, "", {}, ["gpu-mem-util-gb"])


FORK = "0.1.dev20051+g487ecf187"


def test_a_fork_is_compared_with_its_upstream_and_keeps_its_own_options() -> None:
    wanted = {"max-num-seqs": 4, "a-forks-switch": True, "load-format": "of-a-fork"}
    found = serve_files.render(wanted, FORK, {}, [], upstream="0.33.0")
    assert found.args == ["--max-num-seqs", "4", "--a-forks-switch", "--load-format", "of-a-fork"]
    assert found.table == "0.33.0"
    assert f"vLLM {FORK} is a fork of 0.33.0: options are compared with those of 0.33.0" in found.notes[0]
    assert any(f"vLLM {FORK} has no --a-forks-switch" in note for note in found.notes)
    # A fork whose version nobody has written down.
    unnamed = serve_files.render(wanted, "", {}, [], upstream="0.33.0")
    assert unnamed.args == found.args
    assert "vLLM of the image is a fork of 0.33.0" in unnamed.notes[0]
    with pytest.raises(ServeError, match="max-num-seqs"):
        serve_files.render({"max-num-seqs": "many"}, FORK, {}, [], upstream="0.33.0")


def test_a_version_without_a_release_blocks_nothing_that_the_image_may_have() -> None:
    found = serve_files.render({"a-forks-switch": True}, FORK, {}, [])
    assert found.args == ["--a-forks-switch"]
    assert f"The version of vLLM in the image, {FORK}, names no release" in found.notes[0]


def image_table(tmp_path: Path, version: str) -> str:
    table = {**TABLES["0.33.0"], "vllm": version}
    table["options"] = {**table["options"], "a-forks-switch": {"kind": "flag", "off": ["no-a-forks-switch"]}}
    table["env"] = {**table["env"], "VLLM_OF_A_FORK": {}}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("version", "upstream"), [(FORK, "0.33.0"), (FORK, ""), ("0.25.2", ""), ("0.25.2", "0.27.1")])
def test_the_table_of_an_image_leaves_nothing_open(tmp_path: Path, version: str, upstream: str) -> None:
    path = image_table(tmp_path, version)
    found = serve_files.render(
        {"a-forks-switch": False}, "0.1.0", {"VLLM_OF_A_FORK": "1"}, [], upstream=upstream, image_table=path
    )
    assert (found.args, found.notes, found.table) == (["--no-a-forks-switch"], [], version)
    with pytest.raises(ServeError, match=f"vLLM {re.escape(version)} has no --another-forks-switch"):
        serve_files.render({"another-forks-switch": True}, "", {}, [], upstream=upstream, image_table=path)


def test_a_table_of_an_image_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.json")
    assert serve_files.render({}, "0.33.0", {}, [], image_table=absent).table == "0.33.0"
    broken = tmp_path / "broken.json"
    for text in ("{", "[]", '{"vllm": "1"}'):
        broken.write_text(text, encoding="utf-8")
        with pytest.raises(ServeError, match=r"broken.json is no table of options .* playbooks/image.yml reads it"):
            serve_files.render({}, "0.33.0", {}, [], image_table=str(broken))
