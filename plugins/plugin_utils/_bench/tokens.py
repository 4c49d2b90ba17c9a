# SPDX-License-Identifier: Apache-2.0
"""A model's tokenizer on the control node: counts tokens where the server cannot, and is laid out for AIPerf."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2.sandbox

#: Name under which AIPerf finds the tokenizer in its cache.
REPOSITORY = "gb10/tokenizer"
COMMIT = "0" * 40
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


class TokenizerError(RuntimeError):
    """The tokenizer cannot be used; the message has the reason and the remedy."""


@dataclass(frozen=True)
class Counter:
    """Counts the tokens of a prompt.

    :ivar encoder: ``tokenizers.Tokenizer``.
    :ivar template: the chat template; None counts the bare text.
    :ivar given: variables of the template.
    """

    encoder: Any
    template: jinja2.Template | None
    given: Mapping[str, Any]

    def count(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Return how many tokens the messages have, with the chat template where there is one."""
        text = "".join(message["content"] for message in messages)
        if self.template is not None:
            text = self.template.render(messages=messages, add_generation_prompt=True, **self.given)
        return len(self.encoder.encode(text, add_special_tokens=self.template is None).ids)


def _raise(words: str) -> None:
    raise TokenizerError(f"the chat template refuses: {words}")


def chat_template(directory: Path) -> tuple[str, dict[str, Any]]:
    """Return the chat template of a model's directory and the special tokens that it may name.

    :raises TokenizerError: there is none.
    """
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{directory}/tokenizer_config.json cannot be read: {error}.") from error
    file, template = directory / "chat_template.jinja", config.get("chat_template")
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str):
        raise TokenizerError(f"{directory} has no chat template.")
    named = ("bos_token", "eos_token", "unk_token", "pad_token")
    given = {key: config[key] for key in named if config.get(key)}
    return template, {key: each.get("content", "") if isinstance(each, dict) else each for key, each in given.items()}


def load_counter(directory: str, chat: bool, extra: Mapping[str, Any]) -> Counter:
    """Return what counts with the tokenizer of a model's directory.

    :param extra: what is merged into each request; its ``chat_template_kwargs`` reach the template.
    :raises TokenizerError: there is no directory, no tokenizer, no template, or no package tokenizers.
    """
    if not directory:
        raise TokenizerError("set bench_tokenizer to a directory with the model's tokenizer.json.")
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(
            "the control node's Python has no package tokenizers: `pip install tokenizers`."
        ) from error
    file = Path(directory).expanduser() / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(f"{file} does not exist.")
    encoder = tokenizers.Tokenizer.from_file(str(file))
    if not chat:
        return Counter(encoder, None, {})
    text, given = chat_template(file.parent)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return Counter(encoder, environment.from_string(text), {**given, **(extra.get("chat_template_kwargs") or {})})


def hub_cache(directory: Path, home: Path) -> dict[str, str]:
    """Lay a model's tokenizer out as a cache of the hub, and return the environment that makes AIPerf use it.

    AIPerf 0.10 to 0.13 cannot load a tokenizer from a directory in the workers that decode prompts: they pass its path
    to the hub's client, offline.  A cached repository of the name REPOSITORY they do find.
    """
    kept = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    files = kept / "snapshots" / COMMIT
    files.mkdir(parents=True)
    (kept / "refs").mkdir()
    # The hub's client writes the commit without a newline, and compares it so.
    (kept / "refs" / "main").write_text(COMMIT, encoding="ascii")
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix not in WEIGHTS:
            (files / file.name).symlink_to(file.resolve())
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
