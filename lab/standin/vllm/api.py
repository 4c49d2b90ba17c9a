# SPDX-License-Identifier: Apache-2.0
"""The endpoints of an engine that the probe, the bench client and a person ask: their form, not a model's answers."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import STAND_IN
from .metrics import Metrics, Request

WORDS = (f"{STAND_IN} ", "answers: ", "no ", "model ", "was ", "run. ")
"""What every completion consists of, one token a word."""
TOKEN_S = float(os.environ.get("GB10_STANDIN_TOKEN_S", "0"))
"""How long a token takes."""


@dataclass
class Service:
    """What the API answers with.

    silent: a completion is accepted and never answered; health: whether /health is 200; compute:
    whether a completion may be answered, asked before each; say: prints a line of the log.
    """

    names: list[str]
    root: str
    max_model_len: int
    keys: list[str]
    silent: bool
    health: Callable[[], bool]
    compute: Callable[[], bool]
    say: Callable[[str], None]
    metrics: Metrics = field(default_factory=Metrics)

    def models(self) -> dict[str, Any]:
        """Return what /v1/models lists."""
        entry = {"object": "model", "owned_by": STAND_IN, "root": self.root, "max_model_len": self.max_model_len}
        return {"object": "list", "data": [{"id": name, **entry} for name in self.names]}


def text_of(asked: dict[str, Any]) -> str:
    """Return the whole prompt of a completion or of a chat."""
    if "messages" in asked:
        return "".join(str(message.get("content") or "") for message in asked["messages"])
    return str(asked.get("prompt") or "")


def chunks(asked: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
    """Yield the pieces of a streamed answer, one token each, with the running usage."""
    wanted = max(1, int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 16))
    prompt = len(text_of(asked).split())
    head = {"id": f"cmpl-{STAND_IN}", "created": int(time.time()), "model": asked.get("model")}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    for number, word in enumerate(itertools.islice(itertools.cycle(WORDS), wanted), 1):
        piece: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
        piece.update(index=0, finish_reason="length" if number == wanted else None)
        usage = {"prompt_tokens": prompt, "completion_tokens": number, "total_tokens": prompt + number}
        yield {**head, "choices": [piece], "usage": usage}


def paced(asked: dict[str, Any], chat: bool, counted: Request) -> Iterator[dict[str, Any]]:
    """Yield the pieces of an answer as they are computed, each counted."""
    for piece in chunks(asked, chat):
        time.sleep(TOKEN_S)
        counted.token()
        yield piece
    counted.done()


def whole(pieces: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
    """Return the answer that is not streamed."""
    last = pieces[-1]
    parts = [piece["choices"][0] for piece in pieces]
    text = "".join(part["delta"]["content"] if chat else part["text"] for part in parts)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    choice.update({"message": {"role": "assistant", "content": text}} if chat else {"text": text})
    return {**last, "object": "chat.completion" if chat else "text_completion", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Leave the base class's own access log out."""

    def _answer(self, status: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        client = f"{self.client_address[0]}:{self.client_address[1]}"
        self.server.service.say(f'INFO:     {client} - "{self.command} {self.path} HTTP/1.1" {status} OK')

    def _refused(self) -> bool:
        keys = self.server.service.keys
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not keys or given in keys or not self.path.startswith("/v1"):
            return False
        self._answer(401, {"error": "Unauthorized"})
        return True

    def do_GET(self) -> None:
        """Answer /health, /v1/models and /metrics."""
        service = self.server.service
        if self._refused():
            return
        if self.path == "/health":
            self._answer(200 if service.health() else 503, "")
        elif self.path == "/v1/models":
            self._answer(200, service.models())
        elif self.path == "/metrics":
            self._answer(200, service.metrics.text(service.names[0]))
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        """Answer /v1/completions, /v1/chat/completions and /tokenize."""
        service = self.server.service
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._refused():
            return
        try:
            asked = json.loads(body)
        except ValueError:
            self._answer(400, {"error": {"message": "the body is no JSON", "code": 400}})
            return
        chat = self.path == "/v1/chat/completions"
        if self.path == "/tokenize":
            count = len(text_of(asked).split())
            self._answer(200, {"count": count, "max_model_len": service.max_model_len, "tokens": list(range(count))})
        elif not chat and self.path != "/v1/completions":
            self._answer(404, {"detail": "Not Found"})
        elif asked.get("model") not in service.names:
            message = f"The model `{asked.get('model')}` does not exist."
            self._answer(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
        elif not service.silent and not service.compute():
            self._answer(500, {"error": {"message": "EngineCore encountered an issue.", "code": 500}})
        else:
            with service.metrics.request(len(text_of(asked).split())) as counted:
                if service.silent:
                    threading.Event().wait()
                elif asked.get("stream"):
                    self._stream(asked, chat, counted)
                else:
                    self._answer(200, whole(list(paced(asked, chat, counted)), chat))

    def _stream(self, asked: dict[str, Any], chat: bool, counted: Request) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for chunk in paced(asked, chat, counted):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


class Server(ThreadingHTTPServer):
    """The API of one engine."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        super().__init__(address, _Handler)
