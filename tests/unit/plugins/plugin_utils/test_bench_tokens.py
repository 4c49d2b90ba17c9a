# SPDX-License-Identifier: Apache-2.0
"""Counting with the tokenizer of a directory, and its layout as a cache of the hub."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import tokens
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (
    BenchError,
    Client,
    Endpoint,
    messages_of,
)

TEMPLATE = (
    "{%- if enable_thinking is defined and not enable_thinking %}<quiet>{% endif %}"
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Words:
    """A tokenizer of one token a word; two more where special tokens are added."""

    def __init__(self, file: str) -> None:
        self.file = file

    @classmethod
    def from_file(cls, file: str) -> Words:
        return cls(file)

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(ids=[*text.split(), *(["<s>", "</s>"] if add_special_tokens else [])])


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Words))
    made = tmp_path / "model"
    made.mkdir()
    (made / "tokenizer.json").write_text("{}")
    (made / "model-1.safetensors").write_text("weights")
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "<begin> "}}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def test_a_prompt_is_counted_with_the_chat_template(directory: Path) -> None:
    assert tokens.load_counter(str(directory), True, {}).count(messages_of("one two")) == 5
    assert tokens.load_counter(str(directory), False, {}).count(messages_of("one two")) == 4


def test_the_requests_own_template_arguments_count(directory: Path) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    assert tokens.load_counter(str(directory), True, extra).template is not None
    said = tokens.load_counter(str(directory), True, extra).template
    assert said is not None
    assert said.render(messages=[], enable_thinking=False).startswith("<quiet>")


def test_a_template_of_its_own_file_comes_first(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("a b c")
    assert tokens.load_counter(str(directory), True, {}).count(messages_of("one two")) == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda at: (at / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
        (lambda at: (at / "tokenizer_config.json").unlink(), "tokenizer_config.json cannot be read"),
        (lambda at: (at / "tokenizer_config.json").write_text("{}"), "has no chat template"),
        (lambda _at: sys.modules.pop("tokenizers"), "has no package tokenizers"),
    ],
)
def test_what_is_missing_is_named(directory: Path, damage: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(directory)
    if "package" in words:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(tokens.TokenizerError, match=words):
        tokens.load_counter(str(directory), True, {})


def test_a_template_that_refuses_says_so(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(tokens.TokenizerError, match="refuses: no system role"):
        tokens.load_counter(str(directory), True, {}).count(messages_of("x"))


def test_the_tokenizer_is_laid_out_without_weights(directory: Path, tmp_path: Path) -> None:
    environment = tokens.hub_cache(directory, tmp_path / "home")
    kept = tmp_path / "home" / "hub" / "models--gb10--tokenizer"
    commit = (kept / "refs" / "main").read_text()
    assert len(commit) == 40
    found = kept / "snapshots" / commit
    assert sorted(each.name for each in found.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert (found / "tokenizer.json").read_text() == "{}"
    assert environment["HF_HOME"] == str(tmp_path / "home")
    assert environment["HF_HUB_OFFLINE"] == "1"


class Frontend(Client):
    """A frontend that answers every question in one way."""

    def __init__(self, status: int, tokenizer: str) -> None:
        super().__init__(Endpoint("http://x", "m", tokenizer=tokenizer), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
        self.status, self.asked = status, 0

    async def _ask(self, method: str, path: str, body: Any = None) -> str:
        self.asked += 1
        raise BenchError(f"{path} answered {self.status}", self.status)


def test_a_frontend_without_tokenize_is_asked_once(directory: Path) -> None:
    client = Frontend(404, str(directory))
    assert [asyncio.run(client.count(text)) for text in ("one", "one two")] == [4, 5]
    assert client.asked == 1


def test_another_failure_is_not_counted_around(directory: Path) -> None:
    with pytest.raises(BenchError, match="answered 500"):
        asyncio.run(Frontend(500, str(directory)).count("one"))


def test_without_a_tokenizer_the_remedy_is_named() -> None:
    with pytest.raises(BenchError, match=r"has no /tokenize, and .* set bench_tokenizer to a directory"):
        asyncio.run(Frontend(404, "").count("one"))
