"""The text of a model file: every value comes back, every reason stands beside it, and nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import WIDTH, DocumentError, render
from tests.unit.plugins.module_utils.hostile import bounded

CATALOGUE = Path(__file__).parents[4] / "playbooks" / "group_vars"

SPEC: dict[str, Any] = {
    "name": "small",
    "repo": "org/Small",
    "nodes": 1,
    "mods": [],
    "ports": {"api": 8000, "master": 29500},
    "serve": {"max-model-len": 8192, "compilation-config": {"mode": 0, "sizes": [1, 2]}, "trust-remote-code": True},
    "env": {},
    "geometry": {"architecture": "X", "layers": 2, "attention": {"layers": 2, "heads": 4}},
    "notes": ["One sentence: with a colon # and a hash.", "Another."],
}


def read(text: str) -> Any:
    return yaml.safe_load(text)["model_spec"]


def test_the_shape_is_that_of_the_catalogue() -> None:
    text = render(SPEC, {("nodes",): "fits one box", ("serve", "max-model-len"): "config.json"}, ["A small model."])
    assert text == (
        "---\n"
        "# A small model.\n"
        "model_spec:\n"
        "  name: small\n"
        "  repo: org/Small\n"
        "  nodes: 1  # fits one box\n"
        "  mods: []\n"
        "  ports: {api: 8000, master: 29500}\n"
        "\n"
        "  serve:\n"
        "    max-model-len: 8192  # config.json\n"
        "    compilation-config: {mode: 0, sizes: [1, 2]}\n"
        "    trust-remote-code: true\n"
        "  env: {}\n"
        "\n"
        "  geometry:\n"
        "    architecture: X\n"
        "    layers: 2\n"
        "    attention: {layers: 2, heads: 4}\n"
        "  notes: ['One sentence: with a colon # and a hash.', Another.]\n"
    )


def test_a_reason_below_a_value_opens_it() -> None:
    text = render(SPEC, {("geometry", "attention", "heads"): "num_attention_heads", ("notes", "1"): "why"}, [])
    assert "    attention:\n      layers: 2\n      heads: 4  # num_attention_heads\n" in text
    assert "    - Another.  # why\n" in text
    assert read(text) == SPEC


def test_a_reason_too_long_for_the_line_stands_above_it() -> None:
    reason = " ".join(["word"] * 60)
    text = render(SPEC, {("nodes",): reason}, [reason])
    lines = text.splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    number = lines.index("  nodes: 1")
    above = [line for line in lines[4:number] if line.startswith("  # ")]
    assert " ".join(line.strip("# ") for line in above) == reason
    assert read(text) == SPEC


@pytest.mark.parametrize(
    ("path", "after"),
    [
        (("served_name",), "  notes: "),
        (("geometry", "attention", "kv_heads"), "      heads: 4"),
        (("geometry", "moe"), "    attention: {layers: 2, heads: 4}"),
        (("expected", "memory", "0"), "  notes: "),
        (("env", "VLLM_X"), "  notes: "),
        (("notes", "7"), "    - Another."),
    ],
)
def test_what_is_unknown_is_a_marked_comment_where_it_would_stand(path: tuple[str, ...], after: str) -> None:
    lines = render(SPEC, {path: "no source names it"}, []).splitlines()
    marked = [number for number, line in enumerate(lines) if "UNKNOWN" in line]
    assert len(marked) == 1
    assert lines[marked[0]].endswith("no source names it")
    assert path[-1] + ":" in lines[marked[0]]
    assert lines[marked[0] - 1].startswith(after)
    assert read("\n".join(lines)) == SPEC


@pytest.mark.parametrize("text", ["a\nmodel_spec: {}", "a\u2028b: 1", "\x00\x07", "x" * 400])
def test_a_reason_cannot_become_a_value(text: str) -> None:
    assert read(render(SPEC, {("nodes",): text, ("dynamo",): text}, [text])) == SPEC


@pytest.mark.parametrize("value", ["{{ lookup('pipe', 'id') }}", "{% if x %}", "a{# b"])
def test_a_template_is_refused(value: str) -> None:
    for spec in ({"serve": {"chat-template": value}}, {"notes": ["a", value]}, {"env": {value: "1"}}):
        with pytest.raises(DocumentError, match=r"would render as a template"):
            render(spec, {}, [])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"serve": {1: 2}}, "serve has the key 1, but keys must be text"),
        ({"serve": {"x": object()}}, "serve.x is a object, which a model file cannot carry"),
    ],
)
def test_what_is_no_plain_value_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        render(spec, {}, [])


@pytest.mark.parametrize("path", sorted(CATALOGUE.glob("model_*.yml")), ids=lambda path: path.stem)
def test_every_model_of_the_catalogue_comes_back(path: Path) -> None:
    spec = yaml.safe_load(path.read_text("utf-8"))["model_spec"]
    text = render(spec, {}, [])
    assert read(text) == spec
    assert text == render(spec, {}, [])


TEXTS = st.text(max_size=12).filter(lambda text: not any(mark in text for mark in ("{{", "{%", "{#")))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@bounded
@given(
    spec=st.dictionaries(TEXTS, VALUES, max_size=4),
    reasons=st.dictionaries(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), st.text(max_size=20), max_size=4),
    header=st.lists(st.text(max_size=20), max_size=2),
)
def test_every_value_comes_back(spec: dict[str, Any], reasons: dict[tuple[str, ...], str], header: list[str]) -> None:
    keyed: dict[tuple[str, ...], str] = {**reasons, **{(key,): "why" for key in spec}}
    assert read(render(spec, keyed, header)) == spec
