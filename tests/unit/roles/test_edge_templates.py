# SPDX-License-Identifier: Apache-2.0
"""The proxy's configuration: which paths ask for the key, and what the key's pattern matches."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest

from tests.lint.collection import REPO

TEMPLATES = REPO / "roles/edge/templates"
VALUES: dict[str, Any] = {
    "edge_tls_address": "0.0.0.0",
    "edge_tls_port": 443,
    "edge_api_port": 8000,
    "edge_tls_max_body": "256m",
    "edge_tls_silence_seconds": 3600,
    "edge_tls_paths": ["/v1/", "/health", "/tokenize"],
    "edge_tls_open_paths": ["/health"],
    "edge_tls_api_key": "s3cret.key+/=",
    "_edge_upstream": "127.0.0.1",
}


def render(name: str, **changes: Any) -> str:
    """Return a template of the role with the values of a head."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, autoescape=False)  # fmt: skip
    environment.filters["regex_escape"] = re.escape
    return environment.get_template(name).render({**VALUES, **changes})


def locations(text: str) -> dict[str, str]:
    """Return the body of each location."""
    return dict(re.findall(r"^        location (.*?) \{\n(.*?)^        \}", text, re.MULTILINE | re.DOTALL))


def test_every_path_but_the_open_ones_asks_for_the_key() -> None:
    found = locations(render("nginx.conf.j2"))
    assert list(found) == ["/", "/v1/", "= /health", "= /tokenize"]
    assert {path for path, body in found.items() if "return 401" in body} == {"/v1/", "= /tokenize"}
    assert {path for path, body in found.items() if "proxy_pass" in body} == {"/v1/", "= /health", "= /tokenize"}
    assert "s3cret" not in render("nginx.conf.j2")


def test_without_a_key_the_engine_decides() -> None:
    text = render("nginx.conf.j2", edge_tls_api_key="")
    assert "401" not in text
    assert "key.conf" not in text


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer s3cret.key+/=", True),
        ("bearer s3cret.key+/=", True),
        ("Bearer S3CRET.KEY+/=", False),
        ("Bearer s3cretXkey+/=", False),
        ("Bearer s3cret.key+/=2", False),
        ("Basic Bearer s3cret.key+/=", False),
        ("", False),
    ],
)
def test_the_key(header: str, expected: bool) -> None:
    [pattern] = re.findall(r'^    "~(.*)" 1;$', render("key.conf.j2"), re.MULTILINE)
    assert bool(re.search(pattern, header)) is expected
