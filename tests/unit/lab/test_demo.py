# SPDX-License-Identifier: Apache-2.0
"""The demo's view of the API, against answers as vLLM gives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import requests

from lab import demo, settings
from lab.plan import SubnetPair
from lab.shaping import Rates

MODEL = "lab/tiny-nemotronh"


class Api:
    """A server on a free port that gives prepared answers and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _reply(self, body: Any) -> None:
                api.asked.append((self.path, body))
                text = json.dumps(api.answer).encode()
                self.send_response(api.status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the base class
                """Keep quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    thread = threading.Thread(target=api.server.serve_forever, daemon=True)
    thread.start()
    yield api
    api.server.shutdown()
    api.server.server_close()
    thread.join()


@pytest.fixture
def session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def completion(tokens: int, **message: str | None) -> dict[str, Any]:
    return {
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", **message}}],
        "usage": {"prompt_tokens": 53, "completion_tokens": tokens, "total_tokens": 53 + tokens},
    }


def test_the_served_models_are_listed(api: Api, session: requests.Session) -> None:
    api.answer = {"object": "list", "data": [{"id": MODEL}, {"id": "other"}]}
    assert demo.served_models(session, api.url) == [MODEL, "other"]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Here."},
        {"content": None, "reasoning": "Here."},
        {"content": "", "reasoning_content": "Here."},
    ],
)
def test_an_answer_with_its_tokens(api: Api, session: requests.Session, message: dict[str, str | None]) -> None:
    api.answer = completion(16, **message)
    answer = demo.ask(session, MODEL, "Who?", api.url)
    assert (answer.model, answer.text, answer.prompt_tokens, answer.completion_tokens) == (MODEL, "Here.", 53, 16)
    ((path, body),) = api.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["messages"]) == (MODEL, [{"role": "user", "content": "Who?"}])


def test_an_answer_without_tokens_is_no_answer(api: Api, session: requests.Session) -> None:
    api.answer = completion(0, content="")
    with pytest.raises(demo.DemoError, match="without a token"):
        demo.ask(session, MODEL, "Who?", api.url)


def test_a_refusal_is_shown_in_the_servers_words(api: Api, session: requests.Session) -> None:
    api.status = 404
    api.answer = {"error": {"message": "The model `x` does not exist."}}
    with pytest.raises(demo.DemoError, match=r"status 404.*The model `x` does not exist"):
        demo.ask(session, "x", "Who?", api.url)


def test_a_step_that_fails_is_named() -> None:
    with pytest.raises(demo.DemoError, match=r"`python -m lab.models --no-such-option` ended with exit status 2"):
        demo.run_module("lab.models", "--no-such-option")


class Parts:
    """Stands in for the processes of the lab's modules; `up` goes on until the base is there and the wheels are."""

    def __init__(self, base: Path, up_status: int = 0) -> None:
        self.base = base
        self.up_status = up_status
        self.started: list[tuple[str, ...]] = []

    def start(self, *words: str) -> Any:
        self.started.append(words)
        return Part(self, words)


class Part:
    """One process."""

    def __init__(self, parts: Parts, words: tuple[str, ...]) -> None:
        self.parts = parts
        self.args = ["python", "-m", *words]
        self.polled = 0

    def poll(self) -> int | None:
        self.polled += 1
        if self.parts.up_status:
            return self.parts.up_status
        if self.polled == 3:
            self.parts.base.touch()
        return None

    def wait(self) -> int:
        return self.parts.up_status if self.args[2] == "lab" else 0


@pytest.mark.parametrize(("with_docker", "more"), [(False, ()), (True, ("--with-docker",))])
def test_the_wheels_are_fetched_while_the_nodes_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_docker: bool, more: tuple[str, ...]
) -> None:
    parts = Parts(tmp_path / "base.tar")
    monkeypatch.setattr(demo, "BASE_TAR", parts.base)
    monkeypatch.setattr(demo, "start_module", parts.start)
    demo.prepare_lab(2, with_docker=with_docker)
    up, *beside = parts.started
    assert up == ("lab", "up", "--nodes", "2", "--fabric-rate", "10gbit", "--mgmt-rate", "1gbit", *more)
    assert beside == [("lab.engine_wheels",), ("lab.models",)]
    assert parts.base.exists(), "not before the base is there"


REPO = Path(demo.__file__).parents[1]


@pytest.mark.parametrize("nodes", [4, 5, 8])
def test_four_nodes_and_more_are_the_inventory_of_the_lab(tmp_path: Path, nodes: int) -> None:
    assert demo.write_site(nodes, tmp_path) == "inventories/lab"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("nodes", "members", "model"),
    [
        (1, ["gx10-1"], "tiny-qwen3"),
        (2, ["gx10-1", "gx10-2"], "tiny-nemotronh"),
        (3, ["gx10-1", "gx10-2"], "tiny-qwen3"),
    ],
)
def test_fewer_nodes_serve_both_models_alone(tmp_path: Path, nodes: int, members: list[str], model: str) -> None:
    shutil.copytree(REPO / "inventories/lab", tmp_path / "inventories/lab")
    (tmp_path / ".lab/demo").mkdir(parents=True)
    (tmp_path / ".lab/demo/left.yml").write_text("what a demo before this one left", encoding="utf-8")
    site = demo.write_site(nodes, tmp_path)
    shown = subprocess.run(
        [sys.executable, "-m", "ansible.cli.inventory", "--list", "-i", site, "-e", f"model={model}"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(shown.stdout)
    variables = found["_meta"]["hostvars"]
    assert sorted(variables) == members
    assert found["head"]["hosts"] == ["gx10-1"]
    for of_host in variables.values():
        assert of_host["model_overrides"] == {
            "nodes": len(members),
            "serve": {"tensor-parallel-size": len(members)},
        }
        assert of_host["gb10_lab_dir"].endswith("/../../.lab/lab"), "the group's variables are read"
    assert {path.name for path in (tmp_path / site).iterdir()} == {"hosts.yml", "group_vars", "model.constructed.yml"}


def test_a_lab_that_is_there_keeps_its_size(tmp_path: Path) -> None:
    assert demo.nodes_at_hand(tmp_path) == 0
    subnets = SubnetPair(IPv4Network("10.210.0.0/24"), IPv4Network("10.211.0.0/24"))
    settings.save(settings.Settings("lab", 4, subnets, Rates(None, None), uplink=False), tmp_path)
    assert demo.nodes_at_hand(tmp_path) == 4


def test_a_lab_that_does_not_come_up_is_named_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = Parts(tmp_path / "base.tar", up_status=3)
    monkeypatch.setattr(demo, "BASE_TAR", parts.base)
    monkeypatch.setattr(demo, "start_module", parts.start)
    with pytest.raises(demo.DemoError, match=r"`python -m lab up .*` ended with exit status 3; see above"):
        demo.prepare_lab(2)
    assert len(parts.started) == 1
