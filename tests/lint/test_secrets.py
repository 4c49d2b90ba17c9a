# SPDX-License-Identifier: Apache-2.0
"""A file that may hold a secret is always a secret: with the new one alone deciding, a diff would show the old one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.lint.collection import REPO

#: Variables whose value nobody else may read.
SECRET = re.compile(r"\b\w*(?:api_key|tls_key|webhook|password|hub_token)\b(?!_\w)")
TEMPLATE = re.compile(r"lookup\('ansible\.builtin\.template', '([\w.-]+)'")


def names_secret(text: str) -> bool:
    """Whether a text prints such a variable; asking whether there is one prints nothing."""
    return SECRET.search(re.sub(r"\{% if .*?%\}", "", text)) is not None


def items(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every file of a YAML document that is written with a content."""
    if isinstance(value, dict):
        if {"path", "content"} <= value.keys():
            yield value
        for each in value.values():
            yield from items(each)
    elif isinstance(value, list):
        for each in value:
            yield from items(each)


def files() -> Iterator[tuple[str, Path, dict[str, Any], str]]:
    """Yield role, file of the role, item, and all of the text that the item's content is made of."""
    for path in sorted(REPO.glob("roles/*/*/*.yml")):
        if path.parent.name in ("tasks", "vars"):
            role = path.parents[1]
            for item in items(yaml.safe_load(path.read_text(encoding="utf-8"))):
                made_of = [(role / "templates" / name).read_text("utf-8") for name in TEMPLATE.findall(item["content"])]
                yield role.name, path, item, "\n".join([item["content"], *made_of])


def test_what_may_hold_a_secret_is_always_one() -> None:
    holding = {item["path"]: item for _role, _path, item, text in files() if names_secret(text)}
    assert len(holding) >= 4
    assert {path: item.get("secret") for path, item in holding.items() if item.get("secret") is not True} == {}


def test_secrecy_depends_on_nothing() -> None:
    found = {item["path"]: item["secret"] for _role, _path, item, _text in files() if "secret" in item}
    assert found
    assert {path: secret for path, secret in found.items() if secret is not True} == {}


def test_a_file_in_an_expression_names_no_secret() -> None:
    """The search above reads what is YAML; a list in a Jinja expression has none."""
    for path in sorted(REPO.glob("roles/*/vars/main.yml")):
        for text in re.findall(r"\{'path': .*?\}", path.read_text(encoding="utf-8"), re.DOTALL):
            made_of = [(path.parents[1] / "templates" / name).read_text("utf-8") for name in TEMPLATE.findall(text)]
            assert not names_secret("\n".join([text, *made_of])), f"{path.parent.parent.name}: {text}"
