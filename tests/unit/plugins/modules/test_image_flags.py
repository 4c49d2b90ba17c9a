# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.image_flags: the table comes out of the image, once an identity; its absence blocks nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.modules import image_flags
from tests.unit.helper import NodeModule, ended

IMAGE = {"Id": "sha256:1", "Architecture": "arm64", "RootFS": {"Layers": ["sha256:a"]}, "Config": {"Env": ["A=1"]}}
FORK = "0.1.dev20051+g487ecf187"
# As `render` of scripts/vllm_flags.py writes it.
TABLE = (
    '{\n  "vllm": "' + FORK + '",\n  "source": "",\n  "options": {\n    "max-num-seqs": {"kind": "int"}\n  },\n'
    '  "env": {\n    "VLLM_OF_A_FORK": {}\n  }\n}\n'
)


def asked(**more: Any) -> dict[str, Any]:
    params = {"tag": "gb10/fork:1", "python": "python3", "script": "print(1)", "docker_args": ["--memory", "8g"]}
    return {**params, "known": "", "vllm_version": "", **more}


def run(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], *, present: bool = True, **more: Any
) -> tuple[dict[str, Any], NodeModule]:
    def answers(argv: list[str]) -> tuple[int, str, str]:
        if argv[1:3] == ["image", "inspect"]:
            return (0, json.dumps([IMAGE]), "") if present else (1, "", "No such image")
        return answer

    node = NodeModule(asked(**more), answers)
    end = ended(image_flags, monkeypatch, node)
    assert not end.failed
    return end.result, node


def test_the_table_is_read_out_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    result, node = run(monkeypatch, (0, f"INFO vLLM starts\n{TABLE}", "a warning"))
    table = result["table"]
    assert (result["changed"], table["vllm"], table["source"]) == (False, FORK, "gb10/fork:1")
    assert (table["options"], table["env"]) == ({"max-num-seqs": {"kind": "int"}}, {"VLLM_OF_A_FORK": {}})
    command = node.calls[-1]
    assert command[:6] == ["docker", "run", "--rm", "--interactive", "--network", "none"]
    assert command[6:8] == ["--memory", "8g"]
    assert command[-5:] == ["--entrypoint", "python3", "gb10/fork:1", "-", "dump"]
    assert node.data[-1] == "print(1)"
    again, node = run(monkeypatch, (1, "", ""), known=table["image"])
    assert (again["table"], len(node.calls)) == ({}, 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((137, "", "Killed"), "exit code 137: Killed"),
        ((1, "", ""), "exit code 1: without output"),
        ((0, "nothing", ""), "it printed no table"),
        ((0, '{\n  "vllm": "1.0.0"}', ""), "its table has no version, options or variables"),
        ((0, '{\n  "vllm": ', ""), "Expecting value"),
    ],
)
def test_an_image_that_gives_no_table_blocks_nothing(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], said: str
) -> None:
    result, node = run(monkeypatch, answer)
    assert result["table"] == {}
    (warning,) = node.warnings
    assert said in warning
    assert "the image itself checks them before the start" in warning


def test_another_version_than_the_recipe_says_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _result, node = run(monkeypatch, (0, TABLE, ""), vllm_version="0.30.0")
    assert node.warnings == [f"gb10/fork:1 has vLLM {FORK}; its recipe says vllm_version 0.30.0."]
    assert run(monkeypatch, (0, TABLE, ""), vllm_version=FORK)[1].warnings == []


def test_an_image_that_is_not_there_yet_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result, node = run(monkeypatch, (0, TABLE, ""), present=False)
    assert (result["table"], len(node.calls)) == ({}, 1)
