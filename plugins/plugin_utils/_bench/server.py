# SPDX-License-Identifier: Apache-2.0
"""A server that does no work: it answers like the API, at times that are known beforehand.

`playbooks/bench.yml` measures its own client with it: what a request to this server takes is the client's share
(with the loopback's and this server's own). It keeps when it received each request and when it sent each token, so
that a measurement can be compared with what really happened, also on a busy machine. It is no engine and no
playbook serves with it.

    python bench_server.py --ttft 0.1 --gap 0.02 --slots 4

prints ``{"port": N}`` and runs until its standard input is closed. One character of a prompt is one token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

MODEL = "bench/zero-work"
MAX_MODEL_LEN = 10_000_000
#: What the chat form adds to a prompt.
TEMPLATE_TOKENS = 7


@dataclass(frozen=True)
class Behaviour:
    """When tokens are sent: the first one ``ttft_s`` after a slot was given, each next one ``gap_s`` later."""

    ttft_s: float = 0.0
    gap_s: float = 0.0
    slots: int = 1_000_000


@dataclass
class Handled:
    """What the server did for one request, on the clock that all processes of the machine share (time.monotonic)."""

    request_id: str
    received_s: float
    sent_s: list[float] = field(default_factory=list)


class ZeroWorkServer:
    """The server itself; `start` returns its port."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.handled: list[Handled] = []
        self._slots = asyncio.Semaphore(behaviour.slots)
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen on a free port of the loopback and return it."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048, limit=2**26)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection can carry another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _version = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _colon, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        asked = json.loads(body) if body else {}
        if method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            await self.complete(asked, headers.get("x-request-id", ""), writer)
            return False
        if path == "/tokenize":
            count = self.count(asked)
            await self._json(writer, {"count": count, "max_model_len": MAX_MODEL_LEN, "tokens": []})
        elif path == "/v1/models":
            await self._json(writer, {"object": "list", "data": [{"id": MODEL, "max_model_len": MAX_MODEL_LEN}]})
        elif path == "/log":
            await self._json(writer, [asdict(each) for each in self.handled])
        else:
            await self._json(writer, {"detail": "Not Found"}, "404 Not Found")
        return True

    @staticmethod
    def count(asked: dict[str, Any]) -> int:
        """Return the tokens of a prompt: one for each character, and those of the chat form."""
        if "messages" in asked:
            return TEMPLATE_TOKENS + sum(len(message["content"]) for message in asked["messages"])
        return len(asked.get("prompt", ""))

    @staticmethod
    async def _json(writer: asyncio.StreamWriter, value: Any, status: str = "200 OK") -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
        """Stream as many tokens as are asked for, then the usage."""
        entry = Handled(request_id, time.monotonic())
        self.handled.append(entry)
        wanted, chat = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16), "messages" in asked
        form = {"object": "chat.completion.chunk" if chat else "text_completion", "model": MODEL}
        async with self._slots:
            due_s = time.monotonic() + self.behaviour.ttft_s
            self.begin(writer)
            for number in range(1, wanted + 1):
                if due_s > time.monotonic():
                    await asyncio.sleep(due_s - time.monotonic())
                piece: dict[str, Any] = {"delta": {"content": "x "}} if chat else {"text": "x "}
                piece.update(index=0, finish_reason="length" if number == wanted else None)
                entry.sent_s.append(time.monotonic())
                await self.event(writer, json.dumps({**form, "choices": [piece]}))
                due_s += self.behaviour.gap_s
        prompt = self.count(asked)
        usage = {"prompt_tokens": prompt, "completion_tokens": wanted, "total_tokens": prompt + wanted}
        await self.event(writer, json.dumps({**form, "choices": [], "usage": usage}))
        await self.event(writer, "[DONE]")

    @staticmethod
    def begin(writer: asyncio.StreamWriter) -> None:
        """Send the head of a streamed answer."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")

    @staticmethod
    async def event(writer: asyncio.StreamWriter, data: str) -> None:
        """Send one event, at once."""
        writer.write(f"data: {data}\n\n".encode())
        await writer.drain()


async def serve_until_closed(behaviour: Behaviour) -> None:
    """Serve until standard input ends, which it does with the process that started this one, however that one ends."""
    server = ZeroWorkServer(behaviour)
    print(json.dumps({"port": await server.start()}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()


def main() -> None:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ttft", type=float, default=0.0, help="seconds from a slot to the first token")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--slots", type=int, default=1_000_000, help="requests answered at the same time")
    given = parser.parse_args()
    asyncio.run(serve_until_closed(Behaviour(given.ttft, given.gap, given.slots)))


if __name__ == "__main__":
    main()
