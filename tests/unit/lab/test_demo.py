# SPDX-License-Identifier: Apache-2.0
"""The demo's view of the API, against answers as vLLM gives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests

from lab import demo

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
